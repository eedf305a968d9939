"""Squashfs by mksquashfs: the flat tar as a stream into a process.

mksquashfs 4.5 and newer reads a tar, and what a tar cannot tell it is said by options:

- It skips the tar's entry for the root, so the root's metadata are options. Before 4.6 it takes of them only the mode
  when it reads a tar; there a second run appends nothing to the finished image, which rewrites the root's inode, at
  the cost of the metadata. (It dies if a value of more than 128 bytes is in several sets of extended attributes; that
  is an error then.) The root's extended attributes need 4.6.
- It takes whole seconds of 32 bits, so times come clamped. Its symlinks always have mode 0777.
- SOURCE_DATE_EPOCH would be a second opinion on times, which it refuses; it does not get to see it.
- When it looks for duplicates, it mixes up files that have data blocks and a tail end in a fragment: it knows them again
  by where their blocks start, which a file of holes shares with what comes next (seen up to 4.6.1), and takes the first
  partial match of a file for any other (seen up to 4.7.5). So tail ends of files that have blocks, which it packs into
  fragments whenever it reads a tar, get blocks of their own: that is 0.4 % of the output for 1 GB of /usr, where not to
  look for duplicates is 5.5 %. Without that look they stay in fragments.
- So they do where its own list of changes says that packing them damages the output: in 4.6; and holes are off from 4.7
  to 4.7.4.

The process is in a group of its own, so that an interrupt from the terminal comes to us alone, and it never lives
longer than the sink. If our process is killed outright, the stream ends: it stops soon, and what it wrote has no more
than its temporary name. Nothing else may hold the stream's end: the process starts with the root, when workers are
already there.
"""

from __future__ import annotations

import base64
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paralayer.errors import SinkError, quote
from paralayer.sinks.output import Output
from paralayer.sinks.squashfs.options import TIMES
from paralayer.sinks.tar import TarSink
from paralayer.survivors import Batch, Rules
from paralayer.table import BLOCK, CHAR, SYMLINK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from paralayer.sinks.sink import Placed, SinkJob
    from paralayer.sinks.squashfs.options import Options
    from paralayer.stream import Stream

DEFAULT = "mksquashfs"
_OTHERWISE = "the default engine (--engine paralayer)"

_OLDEST = (4, 5)
_WHOLE_TARGETS = (4, 6)  # before, a leading /, ./ or ../ of a PAX linkpath is skipped
_USTAR_TARGET = 100  # bytes
_ROOT_OPTIONS = (4, 6)  # from here on -root-uid, -root-gid, -root-time and xattrs are for a tar's root, too
_LONG_HELP = (4, 7)
_BAD_TAIL_ENDS = {(4, 6)}
_BAD_HOLES = {(4, 7), (4, 7, 1), (4, 7, 2), (4, 7, 3), (4, 7, 4)}

_NAMESPACES = (b"user.", b"trusted.", b"security.")
_XATTR_MAX = 1 << 16  # bytes of a value: Linux's limit, and as base64 within that of an argument
_TIME_MAX = (1 << 32) - 1
_MAJOR_MAX, _MINOR_MAX = (1 << 12) - 1, (1 << 20) - 1
_MEMORY_MIN = 64 << 20
_MEMORY_PER_BLOCK = 4  # bytes for each byte of a processor's block: its check_min_memory, since 4.7
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_IGNORED_HERE = (signal.SIGPIPE, signal.SIGXFSZ)  # by Python
_NOISE = "Unrecognised keyword"  # hdrcharset, which it does without
_LOG_MAX = 1 << 16
_MAGIC = b"hsqs"
_ANSWER_SECONDS = 10  # for its version
_ENDING_SECONDS = 2  # from leaving the pipe until it has ended
_MESSAGE_LINES = 3

NAMESPACES = "xattrs that are not user, trusted or security"
ROOT_XATTRS = "xattrs of the root that mksquashfs cannot be told"


@dataclass(frozen=True, slots=True)
class Mksquashfs:
    """An installed mksquashfs, and what it can do."""

    path: str
    version: tuple[int, ...]
    compressors: frozenset[str]

    @property
    def version_text(self) -> str:
        """As it prints it."""
        return ".".join(map(str, self.version))


def find_mksquashfs(command: str = DEFAULT) -> Mksquashfs:
    """Look for mksquashfs and ask for its version; `command` is a path or a name to be found in PATH."""
    path = shutil.which(command)
    if path is None:
        raise SinkError(command, f"not found: install squashfs-tools, or use {_OTHERWISE}")
    printed = _ask(path, "-version")
    match = re.search(r"mksquashfs version (\d+(?:\.\d+)*)", printed)
    if match is None:
        raise SinkError(path, "not mksquashfs, going by its -version", repr(printed[:80]))
    version = tuple(map(int, match[1].split(".")))
    if version < _OLDEST:
        raise SinkError(path, "too old to read a tar", match[1], f"4.5 or newer, or {_OTHERWISE}")
    listed = re.search(
        r"Compressors available:\n((?:\s+\w+(?: \(default\))?\n)+)",
        _ask(path, "-help-all" if version >= _LONG_HELP else "-help"),
    )
    if listed is None:
        raise SinkError(path, "does not say which compressors it has")
    return Mksquashfs(path, version, frozenset(re.findall(r"^\s+(\w+)", listed[1], re.MULTILINE)))


class MksquashfsSink:
    """See the module; `path` is the output's name.

    mksquashfs gets as many processors as there are `jobs`, and `memory`, in bytes, for its queues.
    """

    ordered = True
    root_first = True
    can_restart = False
    held = 0

    def __init__(
        self, path: str, tool: Mksquashfs, options: Options, *, jobs: int, memory: int, replace: bool = False
    ) -> None:
        name = "gzip" if options.compression.name == "none" else options.compression.name
        if name not in tool.compressors:
            raise SinkError(
                tool.path, "built without this compressor", name, ", ".join(sorted(tool.compressors))
            )
        self.lost: Counter[str] = Counter()
        self.written = 0
        self._name = path
        self._tool = tool
        self._options = options
        self._jobs = jobs
        self._queues = memory
        self._output = Output(path, replace=replace)
        self.temporary = self._output.temporary
        self._log: _Log | None = None
        self._root: list[str] = []
        self._tar: TarSink | None = None
        self._pid: int | None = None

    def restart(self) -> None:
        """See `Sink`; what mksquashfs has read it has read."""
        raise AssertionError("what is in a pipe cannot be taken back")

    def root(self, batch: Batch, *, explicit: bool) -> None:
        """See `Sink`."""
        del explicit
        batch = self._fitting(batch)
        row = batch.rows[0]
        self._root = ["-root-mode", f"{row['mode']:o}", "-root-time", str(row["mtime"])]
        self._root += ["-root-uid", str(row["uid"]), "-root-gid", str(row["gid"])]
        xattrs: list[str | bytes] = []
        for name, value in batch.xattrs(0):
            if self._tool.version >= _ROOT_OPTIONS and 0 < len(value) <= _XATTR_MAX:
                xattrs += ["-p", b"/ x %s=0s%s" % (name, base64.b64encode(value))]
            else:
                self.lost[ROOT_XATTRS] += 1
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            self._tar = TarSink(None, fd=writing)
            self._start(["-tar", "-noappend", *self._settings(), *self._root, *xattrs], reading)
        finally:
            os.close(reading)
            os.close(writing)

    def place(self, batch: Batch) -> Placed:
        """See `Sink`."""
        assert self._tar is not None
        self._check_targets(batch)
        return self._tar.place(self._fitting(batch))

    def _check_targets(self, batch: Batch) -> None:
        """Refuse what mksquashfs before 4.6 would cut: the beginning of a target that is too long for a ustar header."""
        if self._tool.version >= _WHOLE_TARGETS:
            return
        for index in np.flatnonzero(batch.rows["kind"] == SYMLINK).tolist():
            target = batch.linkname(index)
            if len(target) > _USTAR_TARGET and target.startswith((b"/", b"./", b"../")):
                what = f"{quote(batch.paths[index])}: a symlink's target of {len(target)} bytes would be changed by"
                raise SinkError(
                    self._name,
                    f"{what} mksquashfs {self._tool.version_text}",
                    want="4.6, or --engine paralayer",
                )

    def take(self, placed: Placed, stream: Stream | None, upto: int, *, spare: bool) -> Sequence[SinkJob]:
        """See `Sink`."""
        assert self._tar is not None
        with self._telling_why():
            return self._tar.take(placed, stream, upto, spare=spare)

    def finished(self, job: SinkJob, result: Any) -> Sequence[SinkJob]:
        """See `Sink`; there are no jobs."""
        raise AssertionError("there are no jobs", job, result)

    def links(self, links: Sequence[tuple[bytes, bytes]]) -> None:
        """See `Sink`."""
        assert self._tar is not None
        with self._telling_why():
            self._tar.links(links)

    def complete(self) -> None:
        """See `Sink`."""
        assert self._tar is not None
        with self._telling_why():
            self._tar.complete()
        self._close_tar()
        self._wait()
        if self._tool.version < _ROOT_OPTIONS:
            self._append_nothing()
        assert self._log is not None
        self._log.end()  # a process that has threads forks no workers, and the output may be verified now
        try:
            fd = os.open(self._output.temporary, os.O_RDONLY | os.O_CLOEXEC)
            try:
                begin = os.pread(fd, len(_MAGIC), 0)
                os.fsync(fd)
                self.written = os.fstat(fd).st_size
            finally:
                os.close(fd)
        except FileNotFoundError:
            raise SinkError(self._name, "mksquashfs: ended without an error, and made nothing") from None
        except OSError as error:
            raise SinkError(self._name, error.strerror or "cannot be written") from None
        if begin != _MAGIC:
            what = "mksquashfs: ended without an error, but what it made does not begin as a squashfs"
            raise SinkError(self._name, what, repr(begin), repr(_MAGIC))

    def commit(self) -> None:
        """See `Sink`."""
        self._output.commit()

    def abort(self) -> None:
        """See `Sink`."""
        if self._pid is not None:
            self._kill()
        self._output.abort()

    def close(self) -> None:
        """Close what is open."""
        self._close_tar()
        if self._log is not None:
            self._log.close()

    def _close_tar(self) -> None:
        if self._tar is not None:
            tar, self._tar = self._tar, None
            tar.close()

    def _settings(self) -> list[str]:
        options, version = self._options, self._tool.version
        compression = options.compression
        settings = ["-b", str(options.block_size)]
        if compression.name == "none":
            settings += ["-comp", "gzip", "-noI", "-noD", "-noF", "-noX"]
        else:
            settings += ["-comp", compression.name]
        if compression.level is not None:
            settings += ["-Xcompression-level", str(compression.level)]
        settings.append("-exports" if options.exports else "-no-exports")
        if not options.fragments:
            settings.append("-no-fragments")
        elif options.dedup or version in _BAD_TAIL_ENDS:
            settings.append("-no-tailends")
        else:
            settings.append("-tailends")
        if version in _BAD_HOLES:
            settings.append("-no-sparse")
        if not options.dedup:
            settings.append("-no-duplicates")
        return settings

    def _fitting(self, batch: Batch) -> Batch:
        """Return a batch that mksquashfs can read and a squashfs can hold."""
        rows = batch.rows.copy()
        devices = (rows["kind"] == CHAR) | (rows["kind"] == BLOCK)
        large = devices & ((rows["major"] > _MAJOR_MAX) | (rows["minor"] > _MINOR_MAX))
        for index in np.flatnonzero(large)[:1].tolist():
            numbers = f"{rows['major'][index]}, {rows['minor'][index]}"
            wanted = f"at most {_MAJOR_MAX}, {_MINOR_MAX}"
            raise SinkError(self._name, f"{quote(batch.paths[index])}: device number", numbers, wanted)
        seconds = rows["mtime"]
        odd = int(np.count_nonzero((seconds < 0) | (seconds > _TIME_MAX)))
        if odd:
            self.lost[TIMES] += odd
        np.clip(seconds, 0, _TIME_MAX, out=seconds)
        rows["nsec"] = 0
        rules = Rules(batch.rules.newest, self.lost)
        return _Fitting(batch.layer, rows, batch.paths, batch.tables, rules)

    def _append_nothing(self) -> None:
        """Let mksquashfs rewrite the root's inode."""
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._start(["-cpiostyle", "-no-recovery", *self._root], null)
            self._wait()
        except SinkError as error:
            what = f"mksquashfs {self._tool.version_text} cannot set the root's metadata: {error.what}"
            raise SinkError(self._name, what, error.got, f"4.6 or newer, or {_OTHERWISE}") from None
        finally:
            os.close(null)

    # The process

    def _start(self, arguments: Sequence[str | bytes], stdin: int) -> None:
        options = self._options
        command: list[str | bytes] = [self._tool.path, "-", self._output.temporary, *arguments]
        command += ["-mkfs-time", str(options.time), "-processors", str(self._jobs)]
        command += ["-mem", str(self._memory()), "-quiet", "-no-progress"]
        if not options.pad:
            command.append("-nopad")
        # Until we know whom to kill; and for good in the log's thread, so that signals come to this one.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            if self._log is None:
                self._log = _Log()
            self._pid = os.posix_spawn(
                self._tool.path,
                command,
                _environment(),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, stdin, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, self._log.theirs, 2),
                ],
                setpgroup=0,
                setsigmask=before,
                setsigdef=_IGNORED_HERE,
            )
        except OSError as error:
            raise SinkError(self._tool.path, error.strerror or "cannot be started") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _memory(self) -> int:
        """Return how much memory it gets, in bytes; it refuses too little, and three quarters of the machine's."""
        least = max(_MEMORY_MIN, _MEMORY_PER_BLOCK * self._jobs * self._options.block_size)
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min(max(self._queues, least), physical // 2)

    def _wait(self) -> None:
        """Wait for the end of the process; raise what it has to say if it failed."""
        status = self._reap()
        if status != 0:
            raise self._failure(status)

    def _reap(self) -> int | None:
        """Wait for the end of the process; return its exit status, negative for a signal.

        None: the program around us reaps all children, and so nobody can say.
        """
        assert self._pid is not None
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        except ChildProcessError:
            status = None
        self._pid = None
        return status

    def _kill(self) -> None:
        """Make an end of the process."""
        assert self._pid is not None
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self._reap()

    def _ends(self) -> bool:
        """Say whether the process ends by itself: one that does has left the pipe a moment before."""
        assert self._pid is not None
        try:
            fd = os.pidfd_open(self._pid)
        except ProcessLookupError:
            return True
        try:
            ended = select.poll()
            ended.register(fd, select.POLLIN)
            return bool(ended.poll(_ENDING_SECONDS * 1000))
        finally:
            os.close(fd)

    @contextmanager
    def _telling_why(self) -> Iterator[None]:
        """Raise what the process has to say instead of an error of the pipe."""
        try:
            yield
        except SinkError:
            if self._ends():
                raise self._failure(self._reap()) from None
            self._kill()
            said = self._last_words()
            what = "mksquashfs: stopped reading, and did not end"
            raise SinkError(self._name, f"{what}: {said}" if said else what) from None

    def _failure(self, status: int | None) -> SinkError:
        what = self._last_words() or "ended before it had done everything"
        if status is None:
            got = "no exit status: somebody else took it"
        else:
            got = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return SinkError(self._name, f"mksquashfs: {what}", got)

    def _last_words(self) -> str:
        assert self._log is not None
        lines = [quote(line.strip()) for line in self._log.end().split(b"\n")]
        return "; ".join([line for line in lines if line and not line.startswith(_NOISE)][-_MESSAGE_LINES:])


class _Log:
    """The last that a process says.

    A thread listens: a file would take whatever comes, and a pipe that nobody reads would stop the process. It is a
    socket, since that has an end for us even while some descendant of the process holds it.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self.theirs = self._theirs.fileno()
        self._said = bytearray()
        self._cut = False
        self._thread = threading.Thread(target=self._listen, name="mksquashfs", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while more := self._ours.recv(_LOG_MAX):
            self._said += more
            if len(self._said) > 2 * _LOG_MAX:  # not each time: moving it costs more than reading
                del self._said[:-_LOG_MAX]
                self._cut = True

    def end(self) -> bytes:
        """Return what was said last, in whole lines; nobody listens any more."""
        self._ours.shutdown(socket.SHUT_RD)  # what is there already still comes
        self._thread.join()
        return bytes(self._said.partition(b"\n")[2] if self._cut else self._said)

    def close(self) -> None:
        """End, and close what is open."""
        self.end()
        self._ours.close()
        self._theirs.close()


class _Fitting(Batch):
    """A batch without the extended attributes that squashfs cannot hold."""

    def xattrs(self, index: int) -> list[tuple[bytes, bytes]]:
        """See `Batch`."""
        found = super().xattrs(index)
        kept = [
            (name, value) for name, value in found if name.startswith(_NAMESPACES) and name not in _NAMESPACES
        ]
        if len(kept) < len(found):
            self.rules.dropped[NAMESPACES] += len(found) - len(kept)
        return kept


def _ask(path: str, question: str) -> str:
    """Return what a program prints, whatever its exit status is."""
    command = [path, question]
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(),
            timeout=_ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise SinkError(path, f"no answer to {question} in {_ANSWER_SECONDS} seconds") from None
    except OSError as error:
        raise SinkError(path, error.strerror or "cannot be started") from None
    return done.stdout.decode("utf-8", "replace")


def _environment() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
