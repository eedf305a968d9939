"""Inodes: basic ones wherever they can hold what is to be said, extended ones elsewhere.

Inodes of everything but directories depend on nothing that has its place later, so all of them are packed at once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paralayer.sinks.squashfs.records import copy, ends_of, put, runs
from paralayer.sinks.squashfs.xattr import NO_XATTRS
from paralayer.table import BLOCK, CHAR, DIRECTORY, FIFO, FILE, SYMLINK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from paralayer.sinks.squashfs.records import Bytes, Positions

# Types of inodes, by kind of entry; there are sockets as well, but no tar holds one.
BASIC_TYPES = np.zeros(FIFO + 1, np.uint16)
BASIC_TYPES[[DIRECTORY, FILE, SYMLINK, BLOCK, CHAR, FIFO]] = [1, 2, 3, 4, 5, 6]
_EXTENDED = 7  # what the type of an extended inode has more than that of the basic one

NO_FRAGMENT = 0xFFFF_FFFF

INODE = np.dtype(
    [
        ("kind", "u1"),
        ("mode", "<u2"),  # permission bits, 12 of them
        ("uid", "<u2"),  # index in the id table
        ("gid", "<u2"),
        ("mtime", "<u4"),
        ("number", "<u4"),
        ("nlink", "<u4"),
        ("size", "<i8"),  # of a file's content or a symlink's target
        ("rdev", "<u4"),
        ("xattr", "<u4"),
    ]
)

_COMMON_FIELDS = [
    ("inode_type", "<u2"),
    ("mode", "<u2"),
    ("uid", "<u2"),
    ("gid", "<u2"),
    ("mtime", "<u4"),
    ("number", "<u4"),
]
_COMMON = np.dtype(_COMMON_FIELDS)
COMMON_SIZE = _COMMON.itemsize

_BASIC_FILE = [("start", "<u4"), ("fragment", "<u4"), ("offset", "<u4"), ("size", "<u4")]
_EXTENDED_FILE = [
    ("start", "<u8"),
    ("size", "<u8"),
    ("sparse", "<u8"),
    ("nlink", "<u4"),
    ("fragment", "<u4"),
    ("offset", "<u4"),
    ("xattr", "<u4"),
]
_SYMLINK = [("nlink", "<u4"), ("size", "<u4")]
_DEVICE = [("nlink", "<u4"), ("rdev", "<u4")]
_FIFO = [("nlink", "<u4")]
_XATTR = [("xattr", "<u4")]

# A file's block sizes and a symlink's target follow; behind the target of an extended symlink, its xattr id.
_LAYOUTS = {
    2: np.dtype(_COMMON_FIELDS + _BASIC_FILE),
    3: np.dtype(_COMMON_FIELDS + _SYMLINK),
    4: np.dtype(_COMMON_FIELDS + _DEVICE),
    5: np.dtype(_COMMON_FIELDS + _DEVICE),
    6: np.dtype(_COMMON_FIELDS + _FIFO),
    9: np.dtype(_COMMON_FIELDS + _EXTENDED_FILE),
    10: np.dtype(_COMMON_FIELDS + _SYMLINK),
    11: np.dtype(_COMMON_FIELDS + _DEVICE + _XATTR),
    12: np.dtype(_COMMON_FIELDS + _DEVICE + _XATTR),
    13: np.dtype(_COMMON_FIELDS + _FIFO + _XATTR),
}
_SIZES = np.array([_LAYOUTS[each].itemsize if each in _LAYOUTS else 0 for each in range(15)])

_BASIC_DIRECTORY = struct.Struct("<IIHHI")
_EXTENDED_DIRECTORY = struct.Struct("<IIIIHHI")
_EXTENDED_TYPE = struct.pack("<H", 8)
_LISTING_EXTRA = 3  # how much more than its listing a directory's size is: readers invent "." and ".."


@dataclass(slots=True)
class Content:
    """Where the content of files is: arrays with an item for each entry, zeros for what is no file.

    Files may share what they point to. An empty file has `start` and `count` 0 and no fragment.
    """

    start: NDArray[np.int64]
    """Position in the image of the first data block, 0 without one."""
    fragment: NDArray[np.uint32]
    """Index in the fragment table, or `NO_FRAGMENT`."""
    offset: NDArray[np.uint32]
    """Of the tail end in the uncompressed fragment block."""
    sparse: NDArray[np.int64]
    """Bytes in blocks that are stored as holes."""
    first: NDArray[np.int64]
    """Where the file's block sizes begin in `sizes`."""
    count: NDArray[np.int64]
    """Number of data blocks."""
    sizes: NDArray[np.uint32]
    """Block sizes of all files as they are on disk: bit 24 for stored uncompressed, 0 for a hole."""

    def of(self, entries: NDArray[Any]) -> Content:
        """Return the content of some entries; `sizes` is the same array."""
        return Content(
            self.start[entries],
            self.fragment[entries],
            self.offset[entries],
            self.sparse[entries],
            self.first[entries],
            self.count[entries],
            self.sizes,
        )


def pack_inodes(
    inodes: NDArray[np.void], content: Content, targets: Sequence[bytes]
) -> tuple[Bytes, Positions]:
    """Return inodes and where each begins; `inodes`, of dtype INODE, has no directories.

    `content` has an item for each inode, `targets` one for each symlink.
    """
    is_file, is_symlink = inodes["kind"] == FILE, inodes["kind"] == SYMLINK
    extended = inodes["xattr"] != NO_XATTRS
    extended |= is_file & (
        (inodes["nlink"] > 1)
        | (content.sparse > 0)
        | (np.maximum(inodes["size"], content.start) > 0xFFFF_FFFF)
    )
    types = BASIC_TYPES[inodes["kind"]] + extended * np.uint16(_EXTENDED)
    columns = {name: inodes[name] for name in INODE.names or ()}
    columns |= {name: getattr(content, name) for name in ("start", "fragment", "offset", "sparse")}
    columns["inode_type"] = types

    tails = np.where(is_file, content.count * 4, np.where(is_symlink, inodes["size"], 0))
    ends = ends_of(_SIZES[types] + tails + (is_symlink & extended) * 4)
    positions, tails_at = ends[:-1], ends[:-1] + _SIZES[types]
    packed = np.zeros(ends[-1], np.uint8)
    for inode_type in np.unique(types).tolist():
        which = np.flatnonzero(types == inode_type)
        layout = _LAYOUTS[inode_type]
        records = np.empty(len(which), layout)
        for name in layout.names or ():
            records[name] = columns[name][which]
        put(packed, positions[which], records)

    blocks = np.flatnonzero(content.count)
    counts = content.count[blocks]
    words = content.sizes[runs(content.first[blocks], counts)].astype("<u4")
    put(
        packed, np.repeat(tails_at[blocks], counts) + 4 * runs(np.zeros(len(blocks), np.int64), counts), words
    )

    symlinks = np.flatnonzero(is_symlink)
    sizes = inodes["size"][symlinks]
    text = np.frombuffer(b"".join(targets), np.uint8)
    copy(packed, tails_at[symlinks], text, ends_of(sizes)[:-1], sizes)
    last = np.flatnonzero(is_symlink & extended)
    put(packed, ends[last + 1] - 4, inodes["xattr"][last].astype("<u4"))
    return packed, positions


def pack_common(inodes: NDArray[np.void]) -> bytes:
    """Return what all inodes begin with, `COMMON_SIZE` bytes of each, with the basic types."""
    common = np.empty(len(inodes), _COMMON)
    for name in ("mode", "uid", "gid", "mtime", "number"):
        common[name] = inodes[name]
    common["inode_type"] = BASIC_TYPES[inodes["kind"]]
    return common.tobytes()


def pack_directory(
    common: bytes,
    *,
    nlink: int,
    parent: int,
    xattr: int,
    place: tuple[int, int],
    listing: int,
    indexes: Sequence[bytes],
) -> bytes:
    """Return the inode of a directory whose listing has `listing` bytes and begins at `place`.

    `common` is from `pack_common`, `parent` the parent's inode number.
    """
    start, offset = place
    size = listing + _LISTING_EXTRA
    if size <= 0xFFFF and xattr == NO_XATTRS and not indexes:
        return common + _BASIC_DIRECTORY.pack(start, nlink, size, offset, parent)
    fields = _EXTENDED_DIRECTORY.pack(nlink, size, start, parent, len(indexes), offset, xattr)
    return b"".join([_EXTENDED_TYPE, common[2:], fields, *indexes])
