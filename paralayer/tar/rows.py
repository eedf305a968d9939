"""Header blocks in, rows of the entry table out, thousands at a time.

Numbers are converted and checked at once, names are normalised. Beside the rows it proves, while it has every path at
hand, what makes a layer cheap to merge. A layer is *orderly* up to a row when in all rows before it no path comes twice,
each parent is a directory entry that precedes, each hard link's target is an entry that precedes and no directory, and
none stands in the store of AUFS hard links. `parent` and `target` of such rows are row numbers; nothing about them
depends on older layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np

from paralayer.errors import LayerError, quote
from paralayer.table import (
    BLOCK as BLOCK_DEVICE,
)
from paralayer.table import (
    CHAR,
    DIRECTORY,
    FIFO,
    FILE,
    HARDLINK,
    NONE,
    OPAQUE,
    ROOT,
    ROW,
    SYMLINK,
    WHITEOUT,
    TableWriter,
    pack_extents,
    pack_xattrs,
)
from paralayer.tar import header, names
from paralayer.tar.header import BLOCK, HeaderError

if TYPE_CHECKING:
    from paralayer.table import Rows
    from paralayer.tar.extension import Special

_MAX_ID = 2**32 - 2  # 2^32-1 means "no change" to chown(2)
_MAX_XATTR = 64 << 10  # bytes of a value on Linux
_MAX_DEVICE = 2**32 - 1
_MAX_SHOWN = 4096  # bytes of a name in a message

KINDS = {b"0": FILE, b"\0": FILE, b"7": FILE, b"S": FILE}
KINDS |= {b"1": HARDLINK, b"2": SYMLINK, b"3": CHAR, b"4": BLOCK_DEVICE, b"5": DIRECTORY, b"6": FIFO}
_KIND_OF_FLAG = np.full(256, 255, np.uint8)
for _flag, _kind in KINDS.items():
    _KIND_OF_FLAG[_flag[0]] = _kind
_NUMBERS = (
    ("mode", header.MODE),
    ("uid", header.UID),
    ("gid", header.GID),
    ("size", header.SIZE),
    ("mtime", header.MTIME),
    ("major", header.MAJOR),
    ("minor", header.MINOR),
)


class RowWriter:
    """Collects header blocks of one layer and writes their rows into `table`; LayerError names the entry."""

    def __init__(self, table: TableWriter, layer: int, where: str) -> None:
        self.table = table
        self._layer = layer
        self._where = where
        self.orderly_rows = 0
        self.orderly = True
        self._directories: dict[bytes, int] = {b"": ROOT}
        self._others: dict[bytes, int] = {}  # path of a non-directory → row of its file
        self._link = b""  # normalised target of the hard link at hand
        # The header blocks of the batch, where their data begins, and what is odd about them.
        self.blocks: list[bytes] = []
        self.data: list[int] = []
        self.extensions: list[bytes] = []  # headers that are no entries
        self.specials: dict[int, Special] = {}
        self.held = 0  # bytes of extension headers
        self.last: bytes | None = None  # name of the last entry that was published, for messages

    def refuse(
        self, what: str, got: object = None, want: object = None, name: bytes | None = None
    ) -> NoReturn:
        """Raise LayerError; `name` is the entry's."""
        shown = "tar" if name is None else quote(name[:_MAX_SHOWN]) + "..." * (len(name) > _MAX_SHOWN)
        raise LayerError(f"{self._where}: {shown}", what, got, want)

    def name_of(self, block: bytes, special: Special | None = None) -> bytes:
        """Return the name of an entry as it is written, put together from where it stands."""
        if special is not None:
            if special.long_path is not None:
                return special.long_path
            if special.path is not None:
                return special.path
        name = header.text(block, header.NAME)
        if header.field(block, header.MAGIC)[:6] == header.POSIX_MAGIC:
            prefix = header.text(block, header.PREFIX)
            if prefix:
                return prefix + b"/" + name
        return name

    def flush(self) -> None:
        """Publish the rows of the headers that are collected."""
        self.held = 0
        if self.extensions:
            self._check_extensions()
            self.extensions.clear()
        if not self.blocks:
            return
        blocks = np.frombuffer(b"".join(self.blocks), np.uint8).reshape(-1, BLOCK)
        wrong = header.wrong_checksums(blocks)
        if len(wrong):
            self.refuse("bad checksum, so no header", f"byte {self.data[wrong[0]] - BLOCK}")
        try:
            rows = self._numbers(blocks)
        except HeaderError as error:
            index: int = getattr(error, "index", 0)
            name = self.name_of(self.blocks[index], self.specials.get(index))
            self.refuse(error.what, error.got, error.want, name)
        self._publish(blocks, rows)
        self.blocks.clear()
        self.data.clear()
        self.specials = {}

    def _check_extensions(self) -> None:
        """Refuse headers that are no entries and have a wrong checksum or what is no number."""
        blocks = np.frombuffer(b"".join(self.extensions), np.uint8).reshape(-1, BLOCK)
        if len(header.wrong_checksums(blocks)):
            self.refuse("bad checksum of an extension header")
        blocks = _without_other_devices(blocks)
        try:
            for key, where in _NUMBERS:
                header.parse_numbers(blocks, where, key)
        except HeaderError as error:
            self.refuse(f"extension header: {error.what}", error.got, error.want)

    def _numbers(self, blocks: header.Blocks) -> Rows:
        rows = np.zeros(len(blocks), ROW)
        rows["kind"] = _KIND_OF_FLAG[blocks[:, header.TYPEFLAG]]
        rows["layer"] = self._layer
        rows["data"] = self.data
        rows["target"] = NONE
        rows["mode"] = header.parse_numbers(blocks, header.MODE, "mode") & 0o7777
        sizes = header.parse_numbers(blocks, header.SIZE, "size")
        if (sizes < 0).any():
            raise _at(int(np.flatnonzero(sizes < 0)[0]), "size", int(sizes.min()), "0 or more")
        ids = [
            header.parse_numbers(blocks, header.UID, "uid"),
            header.parse_numbers(blocks, header.GID, "gid"),
        ]
        rows["mtime"] = header.parse_numbers(blocks, header.MTIME, "mtime")
        for index, special in self.specials.items():
            if special.size is not None:
                sizes[index] = special.size
            if special.kind is not None:
                rows["kind"][index] = special.kind
            if special.mtime is not None:
                rows["mtime"][index], rows["nsec"][index] = special.mtime
            if special.data is not None:
                rows["data"][index] = special.data
            for number, value in zip(ids, (special.uid, special.gid), strict=True):
                if value is not None:
                    number[index] = value
        for key, number in zip(("uid", "gid"), ids, strict=True):
            bad = (number < 0) | (number > _MAX_ID)
            if bad.any():
                index = int(np.flatnonzero(bad)[0])
                raise _at(index, f"{key} out of range", int(number[index]), f"0 to {_MAX_ID}")
            rows[key] = number
        rows["stored"] = rows["size"] = np.where(rows["kind"] == FILE, sizes, 0)
        blocks = _without_other_devices(blocks)
        device = (rows["kind"] == CHAR) | (rows["kind"] == BLOCK_DEVICE)
        for key, place in (("major", header.MAJOR), ("minor", header.MINOR)):
            number = header.parse_numbers(blocks, place, key)
            bad = device & ((number < 0) | (number > _MAX_DEVICE))
            if bad.any():
                raise _at(int(np.flatnonzero(bad)[0]), f"{key} out of range", int(number[bad][0]))
            rows[key] = np.where(device, number, 0)
        return rows

    def _publish(self, blocks: header.Blocks, rows: Rows) -> None:
        raw_names = blocks[:, :100].copy().view("S100")[:, 0].tolist()
        posix = (blocks[:, 257:263] == np.frombuffer(header.POSIX_MAGIC, np.uint8)).all(axis=1)
        prefixed = set(np.flatnonzero(posix & (blocks[:, 345] != 0)).tolist())
        kinds = rows["kind"].tolist()
        specials = self.specials
        paths: list[bytes] = []
        parents: list[int] = []
        kept: list[int] = []
        extras: list[bytes] = []
        extra_at = self.table.length.extra
        first = self.table.length.rows
        for index, raw in enumerate(raw_names):
            special = specials.get(index)
            name = raw
            kind = kinds[index]
            if special is not None or index in prefixed:
                name = self.name_of(self.blocks[index], special)
            elif b"\0" in name:
                name = name.split(b"\0", 1)[0]
            path = name[2:] if name[:2] == b"./" else name
            if path[-1:] == b"/":
                path = path[:-1]
            if not path or path[0] in b"./" or len(path) > names.NAME_MAX or b"/." in path or b"//" in name:
                try:
                    path, kind = names.classify(name, kind)
                except HeaderError as error:
                    self.refuse(error.what, error.got, error.want, name)
                if kind != kinds[index]:
                    if kind < 0:
                        continue
                    kinds[index] = rows["kind"][index] = kind
            row = first + len(paths)
            if kind in (HARDLINK, SYMLINK) or special is not None:
                extra = self._extra(rows, index, kind, name, special)
                if extra:
                    rows["extra"][index] = extra_at
                    extras.append(extra)
                    extra_at += len(extra)
            parents.append(self._prove(path, kind, row, rows, index) if self.orderly else NONE)
            paths.append(path)
            kept.append(index)
        self.last = name
        if len(kept) != len(rows):
            rows = rows[kept]
        rows["parent"] = parents
        lengths = np.fromiter(map(len, paths), np.int64, len(paths))
        if paths:
            rows["name"] = self.table.length.names + np.concatenate(([0], np.cumsum(lengths[:-1] + 1)))
        self.table.append(rows, b"".join(path + b"\0" for path in paths), b"".join(extras))
        if self.orderly:
            self.orderly_rows = self.table.length.rows

    def _prove(self, path: bytes, kind: int, row: int, rows: Rows, index: int) -> int:
        """Return the parent of a row of an orderly layer; end the orderly rows when it is none."""
        directories, others = self._directories, self._others
        if not path:
            return ROOT
        if kind == OPAQUE:
            parent = directories.get(path, NONE)
        else:
            cut = path.rfind(b"/")
            parent = directories.get(path[:cut], NONE) if cut >= 0 else ROOT
        orderly = parent != NONE
        if kind == DIRECTORY:
            orderly = orderly and path not in directories and path not in others
            directories[path] = row
        elif kind < WHITEOUT:
            orderly = orderly and path not in others and path not in directories
            target = row
            if kind == HARDLINK:
                target = others.get(self._link, NONE)
                orderly = orderly and target != NONE
                rows["target"][index] = target
            others[path] = target
        if not orderly:
            self.orderly = False
            self.orderly_rows = row
            self._directories = self._others = {}
        return parent

    def _extra(self, rows: Rows, index: int, kind: int, name: bytes, special: Special | None) -> bytes:
        """Return the extra bytes of a row, and set the row's lengths of them."""
        link = b""
        if kind in (HARDLINK, SYMLINK):
            link = header.text(self.blocks[index], header.LINKNAME)
            if special is not None:
                if special.long_linkname is not None:
                    link = special.long_linkname
                elif special.linkname is not None:
                    link = special.linkname
            if not link:
                self.refuse("link without a target", name=name)
            if kind == HARDLINK:
                try:
                    link = self._link = names.normalise(link)
                except HeaderError as error:
                    self.refuse(f"link target: {error.what}", error.got, error.want, name)
            elif len(link) > names.PATH_MAX:
                self.refuse(
                    "link target is too long", f"{len(link)} bytes", f"at most {names.PATH_MAX}", name
                )
            rows["link"][index] = len(link)
        if special is None:
            return link
        xattrs = b""
        if kind != HARDLINK and kind < WHITEOUT and special.xattrs:
            for key, value in special.xattrs.items():
                if len(value) > _MAX_XATTR:
                    self.refuse(f"xattr {quote(key)}", f"{len(value)} bytes", f"at most {_MAX_XATTR}", name)
            xattrs = pack_xattrs(sorted(special.xattrs.items()))
            rows["xattrs"][index] = len(xattrs)
        if special.extents is None or kind != FILE:
            return link + xattrs
        extents = [extent for extent in special.extents if extent[1]]
        rows["size"][index] = special.real_size
        rows["sparse"][index] = len(extents)
        if not extents:
            # All of it is a hole: one empty extent keeps the row sparse.
            extents = [(0, 0)]
            rows["sparse"][index] = 1
        return link + xattrs + pack_extents(extents)


def _without_other_devices(blocks: header.Blocks) -> header.Blocks:
    """Return headers with blank device numbers where the format, told by the magic, has none."""
    others = (blocks[:, 257:262] != np.frombuffer(b"ustar", np.uint8)).any(axis=1)
    if others.any():
        blocks = blocks.copy()
        blocks[others, header.MAJOR[0] : header.PREFIX[0]] = 0
    return blocks


def _at(index: int, what: str, got: object, want: object = None) -> HeaderError:
    error = HeaderError(what, got, want)
    error.index = index  # type: ignore[attr-defined]
    return error
