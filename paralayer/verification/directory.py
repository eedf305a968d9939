"""The tree in a directory. Nothing is followed, and no path is too deep.

Paths that one system call takes are opened from the top; deeper ones from their directory, which is opened in steps.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paralayer.engine.jobs import Finished, Run
from paralayer.errors import ImageError, quote
from paralayer.verification.hashing import JOB_BYTES, JOB_PARTS, Targets, Task, spans_of
from paralayer.verification.tree import (
    NAMESPACES,
    NO_XATTRS,
    PART,
    Abilities,
    Node,
    Tree,
    check_size,
    digest_of_zeros,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from paralayer.verification.tree import Kind, Xattrs

_KINDS: dict[int, Kind] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_PATH_MAX = 4000  # bytes of a path that one system call takes, with room to spare
_JOB_PATHS = 64 << 10  # bytes of all paths of a job
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Span:
    """Parts `first` to `last` (behind it) of the file at `path`, which is from the job's directory and of `size` bytes."""

    path: bytes
    size: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class HashFiles:
    """Job: hash parts of files. Descriptor: of the directory that their paths start from, which `where` names."""

    where: str
    spans: tuple[Span, ...]

    def run(self, fds: Sequence[int]) -> Run:
        """See `Job`."""
        buffer = memoryview(bytearray(PART))
        digests: list[bytes] = []
        for span in self.spans:
            try:
                digests += _hash(fds[0], span, buffer)
            except OSError as error:
                raise ImageError(
                    f"{self.where}: {quote(span.path)}", error.strerror or "cannot be read"
                ) from None
            except EOFError:
                raise ImageError(
                    f"{self.where}: {quote(span.path)}", "was changed while it was read"
                ) from None
        yield Finished(b"".join(digests))


def _hash(top: int, span: Span, buffer: memoryview) -> Iterator[bytes]:
    """Yield the digests of the parts; `EOFError` if the file is shorter, or longer, than it was."""
    fd = os.open(span.path, _FILE, dir_fd=top)
    try:
        if os.fstat(fd).st_size != span.size:
            raise EOFError
        data = 0  # no hole reaches beyond this offset
        for number in range(span.first, span.last):
            offset = number * PART
            length = min(PART, span.size - offset)
            if span.size > PART and data <= offset:
                data = _data_from(fd, offset, span.size)
            if data >= offset + length:
                yield digest_of_zeros(length)
                continue
            digest = hashlib.sha256()
            while length:
                got = os.preadv(fd, [buffer[:length]], offset)
                if not got:
                    raise EOFError
                digest.update(buffer[:got])
                offset += got
                length -= got
            yield digest.digest()
    finally:
        os.close(fd)


def _data_from(fd: int, offset: int, size: int) -> int:
    """Return where the next data is: `offset` itself, or the end of the hole there."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size  # nothing but a hole to the end


class DirectoryTree:
    """Reads the tree at `path`, which `where` names. It keeps the directory open until `close`."""

    def __init__(self, path: str | bytes, where: str, abilities: Abilities | None = None) -> None:
        self._where = where
        self._path = b""  # at hand, for errors
        if abilities is None:
            abilities = Abilities(trusted_xattrs=os.geteuid() == 0)
        self.tree = Tree(abilities)
        self._files: list[tuple[bytes, Node]] = []
        self._inodes: dict[tuple[int, int], Node] = {}
        try:
            self._top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ImageError(where, error.strerror or "cannot be opened") from None

    def close(self) -> None:
        """Close the directory."""
        os.close(self._top)

    @property
    def size(self) -> int:
        """Bytes of all files; complete after `read`."""
        return sum(node.size for _, node in self._files)

    def read(self) -> None:
        """Read everything but contents."""
        try:
            self.tree.nodes[b""] = self._node(self._top, b".", os.fstat(self._top))
            pending = [b""]
            while pending:
                pending += self._read_directory(pending.pop())
        except OSError as error:
            where = f"{self._where}: {quote(self._path)}" if self._path else self._where
            raise ImageError(where, error.strerror or "cannot be read") from None
        self._inodes.clear()

    def _read_directory(self, parent: bytes) -> list[bytes]:
        """Read what is in a directory; return the directories among it."""
        self._path = parent
        directories = []
        fd = self._open_directory(parent)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    path = self._path = parent + b"/" + name if parent else name
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    inode = status.st_dev, status.st_ino
                    node = self._inodes.get(inode) if status.st_nlink > 1 else None
                    if node is not None:
                        node.names += 1
                    else:
                        node = self._node(fd, name, status)
                        if node.kind == "directory":
                            directories.append(path)
                        elif status.st_nlink > 1:
                            self._inodes[inode] = node
                        if node.size:
                            self._files.append((path, node))
                    self.tree.nodes[path] = node
        finally:
            os.close(fd)
        return directories

    def _node(self, parent: int, name: bytes, status: os.stat_result) -> Node:
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        node = Node(kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)
        node.xattrs = _xattrs(parent, name)
        if kind == "file":
            check_size(status.st_size, self._where, self._path)
            node.size = status.st_size
        elif kind == "symlink":
            node.target = os.readlink(name, dir_fd=parent)
        elif kind in ("character device", "block device"):
            node.device = os.major(status.st_rdev), os.minor(status.st_rdev)
        return node

    def tasks(self) -> Iterator[Task]:
        """Yield what is to be done to hash the contents, after `read`."""
        spans: list[Span] = []
        targets: list[tuple[Node, int, int]] = []
        size = count = names = 0

        def task() -> Task:
            return Task(HashFiles(self._where, tuple(spans)), [self._top], Targets(targets), size)

        for path, node in self._files:
            if len(path) >= _PATH_MAX:
                parent, _, name = path.rpartition(b"/")
                for span in _spans(name, node.size):
                    fd = self._open_directory(parent)
                    target = node, span.first, span.last - span.first
                    yield Task(
                        HashFiles(self._where, (span,)), [fd], Targets([target]), _bytes(span), owned=[fd]
                    )
                continue
            for span in _spans(path, node.size):
                parts_of_span = span.last - span.first
                if spans and (
                    size + _bytes(span) > JOB_BYTES or count + parts_of_span > JOB_PARTS or names > _JOB_PATHS
                ):
                    yield task()
                    spans, targets, size, count, names = [], [], 0, 0, 0
                spans.append(span)
                targets.append((node, span.first, parts_of_span))
                size += _bytes(span)
                count += parts_of_span
                names += len(path)
        if spans:
            yield task()

    def _open_directory(self, path: bytes) -> int:
        """Return a descriptor of a directory below the top."""
        fd = os.dup(self._top) if path else os.open(b".", _DIRECTORY, dir_fd=self._top)
        while path:
            head = path if len(path) < _PATH_MAX else path[: path.rindex(b"/", 0, _PATH_MAX)]
            path = path[len(head) + 1 :]
            try:
                below = os.open(head, _DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd


def _spans(path: bytes, size: int) -> Iterator[Span]:
    for first, last in spans_of(size):
        yield Span(path, size, first, last)


def _bytes(span: Span) -> int:
    return min(span.last * PART, span.size) - span.first * PART


def _xattrs(parent: int, name: bytes) -> Xattrs:
    place = b"/proc/self/fd/%d/%s" % (parent, name)  # there is no listxattrat(2) before Linux 6.13
    try:
        names = os.listxattr(place, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        names = []  # a file system without them
    wanted = [key for key in map(os.fsencode, names) if key.startswith(NAMESPACES)]
    return {key: os.getxattr(place, key, follow_symlinks=False) for key in wanted} or NO_XATTRS
