"""Layer tars in, rows out: numbers, types, attributes and extension headers, accepted and refused."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest

from images import BLOCK, pack_number, pack_special, pax_record
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
)

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


@pytest.mark.parametrize("raw", [b"+0000000005\0", b"0_000000005\0", b"\t0000000005\0", b"0o000000005\0"])
def test_malformed_size_is_refused_before_it_is_followed(raw: bytes) -> None:
    assert refusal(header(size=raw), b"x" * BLOCK).startswith("f: size: malformed number")


def test_negative_size_of_what_has_no_data_is_refused() -> None:
    assert refusal(header(flag=b"5", size=b"\xff" * 12)).startswith("f: size: got -1")
    assert refusal(pax((b"size", b"-1")), header(flag=b"5")).startswith("f: PAX size: got -1")


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
    want = f"f: PAX {key.decode()}: malformed "
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
    assert reason.startswith((f"bad: {key} out of range: got {got}", f"bad: PAX {key}: got {got}"))


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
    "without a name": (b"", b"1", "f: xattr without a name"),
    "with NUL in the name": (b"user.\0a", b"1", "tar: PAX record without a key"),
}


@pytest.mark.parametrize("case", REFUSED_XATTRS)
def test_xattr_is_refused(case: str) -> None:
    name, value, want = REFUSED_XATTRS[case]
    assert refusal(header(), pax((b"SCHILY.xattr." + name, value)), header()).startswith(want)


def test_error_in_pax_records_names_the_entry_however_it_is_named() -> None:
    bad, want = (b"uid", b"x"), "PAX uid: malformed number"
    assert refusal(header(b"a"), pax(bad), header(b"b")).startswith(f"b: {want}")
    assert refusal(pax(bad, (b"gid", b"x"), (b"path", b"p")), header()).startswith(f"p: {want}")
    assert refusal(pax(bad), long_name(b"long\0"), header(magic=GNU)).startswith(f"long: {want}")
    assert refusal(pax(bad), pax((b"path", b"p")), header()).startswith(f"p: {want}"), (
        "replaced, not forgiven"
    )


def test_key_of_an_xattr_is_cut_in_the_message() -> None:
    refused = pax((b"SCHILY.xattr." + b"k" * 500_000, bytes(65537)))
    assert refusal(refused, header()) == f"f: xattr {'k' * 4096}...: got 65537 bytes, want at most 65536"


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
    record = pax_record(b"comment", b"c" * (LIMIT - 17)) if flag in b"xg" else b"n".ljust(LIMIT, b"\0")
    assert len(record) == LIMIT
    want = Row(b"n") if flag == b"L" else Row()
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
        reason = refusal_of(bad)
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()
    too_large = f"layer 7: tar: extension header too large: got {size}"
    out_of_range = f"layer 7: tar: extension header: size: number out of range: got {size}"
    assert reason.startswith((too_large, out_of_range))


@pytest.mark.parametrize("flag", [b"x", b"g", b"L", b"K"])
@pytest.mark.parametrize("field", ["mode", "uid", "gid", "size", "mtime", "major", "minor"])
def test_malformed_number_of_an_extension_header_is_refused(flag: bytes, field: str) -> None:
    bad = header(b"long", flag, **{field: b"9" * 8})
    assert refusal(header(), bad, header()).startswith(f"tar: extension header: {field}: malformed number")
    if field in ("major", "minor"):
        assert rows_of(header(b"long", flag, magic=V7, **{field: b"9" * 8}), header()) == [Row()]


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
