"""The xattr tables: sets of extended attributes, each once, however many inodes have it.

Three parts follow one another: metadata blocks with the sets' names and values; metadata blocks with a record for
each set; where both begin. A value may stand out of line: as a reference to an equal one.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING

from paralayer.sinks.squashfs.metadata import NO_TABLE, MetadataWriter, pack_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable

    from paralayer.sinks.squashfs.compressor import Compressor

NO_XATTRS = 0xFFFF_FFFF

_TYPES = {b"user": 0, b"trusted": 1, b"security": 2}
_OUT_OF_LINE = 0x100
_INLINE_MAX = 128  # a longer value is stored once; mksquashfs has the same limit

_ENTRY = struct.Struct("<HH")
_VALUE_SIZE = struct.Struct("<I")
_VALUE_REFERENCE = struct.Struct("<IQ")
_SET = struct.Struct("<QII")
_TABLE = struct.Struct("<QII")


class XattrTable:
    """Collects sets; `lost` counts the attributes that the format cannot hold."""

    def __init__(self) -> None:
        self._ids: dict[tuple[tuple[bytes, bytes], ...], int] = {}
        self.lost: Counter[str] = Counter()

    def add(self, xattrs: Iterable[tuple[bytes, bytes]]) -> int:
        """Return the id of a set of (name, value), `NO_XATTRS` if nothing of it can be held."""
        kept = []
        for name, value in xattrs:
            namespace, _, rest = name.partition(b".")
            if namespace in _TYPES and rest:
                kept.append((name, value))
            else:
                self.lost["xattrs that are not user, trusted or security"] += 1
        return self._ids.setdefault(tuple(sorted(kept)), len(self._ids)) if kept else NO_XATTRS

    def pack(self, position: int, compressor: Compressor) -> tuple[bytes, int]:
        """Return the tables that begin at `position` of the image, and what the superblock says of them."""
        if not self._ids:
            return b"", NO_TABLE
        values = MetadataWriter(compressor)
        references: dict[bytes, int] = {}
        sets = []
        for xattrs in self._ids:
            size = sum(len(name) + 1 + len(value) for name, value in xattrs)
            sets.append(_SET.pack(_reference(values), len(xattrs), size))
            for name, value in xattrs:
                _append(values, name, value, references)
        data = b"".join(values.finish())
        records, starts = pack_metadata(b"".join(sets), compressor)
        start = position + len(data) + len(records)
        header = _TABLE.pack(position, len(sets), 0)
        return b"".join(
            [data, records, header, (starts + position + len(data)).astype("<u8").tobytes()]
        ), start


def _append(values: MetadataWriter, name: bytes, value: bytes, references: dict[bytes, int]) -> None:
    namespace, _, rest = name.partition(b".")
    reference = references.get(value)
    if reference is not None:
        values.append(_ENTRY.pack(_TYPES[namespace] | _OUT_OF_LINE, len(rest)) + rest)
        values.append(_VALUE_REFERENCE.pack(8, reference))
        return
    values.append(_ENTRY.pack(_TYPES[namespace], len(rest)) + rest)
    if len(value) > _INLINE_MAX:
        references[value] = _reference(values)
    values.append(_VALUE_SIZE.pack(len(value)) + value)


def _reference(values: MetadataWriter) -> int:
    start, offset = values.place(values.size)
    return start << 16 | offset
