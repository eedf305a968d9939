"""A merged tree for the metadata of a squashfs: rows, paths and where contents are, but no contents."""

from __future__ import annotations

import os
import random
import sys
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.layouts import ROOT
from benchmarks.squashfs import BLOCK_SIZE, COMPRESSION
from paralayer.sinks.squashfs.compressor import Compressor
from paralayer.sinks.squashfs.inode import NO_FRAGMENT, Content
from paralayer.sinks.squashfs.superblock import SIZE, Flags, Superblock
from paralayer.sinks.squashfs.tree import Tree
from paralayer.survivors import Batch, Rules
from paralayer.table import DIRECTORY, FILE, ROW, SYMLINK, Table, TableWriter

if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))
from squashfs_tables import Reader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from squashfs_tables import Inode

LAYERS = 10
ENTRIES = 400_000
_SUFFIXES = (b".py", b".js", b".h", b".cpython-311.pyc")
_STEMS = (b"index", b"module", b"test_thing", b"_core", b"README")
_DIRECTORIES = (b"lib", b"python3", b"site-packages", b"share", b"doc", b"include", b"dist", b"__pycache__")
_TARGET = b"../target/file123.so"
_TAILS = 20
"""Tail ends in a fragment block."""


@dataclass(frozen=True, slots=True)
class Survivors:
    """What survives of some layers, the root first, and the hard links behind it."""

    batches: tuple[Batch, ...]
    links: tuple[tuple[bytes, bytes], ...]
    content: Content
    fragments: bytes
    paths: frozenset[bytes]
    """All there are, those of the hard links included."""

    @property
    def entries(self) -> int:
        """How many there are without the hard links, each an inode."""
        return sum(len(batch.paths) for batch in self.batches)


def survivors_of(entries: int, *, mixed: bool) -> Survivors:
    """Make a tree of so many entries: a tenth of them directories, one in twenty of the others a symlink.

    Each layer brings its own part of the tree or, if `mixed`, something of every directory.
    """
    chance = random.Random(1)
    directories = [b"usr"]
    known = set(directories)
    while len(directories) < entries // 10:
        # Most of a tree is deep: what was made last gets more.
        parent = chance.choice(directories[-300:] if chance.random() < 0.8 else directories)
        path = b"%s/%s%d" % (parent, chance.choice(_DIRECTORIES), chance.randrange(60))
        if parent.count(b"/") <= 8 and path not in known:
            known.add(path)
            directories.append(path)
    while len(known) < entries - 1:
        name = b"%s%d%s" % (chance.choice(_STEMS), chance.randrange(2000), chance.choice(_SUFFIXES))
        known.add(b"%s/%s" % (chance.choice(directories), name))
    paths = sorted(known, key=lambda path: path.replace(b"/", b"\0"))
    if mixed:
        layers = [paths[number::LAYERS] for number in range(LAYERS)]
    else:
        ends = [len(paths) * number // LAYERS for number in range(LAYERS + 1)]
        layers = [paths[begin:end] for begin, end in pairwise(ends)]
        chance.shuffle(layers)
    inner = frozenset(directories)
    batches = tuple(_batch(layer, inner) for layer in [[b""], *layers])
    files = [path for path in paths if path not in inner]
    links = tuple((path + b".link", path) for path in files[::100])
    kinds = np.concatenate([batch.rows["kind"] for batch in batches])
    content, fragments = _place(kinds)
    return Survivors(
        batches, links, content, fragments, frozenset([b"", *paths, *(path for path, _ in links)])
    )


def _batch(paths: Sequence[bytes], directories: frozenset[bytes]) -> Batch:
    rows = np.zeros(len(paths), ROW)
    chance = np.array([zlib.crc32(path) for path in paths])
    is_directory = np.array([not path or path in directories for path in paths])
    is_symlink = ~is_directory & (chance % 20 == 0)
    rows["kind"] = np.where(is_directory, DIRECTORY, np.where(is_symlink, SYMLINK, FILE))
    rows["mode"] = np.where(is_directory, 0o755, 0o644)
    rows["mtime"] = 1_700_000_000 + chance % 100_000
    rows["size"] = np.where(rows["kind"] == FILE, 1 + chance % 20_000, 0)
    rows["link"][is_symlink] = len(_TARGET)
    rows["extra"][is_symlink] = np.arange(is_symlink.sum()) * len(_TARGET)
    fd = os.memfd_create("table", os.MFD_CLOEXEC)
    try:
        writer = TableWriter(fd)
        writer.append(rows, b"".join(path + b"\0" for path in paths), _TARGET * int(is_symlink.sum()))
        return Batch(0, rows, list(paths), [Table(fd, writer.length)], Rules())
    finally:
        os.close(fd)


def _place(kinds: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> tuple[Content, bytes]:
    """Return where the contents are said to be, all of them tail ends, and the records of the fragment table."""
    number = np.cumsum(kinds == FILE) - 1
    nothing = np.zeros(len(kinds), np.int64)
    content = Content(
        start=nothing,
        fragment=np.where(kinds == FILE, number // _TAILS, NO_FRAGMENT).astype(np.uint32),
        offset=(number % _TAILS * 5000).astype(np.uint32),
        sparse=nothing,
        first=nothing,
        count=nothing,
        sizes=np.zeros(0, np.uint32),
    )
    return content, bytes(16 * (int(number[-1]) // _TAILS + 1))


def pack(survivors: Survivors) -> bytes:
    """Return the image of a tree, without data: what its sink does in the one process that all others wait for."""
    compressor = Compressor(COMPRESSION, BLOCK_SIZE)
    tree = Tree("", compressor, exports=True)
    for batch in survivors.batches:
        tree.add(batch)
    tree.link(survivors.links)
    tree.settle()
    pieces, tables = tree.pack(SIZE + len(compressor.options), survivors.content, survivors.fragments)
    flags = Flags.EXPORTABLE | Flags.COMPRESSOR_OPTIONS
    head = Superblock(0, BLOCK_SIZE, compressor.id, flags, len(survivors.fragments) // 16, tables)
    return b"".join([head.pack(), compressor.options, *pieces])


class _Metadata(Reader):
    """A reader that takes contents as read."""

    def data(self, inode: Inode, fragments: bytes) -> bytes:
        """See `Reader`."""
        del inode, fragments
        return b""


def paths_of(image: bytes) -> set[bytes]:
    """Return the paths in an image that a slow reader, which is not the writer's, finds right in all else."""
    return set(_Metadata(image).read().paths)
