"""Files, directories and everything else below one directory, with their metadata.

Each is made by a call that fails where there is something already, and opened by one that follows no symlink at its end.
Without privileges owners stay as they are, and devices and attributes that need them are left out and counted.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from typing import TYPE_CHECKING, Self

from paralayer.errors import SinkError, quote
from paralayer.sinks.window import LARGE, Window
from paralayer.table import CHAR, FIFO, FILE, SYMLINK
from paralayer.tar.names import split

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np

    from paralayer.stream import Stream
    from paralayer.survivors import Batch

_PATH_MAX = 4000  # bytes of a path that one system call takes, with room to spare
_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_HERE = (errno.ENOTSUP, errno.EPERM, errno.ENOSPC, errno.ERANGE, errno.E2BIG)

OWNERS = "owners (only root can give files away)"
DEVICES = "devices (only root can make them)"
XATTRS = "xattrs that may not or cannot be set here"


class Maker:
    """Makes files below the directory `top`. A context manager: errors name the path, below the output `name`."""

    def __init__(self, top: int, name: str, stop: int = 0) -> None:
        self._top = top
        self._window = Window()
        self._stop = stop  # in the stream: what is before it may be read ahead
        self._name = name
        self._path = b""  # at hand, for errors
        self._deep: tuple[bytes, int] | None = (
            None  # a directory too deep for one system call, and its descriptor
        )
        self._privileged = os.geteuid() == 0
        self.lost: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._deep is not None:
            os.close(self._deep[1])
            self._deep = None
        if isinstance(error, OSError):
            raise SinkError(
                f"{self._name}: {quote(self._path)}", error.strerror or "cannot be written"
            ) from None

    def _locate(self, path: bytes) -> tuple[int, bytes]:
        """Return (descriptor of a directory, name from there); the descriptor is good until the next call."""
        self._path = path
        if len(path) < _PATH_MAX:
            return self._top, path
        parent, name = split(path)
        if self._deep is None or self._deep[0] != parent:
            fd = os.dup(self._top)
            while parent:
                head = parent if len(parent) < _PATH_MAX else parent[: parent.rindex(b"/", 0, _PATH_MAX)]
                parent = parent[len(head) + 1 :]
                try:
                    below = os.open(
                        head, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd
                    )
                finally:
                    os.close(fd)
                fd = below
            if self._deep is not None:
                os.close(self._deep[1])
            self._deep = split(path)[0], fd
        return self._deep[1], name

    def make_directory(self, path: bytes) -> None:
        """Make a directory that only we can use, for the time being."""
        parent, name = self._locate(path)
        os.mkdir(name, 0o700, dir_fd=parent)

    def make_file(self, path: bytes, size: int) -> None:
        """Make a file of holes."""
        fd = self.open(path, _CREATE)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def open(self, path: bytes, flags: int) -> int:
        """Open a file, or a directory."""
        parent, name = self._locate(path)
        return os.open(name or b".", flags, 0o600, dir_fd=parent)

    def make_link(self, path: bytes, target: bytes) -> None:
        """Make a hard link."""
        parent, old = self._locate(target)
        parent = os.dup(parent)
        try:
            directory, name = self._locate(path)
            os.link(old, name, src_dir_fd=parent, dst_dir_fd=directory, follow_symlinks=False)
        finally:
            os.close(parent)

    def make_link_to_device(self, path: bytes, target: bytes) -> None:
        """Make a hard link to a device, unless that was left out."""
        try:
            self.make_link(path, target)
        except FileNotFoundError:
            self.lost[DEVICES] += 1

    def make(self, batch: Batch, index: int, stream: Stream) -> None:
        """Make what a row says, whole, with its metadata."""
        path, row = batch.paths[index], batch.rows[index]
        kind = row["kind"]
        if kind == FILE:
            fd = self.open(path, _CREATE)
            try:
                self._fill(fd, batch, index, stream)
                self._dress(fd, batch, index)
            finally:
                os.close(fd)
            return
        parent, name = self._locate(path)
        mode = int(row["mode"])
        if kind == SYMLINK:
            os.symlink(batch.linkname(index), name, dir_fd=parent)
        elif kind == FIFO:
            os.mkfifo(name, mode, dir_fd=parent)
        else:
            try:
                device = os.makedev(int(row["major"]), int(row["minor"]))
                os.mknod(name, mode | (stat.S_IFCHR if kind == CHAR else stat.S_IFBLK), device, dir_fd=parent)
            except PermissionError:
                self.lost[DEVICES] += 1
                return
            except OverflowError:
                raise OSError(errno.EINVAL, "device number too large for Linux") from None
        self._dress_unopened(parent, name, batch, index)

    def finish(self, batch: Batch, index: int) -> None:
        """Give a directory, or a file that is there, its metadata."""
        fd = self.open(batch.paths[index], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._dress(fd, batch, index)
        finally:
            os.close(fd)

    def _fill(self, fd: int, batch: Batch, index: int, stream: Stream) -> None:
        row = batch.rows[index]
        begin, stored = int(row["data"]), int(row["stored"])
        if row["sparse"]:
            for offset, length in batch.extents(index):
                os.lseek(fd, offset, os.SEEK_SET)
                stream.send(fd, begin, begin + length)
                begin += length
            os.ftruncate(fd, int(row["size"]))
        elif stored >= LARGE:
            stream.send(fd, begin, begin + stored)
        elif stored:
            end = begin + stored
            if not self._window.has(begin, end):
                self._window.fill(stream, begin, max(end, self._stop))
            view = self._window.view(begin, end)
            while view:
                view = view[os.write(fd, view) :]

    def _dress(self, fd: int, batch: Batch, index: int) -> None:
        """Set metadata: the owner first, for that clears set-id bits and capabilities, the time last."""
        row = batch.rows[index]
        if self._privileged:
            os.fchown(fd, int(row["uid"]), int(row["gid"]))
        else:
            self._count_owner(row)
        if row["xattrs"]:  # before the mode, which may forbid it
            for key, value in batch.xattrs(index):
                self._set_xattr(fd, key, value, follow=True)
        os.fchmod(fd, int(row["mode"]))
        os.utime(fd, ns=_times(row))

    def _dress_unopened(self, parent: int, name: bytes, batch: Batch, index: int) -> None:
        row = batch.rows[index]
        if self._privileged:
            os.chown(name, int(row["uid"]), int(row["gid"]), dir_fd=parent, follow_symlinks=False)
        else:
            self._count_owner(row)
        if row["kind"] != SYMLINK:
            os.chmod(name, int(row["mode"]), dir_fd=parent)
        if row["xattrs"]:
            place = b"/proc/self/fd/%d/%s" % (parent, name)  # there is no setxattrat(2) before Linux 6.13
            for key, value in batch.xattrs(index):
                self._set_xattr(place, key, value, follow=False)
        os.utime(name, ns=_times(row), dir_fd=parent, follow_symlinks=False)

    def _count_owner(self, row: np.void) -> None:
        if (row["uid"], row["gid"]) != (os.geteuid(), os.getegid()):
            self.lost[OWNERS] += 1

    def _set_xattr(self, place: int | bytes, key: bytes, value: bytes, *, follow: bool) -> None:
        try:
            os.setxattr(place, key, value, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                what = f"{quote(self._path)}: xattr {quote(key)}"
                raise SinkError(self._name, f"{what}: {error.strerror}") from None
            self.lost[XATTRS] += 1


def _times(row: np.void) -> tuple[int, int]:
    time = int(row["mtime"]) * 10**9 + int(row["nsec"])
    return time, time
