"""The merged tree as the tables of an image: inodes, directories, ids, extended attributes, exports.

An entry is an inode; entries are numbered as they are added, names are put in order when all are there (`order`).
Inode numbers follow that order. In the inode table come first all inodes but the directories', by number, so that
they are packed without a look at each; then the directories' in the reverse order of a walk through the tree, because
a listing has to say where the inodes are that it names, and a directory's inode where its listing is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paralayer.errors import SinkError, quote
from paralayer.sinks.squashfs.directory import Listings
from paralayer.sinks.squashfs.id_table import number_ids
from paralayer.sinks.squashfs.inode import (
    BASIC_TYPES,
    COMMON_SIZE,
    INODE,
    pack_common,
    pack_directory,
    pack_inodes,
)
from paralayer.sinks.squashfs.metadata import NO_TABLE, MetadataWriter, pack_lookup_table
from paralayer.sinks.squashfs.options import TIMES
from paralayer.sinks.squashfs.order import Paths
from paralayer.sinks.squashfs.superblock import Tables
from paralayer.sinks.squashfs.xattr import NO_XATTRS, XattrTable
from paralayer.table import BLOCK, CHAR, DIRECTORY, FILE, SYMLINK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from paralayer.sinks.squashfs.compressor import Compressor
    from paralayer.sinks.squashfs.inode import Content
    from paralayer.survivors import Batch

_TIME_MAX = 0xFFFF_FFFF
_MAJOR_MAX, _MINOR_MAX = 0xFFF, 0xF_FFFF
_TARGET_MAX = 4096  # bytes of a symlink's target: Linux takes an inode with a longer one for damage
_AT_ONCE = 1 << 16  # inodes packed at a time, to bound the memory for it

_ENTRY = np.dtype(
    [
        ("kind", "u1"),
        ("mode", "<u2"),
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("mtime", "<u4"),
        ("size", "<i8"),
        ("rdev", "<u4"),
        ("xattr", "<u4"),
    ]
)


@dataclass(slots=True)
class _Settled:
    """What does not depend on where the content of files is."""

    inodes: NDArray[np.void]
    """By inode number, of dtype INODE."""
    entries: NDArray[np.int64]
    """The entry of each inode, by inode number."""
    targets: list[bytes]
    """Of symlinks, by inode number."""
    ids: bytes
    numbers: NDArray[np.int64]
    """The inode number of each name."""
    listings: Listings
    directories: NDArray[np.int64]
    """Names that are directories, in the order of a walk."""
    parents: NDArray[np.int64]
    """Inode number of the parent of each of `directories`."""
    first: NDArray[np.int64]
    """The first name in each of `directories`."""
    stop: NDArray[np.int64]
    """The name after the last one in each of `directories`."""


class Tree:
    """Collects entries, then hard links, and packs them. `where` names the output in errors."""

    def __init__(self, where: str, compressor: Compressor, *, exports: bool) -> None:
        self._where = where
        self._compressor = compressor
        self._exports = exports
        self._xattrs = XattrTable()
        self._entries: list[NDArray[np.void]] = []
        self._paths = Paths()
        self._targets: dict[int, bytes] = {}
        self._links: Sequence[tuple[bytes, bytes]] = ()
        self._settled: _Settled | None = None
        self.lost: Counter[str] = Counter()
        """What the format cannot hold and was left out or clamped, by reason."""

    def add(self, batch: Batch) -> None:
        """Add the rows of a batch; the very first is the root. `SinkError` for what the format cannot hold."""
        rows = batch.rows
        first = len(self._paths)
        entries = np.zeros(len(rows), _ENTRY)
        for name in ("kind", "mode", "uid", "gid"):
            entries[name] = rows[name]
        times = rows["mtime"].clip(0, _TIME_MAX)
        entries["mtime"] = times
        clamped = int(np.count_nonzero(times != rows["mtime"]))
        if clamped:
            self.lost[TIMES] += clamped
        entries["size"] = np.where(rows["kind"] == FILE, rows["size"], 0)
        for index in np.flatnonzero(rows["kind"] == SYMLINK).tolist():
            target = batch.linkname(index)
            if len(target) > _TARGET_MAX:
                got, want = f"{len(target)} bytes", f"at most {_TARGET_MAX}"
                raise self._refusal(batch.paths[index], "target of the symlink", got, want)
            self._targets[first + index] = target
            entries["size"][index] = len(target)
        entries["rdev"] = self._devices(batch)
        entries["xattr"] = NO_XATTRS
        for index in np.flatnonzero(rows["xattrs"]).tolist():
            entries["xattr"][index] = self._xattrs.add(batch.xattrs(index))
        self._entries.append(entries)
        self._paths.add(batch.paths)

    def link(self, links: Sequence[tuple[bytes, bytes]]) -> None:
        """Add the hard links, (path, path of the file), when all entries are there."""
        self._links = links

    def settle(self) -> None:
        """Do everything that can be done before the content of files has its place: most of the work."""
        self.lost += self._xattrs.lost
        entries = np.concatenate(self._entries)
        count = len(entries)
        places = self._paths.find({target for _, target in self._links}) if self._links else {}
        linked = np.array([places[target] for _, target in self._links], np.int64)
        self._paths.add([path for path, _ in self._links])
        order = self._paths.order()
        self._entries.clear()

        named = np.concatenate([np.arange(count), linked])[order.path]
        by_number = named[order.path < count]
        number_of = np.zeros(count, np.int64)
        number_of[by_number] = np.arange(1, count + 1)
        numbers = number_of[named]
        kinds = entries["kind"][named]

        directories = np.flatnonzero(kinds == DIRECTORY)
        directories = directories[np.argsort(order.walk[directories])]
        walk = order.walk[directories]
        name_of = np.empty(len(named), np.int64)
        name_of[order.walk] = np.arange(len(named))
        parents = numbers[name_of[order.directory[directories]]]
        parents[0] = count + 1  # the root's, as mksquashfs has it
        subdirectories = np.bincount(order.directory[directories[1:]], minlength=len(named))

        inodes = np.zeros(count, INODE)
        for name in ("kind", "mode", "mtime", "size", "rdev", "xattr"):
            inodes[name] = entries[name][by_number]
        inodes["number"] = np.arange(1, count + 1)
        inodes["nlink"] = 1 + np.bincount(linked, minlength=count)[by_number]
        inodes["nlink"][numbers[directories] - 1] = 2 + subdirectories[walk]
        ids, uids, gids = number_ids(entries["uid"], entries["gid"], self._where)
        inodes["uid"], inodes["gid"] = uids[by_number], gids[by_number]

        self._settled = _Settled(
            inodes=inodes,
            entries=by_number,
            targets=[self._targets[entry] for entry in by_number[inodes["kind"] == SYMLINK].tolist()],
            ids=ids,
            numbers=numbers,
            listings=Listings(order, numbers, BASIC_TYPES[kinds]),
            directories=directories,
            parents=parents,
            first=np.searchsorted(order.directory, walk),
            stop=np.searchsorted(order.directory, walk, side="right"),
        )
        self._targets.clear()

    def pack(self, position: int, content: Content, fragments: bytes) -> tuple[list[bytes], Tables]:
        """Return all tables, which begin at `position` of the image, in pieces, and where they are.

        `content` has an item for each entry, `fragments` the records of the fragment table.
        """
        settled = self._settled
        assert settled is not None, "settle first"
        self._settled = None
        inodes, listings = MetadataWriter(self._compressor), MetadataWriter(self._compressor)
        references = np.zeros(len(settled.inodes), np.uint64)
        self._pack_files(settled, content, inodes, references)
        root = self._pack_directories(settled, inodes, listings, references)

        pieces = inodes.finish()
        directory_table = position + sum(map(len, pieces))
        pieces += listings.finish()
        at = position + sum(map(len, pieces))

        def append(data: bytes) -> None:
            nonlocal at
            pieces.append(data)
            at += len(data)

        data, fragment_table = pack_lookup_table(fragments, at, self._compressor)
        append(data)
        export_table = NO_TABLE
        if self._exports:
            data, export_table = pack_lookup_table(references.astype("<u8").tobytes(), at, self._compressor)
            append(data)
        data, id_table = pack_lookup_table(settled.ids, at, self._compressor)
        append(data)
        data, xattr_table = self._xattrs.pack(at, self._compressor)
        append(data)
        return pieces, Tables(
            inodes=len(settled.inodes),
            ids=len(settled.ids) // 4,
            root_inode=root,
            inode_table=position,
            directory_table=directory_table,
            fragment_table=fragment_table,
            export_table=export_table,
            id_table=id_table,
            xattr_table=xattr_table,
            end=at,
        )

    def _pack_files(
        self, settled: _Settled, content: Content, writer: MetadataWriter, references: NDArray[np.uint64]
    ) -> None:
        """Pack all inodes but the directories'."""
        is_directory = settled.inodes["kind"] == DIRECTORY
        files = np.flatnonzero(~is_directory)
        positions = np.zeros(len(settled.inodes), np.int64)
        target = 0
        for at in range(0, len(files), _AT_ONCE):
            some = files[at : at + _AT_ONCE]
            inodes = settled.inodes[some]
            stop = target + int(np.count_nonzero(inodes["kind"] == SYMLINK))
            packed, starts = pack_inodes(
                inodes, content.of(settled.entries[some]), settled.targets[target:stop]
            )
            target = stop
            positions[some] = starts + writer.size
            writer.append(packed.data)
        blocks, offsets = writer.places(positions)
        references[files] = blocks[files] << 16 | offsets[files]
        inode_of = settled.numbers - 1
        names = np.flatnonzero(~is_directory[inode_of])
        settled.listings.place_all(names, blocks[inode_of[names]], offsets[inode_of[names]])

    def _pack_directories(
        self,
        settled: _Settled,
        inodes: MetadataWriter,
        listings: MetadataWriter,
        references: NDArray[np.uint64],
    ) -> int:
        """Pack the listings and inodes of all directories, children before parents; return the root's reference."""
        numbers = settled.numbers[settled.directories]
        own = settled.inodes[numbers - 1]
        common = pack_common(own)
        each = zip(
            settled.directories.tolist(),
            settled.first.tolist(),
            settled.stop.tolist(),
            own["nlink"].tolist(),
            settled.parents.tolist(),
            own["xattr"].tolist(),
            range(0, len(common), COMMON_SIZE),
            strict=True,
        )
        placed = []
        for name, first, stop, nlink, parent, xattr, at in reversed(list(each)):
            # mksquashfs has an empty listing at 0, too: at the end of all listings there may be no block.
            place = listings.place(listings.size) if first < stop else (0, 0)
            length, indexes = settled.listings.write(first, stop, listings)
            block, offset = inodes.place(inodes.size)
            inodes.append(
                pack_directory(
                    common[at : at + COMMON_SIZE],
                    nlink=nlink,
                    parent=parent,
                    xattr=xattr,
                    place=place,
                    listing=length,
                    indexes=indexes,
                )
            )
            settled.listings.place(name, block, offset)
            placed.append(block << 16 | offset)
        references[numbers - 1] = placed[::-1]
        return placed[-1]

    def _devices(self, batch: Batch) -> NDArray[np.int64]:
        """Return device numbers as inodes have them, 0 for what is no device."""
        rows = batch.rows
        is_device = (rows["kind"] == CHAR) | (rows["kind"] == BLOCK)
        major = np.where(is_device, rows["major"], 0).astype(np.int64)
        minor = np.where(is_device, rows["minor"], 0).astype(np.int64)
        too_large = np.flatnonzero((major > _MAJOR_MAX) | (minor > _MINOR_MAX))
        if len(too_large):
            index = int(too_large[0])
            got, want = f"{major[index]}:{minor[index]}", f"at most {_MAJOR_MAX}:{_MINOR_MAX}"
            raise self._refusal(batch.paths[index], "device number", got, want)
        encoded: NDArray[np.int64] = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
        return encoded

    def _refusal(self, path: bytes, what: str, got: str, want: str) -> SinkError:
        return SinkError(self._where, f"{quote(path)}: {what}", got, want)
