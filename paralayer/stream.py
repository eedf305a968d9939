"""The decoded bytes of a layer, and where they are: in slots of one memfd, which all layers share.

A worker writes a layer's stream forward and never reads it; everybody else reads and never writes. So no lock is needed:
bytes are handed over by the message that announces them. A slot that was released is mostly another layer's soon: pages
that are there, and in the caches, take what is written to them at a quarter of the CPU of fresh ones (800 MB in chunks:
0.15 s against 0.6). So nothing may read a part of a stream that has been released.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True)
class Slots:
    """Which slots, of `size` bytes each, a part of a stream is in; a value that crosses to another process."""

    size: int
    first: int = 0
    """Which of the stream's slots the first of these is."""
    numbers: bytes = b""
    """Of the slots in the memfd, unsigned integers."""


class Stream:
    """A part of a layer's decoded bytes, in the memfd `fd`, which stays the caller's.

    Offsets are in the layer's stream. Nothing looks whether a part is there.
    """

    def __init__(self, fd: int, slots: Slots) -> None:
        self.fd = fd
        self._size = slots.size
        self._first = slots.first
        self._numbers = array("I", slots.numbers)

    @property
    def granted(self) -> int:
        """Where the last slot ends."""
        return (self._first + len(self._numbers)) * self._size

    def add(self, numbers: Iterable[int]) -> None:
        """Go on in more slots."""
        self._numbers.extend(numbers)

    def slots(self, begin: int, end: int) -> Slots:
        """Return the slots that a part is in."""
        first = max(begin // self._size, self._first)
        stop = max(first, -(-end // self._size))
        numbers = self._numbers[first - self._first : stop - self._first]
        return Slots(self._size, first, numbers.tobytes())

    def pieces(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the pieces of a part: offset in the memfd, length."""
        while begin < end:
            offset, length = self._locate(begin, end)
            yield offset, length
            begin += length

    def _locate(self, begin: int, end: int) -> tuple[int, int]:
        """Return where a part begins in the memfd, and how much of it follows there."""
        number, inside = divmod(begin, self._size)
        return self._numbers[number - self._first] * self._size + inside, min(
            end - begin, self._size - inside
        )

    def write(self, data: memoryview, begin: int) -> None:
        """Write bytes where they belong."""
        while data:
            offset, length = self._locate(begin, begin + len(data))
            written = os.pwrite(self.fd, data[:length], offset)
            begin += written
            data = data[written:]

    def read(self, buffer: memoryview, begin: int) -> None:
        """Fill the buffer with what is from `begin` on."""
        while buffer:
            offset, length = self._locate(begin, begin + len(buffer))
            got = os.preadv(self.fd, [buffer[:length]], offset)
            assert got, "what was announced is there"
            begin += got
            buffer = buffer[got:]

    def send(self, output: int, begin: int, end: int) -> None:
        """Let the kernel write a part to a regular file, where that is; OSError as sendfile(2) has it."""
        while begin < end:
            sent = os.sendfile(output, self.fd, *self._locate(begin, end))
            assert sent, "what was announced is there"
            begin += sent
