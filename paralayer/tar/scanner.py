"""Decoded layer bytes in, entry table out.

The scanner is fed chunks of any size and looks at headers only: data is skipped over. Header blocks are collected as
they are; every few thousand their numbers are converted and checked at once, names are normalised, and the rows go
into the table. Nothing depends on where the chunks are cut.

Beside the rows it proves, while it has every path at hand, what makes a layer cheap to merge. A layer is *orderly* up
to a row when in all rows before it no path comes twice, each parent is a directory entry that precedes, each hard
link's target is an entry that precedes and no directory, and none stands in the store of AUFS hard links. `parent` and
`target` of such rows are row numbers; nothing about them depends on older layers.
"""

from __future__ import annotations

from collections import deque
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
from paralayer.tar import header, names, pax, sparse
from paralayer.tar.extension import Special, apply_record
from paralayer.tar.header import BLOCK, ZERO_BLOCK, HeaderError, padding

if TYPE_CHECKING:
    from collections.abc import Callable

    from paralayer.table import Rows

_BATCH = 4096  # headers converted at once: 2 MiB
_MAX_HELD = 4 << 20  # bytes of extension headers that are held until then
_WORTH_HIDING = 16 << 10  # bytes of a file from which on it pays to ask whether it is hidden
_MAX_SPECIAL = 1 << 20  # bytes of a PAX or GNU long record
_MAX_ID = 2**32 - 2  # 2^32-1 means "no change" to chown(2)
_MAX_XATTR = 64 << 10  # bytes of a value on Linux
_MAX_DEVICE = 2**32 - 1
_MAX_SHOWN = 4096  # bytes of a name in a message
_EXTENSIONS = (b"x", b"g", b"L", b"K")

_KINDS = {b"0": FILE, b"\0": FILE, b"7": FILE, b"S": FILE}
_KINDS |= {b"1": HARDLINK, b"2": SYMLINK, b"3": CHAR, b"4": BLOCK_DEVICE, b"5": DIRECTORY, b"6": FIFO}
_KIND_OF_FLAG = np.full(256, 255, np.uint8)
for _flag, _kind in _KINDS.items():
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
_REGULAR = ord("0")
_DATALESS = frozenset(b"123456")


class Scanner:
    """Scans one layer into `table`; raises LayerError, which names the entry.

    `hides` says of a path whether newer layers are known to hide it. Where the data of larger such files begin and end
    is appended to `hidden`.
    """

    def __init__(
        self, table: TableWriter, layer: int, where: str, hides: Callable[[bytes], bool] | None = None
    ) -> None:
        self.table = table
        self.hidden: deque[tuple[int, int]] = deque()
        self._hides = hides
        self._layer = layer
        self._where = where
        self.position = 0  # bytes fed
        self.orderly_rows = 0
        self.orderly = True
        self._directories: dict[bytes, int] = {b"": ROOT}
        self._others: dict[bytes, int] = {}  # path of a non-directory → row of its file
        self._link = b""  # normalised target of the hard link at hand
        # The header blocks of the batch, where their data begins, and what is odd about them.
        self._blocks: list[bytes] = []
        self._data: list[int] = []
        self._extensions: list[bytes] = []  # headers that are no entries
        self._specials: dict[int, Special] = {}
        self._held = 0
        # Bytes that are wanted next: `_need` of them from `_next` on, for `_take`.
        self._next = 0
        self._need = BLOCK
        self._take: Callable[[bytes], None] = self._take_header
        self._partial = bytearray()
        self._extension = (b"", 0)  # type and size of the extension header that is being read
        self._pending: Special | None = None
        self._entry: tuple[bytes, Special | None] | None = None  # that is being read, for messages
        self._last: bytes | None = None  # name of the last entry that was published, for messages
        self._data_end = 0
        self._zero_blocks = 0
        self._ended = False

    def feed(self, chunk: bytes | memoryview) -> None:
        """Scan the next bytes of the decoded layer."""
        start = self.position
        length = len(chunk)
        self.position += length
        if self._partial:
            missing = self._need - len(self._partial)
            self._partial += chunk[:missing]
            if length < missing:
                return
            block = bytes(self._partial)
            self._partial.clear()
            self._dispatch(block)
        at = self._next - start
        blocks, data = self._blocks, self._data
        plain = self._expects_plain()
        while not self._ended:
            if at + self._need > length:
                if at < length:
                    self._partial += chunk[at:]
                break
            block = bytes(chunk[at : at + self._need])
            if plain:
                flag = block[header.TYPEFLAG]
                if flag in _DATALESS:
                    blocks.append(block)
                    at += BLOCK
                    self._next += BLOCK
                    data.append(self._next)
                    continue
                if flag == _REGULAR and (size := _plain_size(block)) >= 0:
                    blocks.append(block)
                    self._next += BLOCK
                    data.append(self._next)
                    self._data_end = self._next + size
                    if size >= _WORTH_HIDING and self._hides is not None:
                        self._hide(block)
                    self._next += size + (-size % BLOCK)
                    at = self._next - start
                    continue
            self._dispatch(block)
            plain = self._expects_plain()
            at = self._next - start
        if len(blocks) >= _BATCH or self._held >= _MAX_HELD:
            self.flush()

    def _hide(self, block: bytes) -> None:
        """Note the data of a file that is hidden; `_next` is where they begin."""
        assert self._hides is not None
        name = self._name_of(block)
        if self._hides(
            name[2:] if name[:2] == b"./" else name
        ):  # another spelling is not found, which only costs
            self.hidden.append((self._next, self._data_end))

    def finish(self) -> None:
        """End of the decoded stream: check that the archive is whole, and publish the rest."""
        self.flush()
        if self._ended:
            return
        if self.position < self._data_end:
            self._refuse("truncated in the data", f"{self.position} bytes", self._data_end, self._last)
        if self._partial or self._take != self._take_header or self._pending is not None:
            self._refuse("truncated inside a header", f"{self.position} bytes")

    def _refuse(
        self, what: str, got: object = None, want: object = None, name: bytes | None = None
    ) -> NoReturn:
        shown = "tar" if name is None else quote(name[:_MAX_SHOWN]) + "..." * (len(name) > _MAX_SHOWN)
        raise LayerError(f"{self._where}: {shown}", what, got, want)

    def _expects_plain(self) -> bool:
        """Say whether the next block is a header that nothing before it says anything about."""
        return self._pending is None and not self._zero_blocks and self._take == self._take_header

    def _dispatch(self, block: bytes) -> None:
        try:
            self._take(block)
        except HeaderError as error:
            self.flush()
            name = self._name_of(*self._entry) if self._entry is not None else None
            self._refuse(error.what, error.got, error.want, name)

    # What the wanted bytes are taken as

    def _take_header(self, block: bytes) -> None:
        at = self._next
        self._next += BLOCK
        self._entry = None
        if block == ZERO_BLOCK:
            if self._pending is not None:
                raise HeaderError("extension header without an entry", f"end of archive at byte {at}")
            self._zero_blocks += 1
            self._ended = self._zero_blocks == 2
            return
        if self._zero_blocks:
            raise HeaderError("lone zero block inside the archive", f"more at byte {at}")
        flag = block[header.TYPEFLAG : header.TYPEFLAG + 1]
        if flag in _KINDS:
            self._entry = block, self._pending
            self._add_entry(block, flag)
            return
        self._extensions.append(block)
        if flag not in _EXTENSIONS:
            self._entry = block, self._pending
            raise HeaderError("unknown type of entry", repr(flag)[1:])
        size = _size(block)
        if not 0 <= size <= _MAX_SPECIAL:
            raise HeaderError("extension header too large", size, f"at most {_MAX_SPECIAL}")
        self._extension = flag, size
        self._held += BLOCK + size
        if size:
            self._need = size + padding(size)
            self._take = self._take_payload
        else:
            self._take_payload(b"")

    def _take_payload(self, padded: bytes) -> None:
        """Take what follows an extension header."""
        self._next += len(padded)
        self._need = BLOCK
        self._take = self._take_header
        flag, size = self._extension
        payload = padded[:size]
        if flag == b"g":
            pax.parse_records(payload)
            return
        before = self._pending
        if flag == b"x":
            # A second PAX header for one entry replaces the first, as with Go and GNU tar.
            special = self._pending = Special()
            if before is not None:
                special.long_path, special.long_linkname = before.long_path, before.long_linkname
            for key, value in pax.parse_records(payload):
                apply_record(special, key, value)
            return
        special = self._pending = before or Special()
        name = payload.split(b"\0", 1)[0] or None
        if flag == b"L":
            special.long_path = name
        else:
            special.long_linkname = name

    def _add_entry(self, block: bytes, flag: bytes) -> None:
        """Take an entry's header; `_next` is where its data begins."""
        special, self._pending = self._pending, None
        kind = _KINDS[flag]
        if flag == b"\0" and self._name_of(block, special).endswith(b"/"):
            kind = DIRECTORY
            special = special or Special()
            special.kind = kind
        is_sparse = special is not None and bool(special.sparse_records or special.sparse_pairs)
        if kind != FILE:
            if is_sparse:
                raise HeaderError("sparse map of what is no file")
            self._append(block, special, self._next, 0)
            return
        size = _size(block)
        if special is not None and special.size is not None:
            size = special.size
        if not 0 <= size < 1 << 63:
            raise HeaderError("size", size, "0 to 2^63-1")
        if flag == b"S":
            self._add_old_sparse(block, special or Special(), size)
        elif special is not None and is_sparse:
            self._add_pax_sparse(block, special, size)
        else:
            self._append(block, special, self._next, size)

    def _append(self, block: bytes, special: Special | None, header_end: int, stored: int) -> None:
        """Append an entry to the batch; `_next` is where its stored data begins."""
        if special is not None:
            self._specials[len(self._blocks)] = special
        self._blocks.append(block)
        self._data.append(header_end)
        self._data_end = self._next + stored
        self._next = self._data_end + padding(stored)

    # Sparse files

    def _add_old_sparse(self, block: bytes, special: Special, size: int) -> None:
        """Take the header of an old GNU sparse file, and the extension blocks that follow it."""
        if header.field(block, header.MAGIC)[:6] != header.GNU_MAGIC:
            raise HeaderError("sparse file in a header that is not GNU's")
        begin = self._next
        extents, special.real_size, is_extended = sparse.parse_old_header(block)

        def take(extension: bytes) -> None:
            self._next += BLOCK
            if not sparse.extend_old_map(extents, extension):
                self._take = self._take_header
                self._append_sparse(block, special, begin, extents, size)

        if is_extended:
            self._take = take
        else:
            self._append_sparse(block, special, begin, extents, size)

    def _add_pax_sparse(self, block: bytes, special: Special, size: int) -> None:
        """Take the header of a sparse file, and the map before its data; `size` is that of both."""
        begin = self._next
        records = special.sparse_records
        if b"name" in records:
            special.path = records[b"name"]
            special.long_path = None
        version = (records.get(b"major"), records.get(b"minor"))
        if version not in ((None, None), (b"0", b"0"), (b"0", b"1"), (b"1", b"0")):
            raise HeaderError("sparse file of an unknown version", version, "0.0, 0.1 or 1.0")
        real_size = records.get(b"size") or records.get(b"realsize")
        if real_size is None:
            raise HeaderError("sparse file without its real size")
        special.real_size = sparse.parse_size(real_size)
        if version != (b"1", b"0"):
            values = records[b"map"].split(b",") if b"map" in records else special.sparse_pairs
            extents = sparse.parse_pax_map(values, records.get(b"numblocks", b""))
            self._append_sparse(block, special, begin, extents, size)
            return
        map_in_data = sparse.MapInData(size)

        def take(part: bytes) -> None:
            self._next += BLOCK
            extents = map_in_data.add(part)
            if extents is not None:
                self._take = self._take_header
                self._append_sparse(block, special, begin, extents, size - (self._next - begin))

        if size < BLOCK:
            raise HeaderError("sparse map: incomplete", f"{size} bytes")
        self._take = take

    def _append_sparse(
        self, block: bytes, special: Special, header_end: int, extents: sparse.Extents, stored: int
    ) -> None:
        """Append a sparse file whose map is complete; `_next` is where its stored data begins."""
        assert special.real_size is not None
        sparse.check(extents, stored, special.real_size)
        special.extents = extents
        special.data = self._next
        special.size = stored
        self._held += 16 * len(extents)
        self._append(block, special, header_end, stored)

    # A batch of headers to rows

    def _name_of(self, block: bytes, special: Special | None = None) -> bytes:
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
        """Publish the rows of the headers seen so far."""
        self._held = 0
        if self._extensions:
            self._check_extensions()
            self._extensions.clear()
        if not self._blocks:
            return
        blocks = np.frombuffer(b"".join(self._blocks), np.uint8).reshape(-1, BLOCK)
        wrong = header.wrong_checksums(blocks)
        if len(wrong):
            self._refuse("bad checksum, so no header", f"byte {self._data[wrong[0]] - BLOCK}")
        try:
            rows = self._numbers(blocks)
        except HeaderError as error:
            index: int = getattr(error, "index", 0)
            name = self._name_of(self._blocks[index], self._specials.get(index))
            self._refuse(error.what, error.got, error.want, name)
        self._publish(blocks, rows)
        self._blocks.clear()
        self._data.clear()
        self._specials = {}

    def _check_extensions(self) -> None:
        """Refuse headers that are no entries and have a wrong checksum or what is no number."""
        blocks = np.frombuffer(b"".join(self._extensions), np.uint8).reshape(-1, BLOCK)
        if len(header.wrong_checksums(blocks)):
            self._refuse("bad checksum of an extension header")
        blocks = _without_other_devices(blocks)
        try:
            for key, where in _NUMBERS:
                header.parse_numbers(blocks, where, key)
        except HeaderError as error:
            self._refuse(f"extension header: {error.what}", error.got, error.want)

    def _numbers(self, blocks: header.Blocks) -> Rows:
        rows = np.zeros(len(blocks), ROW)
        rows["kind"] = _KIND_OF_FLAG[blocks[:, header.TYPEFLAG]]
        rows["layer"] = self._layer
        rows["data"] = self._data
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
        for index, special in self._specials.items():
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
        specials = self._specials
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
                name = self._name_of(self._blocks[index], special)
            elif b"\0" in name:
                name = name.split(b"\0", 1)[0]
            path = name[2:] if name[:2] == b"./" else name
            if path[-1:] == b"/":
                path = path[:-1]
            if not path or path[0] in b"./" or len(path) > names.NAME_MAX or b"/." in path or b"//" in name:
                try:
                    path, kind = names.classify(name, kind)
                except HeaderError as error:
                    self._refuse(error.what, error.got, error.want, name)
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
        self._last = name
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
            link = header.text(self._blocks[index], header.LINKNAME)
            if special is not None:
                if special.long_linkname is not None:
                    link = special.long_linkname
                elif special.linkname is not None:
                    link = special.linkname
            if not link:
                self._refuse("link without a target", name=name)
            if kind == HARDLINK:
                try:
                    link = self._link = names.normalise(link)
                except HeaderError as error:
                    self._refuse(f"link target: {error.what}", error.got, error.want, name)
            elif len(link) > names.PATH_MAX:
                self._refuse(
                    "link target is too long", f"{len(link)} bytes", f"at most {names.PATH_MAX}", name
                )
            rows["link"][index] = len(link)
        if special is None:
            return link
        xattrs = b""
        if kind != HARDLINK and kind < WHITEOUT and special.xattrs:
            for key, value in special.xattrs.items():
                if len(value) > _MAX_XATTR:
                    self._refuse(f"xattr {quote(key)}", f"{len(value)} bytes", f"at most {_MAX_XATTR}", name)
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


def _plain_size(block: bytes) -> int:
    """Return the size in a header of the usual form, or -1; what is odd comes out at the latest in the batch."""
    digits = block[124:135]
    if block[135] not in b"\0 " or not digits.isdigit():
        return -1
    try:
        return int(digits, 8)
    except ValueError:
        return -1


def _size(block: bytes) -> int:
    """Return the size in any header."""
    try:
        return header.parse_number(header.field(block, header.SIZE))
    except HeaderError as error:
        error.what = f"size: {error.what}"
        raise


def _at(index: int, what: str, got: object, want: object = None) -> HeaderError:
    error = HeaderError(what, got, want)
    error.index = index  # type: ignore[attr-defined]
    return error
