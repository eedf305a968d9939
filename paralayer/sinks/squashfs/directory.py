"""Directories: their listings, which are entries under headers, and the indexes into long listings.

An entry names an inode by what it has more than its header: the header has the metadata block of the inode, and an
inode number to which the entry adds. So a new header begins where one of the two changes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from paralayer.sinks.squashfs.metadata import BLOCK
from paralayer.sinks.squashfs.records import copy, ends_of, put

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from paralayer.sinks.squashfs.metadata import MetadataWriter
    from paralayer.sinks.squashfs.order import Order
    from paralayer.sinks.squashfs.records import Positions

_HEADER_ENTRIES = 256
_INDEXES_MAX = 0xFFFF
_WINDOW = 1 << 16  # inode numbers that a header's entries can name

_HEADER = struct.Struct("<III")
_ENTRY = np.dtype([("offset", "<u2"), ("number", "<i2"), ("type", "<u2"), ("size", "<u2")])
_OFFSET = struct.Struct("<H")
_INDEX = struct.Struct("<III")


class Listings:
    """The entries of all directories, in the order of `order`; the name of entry i is number i of it.

    Inodes get their places later: first those of `place_all`, then one by one; a directory is listed when all of its
    entries have theirs.
    """

    def __init__(self, order: Order, numbers: NDArray[np.uint32], types: NDArray[np.uint16]) -> None:
        """`numbers` are the inode numbers of the names, `types` the basic types of their inodes."""
        bases = _bases(order.directory, numbers.astype(np.int64))
        entries = np.zeros(len(numbers), _ENTRY)
        entries["number"] = numbers - bases
        entries["type"] = types
        entries["size"] = np.maximum(order.length, 1) - 1
        ends = ends_of(_ENTRY.itemsize + order.length)
        self._packed = bytearray(int(ends[-1]))
        view = np.frombuffer(self._packed, np.uint8)
        put(view, ends[:-1], entries)
        copy(view, ends[:-1] + _ENTRY.itemsize, order.text, order.start, order.length)
        self._ends = ends
        self._at: list[int] = ends.tolist()
        self._bases = bases
        # What entries below one header have in common: the header's inode number << 32 | metadata block.
        self._headers: list[int] = []

    def place_all(self, names: NDArray[np.int64], blocks: Positions, offsets: Positions) -> None:
        """Give inodes their places: those of `names`."""
        view = np.frombuffer(self._packed, np.uint8)
        put(view, self._ends[names], offsets.astype("<u2"))
        headers = self._bases << 32
        headers[names] |= blocks
        self._headers = headers.tolist()

    def place(self, name: int, block: int, offset: int) -> None:
        """Give an inode its place."""
        _OFFSET.pack_into(self._packed, self._at[name], offset)
        self._headers[name] |= block

    def write(self, first: int, stop: int, writer: MetadataWriter) -> tuple[int, list[bytes]]:
        """Append the listing of a directory that has the names from `first` to before `stop`.

        Return its length, and the indexes that its inode is to have.
        """
        packed, at, headers = self._packed, self._at, self._headers
        begun = []
        pieces: list[bytes | bytearray] = []
        name = first
        size = 0
        while name < stop:
            header, begin = headers[name], name
            limit = min(stop, begin + _HEADER_ENTRIES)
            name += 1
            while name < limit and headers[name] == header:
                name += 1
            begun.append((size, begin))
            pieces += [
                _HEADER.pack(name - begin - 1, header & 0xFFFF_FFFF, header >> 32),
                packed[at[begin] : at[name]],
            ]
            size += _HEADER.size + at[name] - at[begin]
        position = writer.size
        writer.append(b"".join(pieces))
        if position // BLOCK == writer.size // BLOCK:
            return size, []
        return size, self._indexes(position, begun, writer)

    def _indexes(
        self, position: int, begun: Sequence[tuple[int, int]], writer: MetadataWriter
    ) -> list[bytes]:
        """Return an index for the first header in each metadata block after the listing's first.

        `begun` has for each header its offset in the listing and the first name below it.
        """
        indexes = []
        block = position // BLOCK
        for offset, name in begun:
            if (position + offset) // BLOCK > block:
                block = (position + offset) // BLOCK
                text = self._packed[self._at[name] + _ENTRY.itemsize : self._at[name + 1]]
                indexes.append(_INDEX.pack(offset, writer.starts[block], len(text) - 1) + text)
        return indexes[:_INDEXES_MAX]  # without the rest, looking up takes longer


def _bases(directory: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each name the inode number of its header: as few different ones a directory as can be.

    That of a directory's first name mostly, since its other inodes have the next numbers; for hard links and large
    directories a multiple of the window away from it.
    """
    firsts = np.flatnonzero(np.diff(directory, prepend=-2))
    lengths = np.diff(firsts, append=len(directory))
    first = np.repeat(numbers[firsts], lengths)
    windows = (numbers - first + _WINDOW // 2) // _WINDOW
    return np.maximum(first + windows * _WINDOW, 0)
