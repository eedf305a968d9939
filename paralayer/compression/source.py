"""The stored bytes of a blob, as decoders read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paralayer.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[int], bytes]
    """Returns up to that many stored bytes, at least one, or b"" at the end of the blob."""

READ_SIZE = 128 << 10
CHUNK = 384 << 10
"""Most decoded bytes of a chunk. Codecs themselves are as fast with 128 KiB to 512 KiB; of what is done for each chunk, a
conversion of gzip layers to a tar takes 4 % less time than with 256 KiB (and pieces half as large), and no less with
512 KiB."""
MAX_WINDOW = 128 << 20
"""Bytes of history that a stream may ask a decoder to keep."""


class Source:
    """The stored bytes, with a buffer that is a contiguous part of them."""

    def __init__(self, read: Read, where: str) -> None:
        self.where = where
        self._read: Read | None = read
        self._fetched = 0
        self._data = b""
        self._view = memoryview(b"")
        self._pos = 0

    def _set(self, data: bytes) -> None:
        self._data = data
        self._view = memoryview(data)
        self._pos = 0

    def _fetch(self) -> bytes:
        data = self._read(READ_SIZE) if self._read else b""
        if not data:
            self._read = None
        self._fetched += len(data)
        return data

    def peek(self, size: int) -> bytes:
        """Return the next `size` bytes without consuming them; fewer only at the end."""
        while len(self._data) - self._pos < size and (data := self._fetch()):
            self._set(self._data[self._pos :] + data)
        return self._data[self._pos : self._pos + size]

    def take(self, size: int) -> bytes:
        """Consume exactly `size` bytes; refuse the blob if it ends before."""
        data = self.peek(size)
        if len(data) < size:
            raise self.truncated()
        self._pos += size
        return data

    def piece(self, size: int) -> memoryview:
        """Consume 1 to `size` bytes, none only at the end."""
        if self._pos == len(self._data):
            self._set(self._fetch())
        piece = self._view[self._pos : self._pos + size]
        self._pos += len(piece)
        return piece

    def rest(self) -> bytes:
        """Consume what is buffered, or else what the source has next: fewer than `READ_SIZE + BLOCK` bytes."""
        data = self._data[self._pos :] or self._fetch()
        self._set(b"")
        return data

    def give_back(self, unused: bytes) -> None:
        """Put back bytes that were consumed last, if need be from before the buffer's start."""
        if len(unused) <= self._pos:
            self._pos -= len(unused)
        else:
            self._set(unused + self._data[self._pos :])

    def take_zeros(self) -> int:
        """Consume zero bytes up to another byte or the end; return how many."""
        count = 0
        while self.peek(1) == b"\0":
            rest = self._data[self._pos :]
            zeros = len(rest) - len(rest.lstrip(b"\0"))
            self._pos += zeros
            count += zeros
        return count

    def truncated(self) -> LayerError:
        """Return the error that the blob ends here."""
        return LayerError(self.where, "compressed data is truncated", f"its end at byte {self._fetched}")

    def garbage(self, compression: str) -> LayerError:
        """Return the error that the blob does not end here."""
        got = f"bytes {self.peek(8).hex(' ')}"
        return LayerError(self.where, f"garbage after {compression} data", got, "the end of the blob")
