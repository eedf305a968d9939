"""Compression of data blocks, fragment blocks and metadata blocks: what mksquashfs does with the same settings.

A compressor gives the same bytes for the same input whatever came before, so blocks may be compressed in any
order and in any process.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from typing import TYPE_CHECKING

import zstandard

from paralayer.errors import SinkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from paralayer.sinks.squashfs.options import Compression

    Encode = Callable[[bytes | memoryview], bytes]

_IDS = {"gzip": 1, "xz": 4, "lz4": 5, "zstd": 6, "none": 1}  # 2 and 3 are lzma and lzo

# The defaults of mksquashfs: it leaves the options block away when a compressor is used with them.
_MKSQUASHFS_LEVELS = {"gzip": 9, "zstd": 15}
_GZIP_WINDOW = 15
_LZ4_LEGACY = 1  # the version of the lz4 format

_STORED = 0x8000  # in the header of a metadata block: not compressed


class Compressor:
    """Compresses blocks of up to `block_size` bytes. For one process, and one thread of it.

    `id` is the compressor's number in the superblock. `options` is the metadata block that follows the superblock,
    with its header, or empty where mksquashfs writes none.
    """

    def __init__(self, compression: Compression, block_size: int) -> None:
        self.id = _IDS[compression.name]
        self.options = _options(compression)
        self._encode = _encoder(compression, block_size)

    def compress(self, data: bytes | memoryview) -> bytes | None:
        """Return compressed data, or None when it does not get smaller: then it is to be stored as it is."""
        if self._encode is None:
            return None
        encoded = self._encode(data)
        return encoded if len(encoded) < len(data) else None


def _encoder(compression: Compression, block_size: int) -> Encode | None:
    level = compression.level
    if compression.name == "zstd":
        assert level is not None
        return zstandard.ZstdCompressor(level=level).compress  # with content size and without checksum
    if compression.name == "gzip":
        assert level is not None
        # zlib itself: isal has no level that comes near 9, and mksquashfs's output must not be smaller.
        return lambda data: zlib.compress(data, level)
    if compression.name == "xz":
        # The kernel's decoder has a window of the block size and knows no check but CRC32.
        filters = [{"id": lzma.FILTER_LZMA2, "preset": lzma.PRESET_DEFAULT, "dict_size": block_size}]
        return lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)
    if compression.name == "lz4":
        try:
            import lz4.block
        except ImportError:
            raise SinkError(
                "", "lz4 compression: the Python package lz4 is not installed", None, "paralayer[lz4]"
            ) from None
        return lambda data: lz4.block.compress(data, store_size=False)
    return None


def _options(compression: Compression) -> bytes:
    name, level = compression.name, compression.level
    if name == "lz4":  # always: readers take its absence for an error
        options = struct.pack("<II", _LZ4_LEGACY, 0)
    elif level == _MKSQUASHFS_LEVELS.get(name):
        return b""
    elif name == "gzip":
        options = struct.pack("<IHH", level, _GZIP_WINDOW, 0)
    else:
        options = struct.pack("<I", level)
    return struct.pack("<H", _STORED | len(options)) + options
