"""Squashfs images of layers whose data is hard on blocks and tail ends, and a slow reader that accounts for all of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from images import (
    BLOCK,
    END_OF_ARCHIVE,
    pack_gnu,
    pack_header,
    pack_headers,
    pack_number,
    pack_special,
    pax_record,
    pax_time,
)
from model import WHITEOUT, file, normalised
from paralayer.sinks.squashfs.options import Compression, Options
from paralayer.sinks.squashfs.superblock import SIZE
from squashfs_tables import NONE, STORED, Reader
from strategies import valid_stacks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from model import Entry, Node
    from squashfs_tables import Inode

Chunks = list[tuple[int, int]]
"""Offset and length of what is stored of a sparse file."""


# Writing


def options(**changes: Any) -> Options:
    """Return the options of small blocks, which small data fills."""
    usual: dict[str, Any] = {
        "compression": "zstd:1",
        "block_size": 4096,
        **dict.fromkeys(("fragments", "dedup", "exports", "pad"), True),
        "time": 0,
        **changes,
    }
    return Options(**{**usual, "compression": Compression.parse(usual["compression"])})


def write_sparse_layer(entries: Sequence[Entry], forms: Sequence[str], step: int) -> bytes:
    """Return a layer's tar in which file number i has the form `forms[i % len(forms)]`: plain, gnu or pax.

    Sparse files are stored in chunks of at most `step` bytes, without those that are all zeros.
    """
    parts = []
    for number, entry in enumerate(entries):
        form = forms[number % len(forms)]
        usual = b"/".join(normalised(entry.path) or []) == entry.path and WHITEOUT not in entry.path
        if entry.kind != "file" or form == "plain" or not usual:
            data = entry.data if entry.kind == "file" else b""
            parts += [pack_headers(entry, len(data)), data, bytes(-len(data) % BLOCK)]
        else:
            parts.append(pack_sparse(entry, chunks_of(entry.data, step), form))
    return b"".join(parts) + END_OF_ARCHIVE


def chunks_of(data: bytes, step: int) -> Chunks:
    """Return what is not zero, in steps; at the end stands an empty chunk, as GNU tar writes it."""
    chunks = [
        (at, len(data[at : at + step])) for at in range(0, len(data), step) if any(data[at : at + step])
    ]
    return [*chunks, (len(data), 0)]


def pack_sparse(
    entry: Entry, chunks: Chunks, form: str, *, size: int | None = None, stored: bytes | None = None
) -> bytes:
    """Return a sparse file of a tar. `entry.data` is its content, unless `stored` and its `size` are given."""
    if stored is None:
        stored = b"".join(entry.data[offset : offset + length] for offset, length in chunks)
    size = len(entry.data) if size is None else size
    if form == "gnu" and not entry.xattrs and not entry.mtime_ns:
        return pack_old_sparse(entry, chunks, size, stored)
    numbers = [len(chunks), *(number for chunk in chunks for number in chunk)]
    lines = b"".join(b"%d\n" % number for number in numbers)
    content = lines + bytes(-len(lines) % BLOCK) + stored
    records = {b"SCHILY.xattr." + name: value for name, value in entry.xattrs.items()}
    records |= {
        b"mtime": pax_time(entry.mtime, entry.mtime_ns),
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": entry.path,
        b"GNU.sparse.realsize": b"%d" % size,
    }
    header = pack_header(
        name=b"GNUSparseFile.0/x",
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        size=len(content),
        flag=b"0",
        magic=b"ustar\x0000",
    )
    special = pack_special(b"x", b"PaxHeaders/0", b"".join(map(pax_record, records, records.values())))
    return special + header + content + bytes(-len(content) % BLOCK)


def pack_old_sparse(entry: Entry, chunks: Chunks, size: int, stored: bytes) -> bytes:
    """Return a sparse file in the old GNU format (struct oldgnu_header in GNU tar's manual)."""
    packed = [pack_number(offset, 12) + pack_number(length, 12) for offset, length in chunks]
    first, rest = packed[:4], packed[4:]
    headers = pack_gnu(entry, len(stored))
    header = bytearray(headers[-BLOCK:])
    header[156:157] = b"S"
    header[386:482] = b"".join(first).ljust(96, b"\0")
    header[482] = bool(rest)
    header[483:495] = pack_number(size, 12)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    blocks = headers[:-BLOCK] + header
    while rest:
        now, rest = rest[:21], rest[21:]
        blocks += (b"".join(now).ljust(504, b"\0") + bytes([bool(rest)])).ljust(BLOCK, b"\0")
    return blocks + stored + bytes(-len(stored) % BLOCK)


# Reading


@dataclass(frozen=True, slots=True)
class Place:
    """Where the content of a file is."""

    start: int
    sizes: tuple[int, ...]
    fragment: int
    offset: int


class DataReader(Reader):
    """Reads data as well, and asserts that every byte of the image is accounted for."""

    def __init__(self, image: bytes) -> None:
        super().__init__(image)
        self.paths: dict[bytes, int] = {}
        """Inode numbers."""
        self.places: dict[int, Place] = {}
        """By inode number, of files with content."""
        self._blocks: dict[int, tuple[int, int, bytes]] = {}  # by start: size on disk, word, content
        self._tails: dict[int, dict[int, int]] = {}  # by fragment, offset: size
        self._fragments: list[int] = []  # where their blocks are

    def tree(self) -> dict[bytes, Node]:
        """Return the tree; all that is between superblock and tables, and behind these, is what it must be."""
        image = self.read()
        self.paths = image.paths
        at = self.begin()
        for start, (size, _, _) in sorted(self._blocks.items()):
            assert start == at, "nothing between two blocks, and none twice"
            at += size
        assert at == self.inode_table, "nothing between the blocks and the tables"
        assert len(self._tails) == self.fragments, "a fragment block that no file has"
        for fragment, tails in self._tails.items():
            at = 0
            for offset, size in sorted(tails.items()):
                assert offset == at, "nothing between two tail ends"
                at += size
            assert at == len(self._blocks[self._fragments[fragment]][2])
        assert self.image[self.end :] == bytes(len(self.image) - self.end), "padding is zeros"
        return image.tree

    def begin(self) -> int:
        """Return where the blocks begin: behind the superblock, or the compressor's options."""
        if not self.flags & 0x400:
            return SIZE
        return self.block(SIZE)[1]

    def data(self, inode: Inode, fragments: bytes) -> bytes:
        """Return the content of a file."""
        parts: list[bytes] = []
        at, done, holes = inode.start, 0, 0
        for word in inode.sizes:
            want = min(self.block_size, inode.size - done)
            if word:
                parts.append(self.content(at, word))
                assert len(parts[-1]) == want
                at += word & ~STORED
            else:
                parts.append(bytes(want))
                holes += want
            done += want
        assert inode.start or not any(inode.sizes)
        if inode.type == 9:
            assert inode.sparse == holes
        else:
            assert not holes
        if inode.fragment != NONE:
            start, word, unused = self.record(fragments, inode.fragment)
            assert unused == 0
            tail = inode.size - done
            assert 0 < tail < self.block_size
            block = self.content(start, word)
            assert inode.offset + tail <= len(block)
            parts.append(block[inode.offset : inode.offset + tail])
            assert any(parts[-1]), "a hole in a fragment block"
            assert self._tails.setdefault(inode.fragment, {}).setdefault(inode.offset, tail) == tail
        if inode.size:
            self.places[inode.number] = Place(inode.start, inode.sizes, inode.fragment, inode.offset)
        return b"".join(parts)

    def record(self, fragments: bytes, number: int) -> tuple[int, int, int]:
        """Return a record of the fragment table: start, size, unused."""
        at = number * 16
        if not self._fragments:
            self._fragments = [
                int.from_bytes(fragments[each : each + 8], "little") for each in range(0, len(fragments), 16)
            ]
        word = int.from_bytes(fragments[at + 8 : at + 12], "little")
        return self._fragments[number], word, int.from_bytes(fragments[at + 12 : at + 16], "little")

    def content(self, start: int, word: int) -> bytes:
        """Return a block's content; it is stored as it is only where compression does not make it smaller."""
        known = self._blocks.get(start)
        if known is not None:
            assert known[1] == word
            return known[2]
        size = word & ~STORED
        assert 0 < size <= self.block_size
        stored = self.image[start : start + size]
        assert len(stored) == size
        content = stored if word & STORED else self.decompress(stored)
        assert word & STORED or size < len(content) <= self.block_size
        self._blocks[start] = size, word, content
        return content

    def decompress(self, data: bytes) -> bytes:
        """Decompress a block of data or metadata."""
        if self.compressor != 5:
            return super().decompress(data)
        import lz4.block

        size = max(self.block_size, 8192)
        return bytes(lz4.block.decompress(data, uncompressed_size=size))


def read_image(path: str) -> DataReader:
    with open(path, "rb") as stream:
        return DataReader(stream.read())


# Strategies

NOISE = random.Random(7).randbytes(2 << 20)
TEXT = b"".join(b"%d squared is %d. " % (number, number * number) for number in range(4096))
BLOCK_SIZE = 4096

blocks = st.sampled_from(
    [
        *(bytes(BLOCK_SIZE), NOISE[:BLOCK_SIZE], NOISE[: BLOCK_SIZE - 1] + b"\0"),
        *(NOISE[5:][:BLOCK_SIZE], TEXT[:BLOCK_SIZE]),
    ]
)
tails = st.sampled_from(
    [
        *(b"", b"", b"\0", b"x"),
        *(bytes(BLOCK_SIZE - 1), NOISE[: BLOCK_SIZE - 1], TEXT[: BLOCK_SIZE - 1]),
        *(NOISE[:2000], NOISE[5:2005], TEXT[:3000], bytes(99) + b"x", b"x" + bytes(99)),
    ]
)
contents = st.builds(lambda whole, tail: b"".join(whole) + tail, st.lists(blocks, max_size=3), tails)
"""Of files: on, before and behind the ends of blocks of 4 KiB, with and without holes; many of them are equal."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A stack, and how its files stand in the layers. See `write_sparse_layer`."""

    stack: list[list[Entry]]
    forms: list[str]
    step: int

    def tars(self) -> list[bytes]:
        return [write_sparse_layer(layer, self.forms, self.step) for layer in self.stack]


forms = st.lists(st.sampled_from(["plain", "plain", "gnu", "pax"]), min_size=1, max_size=4)


@st.composite
def layered(draw: st.DrawFn) -> Drawn:
    """Draw a stack that merges, with sparse files and such contents in it; some files are always there."""
    some = draw(st.lists(contents, min_size=3, max_size=8))
    stack = [
        [
            replace(entry, data=some[entry.mtime % len(some)]) if entry.kind == "file" else entry
            for entry in layer
        ]
        for layer in draw(valid_stacks())
    ]
    for number, content in enumerate(some):
        stack[number % len(stack)].append(file(b"always/%d.%d" % (number, number % 3), content))
    return Drawn(stack, draw(forms), draw(st.sampled_from([512, 777, 4096, 5000, 1 << 20])))


images = st.builds(
    options,
    compression=st.sampled_from(["zstd:1", "zstd:1", "gzip:1", "xz", "lz4", "none"]),
    block_size=st.sampled_from([4096, 4096, 4096, 8192]),
    fragments=st.sampled_from([True, True, False]),
    dedup=st.sampled_from([True, True, False]),
    exports=st.booleans(),
    pad=st.booleans(),
    time=st.sampled_from([0, 1_700_000_000, (1 << 32) - 1]),
)
"""Options of images."""
