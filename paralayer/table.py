"""The entry table of a layer: rows, names and extra bytes in one sparse memfd.

One process appends, any number read. A row is published by the message that announces the table's new lengths,
so no lock is needed, and what was announced never changes. The memfd has three regions that grow on their own:
the rows at 0, the names at `NAMES` (each ended by NUL, in row order), and at `EXTRA` what few entries have: link
name, extended attributes, sparse map.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Rows = np.ndarray[Any, np.dtype[np.void]]

# Kinds of entries: the tar type flags as numbers, then the two that only a layer has.
FILE, HARDLINK, SYMLINK, CHAR, BLOCK, DIRECTORY, FIFO = range(7)
WHITEOUT, OPAQUE = 8, 9

# Values of `parent` and `target` that are no row.
ROOT = -1
NONE = -2

ROW = np.dtype(
    [
        ("kind", "u1"),
        ("mode", "<u2"),  # permission bits, 12 of them
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("nsec", "<u4"),  # of the modification time
        ("mtime", "<i8"),  # seconds since the epoch
        ("size", "<i8"),  # of a file's content, holes included
        ("data", "<i8"),  # where the stored content begins in the decoded layer
        ("stored", "<i8"),  # bytes of stored content: `size` unless sparse
        ("major", "<u4"),
        ("minor", "<u4"),
        ("layer", "<u4"),
        ("parent", "<i4"),  # row of the directory entry that precedes it and holds it, ROOT or NONE
        ("target", "<i4"),  # hard links: row of the file in this layer that precedes it, or NONE
        ("name", "<i8"),  # offset of the path in the names
        ("extra", "<i8"),  # offset of link name, xattrs and sparse map in the extra bytes, in that order
        ("link", "<u4"),  # bytes of the link name
        ("xattrs", "<u4"),  # bytes of the packed xattrs
        ("sparse", "<u4"),  # number of data extents of a sparse file
    ]
)

NAMES = 1 << 40
EXTRA = 1 << 41
_PAIR = struct.Struct("<II")
_EXTENT = np.dtype("<i8")


@dataclass(frozen=True, slots=True)
class Length:
    """How much of a table is published: rows, bytes of names, bytes of extra."""

    rows: int = 0
    names: int = 0
    extra: int = 0


_NOTHING = Length()


class TableWriter:
    """Appends to the table in `fd`, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.length = Length()

    def append(self, rows: Rows, names: bytes, extra: bytes) -> None:
        """Append rows, whose `name` and `extra` count from the start of the table."""
        _write_all(self._fd, memoryview(rows.tobytes()), self.length.rows * ROW.itemsize)
        _write_all(self._fd, memoryview(names), NAMES + self.length.names)
        _write_all(self._fd, memoryview(extra), EXTRA + self.length.extra)
        self.length = Length(
            self.length.rows + len(rows), self.length.names + len(names), self.length.extra + len(extra)
        )


class Table:
    """What was published of a table, or the part of it between two lengths; it needs the memfd no longer.

    `rows` is a read-only structured array of dtype `ROW`; the first of them is row number `start.rows`.
    """

    def __init__(self, fd: int, stop: Length, start: Length = _NOTHING) -> None:
        self.start = start
        raw = _read(fd, start.rows * ROW.itemsize, (stop.rows - start.rows) * ROW.itemsize)
        self.rows: Rows = np.frombuffer(raw, dtype=ROW)
        self._names = _read(fd, NAMES + start.names, stop.names - start.names)
        self._extra = _read(fd, EXTRA + start.extra, stop.extra - start.extra)

    def paths(self) -> list[bytes]:
        """Return the paths of the rows."""
        return self._names[:-1].split(b"\0") if len(self.rows) else []

    def linkname(self, row: np.void) -> bytes:
        """Return the link name as stored in the layer; of a hard link, normalised."""
        start = self._extra_at(row)
        return self._extra[start : start + int(row["link"])]

    def xattrs(self, row: np.void) -> dict[bytes, bytes]:
        """Return the extended attributes."""
        start = self._extra_at(row) + int(row["link"])
        return unpack_xattrs(self._extra[start : start + int(row["xattrs"])])

    def extents(self, row: np.void) -> list[tuple[int, int]]:
        """Return (offset in the file, length) of the data of a sparse file, in file order."""
        start = self._extra_at(row) + int(row["link"]) + int(row["xattrs"])
        pairs = np.frombuffer(self._extra, _EXTENT, int(row["sparse"]) * 2, start).reshape(-1, 2)
        return [(int(offset), int(length)) for offset, length in pairs]

    def extra_of(self, row: np.void) -> bytes:
        """Return the extra bytes of a row as they are stored."""
        start = self._extra_at(row)
        stop = start + int(row["link"]) + int(row["xattrs"]) + int(row["sparse"]) * 16
        return self._extra[start:stop]

    def _extra_at(self, row: np.void) -> int:
        return int(row["extra"]) - self.start.extra


def pack_xattrs(xattrs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Pack (name, value) pairs: two little-endian 32-bit lengths, the name, the value; again and again."""
    return b"".join(_PAIR.pack(len(name), len(value)) + name + value for name, value in xattrs)


def unpack_xattrs(packed: bytes) -> dict[bytes, bytes]:
    """Undo `pack_xattrs`."""
    xattrs = {}
    at = 0
    while at < len(packed):
        name, value = _PAIR.unpack_from(packed, at)
        at += _PAIR.size
        xattrs[packed[at : at + name]] = packed[at + name : at + name + value]
        at += name + value
    return xattrs


def pack_extents(extents: Sequence[tuple[int, int]]) -> bytes:
    """Pack the data extents of a sparse file."""
    return np.array(extents, _EXTENT).tobytes()


def _read(fd: int, offset: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.pread(fd, length, offset)
        assert part, "a table is shorter than what was published of it"
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data = data[written:]
        offset += written
