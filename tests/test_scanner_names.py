"""Names of entries in layer tars: how they are put together, what they mean, and which are refused."""

from __future__ import annotations

import pytest

from paralayer.errors import quote
from paralayer.table import FILE, OPAQUE, WHITEOUT
from paralayer.tar.names import classify, marker
from scans import (
    GNU,
    V7,
    Row,
    header,
    long_name,
    member,
    pax,
    refusal,
    rows_of,
)

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


@pytest.mark.parametrize("path", [b"x", b"d/x", b".x", b"d/..."])
@pytest.mark.parametrize("kind", [WHITEOUT, OPAQUE])
def test_marker_is_named_as_it_is_read(path: bytes, kind: int) -> None:
    assert classify(marker(path, kind), FILE) == (path, kind)
    assert classify(marker(b"", OPAQUE), FILE) == (b"", OPAQUE)


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
    "more than 32 KiB": (
        b"d/" * (1 << 14) + b"f",
        "d/" * 2048 + "...: name is too long: got 32769 bytes, want at most 32768",
    ),
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
    "symlink to more than 32 KiB": (
        pax((b"linkpath", b"t" * 32769)) + header(b"f", b"2"),
        "f: link target is too long: got 32769 bytes, want at most 32768",
    ),
    "hard link to more than 32 KiB": (
        pax((b"linkpath", b"t/" * 32769)) + header(b"f", b"1"),
        "f: link target: name is too long",
    ),
    "NUL in a PAX link": (pax((b"linkpath", b"a\0b")) + header(b"f", b"2"), "f: PAX linkpath contains NUL"),
    "NUL in a PAX link of a file": (pax((b"linkpath", b"a\0")) + header(), "f: PAX linkpath contains NUL"),
    "NUL in a PAX path": (pax((b"path", b"a\0b")) + header(), "f: PAX path contains NUL"),
    "NUL at the end of a PAX path": (pax((b"path", b"a\0")) + header(), "f: PAX path contains NUL"),
    "NUL in an earlier PAX path": (
        pax((b"path", b"\0"), (b"path", b"a")) + header(),
        "a: PAX path contains NUL",
    ),
    "NUL in a PAX path, GNU name": (
        pax((b"path", b"a\0b")) + long_name(b"f\0") + header(),
        "f: PAX path contains NUL",
    ),
}


@pytest.mark.parametrize("case", REFUSED_LINKS)
def test_link_is_refused(case: str) -> None:
    members, want = REFUSED_LINKS[case]
    assert refusal(members).startswith(want)
