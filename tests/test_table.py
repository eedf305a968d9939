"""The entry table: what was published of it, while it grows."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paralayer.table import ROW, Length, Table, TableWriter, pack_xattrs, unpack_xattrs
from paralayer.tar.scanner import Scanner
from scans import (
    header,
    pax,
)


def test_table_grows_while_it_is_read() -> None:
    fd = os.memfd_create("table")
    try:
        writer = TableWriter(fd)
        assert Table(fd, writer.length).paths() == []
        scanner = Scanner(writer, 0, "layer 0")
        lengths = [writer.length]
        for name in b"a", b".wh..wh.x", b"b", b"c/d":
            scanner.feed(pax((b"SCHILY.xattr.user." + name, name)) + header(name, b"2", linkname=name))
            scanner.rows.flush()
            lengths.append(writer.length)
        assert [length.rows for length in lengths] == [0, 1, 1, 2, 3]
        for length in lengths:
            table = Table(fd, length)
            assert table.paths() == [b"a", b"b", b"c/d"][: length.rows]
            assert [table.linkname(row) for row in table.rows] == table.paths()
            assert [table.xattrs(row) for row in table.rows] == [
                {b"user." + path: path} for path in table.paths()
            ]
        for start in lengths:
            part = Table(fd, lengths[-1], start)
            assert part.paths() == table.paths()[start.rows :]
            assert [part.extra_of(row) for row in part.rows] == [
                path + pack_xattrs([(b"user." + path, path)]) for path in part.paths()
            ]
    finally:
        os.close(fd)


def test_table_of_nothing() -> None:
    fd = os.memfd_create("table")
    try:
        writer = TableWriter(fd)
        writer.append(np.zeros(0, ROW), b"", b"")
        assert writer.length == Length()
        table = Table(fd, writer.length)
        assert (len(table.rows), table.paths()) == (0, [])
    finally:
        os.close(fd)


@given(st.dictionaries(st.binary(max_size=20), st.binary(max_size=20)))
def test_xattrs_that_are_packed_are_unpacked(xattrs: dict[bytes, bytes]) -> None:
    assert unpack_xattrs(pack_xattrs(xattrs.items())) == xattrs
