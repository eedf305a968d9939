"""The tree in a squashfs file, read by PySquashfsImage: no code of this project's writer judges its own output.

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

import hashlib
import lzma
import os
import struct
import zlib
from array import array
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from PySquashfsImage import SquashFsImage
from PySquashfsImage.const import (
    SQUASHFS_INVALID_BLK,
    SQUASHFS_INVALID_XATTR,
    SQUASHFS_METADATA_SIZE,
    Compression,
    Type,
)
from PySquashfsImage.file import filetype
from PySquashfsImage.structure import XattrId, XattrTable

from paralayer.engine.jobs import Finished, Run
from paralayer.errors import ImageError, quote
from paralayer.verify.hashing import JOB_BYTES, JOB_PARTS, Targets, Task, spans_of
from paralayer.verify.tree import (
    PART,
    WHAT_SQUASHFS_HOLDS,
    Node,
    Tree,
    check_size,
    digest_of_zeros,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from paralayer.verify.tree import Kind, Xattrs

_KINDS: dict[int, Kind] = {
    Type.FILE: "file",
    Type.DIR: "directory",
    Type.SYMLINK: "symlink",
    Type.CHRDEV: "character device",
    Type.BLKDEV: "block device",
    Type.FIFO: "fifo",
    Type.SOCKET: "socket",
}
_EXTENDED = Type.LDIR - Type.DIR  # between the number of an inode type and that of its extended form
_PREFIXES = (b"user.", b"trusted.", b"security.")
_OUT_OF_LINE = 0x100
_XATTR_KEY, _XATTR_SIZE, _XATTR_REFERENCE = struct.Struct("<HH"), struct.Struct("<I"), struct.Struct("<Q")
_FRAGMENT = struct.Struct("<QI4x")  # where, and its size with the bit for stored ones
_METADATA_STORED = 2 + SQUASHFS_METADATA_SIZE  # at most, with the header
_METADATA_KEPT = 4096  # blocks: 32 MiB
_METADATA_AT_ONCE = 1 << 20  # bytes; all that is longer is read in pieces
_STORED = 1 << 24  # the bit of a data block's size that says that it is not compressed
_FRAGMENTS_KEPT = 8
_NOT_NAMES = (b"", b".", b"..")
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


class _Image(SquashFsImage):  # type: ignore[misc]
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
        stored = size & ~_STORED
        if not 0 < stored <= self._sblk.block_size or start + stored > self._sblk.bytes_used:
            raise CorruptError(f"block of {stored} bytes at offset {start}")
        self._fd.seek(start)
        data: bytes = self._fd.read(stored)
        return data if size & _STORED else self._comp.uncompress(data, stored, length)


class _Content(NamedTuple):
    """Where a file's content is."""

    start: int  # of the data blocks, or of the fragment block if there are none
    fragment_start: int
    fragment_size: int  # with the bit for stored ones; 0 if there is no fragment
    fragment_offset: int
    size: int
    list_block: int  # of the list of block sizes
    list_offset: int


_SPAN = struct.Struct("<9q")  # a _Content, the first part and the one behind the last


@dataclass(frozen=True, slots=True)
class HashBlocks:
    """Job: hash parts of files. Descriptor: of the squashfs file, which `where` names."""

    where: str
    spans: bytes

    def run(self, fds: Sequence[int]) -> Run:
        """See `Job`."""
        digests: list[bytes] = []
        with _one_error(self.where):
            image = _Image(fds[0])
            fragment = lru_cache(_FRAGMENTS_KEPT)(image.read_data_block)
            for *fields, first, last in _SPAN.iter_unpack(self.spans):
                digests += _hash(image, fragment, _Content(*fields), first, last)
        yield Finished(b"".join(digests))


def _hash(
    image: _Image, fragment: Callable[[int, int, int], bytes], content: _Content, first: int, last: int
) -> Iterator[bytes]:
    """Yield the digests of parts."""
    block_size = image.sblk.block_size
    blocks = content.size // block_size if content.fragment_size else -(-content.size // block_size)
    per_part = PART // block_size
    sizes = image.read_block_sizes(content.list_block, content.list_offset, min(blocks, last * per_part))
    at = content.start
    for _ in range(min(blocks, first * per_part)):
        at += next(sizes) & ~_STORED
    for number in range(first, last):
        digest = None
        holes = 0  # bytes of the part, before anything else
        end = min((number + 1) * PART, content.size)
        for offset in range(number * PART, end, block_size):
            length = min(block_size, content.size - offset)
            if offset // block_size == blocks:
                tail = fragment(content.fragment_start, content.fragment_size, block_size)
                data = tail[content.fragment_offset : content.fragment_offset + length]
            elif size := next(sizes):
                data = image.read_data_block(at, size, length)
                at += size & ~_STORED
            elif digest is None:
                holes += length
                continue
            else:
                data = bytes(length)
            if len(data) != length:
                raise CorruptError(f"{len(data)} bytes of a file's data, where {length} belong")
            if digest is None:
                digest = hashlib.sha256(bytes(holes))
            digest.update(data)
        yield digest.digest() if digest is not None else digest_of_zeros(holes)


class SquashfsTree:
    """Reads the squashfs file at `path`, which `where` names. It keeps the file open until `close`."""

    def __init__(self, path: str, where: str) -> None:
        self._where = where
        self.tree = Tree(WHAT_SQUASHFS_HOLDS)
        self._contents = array("q")  # a _Content for each file that is not empty
        self._files: list[Node] = []
        self.size = 0
        """Bytes of all files; complete after `read`."""
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ImageError(where, error.strerror or "cannot be opened") from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def read(self) -> None:
        """Read everything but contents."""
        with _one_error(self._where):
            image = _Image(self._fd)
            if image.sblk.bytes_used > os.fstat(self._fd).st_size:
                raise CorruptError(f"cut off: it should have {image.sblk.bytes_used} bytes")
            image.read_tables()
            self._walk(image)

    def _walk(self, image: _Image) -> None:
        seen: set[int] = set()  # numbers of inodes
        linked: dict[int, tuple[int, Node]] = {}  # of those with several names: the reference, and what it is
        root = image.sblk.root_inode
        pending = [(b"", root >> 16, root & 0xFFFF)]
        while pending:
            parent, block, offset = pending.pop()
            directory = image.read_directory(block, offset)
            number = directory.inode.inode_number
            if number in seen:
                raise CorruptError(f"directory {quote(parent)} is in two places")
            seen.add(number)
            self.tree.nodes[parent] = _node(image, directory.inode, Type.DIR)
            names = set()
            for entry in directory.entries:
                name, type_ = entry["name"], entry["type"]
                if name in names or name in _NOT_NAMES or b"/" in name or b"\0" in name:
                    raise CorruptError(f"name {quote(name)} in {quote(parent) or 'the root'}")
                names.add(name)
                path = parent + b"/" + name if parent else name
                block, offset = entry["start_block"], entry["offset"]
                if type_ == Type.DIR:
                    pending.append((path, block, offset))
                    continue
                inode = image.read_inode(block, offset)
                number, reference = inode.inode_number, block << 16 | offset
                if number in seen:
                    known, node = linked.get(number, (None, None))
                    if node is None or known != reference:
                        raise CorruptError(
                            f"inode number {number} twice, or with a link count that is too small"
                        )
                    node.names += 1
                else:
                    seen.add(number)
                    node = _node(image, inode, type_)
                    if getattr(inode, "nlink", 1) > 1:  # the basic inode of a file has no such field
                        linked[number] = reference, node
                    if node.kind == "file":
                        self._add_content(image, inode, node, path)
                self.tree.nodes[path] = node

    def _add_content(self, image: _Image, inode: Any, node: Node, path: bytes) -> None:
        size = node.size = inode.data
        if not size:
            return
        check_size(size, self._where, path)
        tail_at, tail_size, tail_offset = 0, 0, 0
        if inode.frag_bytes:
            tail_at, tail_size = image.fragment(inode)
            tail_offset = inode.offset
        start = inode.start if inode.blocks else tail_at
        self._contents.extend(
            (start, tail_at, tail_size, tail_offset, size, inode.block_start, inode.block_offset)
        )
        self._files.append(node)
        self.size += size

    def tasks(self) -> Iterator[Task]:
        """Yield what is to be done to hash the contents, after `read`; in the order in which they are stored."""
        contents = np.frombuffer(self._contents, np.int64).reshape(-1, len(_Content._fields))
        spans: list[bytes] = []
        targets: list[tuple[Node, int, int]] = []
        size = count = 0
        for index in np.argsort(contents[:, 0], kind="stable").tolist():
            node = self._files[index]
            for first, last in spans_of(node.size):
                span = min(last * PART, node.size) - first * PART
                if spans and (size + span > JOB_BYTES or count + last - first > JOB_PARTS):
                    yield Task(HashBlocks(self._where, b"".join(spans)), [self._fd], Targets(targets), size)
                    spans, targets, size, count = [], [], 0, 0
                spans.append(_SPAN.pack(*contents[index].tolist(), first, last))
                targets.append((node, first, last - first))
                size += span
                count += last - first
        if spans:
            yield Task(HashBlocks(self._where, b"".join(spans)), [self._fd], Targets(targets), size)


def _node(image: _Image, inode: Any, type_: int) -> Node:
    header = inode.header
    if header.inode_type not in (type_, type_ + _EXTENDED):
        raise CorruptError(f"inode of type {header.inode_type} in an entry of type {type_}")
    kind = _KINDS[type_]
    node = Node(kind, header.mode & 0o7777, inode.uid, inode.gid, header.mtime * 10**9)
    if inode.xattr != SQUASHFS_INVALID_XATTR:
        node.xattrs = image.xattrs(inode.xattr)
    if kind == "symlink":
        node.target = inode._symlink  # noqa: SLF001 - what is public decodes it as UTF-8
    elif kind in ("character device", "block device"):
        device = filetype[type_](image, inode, b"", None)
        node.device = device.major, device.minor
    return node


@contextmanager
def _one_error(where: str) -> Iterator[None]:
    """Turn whatever the library makes of a file that is corrupt, or not what it can read, into one error."""
    try:
        yield
    except ImageError:
        raise
    except ModuleNotFoundError as error:
        raise ImageError(where, f"its compression needs the Python package {error.name}") from None
    except OSError as error:
        raise ImageError(where, error.strerror or str(error)) from None
    except CorruptError as error:
        raise ImageError(where, f"squashfs file is corrupt: {error}") from None
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise ImageError(where, f"squashfs file is corrupt, or not understood: {text}") from error
