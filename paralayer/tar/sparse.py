"""Sparse files in tar archives: the maps of the old GNU format and of PAX formats 0.0, 0.1 and 1.0.

Source: GNU tar manual, "Storing Sparse Files" and "Basic Tar Format" (struct oldgnu_header).
A map is a list of (offset in the file, length) of the parts that are stored, one after the other, in the archive.
"""

from __future__ import annotations

from paralayer.tar.header import BLOCK, HeaderError, parse_number
from paralayer.tar.pax import parse_decimal

_HEADER_MAP, _HEADER_CHUNKS = 386, 4
_HEADER_EXTENDED = 482
_HEADER_REAL_SIZE = 483
_BLOCK_CHUNKS, _BLOCK_EXTENDED = 21, 504
_CHUNK = 24
_MAX_MAP = 1 << 20  # bytes of a map as it stands in the archive: what other extension headers may have

Extents = list[tuple[int, int]]


def parse_old_header(block: bytes) -> tuple[Extents, int, bool]:
    """Parse an old GNU sparse header to (map so far, real size, whether an extension block follows)."""
    real_size = parse_number(block[_HEADER_REAL_SIZE : _HEADER_REAL_SIZE + 12])
    return _old_chunks(block, _HEADER_MAP, _HEADER_CHUNKS), real_size, block[_HEADER_EXTENDED] != 0


def extend_old_map(extents: Extents, block: bytes) -> bool:
    """Append an extension block's part of the map; return whether another block follows."""
    extents += _old_chunks(block, 0, _BLOCK_CHUNKS)
    if len(extents) * _CHUNK > _MAX_MAP:
        raise HeaderError("sparse map: too long", f"{len(extents)} chunks", f"at most {_MAX_MAP // _CHUNK}")
    return block[_BLOCK_EXTENDED] != 0


def _old_chunks(block: bytes, start: int, count: int) -> Extents:
    chunks = []
    for at in range(start, start + _CHUNK * count, _CHUNK):
        if not block[at]:
            break
        chunks.append((parse_number(block[at : at + 12]), parse_number(block[at + 12 : at + 24])))
    return chunks


def parse_size(value: bytes) -> int:
    """Parse a number of a PAX sparse file."""
    number = parse_decimal(value)
    if number is None:
        raise HeaderError("sparse file: malformed number", repr(value[:40])[1:])
    return number


def parse_pax_map(values: list[bytes], count: bytes) -> Extents:
    """Parse the numbers of formats 0.0 and 0.1, offset, length, offset, length, ..., and how many pairs they are."""
    numbers = [parse_size(value) for value in values]
    want = 2 * parse_size(count)
    if len(numbers) != want:
        raise HeaderError("sparse map: wrong count of numbers", len(numbers), want)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


class MapInData:
    """The map of format 1.0, gathered block by block: a count, then twice as many numbers, each with a newline.

    It stands in blocks of its own before the file's data; `size` is that of both.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._gathered = bytearray()
        self._numbers = 0  # of the map, its count included
        self._newlines = 0

    def add(self, block: bytes) -> Extents | None:
        """Take the next block; return the map once all of it is there."""
        if not self._gathered:
            chunks = parse_size(block.partition(b"\n")[0])
            if 4 * chunks > self._size:  # a number and its newline have at least two bytes
                raise HeaderError("sparse map: more chunks than the data can hold", chunks)
            self._numbers = 1 + 2 * chunks
        self._gathered += block
        self._newlines += block.count(b"\n")
        if self._newlines < self._numbers:
            if len(self._gathered) + BLOCK > min(self._size, _MAX_MAP):
                raise HeaderError("sparse map: incomplete", f"{len(self._gathered)} bytes")
            return None
        count, *numbers = bytes(self._gathered).split(b"\n", self._numbers)[:-1]
        return parse_pax_map(numbers, count)


def check(extents: Extents, stored: int, real_size: int) -> None:
    """Refuse a map that is unordered, overlaps, leaves the file or does not fit the stored data."""
    if not 0 <= real_size < 1 << 63:
        raise HeaderError("real size of a sparse file", real_size, "0 to 2^63-1")
    end = 0
    total = 0
    for offset, length in extents:
        if offset < end or length < 0:
            raise HeaderError("sparse map: unordered or overlapping", offset, f"at least {end}")
        end = offset + length
        total += length
    if end > real_size:
        raise HeaderError("sparse map: beyond the end of the file", end, f"at most {real_size}")
    if total != stored:
        raise HeaderError("sparse map: not the stored data", total, stored)
