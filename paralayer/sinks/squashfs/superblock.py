"""The superblock: the first 96 bytes of an image."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag

SIZE = 96

_MAGIC = 0x73717368  # "hsqs"
_VERSION = (4, 0)
_SUPERBLOCK = struct.Struct("<IIIIIHHHHHHQQQQQQQQ")


class Flags(IntFlag):
    """What the superblock says of the whole image; numbered and used as mksquashfs does."""

    UNCOMPRESSED_INODES = 0x0001
    UNCOMPRESSED_DATA = 0x0002
    UNCOMPRESSED_FRAGMENTS = 0x0008
    NO_FRAGMENTS = 0x0010
    DUPLICATES = 0x0040  # identical files are stored once
    EXPORTABLE = 0x0080
    UNCOMPRESSED_XATTRS = 0x0100
    COMPRESSOR_OPTIONS = 0x0400  # a metadata block with them follows the superblock

    UNCOMPRESSED = UNCOMPRESSED_INODES | UNCOMPRESSED_DATA | UNCOMPRESSED_FRAGMENTS | UNCOMPRESSED_XATTRS


@dataclass(frozen=True, slots=True)
class Tables:
    """Where the tables begin in the image, `metadata.NO_TABLE` if there is none, and what they hold.

    `root_inode` is a reference: the block's position in the inode table << 16 | the offset in the block.
    """

    inodes: int
    ids: int
    root_inode: int
    inode_table: int
    directory_table: int
    fragment_table: int
    export_table: int
    id_table: int
    xattr_table: int
    end: int
    """Bytes of the image without padding."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """Everything that the superblock says; `time` is when the image was made, in seconds since the epoch."""

    time: int
    block_size: int
    compressor: int
    flags: Flags
    fragments: int
    tables: Tables

    def pack(self) -> bytes:
        """Return the superblock as it is on disk."""
        tables = self.tables
        return _SUPERBLOCK.pack(
            _MAGIC,
            tables.inodes,
            self.time,
            self.block_size,
            self.fragments,
            self.compressor,
            self.block_size.bit_length() - 1,
            self.flags,
            tables.ids,
            *_VERSION,
            tables.root_inode,
            tables.end,
            tables.id_table,
            tables.xattr_table,
            tables.inode_table,
            tables.directory_table,
            tables.fragment_table,
            tables.export_table,
        )
