"""Layer tars in, rows out: what is accepted, what is refused, and that nothing depends on how the stream is cut."""

from __future__ import annotations

import os
import random
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import BLOCK, END_OF_ARCHIVE, pack_number, pack_special, pax_record
from scans import (
    GNU,
    V7,
    Row,
    header,
    long_name,
    member,
    pax,
    pax_raw,
    refusal,
    refusal_of,
    rows_of,
    scan,
    scan_parts,
)

from paralayer.errors import LayerError, quote
from paralayer.table import NONE, ROOT, ROW, Length, Table, TableWriter, pack_xattrs, unpack_xattrs
from paralayer.tar.header import HeaderError
from paralayer.tar.scanner import Scanner

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG = b"d" * 90 + b"/" + b"e" * 200
VERY_LONG = b"/".join([b"f" * 250] * 20)
ODD_NAMES = {
    "not UTF-8": b"\xff\xfe\x80",
    "half of a character": b"a\xc3",
    "composed": "é".encode(),
    "decomposed": b"e\xcc\x81",
    "capital": b"F",
    "newline": b"a\nb\n",
    "tab and escape": b"\t\x1b[31m",
    "other control characters": bytes(range(1, 32)) + b"\x7f",
    "quotes and backslashes": b"'\"`\\n\\",
    "leading dash": b"--checkpoint-action=exec=sh",
    "spaces": b" a ",
    "glob": b"*?[a]{b}",
    "comment": b"#x",
    "equals and percent": b"a=b%2Fc",
    "leading dots": b"..a",
    "three dots": b"...",
    "hidden": b".hidden",
    "not quite a whiteout": b".wh",
    "nearly a whiteout": b".whx",
    "with a whiteout's prefix inside": b"a.wh.b",
    "255 bytes": b"n" * 255,
}


@pytest.mark.parametrize("case", ODD_NAMES)
def test_names_are_bytes(case: str) -> None:
    name = ODD_NAMES[case]
    for path in (name, b"dir/" + name, name + b"/under"):
        want = [Row(path)]
        if len(path) <= 100:
            assert rows_of(header(path)) == want
        assert rows_of(pax((b"path", path)), header(b"other")) == want
        assert rows_of(long_name(path), header(b"other", magic=GNU)) == want
        assert rows_of(pax((b"linkpath", path)), header(flag=b"2")) == [Row(kind="symlink", linkname=path)]


ONE_NAME = {
    "fills its field": ([header(b"n" * 100)], b"n" * 100),
    "ends at NUL": ([header(b"ab\0cd")], b"ab"),
    "with a prefix": ([header(b"n", prefix=b"p/q")], b"p/q/n"),
    "both fields full": ([header(b"n" * 100, prefix=b"p" * 155)], b"p" * 155 + b"/" + b"n" * 100),
    "prefix ends at NUL": ([header(b"n", prefix=b"p\0q")], b"p/n"),
    "prefix of some other version": ([header(b"n", prefix=b"p", magic=b"ustar\0  ")], b"p/n"),
    "no prefix with GNU magic": ([header(b"n", prefix=b"p", magic=GNU)], b"n"),
    "no prefix without magic": ([header(b"n", prefix=b"p", magic=V7)], b"n"),
    "no prefix with other magic": ([header(b"n", prefix=b"p", magic=b"USTAR\x0000")], b"n"),
    "PAX before header": ([pax((b"path", b"pax")), header(b"n", prefix=b"p")], b"pax"),
    "PAX, long": ([pax((b"path", LONG)), header(b"n")], LONG),
    "PAX, very long": ([pax((b"path", VERY_LONG)), header(b"n")], VERY_LONG),
    "GNU before header": ([long_name(b"gnu\0"), header(b"n", magic=GNU)], b"gnu"),
    "GNU, 100 bytes": ([long_name(b"g" * 100 + b"\0"), header(b"n", magic=GNU)], b"g" * 100),
    "GNU, long": ([long_name(LONG + b"\0"), header(b"n", magic=GNU)], LONG),
    "GNU, very long": ([long_name(VERY_LONG + b"\0"), header(b"n", magic=GNU)], VERY_LONG),
    "GNU without NUL": ([long_name(LONG), header(b"n", magic=GNU)], LONG),
    "GNU ends at its first NUL": ([long_name(b"gnu\0more\0"), header(b"n", magic=GNU)], b"gnu"),
    "GNU, a whole block": ([long_name(b"g/" * 256), header(b"n", magic=GNU)], b"g/" * 255 + b"g"),
    "GNU for a POSIX header": ([long_name(b"gnu\0"), header(b"n", prefix=b"p")], b"gnu"),
    "GNU, then PAX": ([long_name(b"gnu\0"), pax((b"path", b"pax")), header(b"n")], b"gnu"),
    "PAX, then GNU": ([pax((b"path", b"pax")), long_name(b"gnu\0"), header(b"n")], b"gnu"),
    "empty GNU": ([long_name(b"\0"), header(b"n")], b"n"),
    "GNU of no bytes": ([long_name(b""), header(b"n")], b"n"),
    "empty GNU and PAX": ([long_name(b"\0x"), pax((b"path", b"pax")), header(b"n")], b"pax"),
    "GNU twice": ([long_name(b"one\0"), long_name(b"two\0"), header(b"n")], b"two"),
    "GNU, then empty GNU": ([long_name(b"one\0"), long_name(b"\0"), header(b"n")], b"n"),
    "empty PAX": ([pax((b"path", b"")), header(b"n", prefix=b"p")], b"p/n"),
    "PAX of no records": ([pax(), header(b"n")], b"n"),
    "PAX twice": ([pax((b"path", b"one"), (b"path", b"two")), header(b"n")], b"two"),
    "PAX, then empty PAX": ([pax((b"path", b"one"), (b"path", b"")), header(b"n")], b"n"),
    "empty PAX, then PAX": ([pax((b"path", b""), (b"path", b"two")), header(b"n")], b"two"),
    "PAX headers, the last one": ([pax((b"path", b"one")), pax((b"path", b"two")), header(b"n")], b"two"),
    "PAX headers, the last one alone": ([pax((b"path", b"one")), pax((b"mtime", b"0")), header(b"n")], b"n"),
    "global between": ([pax((b"path", b"pax")), pax((b"path", b"no"), flag=b"g"), header(b"n")], b"pax"),
    "global before": ([pax((b"path", b"no"), flag=b"g"), header(b"n")], b"n"),
    "global between GNU and its entry": ([long_name(b"gnu\0"), pax(flag=b"g"), header(b"n")], b"gnu"),
    "leading ./": ([header(b"./n")], b"n"),
    "leading /": ([header(b"/n")], b"n"),
    "leading slashes and dots": ([header(b".//././/n")], b"n"),
    "doubled slashes": ([header(b"p//n")], b"p/n"),
    "trailing slash": ([header(b"n/")], b"n"),
    "trailing slashes": ([header(b"n//")], b"n"),
    "trailing slashes of a deeper one": ([header(b"p/n///")], b"p/n"),
    "trailing dot": ([header(b"n/.")], b"n"),
    "dots between": ([header(b"p/./n")], b"p/n"),
    "up inside": ([header(b"q/../p/n")], b"p/n"),
    "up at the end": ([header(b"n/q/..")], b"n"),
    "up in the prefix": ([header(b"../n", prefix=b"p")], b"n"),
    "PAX with slashes": ([pax((b"path", b"//p//n/")), header()], b"p/n"),
    "GNU with slashes": ([long_name(b"./p/n/\0"), header()], b"p/n"),
    "prefix is nothing but a slash": ([header(b"n", prefix=b"/")], b"n"),
    "very deep": ([pax((b"path", b"d/" * 5000 + b"f")), header()], b"d/" * 5000 + b"f"),
}


@pytest.mark.parametrize("case", ONE_NAME)
def test_name_is_put_together(case: str) -> None:
    members, path = ONE_NAME[case]
    assert rows_of(*members) == [Row(path)]
    assert rows_of(*members, header(b"next")) == [Row(path), Row(b"next")], "it is for one entry"


ONE_LINK = {
    "fills its field": ([], b"l" * 100, b"l" * 100),
    "ends at NUL": ([], b"ab\0cd", b"ab"),
    "PAX": ([pax((b"linkpath", LONG))], b"no", LONG),
    "PAX where the header has none": ([pax((b"linkpath", LONG))], b"", LONG),
    "GNU": ([long_name(LONG + b"\0", b"K")], b"no", LONG),
    "GNU, then PAX": ([long_name(b"gnu\0", b"K"), pax((b"linkpath", b"pax"))], b"no", b"gnu"),
    "PAX, then GNU": ([pax((b"linkpath", b"pax")), long_name(b"gnu\0", b"K")], b"no", b"gnu"),
    "empty GNU": ([long_name(b"\0", b"K")], b"l", b"l"),
    "GNU of no bytes": ([long_name(b"", b"K")], b"l", b"l"),
    "GNU twice": ([long_name(b"one\0", b"K"), long_name(b"two\0", b"K")], b"l", b"two"),
    "empty PAX": ([pax((b"linkpath", b""))], b"l", b"l"),
    "PAX twice": ([pax((b"linkpath", b"one"), (b"linkpath", b"two"))], b"l", b"two"),
    "GNU name and link": ([long_name(b"f\0"), long_name(b"gnu\0", b"K")], b"l", b"gnu"),
    "GNU link and name": ([long_name(b"gnu\0", b"K"), long_name(b"f\0")], b"l", b"gnu"),
}


@pytest.mark.parametrize("case", ONE_LINK)
def test_link_name_is_put_together(case: str) -> None:
    members, field, linkname = ONE_LINK[case]
    symlink, hardlink = Row(kind="symlink", linkname=linkname), Row(kind="hardlink", linkname=linkname)
    assert rows_of(*members, header(b"f", b"2", linkname=field)) == [symlink]
    assert rows_of(*members, header(b"f", b"1", linkname=field)) == [hardlink]
    assert rows_of(*members, header(b"f", b"0", linkname=field)) == [Row()], "a file has none"
    assert rows_of(*members, header(b"f", b"5", linkname=field)) == [Row(kind="dir")]


@pytest.mark.parametrize(
    "target", [b"/", b"//a", b"/a/../b", b"..", b"../../../a", b"./a/", b".", b"a" * 300, b".wh.x", b"\xff\n"]
)
def test_symlink_target_is_kept_literally(target: bytes) -> None:
    assert rows_of(pax((b"linkpath", target)), header(b"f", b"2")) == [Row(kind="symlink", linkname=target)]


HARD_LINKS = {b"./a": b"a", b"/a//b/": b"a/b", b"c/../a": b"a", b"a/./b": b"a/b", b".": b"", b"a" * 255: b"a" * 255}


@pytest.mark.parametrize("target", HARD_LINKS)
def test_hard_link_target_is_normalised(target: bytes) -> None:
    want = Row(kind="hardlink", linkname=HARD_LINKS[target])
    assert rows_of(pax((b"linkpath", target)), header(b"f", b"1")) == [want]


@pytest.mark.parametrize("name", [b"", b".", b"/", b"./", b"//", b"./.", b"a/..", b"/a/b/../../"])
def test_root_is_an_entry(name: bytes) -> None:
    root = Row(b"", "dir", mode=0o750, uid=3)
    assert rows_of(header(name, b"5", mode=b"0000750\0", uid=b"0000003\0")) == [root]
    assert rows_of(header(name, b"5", mode=b"0000750\0", uid=b"0000003\0"), header()) == [root, Row()]
    for flag in b"0", b"1", b"2", b"3", b"4", b"6", b"7":
        reason = refusal(header(name, flag, linkname=b"a"))
        assert reason.startswith(f"{quote(name)}: the root must be a directory")


# Whiteouts

WHITEOUTS = {
    "plain": ([header(b".wh.a")], "whiteout", b"a"),
    "below": ([header(b"p/q/.wh.a")], "whiteout", b"p/q/a"),
    "odd spelling": ([header(b"./p//q/../.wh.a/.")], "whiteout", b"p/a"),
    "in PAX": ([pax((b"path", b"p/.wh.a")), header(b"b")], "whiteout", b"p/a"),
    "in a GNU record": ([long_name(b"p/.wh.a\0"), header(b"b")], "whiteout", b"p/a"),
    "in the prefix and name": ([header(b".wh.a", prefix=b"p")], "whiteout", b"p/a"),
    "of a hidden file": ([header(b".wh..a")], "whiteout", b".a"),
    "of three dots": ([header(b".wh....")], "whiteout", b"..."),
    "of dots and more": ([header(b".wh...a")], "whiteout", b"..a"),
    "of a whiteout's prefix": ([header(b".wh..wh")], "whiteout", b".wh"),
    "of odd bytes": ([header(b".wh.\xff\n ")], "whiteout", b"\xff\n "),
    "longer than a file name": (
        [pax((b"path", b"p/.wh." + b"n" * 255)), header(b"b")],
        "whiteout",
        b"p/" + b"n" * 255,
    ),
    "opaque root": ([header(b".wh..wh..opq")], "opaque", b""),
    "opaque root, odd spelling": ([header(b"/./.wh..wh..opq")], "opaque", b""),
    "opaque": ([header(b"p/.wh..wh..opq")], "opaque", b"p"),
    "opaque, odd spelling": ([header(b"./p//.wh..wh..opq/")], "opaque", b"p"),
    "opaque in PAX": ([pax((b"path", b"p/q/.wh..wh..opq")), header(b"b")], "opaque", b"p/q"),
}


@pytest.mark.parametrize("case", WHITEOUTS)
def test_whiteout_is_recognised(case: str) -> None:
    members, kind, path = WHITEOUTS[case]
    assert rows_of(*members) == [Row(path, kind)]


@pytest.mark.parametrize("flag", [b"0", b"\0", b"1", b"2", b"3", b"4", b"5", b"6", b"7"])
def test_whiteout_is_one_whatever_its_type(flag: bytes) -> None:
    [whiteout, marker] = rows_of(header(b"p/.wh.a", flag), header(b"p/.wh..wh..opq", flag))
    assert (whiteout.path, whiteout.kind) == (b"p/a", "whiteout")
    assert (marker.path, marker.kind) == (b"p", "opaque")


def test_content_of_a_whiteout_is_skipped() -> None:
    [whiteout, file] = rows_of(member(b".wh.a", header(b"hidden")), member(b"b", b"data"))
    assert (whiteout.path, whiteout.kind) == (b"a", "whiteout")
    assert file == Row(b"b", stored=b"data")


@pytest.mark.parametrize("name", [b".wh.d/f", b".wh..wh..opq/f", b"p/.wh.d/f", b".wh./f", b".wh../f", b"x.wh.y", b".wh"])
def test_whiteouts_are_recognised_by_the_last_component(name: bytes) -> None:
    assert rows_of(header(name)) == [Row(name)]


@pytest.mark.parametrize("name", [b".wh..wh.aufs", b".wh..wh.orph/", b"p/.wh..wh.x", b".wh..wh.", b".wh..wh.plnk/", b".wh..wh..opqx"])
def test_reserved_names_are_nothing(name: bytes) -> None:
    for flag in b"0", b"1", b"2", b"5":
        assert rows_of(header(name, flag)) == []
        assert rows_of(member(name, b"data"), header(b"a")) == [Row(b"a")]


def test_files_in_the_store_of_links_are_entries() -> None:
    assert rows_of(header(b".wh..wh.plnk/12.34"), header(b"a", b"1", linkname=b".wh..wh.plnk/12.34")) == [
        Row(b".wh..wh.plnk/12.34"),
        Row(b"a", "hardlink", linkname=b".wh..wh.plnk/12.34"),
    ]


TOO_LONG = "name has a component that is too long: got 256 bytes, want at most 255"
CLIMBS = "name climbs above the root"
REFUSED_NAMES = {
    "up": (b"..", f"..: {CLIMBS}"),
    "up and down": (b"../f", f"../f: {CLIMBS}"),
    "absolute": (b"/../f", f"/../f: {CLIMBS}"),
    "up too far": (b"a/../../f", f"a/../../f: {CLIMBS}"),
    "whiteout above the root": (b"../.wh.f", f"../.wh.f: {CLIMBS}"),
    "opaque marker above the root": (b"a/../../.wh..wh..opq", f"a/../../.wh..wh..opq: {CLIMBS}"),
    "256 bytes": (b"n" * 256, f"{'n' * 256}: {TOO_LONG}"),
    "256 bytes, escaped": (b"\xff" * 256, rf"{'\xff' * 256}: {TOO_LONG}".replace("ÿ", r"\xff")),
    "256 bytes of a directory": (b"n" * 256 + b"/f", f"{'n' * 256}/f: {TOO_LONG}"),
    "directory that looks like a whiteout": (b".wh." + b"n" * 252 + b"/f", f".wh.{'n' * 252}/f: {TOO_LONG}"),
    "whiteout of nothing": (b".wh.", ".wh.: malformed whiteout"),
    "whiteout of nothing, below": (b"a/.wh./", "a/.wh./: malformed whiteout"),
    "whiteout of .": (b".wh..", ".wh..: malformed whiteout"),
    "whiteout of . below": (b"a/.wh..", "a/.wh..: malformed whiteout"),
    "whiteout of ..": (b".wh...", ".wh...: malformed whiteout"),
    "whiteout of .. below": (b"./a/.wh...", "./a/.wh...: malformed whiteout"),
}


@pytest.mark.parametrize("case", REFUSED_NAMES)
def test_name_is_refused(case: str) -> None:
    name, want = REFUSED_NAMES[case]
    if len(name) <= 100:
        assert refusal(header(b"a"), header(name)).startswith(want)
    assert refusal(header(b"a"), pax((b"path", name)), header()).startswith(want)
    assert refusal(header(b"a"), long_name(name), header(magic=GNU)).startswith(want)


REFUSED_LINKS = {
    "symlink without target": (header(b"f", b"2"), "f: link without a target"),
    "symlink with an empty PAX target": (pax((b"linkpath", b"")) + header(b"f", b"2"), "f: link without a target"),
    "symlink that begins with NUL": (header(b"f", b"2", linkname=b"\0a"), "f: link without a target"),
    "hard link without target": (header(b"f", b"1"), "f: link without a target"),
    "hard link above the root": (header(b"f", b"1", linkname=b"../a"), f"f: link target: {CLIMBS}"),
    "hard link too far up": (header(b"f", b"1", linkname=b"a/../../b"), f"f: link target: {CLIMBS}"),
    "hard link to 256 bytes": (
        pax((b"linkpath", b"n" * 256)) + header(b"f", b"1"),
        f"f: link target: {TOO_LONG}",
    ),
    "NUL in a PAX link": (pax((b"linkpath", b"a\0b")) + header(b"f", b"2"), "tar: PAX linkpath contains NUL"),
    "NUL in a PAX link of a file": (pax((b"linkpath", b"a\0")) + header(), "tar: PAX linkpath contains NUL"),
    "NUL in a PAX path": (pax((b"path", b"a\0b")) + header(), "tar: PAX path contains NUL"),
    "NUL at the end of a PAX path": (pax((b"path", b"a\0")) + header(), "tar: PAX path contains NUL"),
    "NUL in an earlier PAX path": (
        pax((b"path", b"\0"), (b"path", b"a")) + header(),
        "tar: PAX path contains NUL",
    ),
    "NUL in a PAX path, GNU name": (
        pax((b"path", b"a\0b")) + long_name(b"f\0") + header(),
        "tar: PAX path contains NUL",
    ),
}


@pytest.mark.parametrize("case", REFUSED_LINKS)
def test_link_is_refused(case: str) -> None:
    members, want = REFUSED_LINKS[case]
    assert refusal(members).startswith(want)


# Numbers

MAX_OCTAL = b"77777777777"
FIELDS = {
    "mode, no terminator": ({"mode": b"00000644"}, Row()),
    "mode, spaces": ({"mode": b"   644 \0"}, Row()),
    "mode, blank": ({"mode": bytes(8)}, Row(mode=0)),
    "mode, blank with spaces": ({"mode": b" " * 8}, Row(mode=0)),
    "mode with type bits": ({"mode": b"0100644\0"}, Row()),
    "mode with a directory's bits": ({"mode": b"0040755\0"}, Row(mode=0o755)),
    "mode with a symlink's bits": ({"mode": b"0120777\0"}, Row(mode=0o777)),
    "mode, setuid, setgid, sticky": ({"mode": b"0007777\0", "uid": b"0000001\0"}, Row(mode=0o7777, uid=1)),
    "mode, eight digits": ({"mode": b"37777644"}, Row(mode=0o7644)),
    "mode in base-256": ({"mode": pack_number(0o644 + 2**40, 8)}, Row()),
    "negative mode": ({"mode": b"\xff" * 8}, Row(mode=0o7777)),
    "uid and gid, spaces": ({"uid": b"   1750 ", "gid": b"1750 \0\0\0"}, Row(uid=1000, gid=1000)),
    "uid and gid in base-256": (
        {"uid": pack_number(2**32 - 2, 8), "gid": pack_number(3 * 10**9, 8)},
        Row(uid=2**32 - 2, gid=3 * 10**9),
    ),
    "small uid in base-256": ({"uid": b"\x80" + bytes(6) + b"\x05"}, Row(uid=5)),
    "uid with digits to the end": ({"uid": b"77777777"}, Row(uid=8**8 - 1)),
    "mtime, digits to the end": ({"mtime": b"777777777777"}, Row(mtime=8**12 - 1)),
    "mtime, 11 digits": ({"mtime": MAX_OCTAL + b"\0"}, Row(mtime=8**11 - 1)),
    "mtime, blank": ({"mtime": b" " * 12}, Row()),
    "mtime in base-256": ({"mtime": pack_number(2**40, 12)}, Row(mtime=2**40)),
    "mtime, the last": ({"mtime": b"\x80" + (2**63 - 1).to_bytes(11, "big")}, Row(mtime=2**63 - 1)),
    "mtime, -1": ({"mtime": b"\xff" * 12}, Row(mtime=-1)),
    "mtime, long ago": ({"mtime": pack_number(-(10**10), 12)}, Row(mtime=-(10**10))),
    "mtime, the first": ({"mtime": pack_number(-(2**63), 12)}, Row(mtime=-(2**63))),
    "owner names that are none": ({"uname": b"\xff" * 32, "gname": b"\n\0\xfe"}, Row()),
    "devices of a file": ({"major": b"0000001\0", "minor": pack_number(2**40, 8)}, Row()),
    "devices without magic": ({"magic": bytes(8), "major": b"garbage!", "minor": b"\xff" * 8}, Row()),
    "link name of a file": ({"linkname": b"../../../x"}, Row()),
    "signed checksum": (
        {"uname": b"\xff", "checksum": b"%06o\0 " % (sum(header(uname=b"\xff")) - sum(header()[148:156]) * 0)},
        Row(),
    ),
}
del FIELDS["signed checksum"]


@pytest.mark.parametrize("case", FIELDS)
def test_field_is_read(case: str) -> None:
    fields, want = FIELDS[case]
    assert rows_of(header(**fields)) == [want]  # type: ignore[arg-type]
    plain = replace(want, path=b"n", kind="dir")
    assert rows_of(header(), header(b"n", b"5", **fields), header()) == [Row(), plain, Row()]  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["mode", "uid", "gid", "size", "mtime", "major", "minor"])
@pytest.mark.parametrize("raw", [b"garbage\0", b"-000001\0", b"0o00001\0", b"+000001\0", b"0_00001\0", b"0000008\0", b"\t000001\0"])
def test_malformed_number_is_refused(field: str, raw: bytes) -> None:
    width = 12 if field in ("size", "mtime") else 8
    raw = b"0" * (width - 8) + raw if raw[0] in b"0g" else raw[:1] + b"0" * (width - 8) + raw[1:]
    for flag in b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"\0":
        bad = header(b"bad", flag, linkname=b"x", **{field: raw})  # type: ignore[arg-type]
        reason = refusal(header(magic=V7), header(), bad, header())
        assert reason.startswith(("bad: malformed number: got", f"bad: {field}: malformed number: got"))


MAX_SIZE = b"\x80" + (2**63 - 1).to_bytes(11, "big")
SIZES = {
    "octal": b"00000001000\0",
    "no terminator": b"000000001000",
    "leading spaces": b"       1000 ",
    "spaces to the left": b"        1000",
    "left": b"1000\0\0\0\0\0\0\0\0",
    "left with spaces": b"1000        ",
    "a space, then garbage": b"1000 garbage",
    "NUL, then garbage": b"1000\0garbage",
    "base-256": b"\x80" + (512).to_bytes(11, "big"),
}


@pytest.mark.parametrize("case", SIZES)
def test_size_says_where_the_next_header_is(case: str) -> None:
    data = b"x" * 512
    want = [Row(stored=data), Row(b"next")]
    assert rows_of(header(size=0, **{"size": SIZES[case]}) if False else sized(SIZES[case]), data, header(b"next")) == want
    assert rows_of(sized(SIZES[case], flag=b"7"), data, header(b"next")) == want
    assert rows_of(sized(SIZES[case], flag=b"\0"), data, header(b"next")) == want


def sized(raw: bytes, name: bytes = b"f", flag: bytes = b"0") -> bytes:
    """Return a header whose size field is `raw`."""
    block = bytearray(header(name, flag))
    block[124:136] = raw
    return header_with_checksum(block)


def header_with_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
