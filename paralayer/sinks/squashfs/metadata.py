"""Metadata blocks: 8 KiB of a table, compressed, behind two bytes that hold the size on disk.

A place in a table is the position of its block, counted from where the table begins, and the offset in the block's
uncompressed bytes. All blocks of a table but its last are full; unsquashfs insists.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paralayer.sinks.squashfs.compressor import Compressor
    from paralayer.sinks.squashfs.records import Positions

BLOCK = 8192
NO_TABLE = 0xFFFF_FFFF_FFFF_FFFF

_TABLE_MAX = 0xFFFF_FFFF  # listings and directories have 32 bits for the position of a block
_STORED = 0x8000  # the block is not compressed
_HEADER = struct.Struct("<H")


class MetadataWriter:
    """Cuts a stream of bytes into metadata blocks, which stay in memory.

    `size` is the number of bytes that were appended, `starts[i]` where block i begins on disk; the block that is
    being filled has its start already.
    """

    def __init__(self, compressor: Compressor) -> None:
        self._compressor = compressor
        self._blocks: list[bytes] = []
        self._open = bytearray()
        self.size = 0
        self.starts = [0]

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Append to the stream."""
        self.size += len(data)
        self._open += data
        if len(self._open) < BLOCK:
            return
        full = len(self._open) // BLOCK * BLOCK
        with memoryview(self._open) as view:
            for at in range(0, full, BLOCK):
                self._close(view[at : at + BLOCK])
        del self._open[:full]

    def places(self, positions: Positions) -> tuple[Positions, Positions]:
        """Return block positions and offsets for positions in the stream."""
        return np.array(self.starts)[positions // BLOCK], positions % BLOCK

    def place(self, position: int) -> tuple[int, int]:
        """Return block position and offset for a position in the stream."""
        return self.starts[position // BLOCK], position % BLOCK

    def finish(self) -> list[bytes]:
        """Return all blocks; nothing may be appended any more."""
        if self._open:
            self._close(memoryview(self._open))
        return self._blocks

    def _close(self, block: memoryview) -> None:
        compressed = self._compressor.compress(block)
        if compressed is None:
            self._blocks.append(_HEADER.pack(_STORED | len(block)) + block)
        else:
            self._blocks.append(_HEADER.pack(len(compressed)) + compressed)
        self.starts.append(self.starts[-1] + len(self._blocks[-1]))
        assert self.starts[-1] <= _TABLE_MAX, "a table above 4 GiB"


def pack_metadata(data: bytes, compressor: Compressor) -> tuple[bytes, NDArray[np.int64]]:
    """Return the metadata blocks of `data`, and where each begins in them."""
    writer = MetadataWriter(compressor)
    writer.append(data)
    blocks = writer.finish()
    return b"".join(blocks), np.array(writer.starts[: len(blocks)], np.int64)


def pack_lookup_table(records: bytes, position: int, compressor: Compressor) -> tuple[bytes, int]:
    """Return a fragment, export or id table that begins at `position` of the image, and the table's start.

    The start, which the superblock names, is that of the list of block positions behind the blocks.
    """
    data, starts = pack_metadata(records, compressor)
    return data + (starts + position).astype("<u8").tobytes(), position + len(data)
