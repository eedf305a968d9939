"""Small extents of a stream, read many at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paralayer.stream import Stream

LARGE = 128 << 10
"""Bytes from which on the kernel had better send an extent: that is half the CPU of copying it through a buffer. Below,
one system call for many extents beats one for each."""

_GAP = 64 << 10  # bytes between two extents; to read them costs what another system call does


def reach(begins: NDArray[np.int64], ends: NDArray[np.int64]) -> list[int]:
    """Return for each extent up to where it pays to read when it is read: to the end of those that follow closely."""
    gaps = begins[1:] - ends[:-1]
    last = np.append(np.flatnonzero((gaps < 0) | (gaps > _GAP)), len(ends) - 1)
    stops: list[int] = ends[last[np.searchsorted(last, np.arange(len(ends)))]].tolist()
    return stops


class Window:
    """A part of a stream, in one buffer that is used again and again."""

    SIZE = 1 << 20

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(self.SIZE))
        self._begin = self._end = 0

    def forget(self) -> None:
        """Have nothing: another stream comes."""
        self._begin = self._end = 0

    def has(self, begin: int, end: int) -> bool:
        """Say whether all of a part is in the window."""
        return self._begin <= begin and end <= self._end

    def fill(self, stream: Stream, begin: int, stop: int) -> None:
        """Read from `begin` on as much as fits, but not beyond `stop`; what was viewed before is gone."""
        self._begin, self._end = begin, min(stop, begin + self.SIZE)
        stream.read(self._buffer[: self._end - begin], begin)

    def view(self, begin: int, end: int) -> memoryview:
        """Return a part that the window has; good until the next `fill`."""
        return self._buffer[begin - self._begin : end - self._begin]
