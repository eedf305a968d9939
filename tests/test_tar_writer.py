"""Rows to tar headers: what is written is read again, by the scanner and by the tools that people have."""

from __future__ import annotations

import os
import subprocess
import tarfile
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from images import BLOCK
from images import pack_headers as pack_entry
from model import Entry, merge
from paralayer.survivors import Batch, Rules
from paralayer.table import HARDLINK, ROW, Table, TableWriter
from paralayer.tar.scanner import Scanner
from paralayer.tar.writer import END, pack_headers, pack_links
from scans import Row, padded, row_of, scan
from trees import NOT_ON_DISK, diff, extract_tar, from_model, parse_layer, parse_records

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model import Kind

Tool = Literal["tar", "bsdtar", "tarfile"]

MAX_OCTAL_7, MAX_OCTAL_11 = 8**7 - 1, 8**11 - 1
BAD = b"\xff\xfe"


def table_of(header: bytes, layer: int = 0) -> Table:
    """Return the table of a header, with its extension headers, whatever data should follow."""
    fd = os.memfd_create("table")
    try:
        writer = TableWriter(fd)
        scanner = Scanner(writer, layer, f"layer {layer}")
        scanner.feed(header)
        scanner.rows.flush()
        return Table(fd, writer.length)
    finally:
        os.close(fd)


def batch_of(entries: Sequence[Entry], sizes: Sequence[int] = ()) -> Batch:
    """Return survivors as they are of a layer each."""
    wanted = sizes or [len(entry.data) for entry in entries]
    tables = [
        table_of(pack_entry(entry, size), layer)
        for layer, (entry, size) in enumerate(zip(entries, wanted, strict=True))
    ]
    rows = np.concatenate([np.zeros(0, ROW), *(table.rows for table in tables)])
    return Batch(0, rows, [table.paths()[0] for table in tables], tables, Rules())


def written(entries: Sequence[Entry], sizes: Sequence[int] = ()) -> list[bytes]:
    """Return the headers that are written for each entry."""
    headers, offsets = pack_headers(batch_of(entries, sizes))
    assert offsets.dtype == np.int64
    assert [offsets[0], offsets[-1]] == [0, len(headers)]
    return [headers[start:stop] for start, stop in pairwise(offsets.tolist())]


def read(header: bytes) -> Row:
    """Return the row of a header, without the data that should follow."""
    table = table_of(header)
    [path], [row] = table.paths(), table.rows
    return row_of(table, row, path, b"")


def row_for(entry: Entry, size: int) -> Row:
    is_device = entry.kind in ("char", "block")
    return Row(
        path=entry.path,
        kind=entry.kind,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime=entry.mtime,
        nsec=entry.mtime_ns,
        size=size if entry.kind == "file" else 0,
        linkname=entry.linkname if entry.kind == "symlink" else b"",
        xattrs=entry.xattrs if entry.kind in ("file", "dir") else {},
        major=entry.major if is_device else 0,
        minor=entry.minor if is_device else 0,
    )


def either(*numbers: int, least: int = 0) -> st.SearchStrategy[int]:
    """Draw a number around each of `numbers`, or any up to the last."""
    near = [number + delta for number in numbers for delta in (-1, 0, 1)]
    return st.one_of(
        st.sampled_from([number for number in near if least <= number <= numbers[-1]]),
        st.integers(least, numbers[-1]),
    )


def is_component(name: bytes) -> bool:
    return not name.startswith(b".wh.") and name not in (b".", b"..")


short = st.binary(min_size=1, max_size=8).map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"\\"))
components = st.one_of(
    short, st.builds(lambda name, length: (name * 255)[:length], short, st.integers(1, 255))
).filter(is_component)
paths = st.lists(components, min_size=1, max_size=20).map(b"/".join)
targets = st.one_of(paths, st.integers(1, 300).map(lambda length: b"t" * length), st.just(b"../" * 60 + BAD))
xattrs = st.dictionaries(
    st.builds(
        bytes.__add__,
        st.sampled_from([b"user.", b"trusted.", b"security."]),
        short.map(lambda name: name.replace(b"=", b"%")),
    ).filter(lambda name: b"overlay" not in name),
    st.one_of(st.binary(max_size=40), st.integers(80, 110).map(bytes), st.just(b"\0=\n")),
    max_size=3,
)
ids = either(MAX_OCTAL_7, 2**31, 2**32 - 2)
devices = either(255, MAX_OCTAL_7, 2**32 - 1)
times = st.one_of(
    either(0, MAX_OCTAL_11, 2**63 - 1), either(0, least=-(2**63)), st.integers(-(10**10), 10**11)
)
nanoseconds = st.one_of(st.just(0), st.sampled_from([1, 500_000_000, 999_999_999]), st.integers(0, 10**9 - 1))
sizes = either(0, 8**11 - 1, 8**11, 2**63 - 1)
kinds: list[Kind] = ["file", "dir", "symlink", "char", "block", "fifo"]


@st.composite
def entries(draw: st.DrawFn) -> tuple[Entry, int]:
    kind = draw(st.sampled_from(kinds))
    size = draw(sizes) if kind == "file" else 0
    return Entry(
        draw(st.one_of(paths, st.just(b""))) if kind == "dir" else draw(paths),
        kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(ids),
        gid=draw(ids),
        mtime=draw(times),
        mtime_ns=draw(nanoseconds),
        linkname=draw(targets) if kind == "symlink" else b"",
        xattrs=draw(xattrs) if kind in ("file", "dir") else {},
        major=draw(devices),
        minor=draw(devices),
    ), size


@given(st.lists(entries(), max_size=5))
def test_what_is_written_is_read(drawn: list[tuple[Entry, int]]) -> None:
    headers = written([entry for entry, _ in drawn], [size for _, size in drawn])
    assert [read(header) for header in headers] == [row_for(entry, size) for entry, size in drawn]


@given(st.lists(entries(), max_size=5))
def test_canonical_headers_are_written_as_they_are(drawn: list[tuple[Entry, int]]) -> None:
    headers = written([entry for entry, _ in drawn], [size for _, size in drawn])
    for header, (entry, size) in zip(headers, drawn, strict=True):
        assert written([entry], [size]) == [header], "it does not depend on the others"
        table = table_of(header)
        assert pack_headers(Batch(0, table.rows, table.paths(), [table], Rules()))[0] == header


@given(st.lists(st.tuples(paths, paths), max_size=5), entries())
def test_hard_links_that_are_written_are_read(
    links: list[tuple[bytes, bytes]], drawn: tuple[Entry, int]
) -> None:
    entry, size = drawn
    rows = np.repeat(batch_of([entry], [size]).rows, len(links))
    rows["kind"], rows["size"] = HARDLINK, 0
    headers, offsets = pack_links(rows, links)
    for (start, stop), (path, target) in zip(pairwise(offsets.tolist()), links, strict=True):
        row = read(headers[start:stop])
        assert (row.path, row.kind, row.linkname) == (path, "hardlink", target)
        assert (row.size, row.xattrs, row.mode) == (0, {}, entry.mode)


def test_archive_of_headers_and_data() -> None:
    files = [Entry(b"f%d" % size, data=b"x" * size, mtime_ns=1) for size in (0, 1, 511, 512, 513)]
    tar = (
        b"".join(header + padded(file.data) for header, file in zip(written(files), files, strict=True)) + END
    )
    assert scan(tar).rows == [replace(row_for(file, len(file.data)), stored=file.data) for file in files]
    assert parse_layer(tar) == files


# Title → (entry, keys of the PAX records that it needs).
PLAIN = Entry(b"f", mtime=0)
CANONICAL: dict[str, tuple[Entry, list[str]]] = {
    "plain": (PLAIN, []),
    "name of 100 bytes": (replace(PLAIN, path=b"n" * 100), []),
    "name of 101 bytes": (replace(PLAIN, path=b"n" * 101), ["path"]),
    "directory of 99 bytes and a slash": (replace(PLAIN, path=b"n" * 99, kind="dir"), []),
    "directory of 100 bytes and a slash": (replace(PLAIN, path=b"n" * 100, kind="dir"), ["path"]),
    "prefix and name": (replace(PLAIN, path=b"p" * 155 + b"/" + b"n" * 100), []),
    "prefix of 156 bytes": (replace(PLAIN, path=b"p" * 156 + b"/" + b"n" * 100), ["path"]),
    "prefix and a name of 101 bytes": (replace(PLAIN, path=b"p" * 10 + b"/" + b"n" * 101), ["path"]),
    "prefix and directory": (replace(PLAIN, path=b"p" * 155 + b"/" + b"n" * 99, kind="dir"), []),
    "prefix and directory of 100 bytes": (
        replace(PLAIN, path=b"p" * 155 + b"/" + b"n" * 100, kind="dir"),
        ["path"],
    ),
    "split at any slash": (replace(PLAIN, path=b"a/" * 100 + b"n"), []),
    "name that is not UTF-8": (replace(PLAIN, path=BAD), []),
    "long name in UTF-8": (replace(PLAIN, path="é".encode() * 60), ["path"]),
    "long name that is not UTF-8": (replace(PLAIN, path=BAD * 60), ["hdrcharset", "path"]),
    "link of 100 bytes": (replace(PLAIN, kind="symlink", linkname=b"l" * 100), []),
    "link of 101 bytes": (replace(PLAIN, kind="symlink", linkname=b"l" * 101), ["linkpath"]),
    "link of 100 bytes that is not UTF-8": (replace(PLAIN, kind="symlink", linkname=BAD * 50), []),
    "long link that is not UTF-8": (
        replace(PLAIN, kind="symlink", linkname=BAD * 60),
        ["hdrcharset", "linkpath"],
    ),
    "largest small ids": (replace(PLAIN, uid=MAX_OCTAL_7, gid=MAX_OCTAL_7), []),
    "large uid": (replace(PLAIN, uid=MAX_OCTAL_7 + 1), ["uid"]),
    "large gid": (replace(PLAIN, gid=MAX_OCTAL_7 + 1), ["gid"]),
    "last small time": (replace(PLAIN, mtime=MAX_OCTAL_11), []),
    "late time": (replace(PLAIN, mtime=MAX_OCTAL_11 + 1), ["mtime"]),
    "early time": (replace(PLAIN, mtime=-1), ["mtime"]),
    "fraction": (replace(PLAIN, mtime_ns=1), ["mtime"]),
    "large device": (replace(PLAIN, kind="char", major=2**32 - 1, minor=2**32 - 1), []),
    "xattrs": (
        replace(PLAIN, xattrs={b"user.b": BAD, b"user.a": b"", b"security.x": b"\0"}),
        ["SCHILY.xattr.security.x", "SCHILY.xattr.user.a", "SCHILY.xattr.user.b"],
    ),
    "everything": (
        replace(
            PLAIN, path=b"n" * 101, uid=2**32 - 2, gid=2**31, mtime=-5, mtime_ns=5, xattrs={b"user.a": b"1"}
        ),
        ["SCHILY.xattr.user.a", "gid", "mtime", "path", "uid"],
    ),
}


@pytest.mark.parametrize("case", CANONICAL)
def test_pax_is_for_what_ustar_cannot_hold(case: str) -> None:
    entry, keys = CANONICAL[case]
    [header] = written([entry])
    assert records_of(header) == keys
    last = header[-BLOCK:]
    assert last[257:265] == b"ustar\x0000"
    assert last[148:156] == b"%06o\0 " % (sum(last[:148]) + 8 * 32 + sum(last[156:]))


def test_size_is_in_pax_from_8_gib_on() -> None:
    small, large = written([PLAIN, PLAIN], [8**11 - 1, 8**11])
    assert (records_of(small), records_of(large)) == ([], ["size"])
    assert small[124:136] == b"7" * 11 + b"\0"


def records_of(header: bytes) -> list[str]:
    """Return the keys of the PAX records before a header."""
    if len(header) == BLOCK:
        return []
    assert header[156:157] == b"x"
    size = int(header[124:135], 8)
    assert len(header) == BLOCK + len(padded(bytes(size))) + BLOCK
    return [key.decode() for key in parse_records(header[BLOCK : BLOCK + size])]


def test_no_entries_make_no_headers() -> None:
    assert written([]) == []
    assert pack_links(np.zeros(0, ROW), [])[0] == b""


# Other readers

LONG = b"/".join([b"long-" + b"x" * 195] * 3)
BAD_LONG = b"bad-" + BAD * 100
TREE = [
    Entry(b"", "dir", 0o711, mtime=1, mtime_ns=5),
    Entry(b"plain", data=b"data", mode=0o644, uid=1000, gid=1000, mtime=1_000_000_000),
    Entry(b"bits", data=b"s", mode=0o6755, uid=3, mtime=5),
    Entry(b"sticky", "dir", 0o1777, mtime=6),
    Entry(b"odd \n\t\x1b'\"\\*?-#" + BAD, data=b"odd", mtime=7),
    Entry("é".encode() * 80, data=b"utf-8", mtime=7),
    Entry(BAD_LONG, data=b"bad", mtime=8, mtime_ns=1),
    Entry(BAD * 20, "symlink", 0o777, linkname=BAD_LONG, mtime=9),
    Entry(b"fraction", mtime=1_000_000_000, mtime_ns=123_456_789),
    Entry(b"early", mtime=-5),
    Entry(b"early-fraction", mtime=-5, mtime_ns=500_000_000),
    Entry(b"late", mtime=10_000_000_000, mtime_ns=1),
    Entry(b"owner", uid=2**32 - 2, gid=2**32 - 2, mtime=11),
    Entry(b"owned", uid=2**21, gid=2**31, mtime=12),
    Entry(b"fifo", "fifo", 0o600, mtime=13),
    Entry(b"char", "char", 0o600, major=511, minor=2**20 - 1, mtime=14),
    Entry(b"block", "block", 0o600, major=8, minor=1, mtime=15),
    Entry(b"symlink", "symlink", 0o777, linkname=b"/" + b"t" * 300, mtime=16),
    Entry(
        b"xattrs",
        data=b"x",
        xattrs={b"user.a": b"\0=\n" + BAD, b"user.empty": b"", b"trusted.b": b"1"},
        mtime=17,
    ),
    *(Entry(LONG[:end], "dir", 0o755, mtime=18) for end in (200, 401, 602)),
    Entry(LONG + b"/" + b"f" * 255, data=b"x" * 1000, mtime=19, xattrs={b"user.a": b"1"}),
    Entry(LONG + b"/" + BAD * 127, data=b"y", mtime=20),
]
LINKS = [(b"link", b"plain"), (b"l" * 200, b"bits"), (BAD * 60, BAD_LONG), (b"l-fifo", b"fifo")]


def archive(path: Path) -> str:
    """Write `TREE` and `LINKS`, and return the file's name."""
    batch = batch_of(TREE)
    rows = {entry.path: row for entry, row in zip(TREE, batch.rows, strict=True)}
    linked = np.array([rows[target] for _, target in LINKS], ROW)
    linked["kind"], linked["size"] = HARDLINK, 0
    name = os.fspath(path / "archive.tar")
    with open(name, "wb") as stream:
        stream.writelines(
            header + padded(entry.data) for header, entry in zip(written(TREE), TREE, strict=True)
        )
        stream.write(pack_links(linked, LINKS)[0] + END)
    return name


# What a tool restores otherwise: libarchive 3.6 takes -4.5 for -3.5 and leaves the time of `-C`'s directory.
OTHERWISE: dict[Tool, list[str]] = {
    "tar": [],
    "bsdtar": ["b'': mtime", "b'': mtime_ns", "b'early-fraction': mtime"],
    "tarfile": [],
}
LOST: dict[Tool, list[str]] = {"tar": [], "bsdtar": [], "tarfile": ["xattrs", "mtime", "mtime_ns"]}


@pytest.mark.requires("tar", "bsdtar", "root")
@pytest.mark.parametrize("tool", LOST)
def test_other_tools_extract_the_same_tree(
    tmp_path: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    want = from_model(merge([[*TREE, *(Entry(path, "hardlink", linkname=target) for path, target in LINKS)]]))
    got = extract_tar(archive(tmp_path), os.fspath(tmp_path / "out"), tool)
    differences = diff(got, want, ignore={*NOT_ON_DISK, *LOST[tool]})
    assert [difference.partition(": got")[0] for difference in differences] == OTHERWISE[tool]


@pytest.mark.requires("tar", "bsdtar")
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_what_other_tools_say(tmp_path: Path, locale: str) -> None:
    name = archive(tmp_path)
    gnu = listing("tar", name, locale)
    # Only a warning, and only where a long name is not UTF-8.
    assert gnu.returncode == 0
    assert set(gnu.stderr.splitlines()) == {b"tar: Ignoring unknown extended header keyword 'hdrcharset'"}
    assert len(gnu.stdout.splitlines()) == len(TREE) + len(LINKS)
    libarchive = listing("bsdtar", name, locale)
    assert len(libarchive.stdout.splitlines()) == len(TREE) + len(LINKS)
    if locale == "C.UTF-8":
        assert (libarchive.returncode, libarchive.stderr) == (0, b"")


def listing(tool: str, name: str, locale: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "LC_ALL": locale}
    return subprocess.run([tool, "-tvf", name], check=False, capture_output=True, env=environment)


@pytest.mark.requires("tar", "bsdtar")
def test_other_tools_read_numbers_beyond_octal(tmp_path: Path) -> None:
    name = os.fspath(tmp_path / "archive.tar")
    size = 2 * 8**11 + 5
    device = Entry(
        b"device", "char", major=2**31 - 1, minor=2**31 - 2, uid=2**32 - 2, gid=MAX_OCTAL_7 + 1, mtime=-1
    )
    with open(name, "wb") as stream:
        [large, last] = written([Entry(b"large"), device], [size, 0])
        stream.write(large)
        stream.seek(size + -size % BLOCK, os.SEEK_CUR)
        stream.write(last + END)
    for tool in "tar", "bsdtar":
        done = listing(tool, name, "C")
        assert (done.returncode, done.stderr) == (0, b"")
        first, second = done.stdout.decode().splitlines()
        assert str(size) in first
        assert "2147483647,2147483646" in second.replace(", ", ",")
        assert "4294967294" in second
        assert str(MAX_OCTAL_7 + 1) in second
    with tarfile.open(name) as opened:
        one, two = opened.getmembers()
        assert one.size == size
        assert (two.devmajor, two.devminor, two.uid, two.gid) == (
            2**31 - 1,
            2**31 - 2,
            2**32 - 2,
            MAX_OCTAL_7 + 1,
        )
        assert two.mtime == -1


def test_tarfile_reads_the_same(tmp_path: Path) -> None:
    with tarfile.open(archive(tmp_path)) as opened:
        members = opened.getmembers()
    assert [os.fsencode(member.name) for member in members] == [
        *(entry.path or b"." for entry in TREE),
        *(path for path, _ in LINKS),
    ]
    for member, entry in zip(members, TREE, strict=False):
        assert (member.mode, member.uid, member.gid) == (entry.mode, entry.uid, entry.gid)
        assert member.mtime == pytest.approx(entry.mtime + entry.mtime_ns / 10**9)
        assert os.fsencode(member.linkname) == entry.linkname
        assert member.size == len(entry.data)
    assert [os.fsencode(member.linkname) for member in members[len(TREE) :]] == [
        target for _, target in LINKS
    ]
