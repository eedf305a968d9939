"""What is in a squashfs file, read by PySquashfsImage: no code of this project's writer judges its own output.

The library knows the structures. What is done here instead is what its release 0.9.0 does not do, or not for files
that may be corrupt or large:

- it decodes names as UTF-8 and walks the directories recursively, all when it opens a file: here the walk is a loop;
- it has no values of extended attributes;
- it takes LZ4 blocks for LZ4 frames;
- it decompresses whatever comes, to whatever size, and reads metadata wherever it is said to be;
- it keeps all metadata, and the last 256 data blocks, which are up to 1 MiB each;
- it trusts what the superblock says about the tables, some of which it does not read: the kernel would not mount such
  a file.

Sources for xattrs: the Linux kernel's fs/squashfs/xattr.c and squashfs_fs.h; for tables: its super.c, id.c, export.c,
fragment.c and xattr_id.c.
"""

from __future__ import annotations

import lzma
import os
import struct
import zlib
from collections import OrderedDict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from PySquashfsImage import SquashFsImage
from PySquashfsImage.const import SQUASHFS_INVALID_BLK, SQUASHFS_METADATA_SIZE, Compression
from PySquashfsImage.structure import XattrId, XattrTable

from paralayer.errors import quote

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paralayer.verification.tree import Xattrs

_PREFIXES = (b"user.", b"trusted.", b"security.")
_OUT_OF_LINE = 0x100
_XATTR_KEY, _XATTR_SIZE, _XATTR_REFERENCE = struct.Struct("<HH"), struct.Struct("<I"), struct.Struct("<Q")
_FRAGMENT = struct.Struct("<QI4x")  # where, and its size with the bit for stored ones
_METADATA_STORED = 2 + SQUASHFS_METADATA_SIZE  # at most, with the header
_METADATA_KEPT = 4096  # blocks: 32 MiB
_METADATA_AT_ONCE = 1 << 20  # bytes; all that is longer is read in pieces
STORED = 1 << 24
"""The bit of a data block's size that says that it is not compressed."""
_SUPERBLOCK = 96


class CorruptError(Exception):
    """What is read cannot be; the message says what."""


class _Decompressor(Protocol):
    def uncompress(self, src: bytes, size: int, outsize: int) -> bytes:
        """Return at most `outsize` bytes."""


class _Zlib:
    def uncompress(self, src: bytes, size: int, outsize: int) -> bytes:
        del size
        decoder = zlib.decompressobj()
        return _whole(decoder.decompress(src, outsize + 1), outsize, ended=decoder.eof)


class _Xz:
    def uncompress(self, src: bytes, size: int, outsize: int) -> bytes:
        del size
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=64 << 20)
        return _whole(decoder.decompress(src, outsize + 1), outsize, ended=decoder.eof)


class _Zstd:
    def __init__(self) -> None:
        import zstandard

        self._frame_content_size = zstandard.frame_content_size
        self._decompress = zstandard.ZstdDecompressor(max_window_size=8 << 20).decompress

    def uncompress(self, src: bytes, size: int, outsize: int) -> bytes:
        del size
        if self._frame_content_size(src) > outsize:
            raise CorruptError("a block is larger than it can be")
        return self._decompress(src, max_output_size=outsize)


class _Lz4:
    def __init__(self) -> None:
        import lz4.block

        self._decompress = lz4.block.decompress

    def uncompress(self, src: bytes, size: int, outsize: int) -> bytes:
        del size
        data: bytes = self._decompress(src, uncompressed_size=outsize)
        return data


def _whole(data: bytes, outsize: int, *, ended: bool) -> bytes:
    if len(data) > outsize:
        raise CorruptError("a block is larger than it can be")
    if not ended:
        raise CorruptError("a block is cut off")
    return data


_DECOMPRESSORS: dict[int, type[_Decompressor]] = {
    Compression.ZLIB: _Zlib,
    Compression.XZ: _Xz,
    Compression.ZSTD: _Zstd,
    Compression.LZ4: _Lz4,
}


class _File:
    """An open file as the library reads it; with a position of its own, since workers share the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0

    def seek(self, offset: int) -> None:
        self._at = offset

    def read(self, size: int) -> bytes:
        data = os.pread(self._fd, size, self._at)
        if len(data) != size:
            raise CorruptError(f"the file ends before offset {self._at + size}")
        self._at += size
        return data


class SquashfsReader(SquashFsImage):  # type: ignore[misc]
    """The library's reader over the file `fd`. It opens without reading more than the superblock."""

    def __init__(self, fd: int) -> None:
        self._kept: OrderedDict[int, tuple[bytes, int]] = OrderedDict()
        self._xattr_sets: dict[int, Xattrs] = {}
        super().__init__(_File(fd), closefd=False)

    def _initialize(self) -> None:
        self._fd.seek(0)
        self._read_super()
        block_size = self._sblk.block_size
        if block_size != 1 << self._sblk.block_log or not 4 << 10 <= block_size <= 1 << 20:
            raise CorruptError(f"block size {block_size}")

    def _get_compressor(self, compression_id: int) -> Any:
        if compression_id in _DECOMPRESSORS:
            return _DECOMPRESSORS[compression_id]()
        return super()._get_compressor(compression_id)

    def _read_block(self, start: int, expected: int = SQUASHFS_METADATA_SIZE) -> tuple[bytes, int]:
        """Return a metadata block and where the next one begins."""
        del expected
        if not _SUPERBLOCK <= start < self._sblk.bytes_used:
            raise CorruptError(f"metadata at offset {start}")
        self._fd.seek(start)
        header = int.from_bytes(self._fd.read(2), "little")
        size = header & 0x7FFF
        if not 0 < size <= SQUASHFS_METADATA_SIZE:
            raise CorruptError(f"metadata block of {size} bytes at offset {start}")
        data = self._fd.read(size)
        if not header & 0x8000:
            data = self._comp.uncompress(data, size, SQUASHFS_METADATA_SIZE)
        return data, start + 2 + size

    def _read_metadata(
        self, hash_table: object, block: int, offset: int, length: int
    ) -> tuple[bytes, int, int]:
        """Return bytes of metadata, and the block and offset behind them."""
        del hash_table
        buffer, following = self._kept.get(block) or self._keep(block)
        end = offset + length
        if end < len(buffer):
            return buffer[offset:end], block, end
        if length > _METADATA_AT_ONCE:
            raise CorruptError(f"{length} bytes of metadata for one thing")
        pieces: list[bytes] = []
        while end >= len(buffer):
            if offset > len(buffer):
                raise CorruptError(f"metadata at {offset} of a block of {len(buffer)} bytes")
            pieces.append(buffer[offset:])
            end -= len(buffer)
            block, offset = following, 0
            if not end:
                break
            buffer, following = self._kept.get(block) or self._keep(block)
        else:
            pieces.append(buffer[:end])
        return b"".join(pieces), block, end

    def _keep(self, block: int) -> tuple[bytes, int]:
        """Read a metadata block, and keep it for a while."""
        if len(self._kept) == _METADATA_KEPT:
            self._kept.popitem(last=False)
        self._kept[block] = self._read_block(block)
        return self._kept[block]

    def read_tables(self) -> None:
        """Read what the walk needs: owners, fragments, and where extended attributes are.

        As the kernel does when it mounts: from the last table to the first, each ends where the next one begins.
        """
        superblock = self._sblk
        end = self._read_xattr_ids()
        places = self._index("id", superblock.id_table_start, superblock.no_ids, 4, end)
        ids = self._entries("id", places, superblock.no_ids, 4)
        self._id_table = dict(enumerate(struct.unpack(f"<{superblock.no_ids}I", ids)))
        end = places[0]
        if superblock.lookup_table_start != SQUASHFS_INVALID_BLK:
            end = self._index("export", superblock.lookup_table_start, superblock.inodes, 8, end)[0]
        self._fragments = b""
        if superblock.fragments:
            size = _FRAGMENT.size
            places = self._index("fragment", superblock.fragment_table_start, superblock.fragments, size, end)
            self._fragments = self._entries("fragment", places, superblock.fragments, size)
            end = places[0]
        inodes, directories = superblock.inode_table_start, superblock.directory_table_start
        if not _SUPERBLOCK <= inodes < directories <= end:
            raise CorruptError(f"inode table at offset {inodes}, directory table at {directories} of {end}")

    def _read_xattr_ids(self) -> int:
        """Return where the tables before it end."""
        self._xattr_start, self._xattr_ids = 0, []
        start = self._sblk.xattr_id_table_start
        if start == SQUASHFS_INVALID_BLK:
            return int(self._sblk.bytes_used)
        self._fd.seek(start)
        table = XattrTable.from_fd(self._fd)
        places = self._index("xattr id", start, table.xattr_ids, 16, self._sblk.bytes_used, header=16)
        if table.xattr_table_start >= places[0]:
            raise CorruptError(f"xattr table at offset {table.xattr_table_start}")
        data = self._entries("xattr id", places, table.xattr_ids, 16)
        self._xattr_start = table.xattr_table_start
        self._xattr_ids = [XattrId.from_bytes(data, 16 * i) for i in range(table.xattr_ids)]
        return int(table.xattr_table_start)

    def _index(self, name: str, start: int, entries: int, size: int, end: int, header: int = 0) -> list[int]:
        """Return where the metadata blocks of a table are, and last where it starts itself, which is behind them.

        The rules are those of the kernel, which holds fragments to less. They bound the work, too: no block is in two
        places.
        """
        blocks = -(-entries * size // SQUASHFS_METADATA_SIZE)
        if not entries or start < _SUPERBLOCK or start + header + 8 * blocks != end:
            raise CorruptError(
                f"{entries} entries in the {name} table at offset {start}, which ends at {end}"
            )
        self._fd.seek(start + header)
        places = [*struct.unpack(f"<{blocks}Q", self._fd.read(8 * blocks)), start]
        if not all(0 < after - before <= _METADATA_STORED for before, after in pairwise(places)):
            raise CorruptError(
                f"the {name} table at offset {start} lists blocks that do not follow each other"
            )
        return places

    def _entries(self, name: str, places: list[int], entries: int, size: int) -> bytes:
        """Return the entries of a table whose index is read."""
        pieces: list[bytes] = []
        rest = entries * size
        for start, following in pairwise(places):
            data, end = self._read_block(start)
            if end > following or len(data) != min(rest, SQUASHFS_METADATA_SIZE):
                raise CorruptError(f"block of the {name} table at offset {start}: {len(data)} bytes")
            rest -= len(data)
            pieces.append(data)
        return b"".join(pieces)

    def xattrs(self, index: int) -> Xattrs:
        """Return the set of extended attributes of this number, which inodes have."""
        known = self._xattr_sets.get(index)
        if known is not None:
            return known
        if index >= len(self._xattr_ids):
            raise CorruptError(f"xattr id {index} of {len(self._xattr_ids)}")
        entry = self._xattr_ids[index]
        block, offset = self._xattr_start + (entry.xattr >> 16), entry.xattr & 0xFFFF
        found: dict[bytes, bytes] = {}
        for _ in range(entry.count):
            data, block, offset = self._read_metadata(None, block, offset, _XATTR_KEY.size)
            kind, size = _XATTR_KEY.unpack(data)
            name, block, offset = self._read_metadata(None, block, offset, size)
            value, block, offset = self._read_xattr_value(block, offset)
            if kind & _OUT_OF_LINE:
                (reference,) = _XATTR_REFERENCE.unpack(value)
                value, _, _ = self._read_xattr_value(
                    self._xattr_start + (reference >> 16), reference & 0xFFFF
                )
            if kind & 0xFF >= len(_PREFIXES):
                raise CorruptError(f"xattr of type {kind}")
            name = _PREFIXES[kind & 0xFF] + name
            if name in found:
                raise CorruptError(f"xattr {quote(name)} twice")
            found[name] = value
        self._xattr_sets[index] = found
        return found

    def _read_xattr_value(self, block: int, offset: int) -> tuple[bytes, int, int]:
        data, block, offset = self._read_metadata(None, block, offset, _XATTR_SIZE.size)
        return self._read_metadata(None, block, offset, *_XATTR_SIZE.unpack(data))

    def read_directory(self, block: int, offset: int) -> Any:
        """Return the library's directory, with its `inode` and `entries`."""
        return self._opendir(block, offset)

    def read_inode(self, block: int, offset: int) -> Any:
        """Return the library's inode."""
        return self._read_inode(block, offset)

    def fragment(self, inode: Any) -> tuple[int, int]:
        """Return where the fragment block with an inode's tail end is, and its size with the bit for stored ones."""
        if inode.fragment >= self._sblk.fragments:
            raise CorruptError(f"fragment {inode.fragment} of {self._sblk.fragments}")
        start, size = _FRAGMENT.unpack_from(self._fragments, inode.fragment * _FRAGMENT.size)
        return start, size

    def read_block_sizes(self, block: int, offset: int, count: int) -> Iterator[int]:
        """Yield the sizes of a file's data blocks, with the bit for stored ones."""
        while count:
            some = min(count, SQUASHFS_METADATA_SIZE // 4)
            data, block, offset = self._read_metadata(None, block, offset, 4 * some)
            yield from struct.unpack(f"<{some}I", data)
            count -= some

    def read_data_block(self, start: int, size: int, length: int) -> bytes:
        """Return a data or fragment block, which is to have at most `length` bytes, decompressed."""
        stored = size & ~STORED
        if not 0 < stored <= self._sblk.block_size or start + stored > self._sblk.bytes_used:
            raise CorruptError(f"block of {stored} bytes at offset {start}")
        self._fd.seek(start)
        data: bytes = self._fd.read(stored)
        return data if size & STORED else self._comp.uncompress(data, stored, length)
