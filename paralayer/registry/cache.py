"""A directory of blobs that processes share.

    DIR/blobs/<algorithm>/<hex>              complete, and of this digest when it got its name
    DIR/blobs/<algorithm>/<hex>.<n>.partial  some bytes of it, each at its offset, and behind them which

Whoever has the lock (flock) on a partial file fetches the blob and gives it its final name, once the digest was
checked. Others that want the same blob meanwhile read what arrives in that file. The lock vanishes with its process,
however that ends, and the next one goes on with what is there.

Behind the last byte of the blob, a partial file has a header (`_HEADER`: magic, size of the blob) and one record
(`_RECORD`: start, stop) for each range, written after the bytes themselves. So a process that is killed loses at most
the bytes of the call of `store` that was interrupted. A partial file of exactly the blob's size has all of it: that is
how it looks just before it is renamed. After a power failure there may be records without their bytes, and complete
files that are not; hence whoever reads a blob checks its digest, and calls `refuse` when that is wrong.

Nothing is ever removed to make room. Any file may be deleted at any time: what is in use stays readable to those who
use it, and is fetched again for the next one. Modes follow the umask and the directory, as those of any program's
output: a cache is shared by users who may write each other's files (a setgid directory, umask 002), who have to trust
each other. A partial file of a user who does not let others write is passed over, for one of the next `n`.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import struct
import threading
from typing import TYPE_CHECKING, Self

from paralayer.image.descriptor import shown
from paralayer.image.source import check_regular, io_errors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from paralayer.image.descriptor import Digest

_HEADER = struct.Struct("<8sQ")
_RECORD = struct.Struct("<QQ")
_MAGIC = b"partial1"
_PLAIN = os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO in the place of a file blocks nobody

Range = tuple[int, int]
"""start, stop"""


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Return the same bytes as the fewest ranges, in order."""
    found: list[Range] = []
    for start, stop in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        elif start < stop:
            found.append((start, stop))
    return found


def missing(present: Iterable[Range], size: int) -> list[Range]:
    """Return what `present`, which is in order and without overlaps, leaves of ``0..size``."""
    ends = [(0, 0), *present, (size, size)]
    return [(stop, start) for (_, stop), (start, _) in itertools.pairwise(ends) if stop < start]


class BlobCache:
    """The cache in `directory`, which is made where it is missing."""

    def __init__(self, directory: str) -> None:
        self._directory = os.path.abspath(directory)
        with io_errors(shown(directory)):
            os.makedirs(self._directory, exist_ok=True)

    def open(self, digest: Digest, size: int) -> CachedBlob:
        """Return what there is of a blob; a complete file of another size is removed. The caller closes it."""
        parent = os.path.join(self._directory, "blobs", digest.algorithm)
        with io_errors(shown(parent)):
            os.makedirs(parent, exist_ok=True)
        return CachedBlob(os.path.join(parent, digest.encoded), size)


class CachedBlob:
    """A blob in the cache, complete or not; a context manager. Only `store` may be called by several threads at once.

    ImageError from any method, if the system refuses.
    """

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        """Of the complete file, be it there or not."""
        self.size = size
        self.complete = False
        """Whether it had its final name, and so the right digest, when it was opened or last looked at."""
        self.mine = False
        """Whether this object has the lock: then what is missing has to be fetched here."""
        self.present: list[Range] = []
        """What was there when it was opened or last looked at, in order."""
        self._partial = ""
        self._fd = -1
        self._seen = 0  # offset of the first record that was not read
        self._end = 0  # offset of the next record that is written
        self._lock = threading.Lock()
        with io_errors(shown(path)):
            self._claim()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> int:
        """Return a descriptor for reading, which the caller closes. Renaming and removing do not change what it reads."""
        with io_errors(shown(self.path)):
            return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    def look(self) -> None:
        """Where another process fetches the blob, see what came, or take its place if it is gone."""
        if self.complete or self.mine:
            return
        with io_errors(shown(self._partial)):
            if not _try_lock(self._fd):
                self._load()
            elif _is(self._fd, self._partial):
                self.mine = True
                self._load()
            elif _is(self._fd, self.path):
                self.complete, self.present = True, [(0, self.size)]
            else:  # refused or deleted by others: what is open stays, without a name
                self.mine = True
                self._load()

    def store(self, offset: int, data: memoryview | bytes) -> None:
        """Write bytes where they belong; what returned survives the end of the process."""
        with io_errors(shown(self._partial)):
            _write(self._fd, data, offset)
            if self.mine:
                with self._lock:
                    _write(self._fd, _RECORD.pack(offset, offset + len(data)), self._end)
                    self._end += _RECORD.size

    def accept(self) -> None:
        """Give the blob its final name: all of it is there, and the digest is right. Only the owner does something."""
        if not self.mine or self.complete:
            return
        with io_errors(shown(self.path)):
            self._load()
            assert not missing(self.present, self.size), "a blob is accepted before it is complete"
            os.ftruncate(self._fd, self.size)
            if _is(self._fd, self._partial):
                os.rename(self._partial, self.path)
            self.complete = True

    def refuse(self) -> None:
        """Remove the blob, whose digest is wrong; it can still be read here."""
        with io_errors(shown(self.path)):
            for path in (self.path,) if self.complete else (self._partial,) if self.mine else ():
                if _is(self._fd, path):
                    os.unlink(path)

    def close(self) -> None:
        """Give up the lock."""
        os.close(self._fd)

    def _claim(self) -> None:
        """Open the complete file, or else the first partial file that may be written, and lock it if that is free."""
        for n in itertools.count():
            self._partial = f"{self.path}.{n}.partial"
            while True:
                if self._open_complete():
                    return
                try:
                    self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | _PLAIN | os.O_NOFOLLOW, 0o666)
                except PermissionError:
                    if not os.path.lexists(self._partial):
                        raise
                    break
                try:
                    check_regular(os.fstat(self._fd), shown(self._partial))
                    self.mine = _try_lock(self._fd)
                    if not self.mine and not os.path.exists(self.path):
                        self._load()
                        return
                    if self.mine and _is(self._fd, self._partial):
                        if not os.path.exists(self.path):  # a link that leads nowhere is replaced at the end
                            self._load()
                            return
                        os.unlink(self._partial)
                except BaseException:
                    os.close(self._fd)
                    raise
                # What was opened was renamed or removed meanwhile, or the complete file came between. A partial file
                # beside the complete one is about to be removed by its owner: who stayed with it would fetch again.
                os.close(self._fd)
                self.mine = False

    def _open_complete(self) -> bool:
        try:
            self._fd = os.open(self.path, os.O_RDONLY | _PLAIN)
        except FileNotFoundError:
            return False
        status = os.fstat(self._fd)
        check_regular(status, shown(self.path))
        if status.st_size == self.size:
            self.complete, self.present = True, [(0, self.size)]
            return True
        if _is(self._fd, self.path):
            os.unlink(self.path)
        os.close(self._fd)
        return False

    def _load(self) -> None:
        """Read the records that came since the last time; the owner of a file without valid ones starts it anew."""
        length = os.fstat(self._fd).st_size
        if length == self.size:
            self.present = [(0, self.size)]
            return
        if not self._seen:
            if os.pread(self._fd, _HEADER.size, self.size) != _HEADER.pack(_MAGIC, self.size):
                if self.mine:
                    self._reset()
                return
            self._seen = self.size + _HEADER.size
        data = os.pread(self._fd, length - self._seen, self._seen) if length > self._seen else b""
        records = list(_RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size]))
        self._seen += len(records) * _RECORD.size
        self._end = self._seen
        self.present = merged([*self.present, *records])
        if self.mine and self.present and self.present[-1][1] > self.size:
            self._reset()

    def _reset(self) -> None:
        os.ftruncate(self._fd, 0)
        _write(self._fd, _HEADER.pack(_MAGIC, self.size), self.size)
        self._seen = self._end = self.size + _HEADER.size
        self.present = []


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(fd: int, path: str) -> bool:
    """Say whether a path names the file that is open."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _write(fd: int, data: memoryview | bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
