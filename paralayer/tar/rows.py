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
    from numpy.typing import NDArray

    from paralayer.table import Rows
    from paralayer.tar.extension import Special

_MAX_ID = 2**32 - 2  # 2^32-1 means "no change" to chown(2)
_MAX_XATTR = 64 << 10  # bytes of a value on Linux
_MAX_DEVICE = 2**32 - 1

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
        raise LayerError(f"{self._where}: {'tar' if name is None else quote(name)}", what, got, want)

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
        paths, odd = _plain_paths(blocks)
        kinds: list[int] = rows["kind"].tolist()
        linked = (rows["kind"] == HARDLINK) | (rows["kind"] == SYMLINK)
        targets: dict[int, bytes] = {}  # of hard links, normalised
        dropped: list[int] = []
        extras: list[bytes] = []
        extra_at = self.table.length.extra
        for index in sorted({*np.flatnonzero(odd | linked).tolist(), *self.specials}):
            special = self.specials.get(index)
            name = self.name_of(self.blocks[index], special)
            if odd[index] or special is not None:
                try:
                    paths[index], kind = names.classify(name, kinds[index])
                except HeaderError as error:
                    self.refuse(error.what, error.got, error.want, name)
                if kind < 0:
                    dropped.append(index)
                    continue
                kinds[index] = rows["kind"][index] = kind
            extra = self._extra(rows, index, kinds[index], name, special)
            if extra:
                rows["extra"][index] = extra_at
                extras.append(extra)
                extra_at += len(extra)
            if kinds[index] == HARDLINK:
                targets[index] = extra[: rows["link"][index]]
        self.last = self.name_of(self.blocks[-1], self.specials.get(len(self.blocks) - 1))
        if dropped:
            kept = np.delete(np.arange(len(rows)), dropped).tolist()
            rows = rows[kept]
            paths, kinds = [paths[index] for index in kept], [kinds[index] for index in kept]
            targets = {row: targets[index] for row, index in enumerate(kept) if index in targets}
        rows["parent"] = self._prove(paths, kinds, targets, rows) if self.orderly else NONE
        if paths:
            lengths = np.fromiter(map(len, paths), np.int64, len(paths))
            rows["name"] = self.table.length.names + np.concatenate(([0], np.cumsum(lengths[:-1] + 1)))
        self.table.append(rows, b"".join([path + b"\0" for path in paths]), b"".join(extras))
        if self.orderly:
            self.orderly_rows = self.table.length.rows

    def _prove(
        self, paths: list[bytes], kinds: list[int], targets: dict[int, bytes], rows: Rows
    ) -> list[int]:
        """Return the parents of rows of an orderly layer; end the orderly rows where there is none."""
        directories, others = self._directories, self._others
        parents = [NONE] * len(paths)
        first = self.table.length.rows
        for index, (path, kind) in enumerate(zip(paths, kinds, strict=True)):
            if not path:
                parents[index] = ROOT
                continue
            row = first + index
            if kind == OPAQUE:
                parent = directories.get(path, NONE)
            else:
                cut = path.rfind(b"/")
                parent = directories.get(path[:cut], NONE) if cut >= 0 else ROOT
            orderly = parent != NONE
            if kind < WHITEOUT:
                orderly = orderly and path not in others and path not in directories
                if kind == DIRECTORY:
                    directories[path] = row
                elif kind == HARDLINK:
                    target = others[path] = others.get(targets[index], NONE)
                    orderly = orderly and target != NONE
                    rows["target"][index] = target
                else:
                    others[path] = row
            if not orderly:
                self.orderly = False
                self.orderly_rows = row
                self._directories = self._others = {}
                break
            parents[index] = parent
        return parents

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
                    link = names.normalise(link)
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


def _plain_paths(blocks: header.Blocks) -> tuple[list[bytes], NDArray[np.bool_]]:
    """Return the paths that the name fields plainly are, and which of the names are odd: have to be looked at."""
    start, width = header.NAME
    field = blocks[:, start : start + width].copy()
    dotted = (field[:, 0] == ord(".")) & (field[:, 1] == ord("/"))
    if dotted.any():
        field[dotted, :-2] = field[dotted, 2:]
        field[dotted, -2:] = 0
    used = field != 0
    length = width - used[:, ::-1].argmax(axis=1)
    slash = field == ord("/")
    dot = field == ord(".")
    odd = slash[:, 0] | dot[:, 0] | (used.sum(axis=1) != length)  # the last: empty, or with NUL inside
    odd |= (slash[:, :-1] & (slash | dot)[:, 1:]).any(axis=1)
    odd |= (blocks[:, header.PREFIX[0]] != 0) & (
        blocks[:, 257:263] == np.frombuffer(header.POSIX_MAGIC, np.uint8)
    ).all(axis=1)
    every = np.arange(len(field))
    field[every, length - 1] *= ~slash[every, length - 1]
    return field.view(f"S{width}")[:, 0].tolist(), odd


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
