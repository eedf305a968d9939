"""The parts of a tar header by themselves: numbers, checksums, names, PAX records; and that fast is equal to exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from images import pax_record, pax_time
from model import normalised
from paralayer.tar import header, names, pax, sparse
from paralayer.tar.header import BLOCK, HeaderError
from scans import header as header_block

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBERS = {
    "octal, NUL": (b"0000644\0", 0o644),
    "octal, space": (b"0000644 ", 0o644),
    "octal, space and NUL": (b"000644 \0", 0o644),
    "octal, NUL and space": (b"000644\0 ", 0o644),
    "without a terminator": (b"77777777", 0o77777777),
    "12 digits": (b"777777777777", 8**12 - 1),
    "leading spaces": (b"    644\0", 0o644),
    "leading spaces, no terminator": (b"     644", 0o644),
    "short": (b"644\0\0\0\0\0", 0o644),
    "short with spaces": (b"644     ", 0o644),
    "one digit at the end": (b"       7", 7),
    "NUL ends it": (b"64\0" + b"9xx\0\xff", 0o64),
    "space ends it": (b"64 9xx\0\xff", 0o64),
    "leading NUL, of an overflow in old writers": (b"\0" + b"000644\0", 0o644),
    "leading NULs": (bytes(5) + b"644", 0o644),
    "blank: NUL": (bytes(8), 0),
    "blank: spaces": (b" " * 8, 0),
    "blank: both": (b"  \0\0\0 \0 ", 0),
    "base-256: 0": (b"\x80" + bytes(7), 0),
    "base-256: 1": (b"\x80" + bytes(6) + b"\x01", 1),
    "base-256: all of 8 bytes": (b"\xbf" + b"\xff" * 7, 2**62 - 1),
    "base-256: first byte counts": (b"\x81" + bytes(7), 2**56),
    "base-256: 2^32": (b"\x80" + (2**32).to_bytes(7, "big"), 2**32),
    "base-256: 2^63-1": (b"\x80" + (2**63 - 1).to_bytes(11, "big"), 2**63 - 1),
    "base-256: -1": (b"\xff" * 8, -1),
    "base-256: -1 in 12 bytes": (b"\xff" * 12, -1),
    "base-256: -2": (b"\xff" * 7 + b"\xfe", -2),
    "base-256: least of 8 bytes": (b"\xc0" + bytes(7), -(2**62)),
    "base-256: -2^63": (b"\xff" + (-(2**63)).to_bytes(11, "big", signed=True), -(2**63)),
}
NO_NUMBERS = {
    "8": b"0000008\0",
    "9 in the middle": b"0090000\0",
    "letters": b"abcdefg\0",
    "hexadecimal": b"0x00644\0",
    "octal prefix": b"0o00644\0",
    "underscore": b"0_00644\0",
    "plus": b"+000644\0",
    "minus": b"-000644\0",
    "minus after spaces": b"  -0644\0",
    "tab": b"\t000644\0",
    "newline": b"000644\n\0",
    "point": b"00064.4\0",
    "low control character": b"\x01000644\0",
    "high digit": b"000064\xb2\0",
}


@pytest.mark.parametrize("case", NUMBERS)
def test_number_is_read(case: str) -> None:
    raw, want = NUMBERS[case]
    assert header.parse_number(raw) == want
    assert parse_one(raw) == want


@pytest.mark.parametrize("case", NO_NUMBERS)
def test_what_is_no_number_is_refused(case: str) -> None:
    assert reason(header.parse_number, NO_NUMBERS[case]) == "malformed number"
    assert reason(parse_one, NO_NUMBERS[case]) == "mode: malformed number"


@pytest.mark.parametrize(
    "value", [2**63, 2**64, 2**95 - 1 - 2**94, -(2**63) - 1, -(2**94)], ids=lambda value: f"{value:x}"
)
def test_numbers_are_of_64_bits(value: int) -> None:
    raw = (value % 2**96 | (1 << 95)).to_bytes(12, "big")
    assert header.parse_number(raw) == value
    assert reason(parse_one, raw) == "mode: number out of range"


def reason(function: Callable[..., object], *arguments: object) -> str:
    """Return why `function` refuses."""
    with pytest.raises(HeaderError) as caught:
        function(*arguments)
    return caught.value.what


def parse_one(raw: bytes) -> int:
    """Parse `raw` as a batch, between two other fields and two other blocks."""
    block = header_block()
    odd = block[:100] + raw + block[100 + len(raw) :]
    blocks = blocks_of([block, odd, block])
    values = header.parse_numbers(blocks, (100, len(raw)), "mode")
    assert values.dtype == np.int64
    return int(values[1])


def blocks_of(blocks: list[bytes]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.frombuffer(b"".join(blocks), np.uint8).reshape(-1, BLOCK)


usual_fields = st.integers(0, 8**7 - 1).flatmap(
    lambda n: st.sampled_from([b"%07o\0" % n, b"%07o " % n, b"%06o \0" % (n % 8**6), b"%8o" % n])
)
odd_fields = st.lists(st.sampled_from(b"01234567 \0\x80\xff8"), min_size=8, max_size=8).map(bytes)


@given(st.lists(st.one_of(usual_fields, odd_fields, st.binary(min_size=8, max_size=8)), max_size=8))
def test_many_numbers_are_read_as_each_by_itself(fields: list[bytes]) -> None:
    blocks = blocks_of([b"x" * 100 + raw + b"y" * 404 for raw in fields])
    each = [number_or_refusal(raw) for raw in fields]
    refused = [index for index, got in enumerate(each) if isinstance(got, str)]
    if not refused:
        assert header.parse_numbers(blocks, (100, 8), "uid").tolist() == each
        return
    with pytest.raises(HeaderError) as caught:
        header.parse_numbers(blocks, (100, 8), "uid")
    assert caught.value.index == refused[0]  # type: ignore[attr-defined]
    assert f"{caught.value.what}, {caught.value.got}" == f"uid: {each[refused[0]]}"


def number_or_refusal(raw: bytes) -> int | str:
    try:
        return header.parse_number(raw)
    except HeaderError as error:
        return f"{error.what}, {error.got}"


@given(st.lists(st.integers(0, 8**11 - 1), max_size=5))
def test_numbers_that_are_written_are_read(values: list[int]) -> None:
    blocks = np.zeros((len(values), BLOCK), np.uint8)
    header.put_octal(blocks, header.SIZE, np.array(values, np.int64))
    assert header.parse_numbers(blocks, header.SIZE, "size").tolist() == values
    assert [header.parse_number(header.field(block.tobytes(), header.SIZE)) for block in blocks] == values


# Checksums


@given(st.lists(st.binary(min_size=BLOCK, max_size=BLOCK), max_size=3))
def test_checksum_that_is_written_is_right(raw: list[bytes]) -> None:
    blocks = blocks_of(raw).copy()
    header.put_checksums(blocks)
    for before, block in zip(raw, (block.tobytes() for block in blocks), strict=True):
        assert block[148:156] == b"%06o\0 " % (sum(before[:148]) + 8 * 32 + sum(before[156:]))
        assert block[:148] + block[156:] == before[:148] + before[156:]
        assert header.has_valid_checksum(block)
    assert header.wrong_checksums(blocks).tolist() == []


HIGH = header_block(b"\xff\xfe\x80")
CHECKSUMS: dict[str, tuple[bytes, bytes, int]] = {
    "as POSIX writes it": (header_block(), b"%06o\0 ", 0),
    "seven digits": (header_block(), b"%07o\0", 0),
    "leading spaces": (header_block(), b"%6o\0 ", 0),
    "eight digits": (header_block(), b"%08o", 0),
    "signed": (HIGH, b"%06o\0 ", -3 * 256),
    "unsigned": (HIGH, b"%06o\0 ", 0),
}


@pytest.mark.parametrize("case", CHECKSUMS)
def test_checksum_is_read(case: str) -> None:
    block, form, difference = CHECKSUMS[case]
    total = sum(block[:148]) + 8 * 32 + sum(block[156:]) + difference
    assert header.has_valid_checksum(block[:148] + form % total + block[156:])
    assert not header.has_valid_checksum(block[:148] + form % (total + 1) + block[156:])
    assert not header.has_valid_checksum(block[:148] + form % (total - 256) + block[156:])


@pytest.mark.parametrize(
    "raw", [b"garbage!", bytes(8), b" " * 8, b"\xff" * 8, b"0\0\0\0\0\0\0\0", b"00000009"]
)
def test_checksum_that_is_none_is_wrong(raw: bytes) -> None:
    block = header_block()
    blocks = blocks_of([block, block[:148] + raw + block[156:], block])
    assert header.wrong_checksums(blocks).tolist() == [1]


def test_every_byte_counts_for_the_checksum() -> None:
    block = header_block(b"\x80name")
    changed = []
    for at in [at for at in range(BLOCK) if not 148 <= at < 156]:
        odd = bytearray(block)
        odd[at] ^= 1
        changed.append(bytes(odd))
    assert len(header.wrong_checksums(blocks_of(changed))) == BLOCK - 8


# Names

NAMES = {
    "plain": (b"a/b", b"a/b"),
    "leading ./": (b"./a", b"a"),
    "leading /": (b"/a", b"a"),
    "leading ///": (b"///a", b"a"),
    "trailing slash": (b"a/", b"a"),
    "trailing slashes": (b"a//", b"a"),
    "slashes between": (b"a///b//c", b"a/b/c"),
    "dots between": (b"a/./b/././c/.", b"a/b/c"),
    "up inside": (b"a/../b", b"b"),
    "up to the root": (b"a/..", b""),
    "up and down again": (b"a/b/../../c", b"c"),
    "up past a dot": (b"a/./../b", b"b"),
    "root": (b"./", b""),
    "empty": (b"", b""),
    "names of dots": (b".../..a/a..", b".../..a/a.."),
    "hidden": (b".a/.b", b".a/.b"),
    "control characters": (b"a\n\t\x1b\x7f/\"'\\", b"a\n\t\x1b\x7f/\"'\\"),
    "not UTF-8": (b"\xff\xfe/\xc3", b"\xff\xfe/\xc3"),
    "spaces": (b" a / b ", b" a / b "),
    "255 bytes": (b"a/" + b"x" * 255, b"a/" + b"x" * 255),
    "more than 255 bytes in all": (b"/".join([b"x" * 200] * 30), b"/".join([b"x" * 200] * 30)),
    "long component that is taken back": (b"x" * 300 + b"/../a", b"a"),
    "whiteout of a long name": (b"a/.wh." + b"x" * 255, b"a/.wh." + b"x" * 255),
    "deep": (b"d/" * 5000 + b"f", b"d/" * 5000 + b"f"),
    "32 KiB": (b"d/" * (1 << 14) + b"/", b"d/" * ((1 << 14) - 1) + b"d"),
    "much longer, taken back": (b"d/../" * (1 << 17) + b"a", b"a"),
}
CLIMBS, TOO_LONG = "name climbs above the root", "name has a component that is too long"
NO_NAMES = {
    "up": (b"..", CLIMBS),
    "up from a name": (b"../a", CLIMBS),
    "up from the root": (b"/../a", CLIMBS),
    "up too far": (b"a/../../a", CLIMBS),
    "up and back": (b"a/../../a/b", CLIMBS),
    "256 bytes": (b"x" * 256, TOO_LONG),
    "256 bytes of a directory": (b"x" * 256 + b"/a", TOO_LONG),
    "long directory like a whiteout": (b".wh." + b"x" * 252 + b"/a", TOO_LONG),
    "more than 32 KiB": (b"d/" * (1 << 14) + b"dd", "name is too long"),
    "whiteout of more than 32 KiB": (b".wh." + b"n" * (1 << 15), "name is too long"),
    "NUL": (b"a\0b", "name contains NUL"),
}


@pytest.mark.parametrize("case", NAMES)
def test_name_is_normalised(case: str) -> None:
    name, want = NAMES[case]
    assert names.normalise(name) == want


@pytest.mark.parametrize("case", NO_NAMES)
def test_name_is_refused(case: str) -> None:
    name, want = NO_NAMES[case]
    assert reason(names.normalise, name) == want


@given(st.lists(st.sampled_from([b"a", b"/", b".", b"..", b"/", b"bb", b".c", b"\n"])).map(b"".join))
def test_normalising_is_what_the_model_does(name: bytes) -> None:
    want = normalised(name)
    if want is None:
        assert reason(names.normalise, name) == CLIMBS
    else:
        path = names.normalise(name)
        assert path == b"/".join(want)
        assert names.normalise(path) == path


def test_path_is_split_at_its_last_slash() -> None:
    assert [names.split(path) for path in (b"a/b/c", b"a", b"")] == [(b"a/b", b"c"), (b"", b"a"), (b"", b"")]


# PAX records

RECORDS = {
    "none": (b"", []),
    "one": (b"5 k=\n", [(b"k", b"")]),
    "two": (b"6 a=1\n6 b=2\n", [(b"a", b"1"), (b"b", b"2")]),
    "a key twice, in order": (b"6 a=1\n6 a=2\n", [(b"a", b"1"), (b"a", b"2")]),
    "= in the value": (b"8 a===b\n", [(b"a", b"==b")]),
    "newline in the value": (b"8 a=\n\n\n\n", [(b"a", b"\n\n\n")]),
    "NUL in the value": (b"8 a=\0x\0\n", [(b"a", b"\0x\0")]),
    "a record in the value": (b"12 a=6 b=2\n\n", [(b"a", b"6 b=2\n")]),
    "spaces": (b"9 a b= c\n", [(b"a b", b" c")]),
    "leading zeros": (b"008 a=1\n", [(b"a", b"1")]),
    "many leading zeros": (b"0" * 5000 + b"5009 a=1\n", [(b"a", b"1")]),
    "100 bytes": (b"100 a=" + b"x" * 93 + b"\n", [(b"a", b"x" * 93)]),
    "not UTF-8": (b"7 \xff=\xfe\xfd\n", [(b"\xff", b"\xfe\xfd")]),
}
NO_RECORDS = {
    "no length": b" a=1\n",
    "no digits": b"x a=1\n",
    "no space": b"6a=1\n",
    "nothing but a length": b"6",
    "nothing but a length and a space": b"2 ",
    "zero": b"0 a=1\n",
    "zeros": b"000 a=1\n",
    "negative": b"-6 a=1\n",
    "plus": b"+6 a=1\n",
    "hexadecimal": b"0x7 a=1\n",
    "underscore": b"0_6 a=1\n",
    "too large by one": b"7 a=1\n",
    "too small by one": b"5 a=1\n",
    "too small to have a key": b"2 a=1\n",
    "only the length": b"1 a=1\n",
    "huge": b"99999999999999999999999999 a=1\n",
    "hugely more digits": b"9" * 5000 + b" a=1\n",
    "no newline": b"6 a=1x",
    "newline one too early": b"7 a=1\nx",
    "no =": b"6 a-1\n",
    "empty key": b"5 =1\n",
    "empty": b"3 \n",
    "NUL in the key": b"7 a\0=1\n",
    "leading space": b" 6 a=1\n",
    "leading newline": b"\n6 a=1\n",
    "second one is broken": b"6 a=1\n6 b=2",
    "NUL behind the last": b"6 a=1\n\0\0\0\0",
    "newline behind the last": b"6 a=1\n\n",
    "non-ASCII digits": b"\xef\xbc\x96 a=1\n",
}


@pytest.mark.parametrize("case", RECORDS)
def test_records_are_read(case: str) -> None:
    block, want = RECORDS[case]
    assert pax.parse_records(block) == want


@pytest.mark.parametrize("case", NO_RECORDS)
def test_records_are_refused(case: str) -> None:
    assert reason(pax.parse_records, NO_RECORDS[case]).startswith("PAX record with")


keys = st.binary(min_size=1, max_size=30).filter(lambda key: not set(b"=\0") & set(key))


@given(st.lists(st.tuples(keys, st.one_of(st.binary(), st.integers(80, 120).map(bytes)))))
def test_records_that_are_written_are_read(records: list[tuple[bytes, bytes]]) -> None:
    block = b"".join(pax.pack_record(key, value) for key, value in records)
    assert pax.parse_records(block) == records
    assert block == b"".join(pax_record(key, value) for key, value in records)


@pytest.mark.parametrize("length", [*range(12), *range(85, 105), *range(980, 1005), *range(9980, 10005)])
def test_length_of_a_record_counts_its_own_digits(length: int) -> None:
    record = pax.pack_record(b"k", bytes(length))
    assert int(record.partition(b" ")[0]) == len(record)


INTEGERS = {
    b"0": 0,
    b"7": 7,
    b"-0": 0,
    b"-5": -5,
    b"0009": 9,
    b"0" * 5000 + b"8": 8,
    b"4294967294": 2**32 - 2,
    b"9223372036854775807": 2**63 - 1,
    b"-9223372036854775807": 1 - 2**63,
}


@pytest.mark.parametrize("value", INTEGERS, ids=lambda value: value[-20:].decode())
def test_integer_is_read(value: bytes) -> None:
    assert pax.parse_integer("uid", value) == INTEGERS[value]


@pytest.mark.parametrize(
    "value",
    [
        *(
            b"",
            b"-",
            b"+1",
            b"--1",
            b" 1",
            b"1 ",
            b"1\n",
            b"1\0",
            b"0x1",
            b"0o1",
            b"1_0",
            b"1e3",
            b"1.0",
            b"a",
        ),
        *(b"9223372036854775808", b"-9223372036854775808", b"9" * 5000, b"\xef\xbc\x91"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_no_integer_is_refused(value: bytes) -> None:
    assert reason(pax.parse_integer, "uid", value) == "PAX uid: malformed number"


TIMES = {
    b"0": (0, 0),
    b"1350244992.023960108": (1350244992, 23960108),
    b"1350244992.3": (1350244992, 300_000_000),
    b"1350244992.": (1350244992, 0),
    b"1.0": (1, 0),
    b"0.000000001": (0, 1),
    b"1.1234567899": (1, 123456789),
    b"1.000000000999": (1, 0),
    b"-1": (-1, 0),
    b"-0": (0, 0),
    b"-0.5": (-1, 500_000_000),
    b"-0.000000001": (-1, 999_999_999),
    b"-1.3": (-2, 700_000_000),
    b"-1.9999999999": (-2, 1),
    b"-1.0000000009": (-1, 0),
    b"00000000000000000000001.50": (1, 500_000_000),
    b"253402300800": (253402300800, 0),
    b"9223372036854775807.999999999": (2**63 - 1, 999_999_999),
    b"-9223372036854775808": (-(2**63), 0),
    b"-9223372036854775807.5": (-(2**63), 500_000_000),
    b"1." + b"5" * 5000: (1, 555_555_555),
}


@pytest.mark.parametrize("value", TIMES, ids=lambda value: value[:30].decode())
def test_time_is_read(value: bytes) -> None:
    assert pax.parse_time("mtime", value) == TIMES[value]


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"-", b".", b"-.", b".5", b"-.5", b"+1", b"--1", b"1.-5", b"1.5.5", b"1,5", b"1e9", b"0x1"),
        *(b" 1", b"1 ", b"1\n", b"1\0", b"1_0", b"nan", b"inf", b"1.5 ", b"1.a", b"\xef\xbc\x91"),
        *(b"9223372036854775808", b"-9223372036854775808.1", b"-9223372036854775809", b"9" * 5000),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_what_is_no_time_is_refused(value: bytes) -> None:
    assert reason(pax.parse_time, "mtime", value) in (
        "PAX mtime: malformed time",
        "PAX mtime: time out of range",
    )


@given(st.integers(-(2**63), 2**63 - 1), st.one_of(st.just(0), st.integers(0, 10**9 - 1)))
def test_time_that_is_written_is_read(seconds: int, nanoseconds: int) -> None:
    value = pax.pack_time(seconds, nanoseconds)
    assert pax.parse_time("mtime", value) == (seconds, nanoseconds)
    exact = pax_time(seconds, nanoseconds)
    assert value == (exact.rstrip(b"0") if nanoseconds else exact)


# Sparse maps

MAPS = {
    "empty": ([], 0, 0),
    "nothing but a hole": ([], 0, 2**63 - 1),
    "nothing but a hole, told": ([(100, 0)], 0, 100),
    "from the start": ([(0, 10)], 10, 10),
    "adjacent": ([(0, 10), (10, 5)], 15, 20),
    "holes before and between": ([(5, 10), (20, 5)], 15, 25),
    "empty chunks at one place": ([(5, 0), (5, 0), (5, 1)], 1, 6),
}
NO_MAPS = {
    "overlap": ([(0, 10), (9, 5)], 15, 20, "unordered or overlapping"),
    "unordered": ([(10, 5), (0, 5)], 10, 20, "unordered or overlapping"),
    "negative offset": ([(-1, 5)], 5, 20, "unordered or overlapping"),
    "negative length": ([(5, -1)], 0, 20, "unordered or overlapping"),
    "beyond the end": ([(16, 5)], 5, 20, "beyond the end"),
    "far beyond the end": ([(2**62, 2**62)], 2**62, 2**62, "beyond the end"),
    "empty chunk beyond the end": ([(21, 0)], 0, 20, "beyond the end"),
    "less data": ([(0, 5)], 4, 20, "not the stored data"),
    "more data": ([(0, 5)], 6, 20, "not the stored data"),
    "data of no chunk": ([], 6, 20, "not the stored data"),
    "negative size": ([], 0, -1, "real size"),
    "size of 64 bits": ([], 0, 2**63, "real size"),
}


@pytest.mark.parametrize("case", MAPS)
def test_sparse_map_is_right(case: str) -> None:
    extents, stored, real_size = MAPS[case]
    sparse.check(extents, stored, real_size)


@pytest.mark.parametrize("case", NO_MAPS)
def test_sparse_map_is_refused(case: str) -> None:
    *arguments, want = NO_MAPS[case]
    assert want in reason(sparse.check, *arguments)
