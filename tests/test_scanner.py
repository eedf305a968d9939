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
from paralayer.errors import LayerError, quote
from paralayer.table import NONE, ROOT, ROW, Length, Table, TableWriter, pack_xattrs, unpack_xattrs
from paralayer.tar.scanner import Scanner
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


HARD_LINKS = {
    b"./a": b"a",
    b"/a//b/": b"a/b",
    b"c/../a": b"a",
    b"a/./b": b"a/b",
    b".": b"",
    b"a" * 255: b"a" * 255,
}


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


@pytest.mark.parametrize(
    "name", [b".wh.d/f", b".wh..wh..opq/f", b"p/.wh.d/f", b".wh./f", b".wh../f", b"x.wh.y", b".wh"]
)
def test_whiteouts_are_recognised_by_the_last_component(name: bytes) -> None:
    assert rows_of(header(name)) == [Row(name)]


@pytest.mark.parametrize(
    "name",
    [b".wh..wh.aufs", b".wh..wh.orph/", b"p/.wh..wh.x", b".wh..wh.", b".wh..wh.plnk/", b".wh..wh..opqx"],
)
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
    "256 bytes, escaped": (b"\xff" * 256, r"\xff" * 256 + f": {TOO_LONG}"),
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
    "symlink with an empty PAX target": (
        pax((b"linkpath", b"")) + header(b"f", b"2"),
        "f: link without a target",
    ),
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
}


@pytest.mark.parametrize("case", FIELDS)
def test_field_is_read(case: str) -> None:
    fields, want = FIELDS[case]
    assert rows_of(header(**fields)) == [want]
    plain = replace(want, path=b"n", kind="dir")
    assert rows_of(header(), header(b"n", b"5", **fields), header()) == [Row(), plain, Row()]


@pytest.mark.parametrize("field", ["mode", "uid", "gid", "size", "mtime", "major", "minor"])
@pytest.mark.parametrize(
    "raw", [b"garbage\0", b"-000001\0", b"0o00001\0", b"+000001\0", b"0_00001\0", b"0000008\0", b"\t000001\0"]
)
def test_malformed_number_is_refused(field: str, raw: bytes) -> None:
    width = 12 if field in ("size", "mtime") else 8
    raw = b"0" * (width - 8) + raw if raw[0] in b"0g" else raw[:1] + b"0" * (width - 8) + raw[1:]
    for flag in b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"\0":
        bad = header(b"bad", flag, linkname=b"x", **{field: raw})
        reason = refusal(header(magic=V7), header(), bad, header())
        assert reason.startswith(f"bad: {field}: malformed number: got")


SIZES = {
    "octal": b"00000001000\0",
    "no terminator": b"000000001000",
    "leading spaces": b"       1000 ",
    "leading spaces, no terminator": b"        1000",
    "to the left": b"1000\0\0\0\0\0\0\0\0",
    "to the left, spaces": b"1000        ",
    "garbage behind the space": b"1000 garbage",
    "garbage behind the NUL": b"1000\0garbage",
    "base-256": b"\x80" + (512).to_bytes(11, "big"),
}


@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("flag", [b"0", b"\0", b"7"])
def test_size_says_where_the_next_header_is(case: str, flag: bytes) -> None:
    data = b"x" * 512
    want = [Row(stored=data), Row(b"next")]
    assert rows_of(header(flag=flag, size=SIZES[case]), data, header(b"next")) == want


@pytest.mark.parametrize("raw", [bytes(12), b" " * 12, b"\x80" + bytes(11), b"0" * 12, b"0" + bytes(11)])
def test_size_may_be_zero_in_many_ways(raw: bytes) -> None:
    assert rows_of(header(size=raw), header(b"next")) == [Row(), Row(b"next")]


HUGE = {
    "negative": (b"\xff" * 12, "f: size: got -1"),
    "the most negative": (b"\xc0" + bytes(11), f"f: size: got {-(2**94)}"),
    "64 bits": (b"\x80" + (2**63).to_bytes(11, "big"), f"f: size: got {2**63}"),
    "95 bits": (b"\xbf" + b"\xff" * 11, f"f: size: got {2**94 - 1}"),
    "63 bits, and not there": (b"\x80" + (2**63 - 1).to_bytes(11, "big"), "f: truncated in the data"),
    "octal, and not there": (b"7" * 12, "f: truncated in the data"),
}


@pytest.mark.parametrize("case", HUGE)
def test_size_is_refused(case: str) -> None:
    raw, want = HUGE[case]
    for flag in b"0", b"\0", b"7":
        assert refusal(header(b"before"), header(flag=flag, size=raw)).startswith(want)


def test_negative_size_of_what_has_no_data_is_refused() -> None:
    assert refusal(header(flag=b"5", size=b"\xff" * 12)).startswith("f: size: got -1")
    assert refusal(pax((b"size", b"-1")), header(flag=b"5")).startswith("tar: PAX size: got -1")


PAX_NUMBERS = {
    "uid": ([(b"uid", b"7")], Row(uid=7, gid=2, mtime=3)),
    "gid": ([(b"gid", b"7")], Row(uid=1, gid=7, mtime=3)),
    "largest uid and gid": (
        [(b"uid", b"4294967294"), (b"gid", b"4294967294")],
        Row(uid=2**32 - 2, gid=2**32 - 2, mtime=3),
    ),
    "leading zeros": ([(b"uid", b"0000000000000000000000000007")], Row(uid=7, gid=2, mtime=3)),
    "zero": ([(b"uid", b"0"), (b"gid", b"0"), (b"mtime", b"0")], Row()),
    "mtime": ([(b"mtime", b"9")], Row(uid=1, gid=2, mtime=9)),
    "mtime with a fraction": ([(b"mtime", b"9.5")], Row(uid=1, gid=2, mtime=9, nsec=500_000_000)),
    "mtime with nanoseconds": ([(b"mtime", b"9.000000001")], Row(uid=1, gid=2, mtime=9, nsec=1)),
    "mtime with too many digits": (
        [(b"mtime", b"9.9999999999999")],
        Row(uid=1, gid=2, mtime=9, nsec=999_999_999),
    ),
    "mtime before 1970": ([(b"mtime", b"-9")], Row(uid=1, gid=2, mtime=-9)),
    "mtime a little before 1970": ([(b"mtime", b"-0.25")], Row(uid=1, gid=2, mtime=-1, nsec=750_000_000)),
    "mtime before 1970, fraction": ([(b"mtime", b"-9.25")], Row(uid=1, gid=2, mtime=-10, nsec=750_000_000)),
    "mtime before 1901": ([(b"mtime", b"-9999999999")], Row(uid=1, gid=2, mtime=-9999999999)),
    "mtime after 2106": ([(b"mtime", b"4294967296")], Row(uid=1, gid=2, mtime=2**32)),
    "the first mtime": ([(b"mtime", b"-9223372036854775808")], Row(uid=1, gid=2, mtime=-(2**63))),
    "the last mtime": (
        [(b"mtime", b"9223372036854775807.999999999")],
        Row(uid=1, gid=2, mtime=2**63 - 1, nsec=999_999_999),
    ),
    "a key twice": ([(b"uid", b"6"), (b"uid", b"7")], Row(uid=7, gid=2, mtime=3)),
    "empty values": ([(b"uid", b""), (b"gid", b""), (b"mtime", b"")], Row(uid=1, gid=2, mtime=3)),
    "empty values at last": (
        [(b"uid", b"7"), (b"uid", b""), (b"mtime", b"5.5"), (b"mtime", b"")],
        Row(uid=1, gid=2, mtime=3),
    ),
    "unknown keys": (
        [
            *((b"comment", b"x"), (b"atime", b"x"), (b"ctime", b"-"), (b"hdrcharset", b"BINARY")),
            *((b"VENDOR.size", b"9"), (b"uname", b"9"), (b"gname", b"\xff"), (b"charset", b"x")),
            *(
                (b"LIBARCHIVE.xattr.user.a", b"eA=="),
                (b"SCHILY.acl.access", b"user::rwx"),
                (b"SCHILY.fflags", b"a"),
            ),
            *(
                (b"SCHILY.dev", b"1"),
                (b"UID", b"9"),
                (b"uid ", b"9"),
                (b" uid", b"9"),
                (b"LIBARCHIVE.creationtime", b"1"),
            ),
            *(
                (b"RHT.security.selinux", b"x"),
                (b"GNU.volume.label", b"x"),
                (b"realtime.x", b"1"),
                (b"security.x", b"1"),
            ),
        ],
        Row(uid=1, gid=2, mtime=3),
    ),
}


@pytest.mark.parametrize("case", PAX_NUMBERS)
def test_pax_numbers_win(case: str) -> None:
    records, want = PAX_NUMBERS[case]
    fields = {"uid": b"0000001\0", "gid": b"0000002\0", "mtime": b"00000000003\0"}
    next_one = Row(b"next", uid=1, gid=2, mtime=3)
    assert rows_of(pax(*records), header(**fields), header(b"next", **fields)) == [want, next_one]
    assert rows_of(pax(*records), header(flag=b"5", **fields)) == [replace(want, kind="dir")]


def test_pax_uid_wins_over_one_that_the_header_cannot_have() -> None:
    assert rows_of(pax((b"uid", b"5")), header(uid=b"\xff" * 8)) == [Row(uid=5)]
    assert rows_of(pax((b"mtime", b"5")), header(mtime=b"\xff" * 12)) == [Row(mtime=5)]


@pytest.mark.parametrize(
    "size", [b"\0" * 12, b"00000000001\0", b"00000002000\0", b"77777777777\0", MAX_OCTAL + b"7"]
)
@pytest.mark.parametrize("flag", [b"0", b"\0", b"7"])
def test_pax_size_wins_over_less_and_more(size: bytes, flag: bytes) -> None:
    data = b"x" * 513
    members = [pax((b"size", b"513")), header(flag=flag, size=size), data, bytes(511), header(b"next")]
    assert rows_of(*members) == [Row(stored=data), Row(b"next")]
    assert rows_of(pax((b"size", b"0")), header(flag=flag, size=size), header(b"next")) == [
        Row(),
        Row(b"next"),
    ]


@pytest.mark.parametrize("flag", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_what_has_no_data_has_none_whatever_the_size(flag: bytes) -> None:
    [want] = rows_of(header(b"f", flag, linkname=b"l"))
    assert (want.size, want.stored) == (0, b"")
    for size in b"00000001000\0", b"77777777777\0", b"\x80" + (2**63 - 1).to_bytes(11, "big"):
        entry = header(b"f", flag, linkname=b"l", size=size)
        assert rows_of(entry, header(b"next")) == [want, Row(b"next")]
        assert rows_of(pax((b"size", b"512")), entry, header(b"next")) == [want, Row(b"next")]
        assert rows_of(header(b"f/", b"\0", size=size), header(b"next")) == [Row(kind="dir"), Row(b"next")]
    data = refusal(header(b"f", flag, linkname=b"l", size=b"00000001000\0"), b"x" * 512, header(b"next"))
    assert data.startswith("tar: bad checksum")
    assert refusal(pax((b"size", b"512")), header(b"f", flag, linkname=b"l"), b"x" * 512).startswith(
        "tar: bad checksum"
    )


@pytest.mark.parametrize("key", [b"uid", b"gid", b"size", b"mtime"])
@pytest.mark.parametrize(
    "value",
    [
        b"x",
        b" 1",
        b"1 ",
        b"1\n",
        b"0x1",
        b"1e3",
        b"1_0",
        b"--1",
        b"+1",
        b"-",
        b"1\0",
        b"\0",
        b"9" * 30,
        b"9" * 5000,
    ],
    ids=lambda value: repr(value[:20]),
)
def test_malformed_pax_number_is_refused(key: bytes, value: bytes) -> None:
    want = f"tar: PAX {key.decode()}: malformed "
    assert refusal(header(), pax((key, value)), header()).startswith(want)
    assert refusal(pax((key, value), (key, b"1")), header()).startswith(want), "also when another one follows"
    assert refusal(pax((key, value)), header(flag=b"5")).startswith(want)


OWNERS = {
    "2^32-1": (pack_number(2**32 - 1, 8), b"4294967295", "4294967295"),
    "2^32": (pack_number(2**32, 8), b"4294967296", "4294967296"),
    "2^62-1": (b"\xbf" + b"\xff" * 7, b"4611686018427387903", "4611686018427387903"),
    "-1": (b"\xff" * 8, b"-1", "-1"),
    "-2^32": (pack_number(-(2**32), 8), b"-4294967296", "-4294967296"),
}


@pytest.mark.parametrize("case", OWNERS)
@pytest.mark.parametrize("key", ["uid", "gid"])
def test_owner_out_of_range_is_refused(case: str, key: str) -> None:
    raw, value, got = OWNERS[case]
    for flag in b"0", b"1", b"2", b"5":
        reason = refusal(header(), header(b"bad", flag, linkname=b"f", **{key: raw}), header())
        assert reason.startswith(f"bad: {key} out of range: got {got}")
    reason = refusal(header(), pax((key.encode(), value)), header(b"bad"), header())
    assert reason.startswith((f"bad: {key} out of range: got {got}", f"tar: PAX {key}: got {got}"))


# Devices

DEVICES = {
    "octal": ({"major": b"0000010\0", "minor": b"0000377\0"}, 8, 255),
    "0:0": ({}, 0, 0),
    "no terminator": ({"major": b"77777777", "minor": b"77777777"}, 8**8 - 1, 8**8 - 1),
    "base-256": (
        {"major": pack_number(2**32 - 1, 8), "minor": pack_number(2**32 - 1, 8)},
        2**32 - 1,
        2**32 - 1,
    ),
    "spaces": ({"major": b"     10 ", "minor": b" " * 8}, 8, 0),
    "GNU": ({"magic": GNU, "major": b"0000010\0", "minor": b"0000001\0"}, 8, 1),
    "without magic": ({"magic": bytes(8), "major": b"0000010\0", "minor": b"0000001\0"}, 0, 0),
}


@pytest.mark.parametrize("case", DEVICES)
@pytest.mark.parametrize(("flag", "kind"), [(b"3", "char"), (b"4", "block")])
def test_device_is_read(case: str, flag: bytes, kind: str) -> None:
    fields, major, minor = DEVICES[case]
    assert rows_of(header(b"f", flag, **fields)) == [Row(kind=kind, major=major, minor=minor)]
    assert rows_of(header(b"f", b"6", **fields)) == [Row(kind="fifo")]


@pytest.mark.parametrize("key", ["major", "minor"])
@pytest.mark.parametrize("value", [-1, 2**32])
def test_device_number_out_of_range_is_refused(key: str, value: int) -> None:
    bad = header(b"bad", b"3", **{key: pack_number(value, 8)})
    assert refusal(header(magic=V7), bad, header()).startswith(f"bad: {key} out of range: got {value}")


# Types


@pytest.mark.parametrize("magic", [b"ustar\x0000", GNU, V7, b"ustar\0  "])
def test_types_of_entries(magic: bytes) -> None:
    fields = {"magic": magic, "linkname": b"l"}
    assert rows_of(
        member(b"a", b"1", b"0", **fields),
        member(b"b", b"2", b"\0", **fields),
        member(b"c", b"3", b"7", **fields),
        header(b"d", b"1", **fields),
        header(b"e", b"2", **fields),
        header(b"f", b"3", **fields),
        header(b"g", b"4", **fields),
        header(b"h", b"5", **fields),
        header(b"i", b"6", **fields),
    ) == [
        Row(b"a", stored=b"1"),
        Row(b"b", stored=b"2"),
        Row(b"c", stored=b"3"),
        Row(b"d", "hardlink", linkname=b"l"),
        Row(b"e", "symlink", linkname=b"l"),
        Row(b"f", "char"),
        Row(b"g", "block"),
        Row(b"h", "dir"),
        Row(b"i", "fifo"),
    ]


def test_trailing_slash_makes_a_directory_of_the_old_type_only() -> None:
    assert rows_of(header(b"d/", b"\0"), header(b"n")) == [Row(b"d", "dir"), Row(b"n")]
    assert rows_of(header(b"d", b"\0"), header(b"n")) == [Row(b"d"), Row(b"n")]
    assert rows_of(pax((b"path", b"d/")), header(b"n", b"\0")) == [Row(b"d", "dir")]
    assert rows_of(pax((b"path", b"d")), header(b"n/", b"\0")) == [Row(b"d")]
    assert rows_of(long_name(b"d/\0"), header(b"n", b"\0", magic=GNU)) == [Row(b"d", "dir")]
    assert rows_of(long_name(b"d\0"), header(b"n/", b"\0", magic=GNU)) == [Row(b"d")]
    assert rows_of(header(b"d/", b"\0", prefix=b"p")) == [Row(b"p/d", "dir")]
    assert rows_of(header(b"d/", b"\0", magic=V7)) == [Row(b"d", "dir")]
    assert rows_of(header(b"./", b"\0")) == [Row(b"", "dir")]
    assert rows_of(member(b"d/", b"data", b"0"), header(b"n")) == [Row(b"d", stored=b"data"), Row(b"n")]
    assert rows_of(member(b"d/", b"data", b"7"), header(b"n")) == [Row(b"d", stored=b"data"), Row(b"n")]
    assert rows_of(header(b"d", b"5"), header(b"s/", b"2", linkname=b"d/")) == [
        Row(b"d", "dir"),
        Row(b"s", "symlink", linkname=b"d/"),
    ]


KNOWN_FLAGS = b"\x0001234567xgLKS"


@pytest.mark.parametrize("flag", [bytes([flag]) for flag in range(256) if flag not in KNOWN_FLAGS])
def test_unknown_type_is_refused(flag: bytes) -> None:
    reason = refusal(header(), member(b"odd", b"data", flag), header())
    assert reason.startswith("odd: unknown type of entry: got ")
    assert refusal(member(b"odd", b"", flag, magic=GNU)).startswith("odd: unknown type of entry: got ")


# Extended attributes

XATTRS = {
    "text": ([(b"user.a", b"x")], {b"user.a": b"x"}),
    "several": ([(b"user.b", b"1"), (b"user.a", b"2")], {b"user.a": b"2", b"user.b": b"1"}),
    "binary": ([(b"security.capability", bytes(range(256)))], {b"security.capability": bytes(range(256))}),
    "like another record": ([(b"user.a", b"\n9 uid=1\n=\0")], {b"user.a": b"\n9 uid=1\n=\0"}),
    "empty": ([(b"user.a", b"")], {b"user.a": b""}),
    "= in the value": ([(b"user.a", b"b=c")], {b"user.a": b"b=c"}),
    "percent in the name": ([(b"user.a%3Db%", b"1")], {b"user.a%3Db%": b"1"}),
    "odd name": ([(b"\xff \n", b"1")], {b"\xff \n": b"1"}),
    "a name twice": ([(b"user.a", b"1"), (b"user.a", b"2")], {b"user.a": b"2"}),
    "emptied": ([(b"user.a", b"1"), (b"user.a", b"")], {b"user.a": b""}),
    "overlayfs's": ([(b"trusted.overlay.opaque", b"y")], {b"trusted.overlay.opaque": b"y"}),
    "64 KiB": ([(b"user.a", bytes(65536))], {b"user.a": bytes(65536)}),
}


@pytest.mark.parametrize("case", XATTRS)
def test_xattrs_are_read(case: str) -> None:
    records, want = XATTRS[case]
    extended = pax(*[(b"SCHILY.xattr." + name, value) for name, value in records])
    assert rows_of(extended, header(), header(b"next")) == [Row(xattrs=want), Row(b"next")]
    assert rows_of(extended, header(flag=b"5")) == [Row(kind="dir", xattrs=want)]
    assert rows_of(extended, header(flag=b"2", linkname=b"l")) == [
        Row(kind="symlink", linkname=b"l", xattrs=want)
    ]
    assert rows_of(extended, header(flag=b"1", linkname=b"l")) == [Row(kind="hardlink", linkname=b"l")]


def test_xattrs_of_an_earlier_pax_header_are_gone() -> None:
    assert rows_of(pax((b"SCHILY.xattr.user.a", b"1")), pax((b"SCHILY.xattr.user.b", b"2")), header()) == [
        Row(xattrs={b"user.b": b"2"})
    ]


REFUSED_XATTRS = {
    "more than 64 KiB": (b"user.a", bytes(65537), "f: xattr user.a: got 65537 bytes, want at most 65536"),
    "without a name": (b"", b"1", "tar: xattr without a name"),
    "with NUL in the name": (b"user.\0a", b"1", "tar: PAX record without a key"),
}


@pytest.mark.parametrize("case", REFUSED_XATTRS)
def test_xattr_is_refused(case: str) -> None:
    name, value, want = REFUSED_XATTRS[case]
    assert refusal(header(), pax((b"SCHILY.xattr." + name, value)), header()).startswith(want)


# Extension headers

BAD_PAX = {
    "no records": b"garbage",
    "nothing but NUL": bytes(10),
    "NUL behind the records": b"7 a=bc\n\0",
    "second record": b"7 a=bc\n7 a=b\n",
    "longer than the block": b"8 a=bc\n",
    "shorter": b"6 a=bc\n",
    "zero": b"0 a=bc\n",
    "negative": b"-7 a=b\n",
    "without =": b"6 abc\n",
    "empty key": b"5 =b\n",
    "no newline": b"7 a=bc ",
}


@pytest.mark.parametrize("case", BAD_PAX)
def test_malformed_pax_block_is_refused(case: str) -> None:
    assert refusal(header(), pax_raw(BAD_PAX[case]), header()).startswith("tar: PAX record with")
    assert refusal(header(), pax_raw(BAD_PAX[case], b"g"), header()).startswith("tar: PAX record with")


def test_what_pads_a_pax_block_is_nothing() -> None:
    record = pax_record(b"path", b"p")
    block = pack_special(b"x", b"PaxHeaders/0", record)
    assert rows_of(block[: BLOCK + len(record)] + b"x" * (BLOCK - len(record)), header()) == [Row(b"p")]


GLOBALS = [
    (b"path", b"g"),
    (b"uid", b"9"),
    (b"size", b"512"),
    (b"mtime", b"1"),
    (b"SCHILY.xattr.user.a", b"1"),
]


def test_global_headers_are_skipped_whole() -> None:
    everything = pax(*GLOBALS, (b"linkpath", b"g"), (b"GNU.sparse.major", b"1"), flag=b"g")
    assert rows_of(everything) == []
    assert rows_of(everything, everything, member(b"f", b"data"), everything) == [Row(stored=b"data")]
    assert rows_of(pax((b"uid", b"1")), everything, header(), header(b"next")) == [Row(uid=1), Row(b"next")]
    assert rows_of(pack_special(b"g", b"a/b/c", b""), header()) == [Row()], (
        "it is no entry, nor implies a directory"
    )
    assert rows_of(pax((b"uid", b"nonsense"), (b"path", b"\0"), flag=b"g"), header()) == [Row()]


LIMIT = 1 << 20


@pytest.mark.parametrize("flag", [b"x", b"g", b"L", b"K"])
def test_extension_header_of_1_mib_is_the_largest(flag: bytes) -> None:
    record = pax_record(b"comment", b"c" * (LIMIT - 17)) if flag in b"xg" else b"n/" * (LIMIT // 2)
    assert len(record) == LIMIT
    want = Row((b"n/" * (LIMIT // 2))[:-1]) if flag == b"L" else Row()
    assert rows_of(pack_special(flag, b"long", record), header()) == [want]
    assert refusal(header(), pack_special(flag, b"long", record + b"\0"), header()).startswith(
        f"tar: extension header too large: got {LIMIT + 1}, want at most {LIMIT}"
    )


@pytest.mark.parametrize("flag", [b"x", b"g", b"L", b"K"])
@pytest.mark.parametrize("size", [2**20 + 1, 2**33 - 1, 2**40, 2**62, 2**87 - 1, -1, -(2**70)])
def test_declared_size_of_an_extension_header_takes_no_memory(flag: bytes, size: int) -> None:
    bad = header(b"long", flag, size=pack_number(size, 12))
    tracemalloc.start()
    try:
        assert refusal_of(bad).startswith(f"layer 7: tar: extension header too large: got {size}")
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()


def test_extension_header_without_an_entry_is_refused() -> None:
    for special in pax((b"uid", b"1")), pax(), long_name(b"n\0"), long_name(b"n\0", b"K"):
        assert refusal(header(), special).startswith("tar: extension header without an entry")
        assert refusal(header(), special, end=b"").startswith("tar: truncated inside a header")
        assert refusal(header(), special, pax(flag=b"g")).startswith("tar: extension header without an entry")


# Checksums


@pytest.mark.parametrize("flag", [b"0", b"1", b"2", b"3", b"5", b"7", b"\0", b"x", b"g", b"L", b"K", b"Z"])
def test_wrong_checksum_is_refused(flag: bytes) -> None:
    good = header(b"bad", flag, linkname=b"l")
    for raw in (b"%06o\0 " % (int(good[148:154], 8) + 1), bytes(8), b" " * 8, b"garbage!"):
        reason = refusal(header(), header(b"bad", flag, linkname=b"l", checksum=raw), header())
        assert reason.startswith("tar: bad checksum")


def test_checksum_counts_with_signed_or_unsigned_bytes() -> None:
    name = b"\xff\x80\x7f"
    unsigned = int(header(name)[148:154], 8)
    for total in unsigned, unsigned - 512:
        assert rows_of(header(name, checksum=b"%06o\0 " % total)) == [Row(name)]
        assert rows_of(header(name, checksum=b"%07o\0" % total)) == [Row(name)]
        assert rows_of(header(name, checksum=b"%6o\0 " % total)) == [Row(name)]
    for total in unsigned - 256, unsigned + 256, unsigned - 511, 0:
        assert refusal(header(name, checksum=b"%06o\0 " % total)).startswith("tar: bad checksum")


# The archive

ZEROS = bytes(BLOCK)
ENDS = {
    "two zero blocks": END_OF_ARCHIVE,
    "one zero block": ZEROS,
    "no zero block": b"",
    "many zero blocks": bytes(20 * BLOCK),
    "zero blocks and a part of one": bytes(2 * BLOCK + 100),
    "garbage behind the end": END_OF_ARCHIVE + b"garbage" * 1000,
    "entries behind the end": END_OF_ARCHIVE + header(b"no") + END_OF_ARCHIVE,
    "a broken header behind the end": END_OF_ARCHIVE + pax_raw(b"garbage") + b"x",
}


@pytest.mark.parametrize("case", ENDS)
def test_end_of_the_archive(case: str) -> None:
    for members, want in (b"", []), (header(), [Row()]), (member(b"f", b"data"), [Row(stored=b"data")]):
        tar = members + ENDS[case]
        for step in 1, 511, 512, 100000:
            assert scan(tar, range(step, len(tar), step)).rows == want


def test_lone_zero_block_is_refused() -> None:
    for rest in header(b"n"), pax(), b"garbage".ljust(BLOCK), header(b"n", checksum=bytes(8)):
        want = "tar: lone zero block inside the archive"
        assert refusal(header(), ZEROS, rest).startswith(want)
        assert refusal(ZEROS, rest).startswith(want)
        assert refusal(header(), ZEROS, rest, end=b"").startswith(want)


@pytest.mark.parametrize(
    "garbage", [b"x" * 512, b"\0" * 511 + b"x", b"garbage", b"\x1f\x8b\x08" + bytes(600), b"<html>" * 100]
)
def test_what_is_no_tar_is_refused(garbage: bytes) -> None:
    assert refusal(garbage, end=b"").startswith("tar: ")
    assert refusal(header(), garbage, end=b"").startswith("tar: ")


# What is there only as a whole: (bytes, entries, how many of its last bytes may be missing).
PARTS = [
    (header(b"a", b"5"), 1, 0),
    (member(b"a/b", b"x" * 700), 1, 324),
    (pax((b"uid", b"5"), (b"SCHILY.xattr.user.a", b"1")) + member(b"a/c", b"y"), 1, 511),
    (pax((b"comment", b"1"), flag=b"g"), 0, 0),
    (member(b"e", b"z" * 512), 1, 0),
    (long_name(LONG) + long_name(LONG, b"K") + header(b"d", b"2", magic=GNU), 1, 0),
    (ZEROS, 0, 0),
    (ZEROS, 0, 0),
]


def test_truncation_anywhere_is_refused() -> None:
    tar = b"".join(part for part, _, _ in PARTS)
    rows = scan(tar).rows
    complete = {0: 0}
    at = count = 0
    for part, entries, missing in PARTS:
        at += len(part)
        count += entries
        complete |= dict.fromkeys(range(at - missing, at + 1), count)
    for length in range(len(tar) + 1):
        if length in complete:
            assert scan(tar[:length]).rows == rows[: complete[length]]
        else:
            assert "truncated " in refusal_of(tar[:length])


def test_truncation_names_the_entry() -> None:
    cut = header(b"e") + header(b"f", size=b"00000001000\0") + b"x" * 100
    assert refusal(cut, end=b"") == "f: truncated in the data: got 1124 bytes, want 1536"
    batch = b"".join(header(b"%d" % number) for number in range(5000))
    parts = [batch, cut[:1100], cut[1100:]]
    with pytest.raises(LayerError, match="layer 7: f: truncated in the data"):
        scan_parts(parts, b"".join(parts))


# However the stream is cut

PIECES = [
    header(b"a/", b"5"),
    header(b"a/", b"\0"),
    member(b"a/b", b"x" * 511),
    member(b"a/c", b"x" * 513, b"7", magic=V7),
    member(b"d", b"x" * 5000),
    header(b"a/l", b"1", linkname=b"a/b"),
    header(b"a/s", b"2", linkname=b"b"),
    header(b"a/.wh.x"),
    header(b".wh..wh.aufs"),
    pax((b"path", LONG), (b"uid", b"5"), (b"mtime", b"1.5")) + member(b"e", b"data"),
    pax((b"size", b"600"), (b"SCHILY.xattr.user.a", b"1" * 3000)) + header(b"g") + b"x" * 600 + bytes(424),
    pax((b"comment", b"1"), flag=b"g"),
    long_name(LONG) + long_name(LONG, b"K") + header(b"h", b"2", magic=GNU),
    pax(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"sparse"),
        (b"GNU.sparse.realsize", b"9000"),
    )
    + member(
        b"i", (b"80\n" + b"".join(b"%d\n1\n" % (i * 100) for i in range(80))).ljust(1024, b"\0") + b"y" * 80
    ),
    header(
        b"old",
        b"S",
        magic=GNU,
        size=b"00000000200\0",
        chunks=(b"00000000000\0" + b"00000000100\0") * 1,
        extended=b"\1",
        realsize=b"00000010000\0",
    )
    + (b"00000001000\0" + b"00000000100\0").ljust(504, b"\0")
    + b"\0" * 8
    + b"z" * 128
    + bytes(384),
]


@given(st.lists(st.sampled_from(PIECES)), st.sampled_from(list(ENDS.values())), st.data())
def test_any_split_of_the_stream_is_one_feed(pieces: list[bytes], end: bytes, data: st.DataObject) -> None:
    tar = b"".join(pieces) + end
    cuts = data.draw(st.lists(st.integers(0, len(tar)), max_size=10))
    assert scan(tar, sorted(cuts)) == scan(tar)


def test_batches_end_between_entries() -> None:
    many = b"".join(header(b"a%d" % number) for number in range(4095))
    tail = b"".join(PIECES)
    want = scan(tail).rows
    assert len(want) == len(PIECES) - 2
    tar = many + tail + END_OF_ARCHIVE
    for cut in range(0, len(tail), 1777):
        got = scan(tar, [len(many) + cut])
        assert len(got.rows) == 4095 + len(want)
        assert got.rows[4095:] == want


def test_what_is_wrong_first_is_told_however_the_stream_is_cut() -> None:
    wrong = [header(b"wrong", mode=b"garbage\0"), header(b"n", checksum=bytes(8)), header(b"..")]
    late = [header(b"odd", b"Z"), ZEROS + header(), pax(), pax_raw(b"x"), header(b"f", size=b"7" * 12)]
    many = b"".join(header(b"a%d" % number) for number in range(5000))
    for first in wrong:
        for last in late:
            tar = header(b"a") + first + many + last
            reason = refusal_of(tar)
            assert refusal_of(tar, [len(tar) - 5000 * BLOCK]) == reason
            assert refusal_of(tar, range(1 << 20, len(tar), 1 << 20)) == reason
            assert refusal_of(header(b"a") + first + last) == reason


# What makes a layer cheap to merge

DIRECTORY = header(b"a/", b"5")
ORDERLY: dict[str, tuple[list[bytes], list[int], list[int]]] = {
    "nothing": ([], [], []),
    "files": ([header(b"f"), header(b"g")], [ROOT, ROOT], [NONE, NONE]),
    "below directories": (
        [DIRECTORY, header(b"a/b", b"5"), header(b"a/b/c"), header(b"a/d")],
        [ROOT, 0, 1, 0],
        [NONE] * 4,
    ),
    "odd spellings": ([header(b"./a//", b"5"), header(b"/a/x/../f")], [ROOT, 0], [NONE, NONE]),
    "the root": ([header(b"./", b"5"), header(b"f"), header(b"/", b"5")], [ROOT] * 3, [NONE] * 3),
    "hard links": (
        [
            DIRECTORY,
            header(b"a/f"),
            header(b"a/g", b"1", linkname=b"./a/f"),
            header(b"h", b"1", linkname=b"a/g"),
        ],
        [ROOT, 0, 0, ROOT],
        [NONE, NONE, 1, 1],
    ),
    "hard link to a symlink": (
        [header(b"s", b"2", linkname=b"x"), header(b"h", b"1", linkname=b"s")],
        [ROOT, ROOT],
        [NONE, 0],
    ),
    "whiteouts": (
        [
            DIRECTORY,
            header(b"a/.wh.f"),
            header(b"a/f"),
            header(b".wh.g"),
            header(b".wh.a"),
            header(b"a/.wh.f"),
        ],
        [ROOT, 0, 0, ROOT, ROOT, 0],
        [NONE] * 6,
    ),
    "opaque": ([DIRECTORY, header(b"a/.wh..wh..opq"), header(b".wh..wh..opq")], [ROOT, 0, ROOT], [NONE] * 3),
    "reserved names take no row": (
        [header(b".wh..wh.aufs"), DIRECTORY, header(b".wh..wh.plnk/", b"5"), header(b"a/f")],
        [ROOT, 0],
        [NONE, NONE],
    ),
}


@pytest.mark.parametrize("case", ORDERLY)
def test_layer_is_orderly(case: str) -> None:
    members, parents, targets = ORDERLY[case]
    got = scan(b"".join(members))
    assert (got.orderly, got.orderly_rows) == (True, len(parents))
    assert (got.parents, got.targets) == (parents, targets)


# Title → the member that ends the order, after a/ (directory), f (file), s (symlink to a) and a/g (file).
DISORDERLY = {
    "a file twice": header(b"f"),
    "a file twice, another spelling": header(b"./a/../f"),
    "a directory twice": DIRECTORY,
    "file, then directory": header(b"f", b"5"),
    "directory, then file": header(b"a"),
    "directory, then hard link": header(b"a", b"1", linkname=b"f"),
    "file, then hard link": header(b"f", b"1", linkname=b"a/g"),
    "without its directory": header(b"b/c"),
    "without a deeper directory": header(b"a/b/c"),
    "directory without its directory": header(b"b/c", b"5"),
    "below a file": header(b"f/x"),
    "below a symlink": header(b"s/x"),
    "whiteout without its directory": header(b"b/.wh.c"),
    "whiteout below a file": header(b"f/.wh.c"),
    "opaque without its directory": header(b"b/.wh..wh..opq"),
    "opaque of a symlink": header(b"s/.wh..wh..opq"),
    "hard link to nothing": header(b"h", b"1", linkname=b"none"),
    "hard link to itself": header(b"h", b"1", linkname=b"h"),
    "hard link to a directory": header(b"h", b"1", linkname=b"a"),
    "hard link to the root": header(b"h", b"1", linkname=b"."),
    "hard link through a symlink": header(b"h", b"1", linkname=b"s/g"),
    "in the store of links": header(b".wh..wh.plnk/1.2"),
}


@pytest.mark.parametrize("case", DISORDERLY)
def test_order_ends(case: str) -> None:
    before = [DIRECTORY, header(b"f"), header(b"s", b"2", linkname=b"a"), header(b"a/g")]
    got = scan(b"".join([*before, DISORDERLY[case], header(b"a/h"), header(b"last")]))
    assert (got.orderly, got.orderly_rows) == (False, 4)
    assert got.parents[:4] == [ROOT, ROOT, ROOT, 0]
    assert got.parents[5:] == [NONE, NONE]
    assert len(got.rows) == 7


def test_order_is_proved_across_batches() -> None:
    many = [header(b"a/%d" % number) for number in range(9000)]
    link = header(b"a/link", b"1", linkname=b"a/5")
    tar = b"".join([DIRECTORY, *many, link])
    got = scan(tar, range(10000, len(tar), 10000))
    assert (got.orderly, got.orderly_rows) == (True, 9002)
    assert got.parents == [ROOT] + [0] * 9001
    assert got.targets == [NONE] * 9001 + [6]
    late = scan(tar + header(b"a/7") + b"".join(many[:2]), range(10000, len(tar), 10000))
    assert (late.orderly, late.orderly_rows) == (False, 9002)
    assert late.parents[:9002] == got.parents


# Whatever comes


def test_nothing_but_a_layer_error_is_raised() -> None:
    for seed in range(3000):
        tar = mutated(random.Random(seed))
        cuts = sorted(random.Random(seed).choices(range(len(tar) + 1), k=3))
        try:
            got = scan(tar, cuts)
        except LayerError as error:
            assert str(error).startswith("layer 7: ")
        else:
            assert_sound(got.rows, tar)


INTERESTING = [
    *(bytes(12), b" " * 12, b"\xff" * 12, b"\x80" + bytes(11), b"\x80" + b"\xff" * 11, b"7" * 12),
    *(
        b"00000000000\0",
        b"00000001000\0",
        b"9223372036854775808",
        b"18446744073709551616",
        b"-1",
        b"=",
        b"\n",
    ),
    *(b"GNU.sparse.map=", b"1.5", b"../", b".wh.", b"/", b"\0", b"S", b"x", b"L", b"K", b"g", b"1", b"5"),
]


def mutated(rng: random.Random) -> bytes:
    """Return an archive with a few changes, most of them behind checksums that are right again."""
    pieces = [bytearray(rng.choice(PIECES)) for _ in range(rng.randint(1, 4))]
    for _ in range(rng.randint(1, 4)):
        piece = rng.choice(pieces)
        match rng.randint(0, 5):
            case 0:
                piece[rng.randrange(len(piece))] = rng.randrange(256)
            case 1 | 2 | 3:
                new = rng.choice(INTERESTING)
                at = rng.choice(
                    [100, 108, 116, 124, 136, 156, 257, 329, 386, 398, 482, 483, *range(512, 640)]
                )
                piece[at : at + len(new)] = new
            case 4:
                del piece[rng.randint(1, len(piece)) :]
            case 5:
                piece += rng.choice(PIECES)
    tar = bytearray(b"".join(pieces))
    if rng.random() < 0.9:
        for at in range(0, len(tar) - BLOCK + 1, BLOCK):
            if tar[at + 257 : at + 262] == b"ustar":
                block = tar[at : at + 148] + b" " * 8 + tar[at + 156 : at + BLOCK]
                tar[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(tar) + rng.choice(list(ENDS.values()))


def assert_sound(rows: list[Row], tar: bytes) -> None:
    for row in rows:
        assert b"\0" not in row.path
        assert not {b"", b".", b".."} & set(row.path.split(b"/")) or not row.path
        assert all(len(part) <= 255 for part in row.path.split(b"/")) or row.kind == "whiteout"
        assert row.mode <= 0o7777
        assert max(row.uid, row.gid) < 2**32 - 1
        assert 0 <= row.nsec < 10**9
        if row.kind in ("symlink", "hardlink"):
            assert b"\0" not in row.linkname
        if row.extents:
            ends = [0, *(offset + length for offset, length in row.extents)]
            assert all(end <= offset for end, (offset, _) in zip(ends, row.extents, strict=False))
            assert ends[-1] <= row.size
            assert sum(length for _, length in row.extents) == len(row.stored)
        elif row.kind == "file":
            assert row.size == len(row.stored)


@pytest.mark.parametrize("flag", [b"x", b"g", b"L"])
def test_extension_headers_without_end_take_no_memory(flag: bytes) -> None:
    special = pack_special(
        flag, b"n", pax_record(b"SCHILY.xattr.user.a", b"1" * 50000) if flag in b"xg" else b"1" * 50000
    )
    tracemalloc.start()
    try:
        with pytest.raises(LayerError if flag != b"g" else StopIteration):
            scan_parts(fed(special, 400), b"")
            raise StopIteration
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def fed(special: bytes, times: int) -> Iterator[bytes]:
    for _ in range(times):
        yield special


def test_what_entries_bring_along_is_handed_over_early() -> None:
    value = b"1" * 60000
    entry = pax(*[(b"SCHILY.xattr.user.%d" % number, value) for number in range(10)]) + header()
    fd = os.memfd_create("table")
    tracemalloc.start()
    try:
        writer = TableWriter(fd)
        scanner = Scanner(writer, 0, "layer 0")
        for part in fed(entry, 100):
            scanner.feed(part)
        scanner.finish()
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
        assert writer.length.rows == 100
        assert writer.length.extra > 100 * 10 * len(value)
    finally:
        tracemalloc.stop()
        os.close(fd)


def test_many_records_in_one_header() -> None:
    records = [(b"SCHILY.xattr.user.%d" % number, b"") for number in range(25000)]
    [row] = rows_of(pax(*records), header())
    assert row.xattrs == {b"user.%d" % number: b"" for number in range(25000)}


# The table


def test_table_grows_while_it_is_read() -> None:
    fd = os.memfd_create("table")
    try:
        writer = TableWriter(fd)
        assert Table(fd, writer.length).paths() == []
        scanner = Scanner(writer, 0, "layer 0")
        lengths = [writer.length]
        for name in b"a", b".wh..wh.x", b"b", b"c/d":
            scanner.feed(pax((b"SCHILY.xattr.user." + name, name)) + header(name, b"2", linkname=name))
            scanner.flush()
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
