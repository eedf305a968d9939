"""Layer tars written field by field, right or wrong, and what the scanner makes of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from images import BLOCK, END_OF_ARCHIVE, pack_header, pack_special, pax_record
from paralayer.errors import LayerError
from paralayer.table import Table, TableWriter
from paralayer.tar.scanner import Scanner

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

POSIX, GNU, V7 = b"ustar\x0000", b"ustar  \x00", b""
FIELDS = {
    "mode": 100,
    "uid": 108,
    "gid": 116,
    "size": 124,
    "mtime": 136,
    "checksum": 148,
    "linkname": 157,
    "magic": 257,
    "uname": 265,
    "gname": 297,
    "major": 329,
    "minor": 337,
    "prefix": 345,
    "chunks": 386,
    "extended": 482,
    "realsize": 483,
}
KINDS = dict(
    enumerate(("file", "hardlink", "symlink", "char", "block", "dir", "fifo", "", "whiteout", "opaque"))
)


def header(
    name: bytes = b"f",
    flag: bytes = b"0",
    *,
    magic: bytes = POSIX,
    linkname: bytes = b"",
    prefix: bytes = b"",
    **raw: bytes,
) -> bytes:
    """Return a header block with the fields of `raw` as they are given, and the checksum to match."""
    block = bytearray(pack_header(name=name, flag=flag, magic=magic, linkname=linkname, prefix=prefix))
    for key, value in raw.items():
        block[FIELDS[key] : FIELDS[key] + len(value)] = value
    if "checksum" not in raw:
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: bytes = b"f", data: bytes = b"", flag: bytes = b"0", **fields: bytes) -> bytes:
    """Return a header and its data; the size is that of the data unless `fields` has it."""
    return header(name, flag, **{"size": b"%011o\0" % len(data), **fields}) + padded(data)


def pax(*records: tuple[bytes, bytes], flag: bytes = b"x") -> bytes:
    return pax_raw(b"".join(pax_record(key, value) for key, value in records), flag)


def pax_raw(payload: bytes, flag: bytes = b"x") -> bytes:
    return pack_special(flag, b"PaxHeaders/0", payload)


def long_name(value: bytes, flag: bytes = b"L") -> bytes:
    return pack_special(flag, b"././@LongLink", value, GNU)


@dataclass(frozen=True, slots=True)
class Row:
    """What a table holds of an entry; `stored` is its data as it stands in the layer."""

    path: bytes = b"f"
    kind: str = "file"
    stored: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    nsec: int = 0
    size: int = -1
    linkname: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    major: int = 0
    minor: int = 0
    extents: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.size < 0:
            object.__setattr__(self, "size", len(self.stored))


@dataclass(frozen=True, slots=True)
class Scan:
    """A scanned layer."""

    rows: list[Row]
    parents: list[int]
    targets: list[int]
    orderly: bool
    orderly_rows: int


def scan(tar: bytes, cuts: Iterable[int] = ()) -> Scan:
    """Scan `tar`, fed in the parts between the offsets `cuts`."""
    with_ends = [0, *cuts, len(tar)]
    return scan_parts([tar[start:stop] for start, stop in pairwise(with_ends)], tar)


def scan_parts(parts: Iterable[bytes | memoryview], tar: bytes, *, whole: bool = True) -> Scan:
    """Scan `parts`; rows get their data from `tar`. If not `whole`, do not ask whether the end is one."""
    fd = os.memfd_create("table")
    try:
        writer = TableWriter(fd)
        scanner = Scanner(writer, 7, "layer 7")
        for part in parts:
            scanner.feed(part)
        if whole:
            scanner.finish()
        else:
            scanner.rows.flush()
        table = Table(fd, writer.length)
    finally:
        os.close(fd)
    rows = table.rows
    assert (rows["layer"] == 7).all()
    return Scan(
        [row_of(table, row, path, tar) for row, path in zip(rows, table.paths(), strict=True)],
        rows["parent"].tolist(),
        rows["target"].tolist(),
        scanner.rows.orderly,
        scanner.rows.orderly_rows,
    )


def row_of(table: Table, row: np.void, path: bytes, tar: bytes) -> Row:
    return Row(
        path=path,
        kind=KINDS[int(row["kind"])],
        stored=tar[int(row["data"]) : int(row["data"]) + int(row["stored"])],
        mode=int(row["mode"]),
        uid=int(row["uid"]),
        gid=int(row["gid"]),
        mtime=int(row["mtime"]),
        nsec=int(row["nsec"]),
        size=int(row["size"]),
        linkname=table.linkname(row),
        xattrs=table.xattrs(row),
        major=int(row["major"]),
        minor=int(row["minor"]),
        extents=tuple(table.extents(row)) if row["sparse"] else (),
    )


def rows_of(*members: bytes) -> list[Row]:
    """Return the rows of an archive, which must be the same however it is fed."""
    tar = b"".join(members) + END_OF_ARCHIVE
    want = scan(tar)
    step = 1 if len(tar) < 8192 else 1009
    assert scan(tar, range(step, len(tar), step)) == want
    return want.rows


def refusal(*members: bytes, end: bytes = END_OF_ARCHIVE) -> str:
    """Return why an archive is refused, without the layer; it must be the same reason however it is fed."""
    tar = b"".join(members) + end
    reason = refusal_of(tar)
    step = 1 if len(tar) < 8192 else 1009
    assert refusal_of(tar, range(step, len(tar), step)) == reason
    assert reason.startswith("layer 7: ")
    return reason.removeprefix("layer 7: ")


def refusal_of(tar: bytes, cuts: Sequence[int] = ()) -> str:
    try:
        got = scan(tar, cuts)
    except LayerError as error:
        return str(error)
    raise AssertionError(f"accepted as {got.rows}")
