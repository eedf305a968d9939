"""Tar header blocks, in both directions: many at once with numpy, odd ones by themselves.

Source: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format" (base-256 numbers).
Pure: no I/O. The batch functions are exact: what they cannot read in bulk goes through the scalar functions,
which are the definition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    Blocks = np.ndarray[Any, np.dtype[np.uint8]]
    Integers = np.ndarray[Any, np.dtype[np.int64]]

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

# Fields: (offset, width)
NAME, MODE, UID, GID, SIZE = (0, 100), (100, 8), (108, 8), (116, 8), (124, 12)
MTIME, CHECKSUM, LINKNAME, MAGIC = (136, 12), (148, 8), (157, 100), (257, 8)
MAJOR, MINOR, PREFIX = (329, 8), (337, 8), (345, 155)
TYPEFLAG = 156

POSIX_MAGIC = b"ustar\0"
GNU_MAGIC = b"ustar "


class HeaderError(ValueError):
    """A header that is not one: (what, got, want)."""

    def __init__(self, what: str, got: object = None, want: object = None) -> None:
        super().__init__(what, got, want)
        self.what, self.got, self.want = what, got, want


def padding(size: int) -> int:
    """Return the bytes that fill `size` up to whole blocks."""
    return -size % BLOCK


def field(block: bytes, where: tuple[int, int]) -> bytes:
    """Return the bytes of a field."""
    return block[where[0] : where[0] + where[1]]


def text(block: bytes, where: tuple[int, int]) -> bytes:
    """Return a text field up to its first NUL; it may fill the field without one."""
    return field(block, where).split(b"\0", 1)[0]


def parse_number(raw: bytes) -> int:
    """Parse a numeric field: octal, or base-256 (two's complement) when the top bit is set.

    Octal may have leading spaces and NULs, as all readers accept them, and ends at the next NUL or space, or with
    the field; blank is 0.
    """
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
        return value - (1 << (8 * len(raw) - 1)) if raw[0] & 0x40 else value
    digits = raw.lstrip(b" \0").split(b"\0", 1)[0].split(b" ", 1)[0]
    if digits.strip(b"01234567"):
        raise HeaderError("malformed number", repr(raw)[1:], "octal digits")
    return int(digits, 8) if digits else 0


def parse_numbers(blocks: Blocks, where: tuple[int, int], what: str) -> Integers:
    """Parse one numeric field of n blocks, uint8 of shape (n, 512), to int64 of shape (n,).

    HeaderError has the index of the block as an additional attribute, `index`.
    """
    start, width = where
    raw = blocks[:, start : start + width]
    values, usual = _octal(raw, width - 1)
    if not usual.all():
        usual |= (raw == 0).all(axis=1)
        values[(raw == 0).all(axis=1)] = 0
        for index in np.flatnonzero(~usual).tolist():
            try:
                value = parse_number(raw[index].tobytes())
                if not -(1 << 63) <= value < 1 << 63:
                    raise HeaderError("number out of range", value, "at most 63 bits")  # noqa: TRY301
            except HeaderError as error:
                error.what = f"{what}: {error.what}"
                error.index = index  # type: ignore[attr-defined]
                raise
            values[index] = value
    return values


def _octal(raw: Blocks, count: int) -> tuple[Integers, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Return the values of fields that are `count` octal digits and a NUL or space, and which fields are that."""
    digits = raw[:, :count] - np.uint8(48)  # wraps around below "0"
    usual = (digits < 8).all(axis=1) & ((raw[:, count] == 0) | (raw[:, count] == 32))
    return digits.astype(np.int64) @ (8 ** np.arange(count - 1, -1, -1, dtype=np.int64)), usual


def wrong_checksums(blocks: Blocks) -> Integers:
    """Return the indices of blocks whose checksum is neither the unsigned nor the signed sum of their bytes."""
    start, width = CHECKSUM
    raw = blocks[:, start : start + width]
    stored, usual = _octal(raw, width - 2)
    for index in np.flatnonzero(~usual).tolist():
        try:
            stored[index] = parse_number(raw[index].tobytes())
        except HeaderError:
            stored[index] = -1
    unsigned = blocks.sum(axis=1, dtype=np.int64)
    unsigned += 32 * width - raw.sum(axis=1, dtype=np.int64)
    wrong = np.flatnonzero(stored != unsigned)
    if len(wrong):
        odd = blocks[wrong]
        high = (odd >= 128).sum(axis=1) - (odd[:, start : start + width] >= 128).sum(axis=1)
        wrong = wrong[stored[wrong] != unsigned[wrong] - 256 * high]
    return wrong


def has_valid_checksum(block: bytes) -> bool:
    """Say whether a block is a tar header, judged by its checksum."""
    return not len(wrong_checksums(np.frombuffer(block, np.uint8).reshape(1, BLOCK)))


def put_octal(blocks: Blocks, where: tuple[int, int], values: Integers) -> None:
    """Write one numeric field of n blocks: octal digits up to the NUL that ends the field.

    The values must fit; others come out as their low digits.
    """
    start, width = where
    shifts = np.arange(3 * (width - 2), -1, -3, dtype=np.int64)
    blocks[:, start : start + width - 1] = ((values[:, None] >> shifts) & 7) + 48


def put_checksums(blocks: Blocks) -> None:
    """Write the checksums of n otherwise complete blocks: six digits, NUL, space."""
    start, width = CHECKSUM
    blocks[:, start : start + width] = 32
    sums = blocks.sum(axis=1, dtype=np.int64)
    put_octal(blocks, (start, width - 1), sums)
    blocks[:, start + 6] = 0
