"""An output's name: taken at the end, at once, or never.

Everything is written to a temporary sibling, so the last step is a rename within one file system. Without `replace`
that step refuses to replace what has come there in the meantime. With it, a file is renamed over the old one; a
directory cannot be, so the two are exchanged and the old one is removed. A file that is written here has no name at all
until then, where the file system can do that: nothing stays of it even if this process is killed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from itertools import count
from typing import TYPE_CHECKING

from paralayer.errors import SinkError

if TYPE_CHECKING:
    from collections.abc import Callable

_AT_FDCWD = -100
_SYNC_FILE_RANGE_WRITE = 2
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2


class Output:
    """The output `path`, a file or a directory, and its temporary sibling, `temporary`, which does not exist yet.

    `temporary` is a path by which processes of this one's user find it, until `commit` or `abort`.
    """

    def __init__(self, path: str, *, replace: bool, directory: bool = False) -> None:
        self._replace = replace
        self._exchanged = False
        parent, name = os.path.split(os.path.join(os.getcwd(), path.rstrip("/")))
        if name in {"", ".", ".."} or not path:
            raise SinkError(path or "an empty name", "not the name of an output")
        self.path = os.path.join(parent, name)
        if os.path.lexists(self.path):
            if not replace:
                raise SinkError(path, "exists already (replace it with --force)")
            mode = os.lstat(self.path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise SinkError(path, "is neither a file nor a directory, and is not replaced")
            if mounts := _mounts_below(self.path):
                raise SinkError(path, "has a file system mounted in it, and is not replaced", mounts[0])
            if stat.S_ISDIR(mode) and not directory:
                raise SinkError(path, "is a directory, which is not replaced by a file")
        if not os.path.isdir(parent):
            raise SinkError(path, "its directory does not exist")
        self.temporary = self._sibling = os.path.join(parent, f".paralayer-{os.urandom(8).hex()}")
        self._nameless = -1

    def create(self) -> int:
        """Create the temporary as a file; return a descriptor for reading and writing, open until after `commit`."""
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            self._nameless = os.open(os.path.dirname(self.path), flags | os.O_TMPFILE, 0o666)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            return os.open(self.temporary, flags | os.O_CREAT | os.O_EXCL, 0o666)
        self.temporary = f"/proc/{os.getpid()}/fd/{self._nameless}"
        return self._nameless

    def commit(self) -> None:
        """Give the temporary its name."""
        try:
            replaces = self._replace and os.path.lexists(self.path)
            if self._nameless >= 0:
                _link(self._nameless, self._sibling if replaces else self.path)
                self.temporary = self._sibling
                if not replaces:
                    return
            if replaces:
                self._exchange()
            else:
                _rename(self.temporary, self.path, _RENAME_NOREPLACE)
        except OSError as error:
            raise SinkError(self.path, f"cannot be put in place: {error.strerror}") from None

    def _exchange(self) -> None:
        if _is_directory(self.path) or _is_directory(self.temporary):
            _rename(self.temporary, self.path, _RENAME_EXCHANGE)
            old, self._exchanged = self.temporary, True
            try:
                remove(old)
            except OSError as error:
                what = (
                    f"is in place, but what was there before cannot be removed from {old}: {error.strerror}"
                )
                raise SinkError(self.path, what) from None
        else:
            os.rename(self.temporary, self.path)

    def abort(self) -> None:
        """Remove the temporary, if it is there, and not what was replaced."""
        if not self._exchanged:
            remove(self._sibling)


def start_writeback(fd: int) -> None:
    """Let the kernel begin to write a file's dirty pages to disk, without waiting; a hint, so it cannot fail."""
    ctypes.CDLL(None).sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def write_all(fd: int, data: bytes | bytearray, position: int = 0) -> None:
    """Write all of `data` at `position`."""
    with memoryview(data) as view:
        at = 0
        while at < len(view):
            at += os.pwrite(fd, view[at:], position + at)


def remove(path: str) -> None:
    """Remove a file, or a directory with everything in it, whatever its modes are. Nothing there is fine.

    Trees can be deeper than any recursion or path goes, so directories are moved to the top before they are emptied.
    """
    if not _is_directory(path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        return
    os.chmod(path, 0o700)
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        serial = count()
        prefix = os.fsencode(f".remove-{os.urandom(8).hex()}-")
        pending = _empty(top, lambda name: name)
        while pending:
            name = pending.pop()
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
            try:

                def move(child: bytes, parent: int = fd) -> bytes:
                    moved = prefix + b"%d" % next(serial)
                    os.rename(child, moved, src_dir_fd=parent, dst_dir_fd=top)
                    return moved

                pending += _empty(fd, move)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)


def _empty(directory: int, move: Callable[[bytes], bytes]) -> list[bytes]:
    """Remove the files in a directory, make its directories accessible and move them; return their new names."""
    moved = []
    for name in os.listdir(directory):
        raw = os.fsencode(name)
        if stat.S_ISDIR(os.stat(raw, dir_fd=directory, follow_symlinks=False).st_mode):
            os.chmod(raw, 0o700, dir_fd=directory)
            moved.append(move(raw))
        else:
            os.unlink(raw, dir_fd=directory)
    return moved


def _mounts_below(path: str) -> list[str]:
    """Return what is mounted at a path or below it. Source: proc_pid_mountinfo(5); blanks in names are octal there."""
    top = os.path.realpath(path)
    with open("/proc/self/mountinfo", "rb") as file:
        points = [
            os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split(b" ")[4]))
            for line in file
        ]
    return [point for point in points if f"{point}/".startswith(f"{top}/")]


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _link(fd: int, path: str) -> None:
    """Give a file without a name one. Source: open(2), O_TMPFILE."""
    top = os.open("/", os.O_PATH | os.O_CLOEXEC)  # with a descriptor, Python lets the kernel follow the link
    try:
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=top, dst_dir_fd=top, follow_symlinks=True)
    finally:
        os.close(top)


def _rename(old: str, new: str, flags: int) -> None:
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    if renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
        code = ctypes.get_errno()
        if code == errno.EINVAL and flags == _RENAME_NOREPLACE and not os.path.lexists(new):
            os.rename(old, new)  # a file system without the flag, such as NFS
            return
        raise OSError(code, os.strerror(code))
