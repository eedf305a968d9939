"""Squashfs images of rows, with data that the tests place themselves; and a slow reader of all tables.

The reader takes nothing on trust: what readers may rely on is asserted as it goes. It follows the format description
(Linux Documentation/filesystems/squashfs.rst and squashfs_fs.h), and shares no code with the writer.
"""

from __future__ import annotations

import lzma
import os
import struct
import zlib
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

from model import Node, node
from paralayer.sinks.squashfs.compressor import Compressor
from paralayer.sinks.squashfs.inode import NO_FRAGMENT, Content
from paralayer.sinks.squashfs.options import Compression
from paralayer.sinks.squashfs.superblock import SIZE, Flags, Superblock
from paralayer.sinks.squashfs.tree import Tree
from paralayer.survivors import Batch, Rules
from paralayer.table import ROW, Table, TableWriter, pack_xattrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model import Entry

BLOCK_SIZE = 4096
METADATA = 8192
KINDS = {"file": 0, "symlink": 2, "char": 3, "block": 4, "dir": 5, "fifo": 6}
STORED = 1 << 24
NONE = 0xFFFF_FFFF
NO_TABLE = 0xFFFF_FFFF_FFFF_FFFF


# Writing


def batch_of(entries: Sequence[Entry]) -> Batch:
    """Return entries as survivors of one layer."""
    rows = np.zeros(len(entries), ROW)
    extras = []
    at = 0
    for row, entry in zip(rows, entries, strict=True):
        xattrs = pack_xattrs(entry.xattrs.items())
        row["kind"] = KINDS[entry.kind]
        for name in ("mode", "uid", "gid", "mtime", "major", "minor"):
            row[name] = getattr(entry, name)
        row["nsec"] = entry.mtime_ns
        row["size"] = len(entry.data)
        row["extra"], row["link"], row["xattrs"] = at, len(entry.linkname), len(xattrs)
        extras.append(entry.linkname + xattrs)
        at += len(extras[-1])
    paths = [entry.path for entry in entries]
    fd = os.memfd_create("table")
    try:
        writer = TableWriter(fd)
        writer.append(rows, b"".join(path + b"\0" for path in paths), b"".join(extras))
        table = Table(fd, writer.length)
    finally:
        os.close(fd)
    return Batch(0, rows, paths, [table], Rules())


@dataclass
class Placed:
    """Data behind the superblock, uncompressed: whole blocks, holes for zeros, tail ends in fragment blocks."""

    data: bytearray
    content: Content
    fragments: bytes = b""


def place_data(entries: Sequence[Entry], position: int, *, tails: bool) -> Placed:
    """Place the data of files; with `tails` what is less than a block goes into fragment blocks."""
    count = len(entries)
    zeros = np.zeros(count, np.int64)
    content = Content(
        start=zeros.copy(),
        fragment=np.full(count, NO_FRAGMENT, np.uint32),
        offset=np.zeros(count, np.uint32),
        sparse=zeros.copy(),
        first=zeros.copy(),
        count=zeros.copy(),
        sizes=np.zeros(0, np.uint32),
    )
    data = bytearray()
    sizes: list[int] = []
    shared = bytearray()
    blocks: list[bytes] = []
    for index, entry in enumerate(entries):
        content.first[index] = len(sizes)
        whole = len(entry.data) // BLOCK_SIZE * BLOCK_SIZE if tails else len(entry.data)
        if whole:
            content.start[index] = position + len(data)
        for at in range(0, whole, BLOCK_SIZE):
            block = entry.data[at : min(at + BLOCK_SIZE, whole)]
            if any(block):
                data += block
                sizes.append(STORED | len(block))
            else:
                content.sparse[index] += len(block)
                sizes.append(0)
        content.count[index] = len(sizes) - content.first[index]
        if tail := entry.data[whole:]:
            if len(shared) + len(tail) > BLOCK_SIZE:
                blocks.append(bytes(shared))
                shared.clear()
            content.fragment[index], content.offset[index] = len(blocks), len(shared)
            shared += tail
    content.sizes = np.array(sizes, np.uint32)
    fragments = b""
    for block in [*blocks, bytes(shared)]:
        if block:
            fragments += struct.pack("<QII", position + len(data), STORED | len(block), 0)
            data += block
    return Placed(data, content, fragments)


def pack_image(
    entries: Sequence[Entry],
    *,
    compression: str = "zstd",
    exports: bool = True,
    tails: bool = True,
    batches: int = 1,
    lost: dict[str, int] | None = None,
) -> bytes:
    """Return the image of a complete tree, the root's entry first; `lost` gets what was lost."""
    parsed = Compression.parse(compression)
    compressor = Compressor(parsed, BLOCK_SIZE)
    inodes = [entry for entry in entries if entry.kind != "hardlink"]
    tree = Tree("out.squashfs", compressor, exports=exports)
    tree.add(batch_of(inodes[:1]))
    step = -(-len(inodes) // batches)
    for first in range(1, len(inodes), step):
        tree.add(batch_of(inodes[first : first + step]))
    tree.link([(entry.path, entry.linkname) for entry in entries if entry.kind == "hardlink"])
    tree.settle()
    placed = place_data(inodes, SIZE + len(compressor.options), tails=tails)
    position = SIZE + len(compressor.options) + len(placed.data)
    pieces, tables = tree.pack(position, placed.content, placed.fragments)
    if lost is not None:
        lost.update(tree.lost)
    flags = Flags.EXPORTABLE if exports else Flags(0)
    flags |= Flags.COMPRESSOR_OPTIONS if compressor.options else Flags(0)
    flags |= Flags.UNCOMPRESSED if parsed.name == "none" else Flags(0)
    superblock = Superblock(1, BLOCK_SIZE, compressor.id, flags, len(placed.fragments) // 16, tables)
    image = b"".join([superblock.pack(), compressor.options, bytes(placed.data), *pieces])
    assert len(image) == tables.end
    return image + bytes(-len(image) % 4096)


def tree_of(entries: Sequence[Entry]) -> dict[bytes, Node]:
    """Return the tree that the image of `entries` is to hold."""
    by_path = {entry.path: entry for entry in entries}
    groups: dict[bytes, list[bytes]] = {}
    for entry in entries:
        groups.setdefault(leader(entry), []).append(entry.path)
    return {
        entry.path: node(by_path[leader(entry)], tuple(sorted(groups[leader(entry)]))) for entry in entries
    }


def leader(entry: Entry) -> bytes:
    return entry.linkname if entry.kind == "hardlink" else entry.path


# Reading


@dataclass
class Inode:
    """An inode as it is on disk."""

    type: int
    mode: int
    uid: int
    gid: int
    mtime: int
    number: int
    reference: int
    nlink: int = 1
    size: int = 0
    xattr: int = NONE
    start: int = 0
    offset: int = 0
    fragment: int = NONE
    sparse: int = 0
    sizes: tuple[int, ...] = ()
    target: bytes = b""
    rdev: int = 0
    parent: int = 0
    index_count: int = 0
    indexes: list[tuple[int, int, bytes]] = field(default_factory=list)
    headers: list[tuple[int, int]] = field(default_factory=list)
    """Of a listing: its offset and number of entries for each header."""


@dataclass
class Image:
    """All that the tables of an image say."""

    inodes: dict[int, Inode]
    """By number."""
    paths: dict[bytes, int]
    """Inode numbers."""
    tree: dict[bytes, Node]
    out_of_line: int = 0
    """References to xattr values."""
    sets: int = 0


class Reader:
    """Reads one image."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        fields = struct.unpack_from("<IIIIIHHHHHHQQQQQQQQ", image)
        (magic, self.inodes, self.time, self.block_size, self.fragments, self.compressor, log) = fields[:7]
        (self.flags, self.ids, major, minor, self.root, self.end) = fields[7:13]
        (self.id_table, self.xattr_table, self.inode_table, self.directory_table) = fields[13:17]
        (self.fragment_table, self.export_table) = fields[17:]
        assert (magic, major, minor, 1 << log) == (0x73717368, 4, 0, self.block_size)
        assert SIZE <= self.inode_table < self.directory_table <= self.fragment_table < self.id_table
        self.out_of_line = 0

    # Metadata blocks

    def block(self, position: int) -> tuple[bytes, int]:
        """Return a metadata block, and where the next one begins."""
        (header,) = struct.unpack_from("<H", self.image, position)
        stored = self.image[position + 2 : position + 2 + (header & 0x7FFF)]
        data = stored if header & 0x8000 else self.decompress(stored)
        assert 0 < len(data) <= METADATA
        return data, position + 2 + len(stored)

    def decompress(self, data: bytes) -> bytes:
        if self.compressor == 1:
            return zlib.decompress(data)
        if self.compressor == 4:
            return lzma.decompress(data, lzma.FORMAT_XZ)
        if self.compressor == 6:
            return zstandard.ZstdDecompressor().decompress(data)
        import lz4.block

        assert self.compressor == 5
        return bytes(lz4.block.decompress(data, uncompressed_size=METADATA))

    def blocks(self, start: int, stop: int) -> dict[int, bytes]:
        """Return a table's metadata blocks by position in it; all but the last are full."""
        found = {}
        at = start
        while at < stop:
            found[at - start], at = self.block(at)
        assert at == stop
        assert all(len(data) == METADATA for data in list(found.values())[:-1])
        return found

    def lookup_table(self, start: int, size: int) -> bytes:
        """Return a table of so many bytes of which the list of block positions begins at `start`."""
        positions = struct.unpack_from(f"<{-(-size // METADATA)}Q", self.image, start)
        data = b"".join(self.block(position)[0] for position in positions)
        assert len(data) == size
        return data

    def first_block(self, start: int, size: int) -> int:
        """Return where a table begins of which the list of block positions begins at `start`."""
        return int(struct.unpack_from("<Q", self.image, start)[0]) if size else start

    # Tables

    def read(self) -> Image:
        tables = [
            (self.fragment_table, self.fragments * 16),
            (self.export_table, self.inodes * 8 if self.export_table != NO_TABLE else 0),
            (self.id_table, self.ids * 4),
        ]
        ids = struct.unpack(f"<{self.ids}I", self.lookup_table(*tables[2]))
        end_of_listings = self.first_block(*tables[0])
        self.check_neighbours([table for table in tables if table[0] != NO_TABLE])
        xattrs = self.read_xattrs()

        blocks = self.blocks(self.inode_table, self.directory_table)
        inodes = self.read_inodes(blocks)
        assert sorted(inodes) == list(range(1, self.inodes + 1))
        if self.export_table != NO_TABLE:
            exports = struct.unpack(f"<{self.inodes}Q", self.lookup_table(*tables[1]))
            assert exports == tuple(inodes[number].reference for number in range(1, self.inodes + 1))

        listings = self.blocks(self.directory_table, end_of_listings)
        paths = self.walk(inodes, listings)
        groups: dict[int, list[bytes]] = {}
        for path, number in paths.items():
            groups.setdefault(number, []).append(path)
        assert sorted(groups) == sorted(inodes), "an inode without a name"
        for number, names in groups.items():
            if inodes[number].type not in (1, 8):
                assert inodes[number].nlink == len(names)
        fragments = self.lookup_table(*tables[0])
        tree = {
            path: self.node(inodes[number], tuple(sorted(groups[number])), ids, xattrs, fragments)
            for path, number in paths.items()
        }
        return Image(inodes, paths, tree, self.out_of_line, len(xattrs))

    def check_neighbours(self, tables: list[tuple[int, int]]) -> None:
        """Assert that nothing lies between the tables, as newer kernels do."""
        for (start, size), (next_start, next_size) in pairwise(tables):
            assert start + -(-size // METADATA) * 8 == self.first_block(next_start, next_size)
        start, size = tables[-1]
        behind = self.end
        if self.xattr_table != NO_TABLE:
            (behind,) = struct.unpack_from("<Q", self.image, self.xattr_table)
        assert start + -(-size // METADATA) * 8 == behind

    def read_xattrs(self) -> list[dict[bytes, bytes]]:
        if self.xattr_table == NO_TABLE:
            return []
        start, count, unused = struct.unpack_from("<QII", self.image, self.xattr_table)
        positions = -(-count * 16 // METADATA)
        assert (unused, self.xattr_table + 16 + positions * 8) == (0, self.end)
        records = self.lookup_table(self.xattr_table + 16, count * 16)
        blocks = self.blocks(start, self.first_block(self.xattr_table + 16, count * 16))
        stream, at_of = joined(blocks)

        def value_at(at: int) -> tuple[bytes, int]:
            (size,) = struct.unpack_from("<I", stream, at)
            return stream[at + 4 : at + 4 + size], at + 4 + size

        sets = []
        for reference, number, size in struct.iter_unpack("<QII", records):
            at = at_of[reference >> 16] + (reference & 0xFFFF)
            found = {}
            for _ in range(number):
                kind, length = struct.unpack_from("<HH", stream, at)
                name = (b"user.", b"trusted.", b"security.")[kind & 0xFF] + stream[at + 4 : at + 4 + length]
                value, at = value_at(at + 4 + length)
                if kind & 0x100:
                    self.out_of_line += 1
                    (where,) = struct.unpack("<Q", value)
                    value, _ = value_at(at_of[where >> 16] + (where & 0xFFFF))
                found[name] = value
            assert len(found) == number
            assert size == sum(len(name) + 1 + len(value) for name, value in found.items())
            sets.append(found)
        return sets

    def read_inodes(self, blocks: dict[int, bytes]) -> dict[int, Inode]:
        stream, at_of = joined(blocks)
        block_of = {at // METADATA: block for block, at in at_of.items()}
        inodes = {}
        at = 0
        while at < len(stream):
            reference = block_of[at // METADATA] << 16 | at % METADATA
            kind, mode, uid, gid, mtime, number = struct.unpack_from("<HHHHII", stream, at)
            inode = Inode(kind, mode, uid, gid, mtime, number, reference)
            at = parse_inode(inode, stream, at + 16, self.block_size)
            inodes[inode.number] = inode
        return inodes

    def walk(self, inodes: dict[int, Inode], listings: dict[int, bytes]) -> dict[bytes, int]:
        stream, at_of = joined(listings)
        numbers = {inode.reference: inode.number for inode in inodes.values()}
        root = numbers[self.root]
        assert inodes[root].parent == self.inodes + 1
        paths = {b"": root}
        pending = [b""]
        while pending:
            path = pending.pop()
            inode = inodes[paths[path]]
            names = parse_listing(inode, stream, at_of)
            assert [name for name, _, _ in names] == sorted({name for name, _, _ in names})
            subdirectories = 0
            for name, reference, number in names:
                assert numbers[reference] == number
                child = inodes[number]
                below = path + b"/" + name if path else name
                paths[below] = number
                if child.type in (1, 8):
                    assert child.parent == inode.number
                    subdirectories += 1
                    pending.append(below)
            assert inode.nlink == 2 + subdirectories
            self.check_indexes(inode, at_of, {offset: name for (offset, _), name in firsts(inode, names)})
        return paths

    def check_indexes(self, inode: Inode, at_of: dict[int, int], names: dict[int, bytes]) -> None:
        """Assert that each index is of the first header in a metadata block, and all but the first block have one."""
        start = at_of[inode.start] + inode.offset if names else 0
        block_of = {at // METADATA: block for block, at in at_of.items()}
        want: dict[int, tuple[int, int, bytes]] = {}
        for offset, name in names.items():
            number = (start + offset) // METADATA
            if number > start // METADATA:
                want.setdefault(number, (offset, block_of[number], name))
        assert inode.indexes == list(want.values())

    def node(
        self,
        inode: Inode,
        group: tuple[bytes, ...],
        ids: tuple[int, ...],
        xattrs: list[dict[bytes, bytes]],
        fragments: bytes,
    ) -> Node:
        kind: Any = ("dir", "file", "symlink", "block", "char", "fifo")[(inode.type - 1) % 7]
        return Node(
            kind=kind,
            mode=inode.mode,
            uid=ids[inode.uid],
            gid=ids[inode.gid],
            mtime=inode.mtime,
            mtime_ns=0,
            data=self.data(inode, fragments) if kind == "file" else b"",
            linkname=inode.target,
            xattrs=xattrs[inode.xattr] if inode.xattr != NONE else {},
            major=inode.rdev >> 8 & 0xFFF,
            minor=inode.rdev & 0xFF | inode.rdev >> 12 & 0xFFF00,
            group=group,
        )

    def data(self, inode: Inode, fragments: bytes) -> bytes:
        """Return the content of a file, all of it stored uncompressed."""
        data = b""
        at = inode.start
        for size in inode.sizes:
            length = size & ~STORED
            data += self.image[at : at + length] or bytes(min(self.block_size, inode.size - len(data)))
            at += length
        if inode.fragment != NONE:
            start, _, _ = struct.unpack_from("<QII", fragments, inode.fragment * 16)
            tail = inode.size % self.block_size
            data += self.image[start + inode.offset : start + inode.offset + tail]
        assert len(data) == inode.size
        return data


def joined(blocks: dict[int, bytes]) -> tuple[bytes, dict[int, int]]:
    """Return a table's bytes, and where in them each block begins."""
    at_of = {}
    at = 0
    for block, data in blocks.items():
        at_of[block] = at
        at += len(data)
    return b"".join(blocks.values()), at_of


def parse_inode(inode: Inode, stream: bytes, at: int, block_size: int) -> int:
    """Complete an inode whose type's own fields begin at `at`; return where the next one begins."""

    def take(layout: str, *names: str) -> None:
        nonlocal at
        for name, value in zip(names, struct.unpack_from("<" + layout, stream, at), strict=True):
            setattr(inode, name, value)
        at += struct.calcsize("<" + layout)

    if inode.type == 1:
        take("IIHHI", "start", "nlink", "size", "offset", "parent")
    elif inode.type == 8:
        take("IIIIHHI", "nlink", "size", "start", "parent", "index_count", "offset", "xattr")
        for _ in range(inode.index_count):
            offset, start, size = struct.unpack_from("<III", stream, at)
            inode.indexes.append((offset, start, stream[at + 12 : at + 13 + size]))
            at += 13 + size
    elif inode.type in (2, 9):
        if inode.type == 2:
            take("IIII", "start", "fragment", "offset", "size")
        else:
            take("QQQIIII", "start", "size", "sparse", "nlink", "fragment", "offset", "xattr")
        count = inode.size // block_size if inode.fragment != NONE else -(-inode.size // block_size)
        inode.sizes = struct.unpack_from(f"<{count}I", stream, at)
        at += count * 4
    elif inode.type in (3, 10):
        take("II", "nlink", "size")
        inode.target = stream[at : at + inode.size]
        at += inode.size
    elif inode.type in (4, 5, 11, 12):
        take("II", "nlink", "rdev")
    else:
        assert inode.type in (6, 13)
        take("I", "nlink")
    if inode.type in (10, 11, 12, 13):
        take("I", "xattr")
    return at


def parse_listing(inode: Inode, stream: bytes, at_of: dict[int, int]) -> list[tuple[bytes, int, int]]:
    """Return name, inode reference and inode number of each entry of a directory."""
    length = inode.size - 3
    assert length >= 0
    if not length:
        assert (inode.start, inode.offset) == (0, 0)  # as mksquashfs has it
        return []
    start = at_of[inode.start] + inode.offset
    at = start
    names = []
    while at < start + length:
        count, block, base = struct.unpack_from("<III", stream, at)
        assert count < 256
        inode.headers.append((at - start, count + 1))
        at += 12
        for _ in range(count + 1):
            offset, delta, _, size = struct.unpack_from("<HhHH", stream, at)
            assert offset < METADATA
            names.append((stream[at + 8 : at + 9 + size], block << 16 | offset, base + delta))
            at += 9 + size
    assert at == start + length
    return names


def firsts(inode: Inode, names: list[tuple[bytes, int, int]]) -> list[tuple[tuple[int, int], bytes]]:
    """Return each header of a listing with the name of its first entry."""
    found = []
    at = 0
    for header in inode.headers:
        found.append((header, names[at][0]))
        at += header[1]
    return found
