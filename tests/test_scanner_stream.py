"""Layer tars as streams: where they end, however they are cut, and whatever they are made of."""

from __future__ import annotations

import os
import random
import tracemalloc
from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images import BLOCK, END_OF_ARCHIVE, pack_special, pax_record
from paralayer.errors import LayerError
from paralayer.table import TableWriter
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

LONG = b"d" * 90 + b"/" + b"e" * 200
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
        chunks=b"00000000000\0" + b"00000000100\0",
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


def test_parts_may_be_views_of_a_buffer() -> None:
    tar = b"".join(PIECES)
    view = memoryview(bytearray(tar))
    assert scan_parts([view[:700], view[700:701], view[701:]], tar) == scan(tar)


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


# Whatever comes


def test_nothing_but_a_layer_error_is_raised() -> None:
    for seed in range(3000):
        tar = mutated(random.Random(seed))
        cuts = sorted(random.Random(seed).choices(range(len(tar) + 1), k=3))
        try:
            rows = scan(tar, cuts).rows
        except LayerError:
            continue
        assert_sound(rows)


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


def assert_sound(rows: list[Row]) -> None:
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


@pytest.mark.parametrize("flag", [b"x", b"g", b"L", b"K"])
def test_extension_headers_without_end_take_no_memory(flag: bytes) -> None:
    record = pax_record(b"SCHILY.xattr.user.a", b"1" * 50000)
    special = pack_special(flag, b"n", record)
    tracemalloc.start()
    try:
        assert scan_parts(repeat(special, 400), b"", whole=False).rows == []
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_what_entries_bring_along_is_handed_over_early() -> None:
    value = b"1" * 60000
    entry = pax(*[(b"SCHILY.xattr.user.%d" % number, value) for number in range(10)]) + header()
    fd = os.memfd_create("table")
    tracemalloc.start()
    try:
        writer = TableWriter(fd)
        scanner = Scanner(writer, 0, "layer 0")
        for part in repeat(entry, 100):
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
