"""Sparse files in tar archives: the maps of the old GNU format and of PAX formats 0.0, 0.1 and 1.0.

Source: GNU tar manual, "Storing Sparse Files" and "Basic Tar Format" (struct oldgnu_header).
A map is a list of (offset in the file, length) of the parts that are stored, one after the other, in the archive.
"""

from __future__ import annotations

import re

from paralayer.tar.header import HeaderError, parse_number

_HEADER_MAP, _HEADER_CHUNKS = 386, 4
_HEADER_EXTENDED = 482
_HEADER_REAL_SIZE = 483
_BLOCK_CHUNKS, _BLOCK_EXTENDED = 21, 504
_DECIMAL = re.compile(rb"[0-9]{1,19}\Z")

Extents = list[tuple[int, int]]


def parse_old_header(block: bytes) -> tuple[Extents, int, bool]:
    """Parse an old GNU sparse header to (map so far, real size, whether an extension block follows)."""
    real_size = parse_number(block[_HEADER_REAL_SIZE : _HEADER_REAL_SIZE + 12])
    return _old_chunks(block, _HEADER_MAP, _HEADER_CHUNKS), real_size, block[_HEADER_EXTENDED] != 0


def parse_old_extension(block: bytes) -> tuple[Extents, bool]:
    """Parse an extension block to (its part of the map, whether another follows)."""
    return _old_chunks(block, 0, _BLOCK_CHUNKS), block[_BLOCK_EXTENDED] != 0


def _old_chunks(block: bytes, start: int, count: int) -> Extents:
    chunks = []
    for at in range(start, start + 24 * count, 24):
        if not block[at]:
            break
        chunks.append((parse_number(block[at : at + 12]), parse_number(block[at + 12 : at + 24])))
    return chunks


def parse_decimal(value: bytes) -> int:
    """Parse a number of a PAX sparse map."""
    if not _DECIMAL.match(value):
        raise HeaderError("sparse map: malformed number", repr(value[:40])[1:])
    return int(value)


def parse_pax_map(values: list[bytes]) -> Extents:
    """Parse the numbers of formats 0.0 and 0.1: offset, length, offset, length, ..."""
    if len(values) % 2:
        raise HeaderError("sparse map: odd count of numbers", len(values))
    numbers = [parse_decimal(value) for value in values]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def numbers_in_data(data: bytes) -> int | None:
    """Return how many numbers (each ended by a newline) a format 1.0 map has, or None while that is unknown.

    The map stands before the file's data: a count, then twice as many numbers.
    """
    first, newline, _ = data.partition(b"\n")
    if not newline:
        if len(data) > 20:  # noqa: PLR2004 - more digits than 63 bits have
            raise HeaderError("sparse map: malformed number", repr(first[:40])[1:])
        return None
    return 1 + 2 * parse_decimal(first)


def check(extents: Extents, stored: int, real_size: int) -> None:
    """Refuse a map that is unordered, overlaps, leaves the file or does not fit the stored data."""
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
