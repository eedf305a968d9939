"""Decoded layer bytes in, entry table out.

The scanner is fed chunks of any size and looks at headers only: data is skipped over. Header blocks are collected as
they are; every few thousand of them become rows of the table (`rows`). Nothing depends on where the chunks are cut.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from paralayer.errors import quote
from paralayer.table import DIRECTORY, FILE, TableWriter
from paralayer.tar import header, pax, sparse
from paralayer.tar.extension import Special, apply_record
from paralayer.tar.header import BLOCK, ZERO_BLOCK, HeaderError, padding
from paralayer.tar.rows import KINDS, RowWriter

if TYPE_CHECKING:
    from collections.abc import Callable

_BATCH = 2048  # headers converted at once: 1 MiB
_MAX_HELD = 4 << 20  # bytes of extension headers that are held until then
_WORTH_HIDING = 16 << 10  # bytes of a file from which on it pays to ask whether it is hidden
_MAX_SPECIAL = 1 << 20  # bytes of a PAX or GNU long record
_EXTENSIONS = (b"x", b"g", b"L", b"K")

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
        self.rows = RowWriter(table, layer, where)
        self.hidden: deque[tuple[int, int]] = deque()
        self._hides = hides
        self.position = 0  # bytes fed
        # Bytes that are wanted next: `_need` of them from `_next` on, for `_take`.
        self._next = 0
        self._need = BLOCK
        self._take: Callable[[bytes], None] = self._take_header
        self._partial = bytearray()
        self._extension = (b"", 0)  # type and size of the extension header that is being read
        self._pending: Special | None = None
        self._entry: tuple[bytes, Special | None] | None = None  # that is being read, for messages
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
        blocks, data = self.rows.blocks, self.rows.data
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
        if len(blocks) >= _BATCH or self.rows.held >= _MAX_HELD:
            self.rows.flush()

    def _hide(self, block: bytes) -> None:
        """Note the data of a file that is hidden; `_next` is where they begin."""
        assert self._hides is not None
        name = self.rows.name_of(block)
        path = (
            name[2:] if name[:2] == b"./" else name
        )  # in another spelling it is not found, which only costs
        if self._hides(path):
            self.hidden.append((self._next, self._data_end))

    def finish(self) -> None:
        """End of the decoded stream: check that the archive is whole, and publish the rest."""
        self.rows.flush()
        if self._ended:
            return
        if self.position < self._data_end:
            self.rows.refuse(
                "truncated in the data", f"{self.position} bytes", self._data_end, self.rows.last
            )
        if self._partial or self._take != self._take_header or self._pending is not None:
            self.rows.refuse("truncated inside a header", f"{self.position} bytes")

    def _expects_plain(self) -> bool:
        """Say whether the next block is a header that nothing before it says anything about."""
        return self._pending is None and not self._zero_blocks and self._take == self._take_header

    def _dispatch(self, block: bytes) -> None:
        try:
            self._take(block)
        except HeaderError as error:
            self.rows.flush()
            name = self.rows.name_of(*self._entry) if self._entry is not None else None
            self.rows.refuse(error.what, error.got, error.want, name)

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
        if flag in KINDS:
            self._entry = block, self._pending
            if self._pending is not None and self._pending.error is not None:
                raise self._pending.error
            self._add_entry(block, flag)
            return
        self.rows.extensions.append(block)
        if flag not in _EXTENSIONS:
            self._entry = block, self._pending
            raise HeaderError("unknown type of entry", repr(flag)[1:])
        size = _size(block)
        if not 0 <= size <= _MAX_SPECIAL:
            raise HeaderError("extension header too large", size, f"at most {_MAX_SPECIAL}")
        self._extension = flag, size
        self.rows.held += BLOCK + size
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
                special.error = before.error
            for key, value in pax.parse_records(payload):
                try:
                    apply_record(special, key, value)
                except HeaderError as error:
                    special.error = special.error or error
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
        kind = KINDS[flag]
        if flag == b"\0" and self.rows.name_of(block, special).endswith(b"/"):
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
            self.rows.specials[len(self.rows.blocks)] = special
        self.rows.blocks.append(block)
        self.rows.data.append(header_end)
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
            got = ".".join("none" if part is None else quote(part) for part in version)
            raise HeaderError("sparse file of an unknown version", got, "0.0, 0.1 or 1.0")
        real_size = records.get(b"size") or records.get(b"realsize")
        if real_size is None:
            raise HeaderError("sparse file without its real size")
        special.real_size = sparse.parse_size(real_size)
        if version != (b"1", b"0"):
            if b"numblocks" not in records:
                raise HeaderError("sparse file without GNU.sparse.numblocks")
            values = records[b"map"].split(b",") if b"map" in records else special.sparse_pairs
            extents = sparse.parse_pax_map(values, records[b"numblocks"])
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
        self.rows.held += 16 * len(extents)
        self._append(block, special, header_end, stored)


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
