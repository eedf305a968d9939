"""A blob that arrives while it is decoded.

One side stores bytes and publishes how many there are from the start; the other one, in another process as a rule,
follows it by two descriptors: of the bytes, and of a little state beside them. Bytes that are published never change.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_STATE = struct.Struct("<QB")  # bytes published; one of the following
_GROWING, _COMPLETE, _ABORTED = 0, 1, 2
_PAGE = os.sysconf("SC_PAGESIZE")
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2


class Growing:
    """The side that stores. `fd` is of the bytes; it is the object's own from now on.

    Without `again` the bytes stay. With it they are freed behind the reader, and it returns the same blob once more,
    from its start, when it is needed a second time. `wake` is called, in the storing thread, when as much is there as
    the reader waits for, and when the blob is complete.
    """

    def __init__(
        self,
        fd: int,
        *,
        size: int | None,
        wake: Callable[[], None],
        again: Callable[[], Growing] | None = None,
    ) -> None:
        self.fd = fd
        self.size = size or 0
        """Bytes, as far as that is known: 0 until the blob is complete, where nothing told it before."""
        self.published = 0
        self.consumed = 0
        self.complete = False
        self.again = again
        self.state_fd = os.memfd_create("growing", os.MFD_CLOEXEC)
        self._wake = wake
        self.wanted: int | None = None
        """The reader waits for what is before this offset."""
        self._followed = False
        self._aborted = False
        self._stores = 0  # going on
        self._changed = threading.Condition()
        self.release = weakref.finalize(self, _close, fd, self.state_fd)
        """Closes the descriptors; at the latest when nobody knows the object any more."""
        self.release.atexit = False  # a conversion may still be going on then
        self._tell()

    # The side that stores

    def store(self, offset: int, data: memoryview | bytes) -> None:
        """Put bytes somewhere behind what is published. OSError if that is not possible."""
        with self._changed:
            if not self.release.alive:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._stores += 1
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(self.fd, view, offset)
                view = view[written:]
                offset += written
        finally:
            with self._changed:
                self._stores -= 1
                self._changed.notify_all()

    def publish(self, upto: int) -> None:
        """Tell that all bytes before `upto` are there."""
        with self._changed:
            self.published = upto
            self._tell()
            self._changed.notify_all()
            come = self.wanted is not None and upto >= self.wanted
            self.wanted = None if come else self.wanted
        if come:
            self._wake()

    def close(self) -> None:
        """Tell that what is published is all of it."""
        with self._changed:
            self.complete = True
            self.size = self.published
            self.wanted = None
            self._tell()
            self._changed.notify_all()
        self._wake()  # also who waits for memory: nobody is held back any more

    def abort(self) -> None:
        """Tell that no more will come; whoever waits here, or for bytes in the middle of something, goes on."""
        with self._changed:
            self._aborted = True
            self._tell()
            self._changed.notify_all()

    def end(self) -> None:
        """Tell the same, and release when nobody stores."""
        self.abort()
        with self._changed:
            self._changed.wait_for(lambda: not self._stores)
            self.release()

    def wait_for_room(self, lead: int) -> bool:
        """Wait while a reader is more than `lead` bytes behind; say whether the bytes are still wanted."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._aborted or not self._followed or self.published - self.consumed <= lead
            )
            return not self._aborted

    # The side that reads

    def follow(self) -> None:
        """Tell that a reader begins."""
        with self._changed:
            self._followed = True
            self.consumed = 0
            self._changed.notify_all()

    def leave(self) -> None:
        """Tell that the reader has ended."""
        with self._changed:
            self._followed, self.wanted = False, None
            self._changed.notify_all()

    def consume(self, upto: int) -> None:
        """Tell that the reader does not need what is before `upto` any more."""
        with self._changed:
            if self.again is not None:
                start, stop = self.consumed // _PAGE * _PAGE, upto // _PAGE * _PAGE
                if stop > start:
                    punch(self.fd, start, stop - start)
            self.consumed = max(self.consumed, upto)
            self._changed.notify_all()

    def want(self, upto: int) -> bool:
        """Say whether all before `upto` is there, or all there is; if not, `wake` is called when it is."""
        with self._changed:
            there = self.complete or self.published >= upto
            self.wanted = None if there else upto
            return there

    def has(self, size: int) -> bool:
        """Say whether it begins with so many bytes, or all there is, that are there now."""
        return not self.spent and (self.complete or self.published >= size)

    @property
    def spent(self) -> bool:
        """Whether it cannot be read from its start any more."""
        return self.again is not None and self.consumed > 0

    @property
    def present(self) -> int:
        """Bytes of memory, if that is where they are kept."""
        return os.fstat(self.fd).st_blocks * 512 if self.again is not None else 0

    def _tell(self) -> None:
        if not self.release.alive:
            return
        state = _ABORTED if self._aborted else _COMPLETE if self.complete else _GROWING
        os.pwrite(self.state_fd, _STATE.pack(self.published, state), 0)


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


def read_state(fd: int) -> tuple[int, bool, bool]:
    """Return how many bytes are published, whether these are all, and whether no more will come."""
    published, state = _STATE.unpack(os.pread(fd, _STATE.size, 0))
    return published, state == _COMPLETE, state == _ABORTED


def _load_fallocate() -> Callable[[int, int, int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int
    return function


_fallocate = _load_fallocate()


def punch(fd: int, offset: int, length: int) -> None:
    """Free a part of a file; its size stays. OSError if that is not possible."""
    if _fallocate(fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
