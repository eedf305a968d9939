"""Sparse files in layers: made by GNU tar in each of its formats, and written by hand, right or wrong."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images import BLOCK, END_OF_ARCHIVE, pack_number
from scans import GNU, POSIX, V7, Row, header, long_name, member, padded, pax, refusal, rows_of, scan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    Extents = Sequence[tuple[int, int]]

MIB = 1 << 20
MANY = [(65536 * number, 700) for number in range(100)]
FILES: dict[str, tuple[Extents, int]] = {
    "nothing but a hole": ([], MIB),
    "data first": ([(0, 5000)], MIB),
    "data last": ([(MIB - 5000, 5000)], MIB),
    "data in the middle": ([(65536, 1)], MIB),
    "as many chunks as an old header holds": (MANY[:4], MIB),
    "one more": (MANY[:5], MIB),
    "as many as an extension block holds, too": (MANY[:25], 2 * MIB),
    "two extension blocks": (MANY[:26], 2 * MIB),
    "many chunks": (MANY, 8 * MIB),
}
FORMATS = {
    "old GNU": ["--format=gnu"],
    "0.0": ["--format=posix", "--sparse-version=0.0"],
    "0.1": ["--format=posix", "--sparse-version=0.1"],
    "1.0": ["--format=posix", "--sparse-version=1.0"],
}
NAMES = {"short": b"f", "long": b"d" * 120 + b"/" + b"n" * 120, "odd": b"\xff\n"}


@pytest.mark.requires("tar")
@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_sparse_file_of_gnu_tar_is_expanded(tmp_path: Path, case: str, form: str, name: str) -> None:
    chunks, size = FILES[case]
    content = write_sparse(bytes(tmp_path) + b"/" + NAMES[name], chunks, size)
    tar = gnu_tar(tmp_path, NAMES[name], form)
    [row] = scan(tar, range(1009, len(tar), 1009)).rows
    assert replace(row, stored=b"", extents=()) == Row(NAMES[name], mode=0o640, mtime=5, size=size)
    assert row.extents
    assert len(row.stored) < size
    assert expanded(row) == content


@pytest.mark.requires("tar")
@pytest.mark.parametrize("form", FORMATS)
def test_sparse_file_of_terabytes(tmp_path: Path, form: str) -> None:
    with open(tmp_path / "f", "wb") as stream:
        stream.write(b"first")
        stream.truncate(5 << 40)
        stream.seek(4 << 40)
        stream.write(b"last")
    tar = gnu_tar(tmp_path, b"f", form)
    [row] = scan(tar).rows
    assert row.size == 5 << 40
    (zero, length), (offset, _), *_ = row.extents
    assert (zero, offset) == (0, 4 << 40)
    assert row.stored.startswith(b"first")
    assert row.stored[length:].startswith(b"last")


def write_sparse(path: bytes, chunks: Extents, size: int) -> bytes:
    content = bytearray(size)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as stream:
        stream.truncate(size)
        for number, (offset, length) in enumerate(chunks):
            content[offset : offset + length] = bytes([65 + number % 50]) * length
            stream.seek(offset)
            stream.write(content[offset : offset + length])
    return bytes(content)


def gnu_tar(directory: Path, name: bytes, form: str) -> bytes:
    metadata = ["--mtime=@5", "--owner=0", "--group=0", "--mode=640"]
    command: list[str | bytes] = [
        "tar",
        "--sparse",
        *FORMATS[form],
        *metadata,
        "-cf-",
        "-C",
        str(directory),
        "--",
        name,
    ]
    return subprocess.run(command, check=True, capture_output=True).stdout


def expanded(row: Row) -> bytes:
    content = bytearray(row.size)
    at = 0
    for offset, length in row.extents:
        content[offset : offset + length] = row.stored[at : at + length]
        at += length
    assert at == len(row.stored)
    return bytes(content)


# Written by hand


def sparse_0_0(extents: Extents, size: int, *, count: int | None = None, version: bool = True) -> bytes:
    records = [(b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"0")] if version else []
    records += [(b"GNU.sparse.size", b"%d" % size)]
    records += [(b"GNU.sparse.numblocks", b"%d" % (len(extents) if count is None else count))]
    for offset, length in extents:
        records += [(b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % length)]
    return pax(*records)


def sparse_0_1(extents: Extents, size: int, *, count: int | None = None, name: bytes = b"f") -> bytes:
    return pax(
        (b"GNU.sparse.major", b"0"),
        (b"GNU.sparse.minor", b"1"),
        (b"GNU.sparse.name", name),
        (b"GNU.sparse.size", b"%d" % size),
        (b"GNU.sparse.numblocks", b"%d" % (len(extents) if count is None else count)),
        (b"GNU.sparse.map", b",".join(b"%d,%d" % extent for extent in extents)),
    )


def sparse_1_0(size: int, *more: tuple[bytes, bytes], name: bytes = b"f") -> bytes:
    return pax(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", name),
        (b"GNU.sparse.realsize", b"%d" % size),
        *more,
    )


def map_1_0(extents: Extents, *, count: int | None = None) -> bytes:
    numbers = [len(extents) if count is None else count]
    for extent in extents:
        numbers += extent
    return padded(b"".join(b"%d\n" % number for number in numbers))


def chunk(offset: int, length: int) -> bytes:
    return pack_number(offset, 12) + pack_number(length, 12)


def old_gnu(extents: Extents, size: int, stored: int, *, magic: bytes = GNU) -> bytes:
    """Return the header of an old GNU sparse file with its extension blocks."""
    chunks = [chunk(*extent) for extent in extents]
    first, rest = chunks[:4], chunks[4:]
    blocks = header(
        b"f",
        b"S",
        magic=magic,
        size=pack_number(stored, 12),
        chunks=b"".join(first),
        extended=b"\1" if rest else b"\0",
        realsize=pack_number(size, 12),
    )
    while rest:
        now, rest = rest[:21], rest[21:]
        blocks += (b"".join(now).ljust(504, b"\0") + (b"\1" if rest else b"\0")).ljust(BLOCK, b"\0")
    return blocks


def in_every_format(extents: Extents, size: int, data: bytes) -> dict[str, bytes]:
    """Return a sparse file as each format writes it; `data` is what is stored of it."""
    return {
        "old GNU": old_gnu(extents, size, len(data)) + padded(data),
        "0.0": sparse_0_0(extents, size) + member(b"f", data),
        "0.0 without a version": sparse_0_0(extents, size, version=False) + member(b"f", data),
        "0.1": sparse_0_1(extents, size) + member(b"GNUSparseFile.1/f", data),
        "1.0": sparse_1_0(size) + member(b"GNUSparseFile.1/f", map_1_0(extents) + data),
    }


FORMS = list(in_every_format([], 0, b""))
DATA = bytes(range(1, 151))
RIGHT: dict[str, tuple[Extents, int]] = {
    "one chunk": ([(0, 150)], 150),
    "hole behind": ([(0, 150)], 1000),
    "hole before": ([(850, 150)], 1000),
    "adjacent chunks": ([(0, 100), (100, 50)], 150),
    "holes between": ([(10, 50), (100, 50), (990, 50)], 1040),
    "beyond 8 GiB": ([(0, 50), (1 << 40, 100)], 1 << 50),
    "up to 2^63-1": ([(0, 50), (2**63 - 101, 100)], 2**63 - 1),
    "as many as an old header holds": ([(10 * i, 1) for i in range(3)] + [(500, 147)], 1000),
    "many": ([(10 * i, 1) for i in range(150)], 1500),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", RIGHT)
def test_sparse_map_is_read(case: str, form: str) -> None:
    extents, size = RIGHT[case]
    want = Row(stored=DATA, size=size, extents=tuple(extents))
    assert rows_of(in_every_format(extents, size, DATA)[form], header(b"next")) == [want, Row(b"next")]


@pytest.mark.parametrize("form", FORMS)
def test_file_that_is_a_hole(form: str) -> None:
    want = Row(size=9000, extents=((0, 0),))
    for extents in [], [(0, 0)], [(9000, 0)], [(5, 0), (5, 0), (8, 0)]:
        assert rows_of(in_every_format(extents, 9000, b"")[form], header(b"next")) == [want, Row(b"next")]
    empty = in_every_format([], 0, b"")[form]
    assert rows_of(empty, header(b"next")) == [Row(extents=((0, 0),)), Row(b"next")]


@pytest.mark.parametrize("form", FORMS)
def test_empty_chunks_are_nothing(form: str) -> None:
    extents = [(0, 0), (5, 100), (105, 0), (200, 50), (1000, 0)]
    want = Row(stored=DATA, size=1000, extents=((5, 100), (200, 50)))
    assert rows_of(in_every_format(extents, 1000, DATA)[form]) == [want]


WRONG: dict[str, tuple[Extents, int, str]] = {
    "overlap": ([(0, 100), (99, 50)], 1000, "sparse map: unordered or overlapping"),
    "the same chunk twice": ([(0, 75), (0, 75)], 1000, "sparse map: unordered or overlapping"),
    "unordered": ([(100, 50), (0, 100)], 1000, "sparse map: unordered or overlapping"),
    "beyond the end": ([(851, 150)], 1000, "sparse map: beyond the end of the file"),
    "beyond the end of an empty file": ([(0, 150)], 0, "sparse map: beyond the end of the file"),
    "empty, beyond the end": ([(0, 150), (1001, 0)], 1000, "sparse map: beyond the end of the file"),
    "beyond 63 bits": ([(0, 50), (2**63 - 50, 100)], 2**63 - 1, "sparse map: beyond the end of the file"),
    "less than is stored": ([(0, 149)], 1000, "sparse map: not the stored data: got 149, want 150"),
    "more than is stored": ([(0, 151)], 1000, "sparse map: not the stored data: got 151, want 150"),
    "none for what is stored": ([], 1000, "sparse map: not the stored data: got 0, want 150"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", WRONG)
def test_wrong_sparse_map_is_refused(case: str, form: str) -> None:
    extents, size, want = WRONG[case]
    reason = refusal(header(b"before"), in_every_format(extents, size, DATA)[form], header(b"next"))
    assert reason.startswith(f"f: {want}")


HUGE: dict[str, tuple[Extents, int]] = {
    "offset": ([(0, 150), (2**63, 0)], 1000),
    "length": ([(0, 2**63)], 1000),
    "far larger offset": ([(0, 150), (10**26, 0)], 1000),
    "size": ([(0, 150)], 2**63),
    "far larger size": ([(0, 150)], 10**26),
    "negative offset": ([(-1, 150)], 1000),
    "negative length": ([(0, 150), (500, -1)], 1000),
    "negative lengths that add up": ([(0, 200), (500, -50)], 1000),
    "negative size": ([(0, 150)], -1),
    "negative size of a hole": ([], -1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", HUGE)
def test_numbers_of_a_sparse_map_are_of_63_bits(case: str, form: str) -> None:
    extents, size = HUGE[case]
    reason = refusal(header(b"before"), in_every_format(extents, size, DATA)[form])
    assert reason.startswith(
        ("f: sparse ", "f: real size", "GNUSparseFile.1/f: sparse file: malformed number")
    )


@given(st.data())
def test_the_formats_are_one(data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, 3000), max_size=80)))
    extents = [(begin, end - begin) for begin, end in zip(cuts[::2], cuts[1::2], strict=False)]
    size = max(cuts, default=0) + data.draw(st.integers(0, 100))
    stored = bytes(number % 251 for number in range(sum(length for _, length in extents)))
    forms = in_every_format(extents, size, stored).values()
    [want] = {str(scan(tar + END_OF_ARCHIVE).rows) for tar in forms}
    assert want == str([Row(stored=stored, size=size, extents=tuple(extents) or ((0, 0),))])


PAX_FORMS = {
    "0.0": sparse_0_0([(850, 150)], 1000) + member(b"f", DATA),
    "0.1": sparse_0_1([(850, 150)], 1000) + member(b"x", DATA),
    "1.0": sparse_1_0(1000) + member(b"x", map_1_0([(850, 150)]) + DATA),
}
WANT = Row(stored=DATA, size=1000, extents=((850, 150),))


@pytest.mark.parametrize("flag", [b"0", b"\0", b"7"])
@pytest.mark.parametrize("magic", [POSIX, GNU, V7])
def test_pax_sparse_file_may_have_any_type_of_file(flag: bytes, magic: bytes) -> None:
    assert rows_of(sparse_0_0([(850, 150)], 1000), member(b"f", DATA, flag, magic=magic)) == [WANT]
    assert rows_of(sparse_0_1([(850, 150)], 1000), member(b"x", DATA, flag, magic=magic)) == [WANT]
    data = map_1_0([(850, 150)]) + DATA
    assert rows_of(sparse_1_0(1000), member(b"x", data, flag, magic=magic)) == [WANT]


def test_size_of_a_sparse_file_in_pax() -> None:
    data = map_1_0([(850, 150)]) + DATA
    for size in bytes(12), b"77777777777\0":
        assert rows_of(sparse_1_0(1000, (b"size", b"662")), member(b"x", data, size=size), header(b"n")) == [
            WANT,
            Row(b"n"),
        ]
        old = bytearray(old_gnu([(850, 150)], 1000, 150))
        old[124:136] = size
        old[148:156] = b" " * 8
        old[148:156] = b"%06o\0 " % sum(old)
        assert rows_of(pax((b"size", b"150")), bytes(old), padded(DATA), header(b"n")) == [WANT, Row(b"n")]


def test_name_of_a_sparse_file() -> None:
    data = map_1_0([(850, 150)]) + DATA
    named = replace(WANT, path=b"d/" + b"n" * 200)
    assert rows_of(sparse_1_0(1000, name=b"./d//" + b"n" * 200), member(b"x", data)) == [named]
    for other in b"", long_name(b"gnu\0"):
        assert rows_of(other, sparse_1_0(1000, (b"path", b"pax")), member(b"x", data)) == [WANT]
        assert rows_of(sparse_1_0(1000, (b"path", b"pax")), other, member(b"x", data)) == [WANT]
    [row] = rows_of(sparse_1_0(1000, (b"path", b"pax"), name=b""), member(b"x", data))
    assert row == replace(WANT, path=b"pax")
    [whiteout] = rows_of(sparse_1_0(1000, name=b"d/.wh.f"), member(b"x", data))
    assert (whiteout.path, whiteout.kind) == (b"d/f", "whiteout")
    assert refusal(sparse_1_0(1000, name=b"../f"), member(b"x", data)).startswith("../f: name climbs")
    assert refusal(sparse_1_0(1000, name=b"a\0b"), member(b"x", data)).startswith(
        "x: PAX GNU.sparse.name contains NUL"
    )


def test_metadata_of_a_sparse_file() -> None:
    records = (b"uid", b"5"), (b"mtime", b"1.5"), (b"SCHILY.xattr.user.a", b"1")
    data = map_1_0([(850, 150)]) + DATA
    want = replace(WANT, uid=5, mtime=1, nsec=500_000_000, xattrs={b"user.a": b"1"})
    assert rows_of(sparse_1_0(1000, *records), member(b"x", data)) == [want]
    assert rows_of(pax(*records), old_gnu([(850, 150)], 1000, 150), padded(DATA)) == [want]


def test_sparse_records_are_for_one_entry() -> None:
    for form in PAX_FORMS.values():
        assert rows_of(form, member(b"n", DATA), form) == [WANT, Row(b"n", stored=DATA), WANT]
    assert rows_of(sparse_1_0(1000), pax((b"uid", b"5")), member(b"f", DATA)) == [Row(stored=DATA, uid=5)]


def test_empty_sparse_records_are_none() -> None:
    keys = b"major", b"minor", b"name", b"size", b"realsize", b"numblocks", b"map"
    assert rows_of(pax(*[(b"GNU.sparse." + key, b"") for key in keys]), member(b"f", DATA)) == [
        Row(stored=DATA)
    ]


@pytest.mark.parametrize("flag", [b"1", b"2", b"3", b"4", b"5", b"6"])
@pytest.mark.parametrize(
    "form", [sparse_0_0([], 0), sparse_0_1([], 0), sparse_1_0(0)], ids=["0.0", "0.1", "1.0"]
)
def test_sparse_map_of_what_is_no_file_is_refused(form: bytes, flag: bytes) -> None:
    assert refusal(form, header(b"f", flag, linkname=b"l")).startswith("f: sparse map of what is no file")
    assert refusal(form, header(b"f/", b"\0")).startswith("f/: sparse map of what is no file")


SIZE, COUNT, ONE = (
    (b"GNU.sparse.size", b"1000"),
    (b"GNU.sparse.numblocks", b"1"),
    (b"GNU.sparse.map", b"0,150"),
)
MAJOR, MINOR = (b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"1")
BAD_RECORDS = {
    "unknown version": (
        [(b"GNU.sparse.major", b"2"), MINOR, SIZE, COUNT, ONE],
        "sparse file of an unknown version",
    ),
    "unknown minor": (
        [MAJOR, (b"GNU.sparse.minor", b"2"), SIZE, COUNT, ONE],
        "sparse file of an unknown version",
    ),
    "half a version": ([MAJOR, SIZE, COUNT, ONE], "sparse file of an unknown version"),
    "version of other digits": (
        [MAJOR, (b"GNU.sparse.minor", b"01"), SIZE],
        "sparse file of an unknown version",
    ),
    "no size": ([MAJOR, MINOR, COUNT, ONE], "sparse file without its real size"),
    "nothing but a size": ([SIZE], "sparse file without GNU.sparse.numblocks"),
    "nothing but a real size": ([(b"GNU.sparse.realsize", b"9")], "sparse file without GNU.sparse.numblocks"),
    "no count": ([MAJOR, MINOR, SIZE, ONE], "sparse file without GNU.sparse.numblocks"),
    "count too small": ([MAJOR, MINOR, SIZE, (COUNT[0], b"0"), ONE], "sparse map: wrong count of numbers"),
    "count too large": ([MAJOR, MINOR, SIZE, (COUNT[0], b"2"), ONE], "sparse map: wrong count of numbers"),
    "count far too large": ([SIZE, (COUNT[0], b"9" * 18), ONE], "sparse map: wrong count of numbers"),
    "count beyond 63 bits": ([SIZE, (COUNT[0], b"9" * 40), ONE], "sparse file: malformed number"),
    "negative count": ([SIZE, (COUNT[0], b"-1"), ONE], "sparse file: malformed number"),
    "negative size": ([(SIZE[0], b"-1"), COUNT, ONE], "sparse file: malformed number"),
    "odd count of numbers": ([SIZE, COUNT, (ONE[0], b"0,150,3")], "sparse map: wrong count of numbers"),
    "one number": ([SIZE, COUNT, (ONE[0], b"150")], "sparse map: wrong count of numbers"),
    "trailing comma": ([SIZE, COUNT, (ONE[0], b"0,150,")], "sparse file: malformed number"),
    "leading comma": ([SIZE, COUNT, (ONE[0], b",0,150")], "sparse file: malformed number"),
    "space": ([SIZE, COUNT, (ONE[0], b"0, 150")], "sparse file: malformed number"),
    "letters": ([SIZE, COUNT, (ONE[0], b"0,x")], "sparse file: malformed number"),
    "newline": ([SIZE, COUNT, (ONE[0], b"0,150\n")], "sparse file: malformed number"),
    "negative": ([SIZE, COUNT, (ONE[0], b"-1,150")], "sparse file: malformed number"),
    "hexadecimal": ([SIZE, COUNT, (ONE[0], b"0x0,150")], "sparse file: malformed number"),
    "empty map": ([MAJOR, MINOR, SIZE, COUNT, (ONE[0], b"")], "sparse map: wrong count of numbers"),
    "length first": (
        [SIZE, COUNT, (b"GNU.sparse.numbytes", b"150"), (b"GNU.sparse.offset", b"0")],
        "sparse map: offset and numbytes do not alternate",
    ),
    "offset twice": (
        [SIZE, COUNT, (b"GNU.sparse.offset", b"0"), (b"GNU.sparse.offset", b"0")],
        "sparse map: offset and numbytes do not alternate",
    ),
    "offset alone": ([SIZE, COUNT, (b"GNU.sparse.offset", b"0")], "sparse map: wrong count of numbers"),
    "two numbers in one record": (
        [SIZE, COUNT, (b"GNU.sparse.offset", b"0,150"), (b"GNU.sparse.numbytes", b"1")],
        "sparse file: malformed number",
    ),
}


@pytest.mark.parametrize(
    ("records", "want"),
    [
        (
            [(b"GNU.sparse.major", b"9" * 500_000), SIZE],
            f"f: sparse file of an unknown version: got {'9' * 4096}....none, want 0.0, 0.1 or 1.0",
        ),
        (
            [SIZE, (b"GNU.sparse.numblocks", b"0" * 500_000 + b"2"), ONE],
            "f: sparse map: wrong count of numbers: got 2, want 4",
        ),
    ],
    ids=["version", "count"],
)
def test_message_is_not_as_long_as_a_sparse_record(records: list[tuple[bytes, bytes]], want: str) -> None:
    assert refusal(pax(*records), member(b"f", DATA)) == want


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_malformed_sparse_records_are_refused(case: str) -> None:
    records, want = BAD_RECORDS[case]
    assert refusal(pax(*records), member(b"f", DATA)).startswith(f"f: {want}")


BAD_MAPS = {
    "no count": (b"\n0\n150\n", "sparse file: malformed number"),
    "nothing": (b"", "sparse file: malformed number"),
    "letters": (b"x\n0\n150\n", "sparse file: malformed number"),
    "negative count": (b"-1\n0\n150\n", "sparse file: malformed number"),
    "count of 64 bits": (b"9223372036854775808\n0\n150\n", "sparse file: malformed number"),
    "count without end": (b"1" * BLOCK, "sparse file: malformed number"),
    "count of 63 bits": (b"9223372036854775807\n0\n150\n", "sparse map: more chunks than the data can hold"),
    "count beyond the data": (b"166\n0\n150\n", "sparse map: more chunks than the data can hold"),
    "count beyond the map": (b"2\n0\n150\n", "sparse map: incomplete"),
    "count below the map": (b"0\n0\n150\n", "sparse map: not the stored data"),
    "map without its last newline": (b"1\n0\n150", "sparse map: incomplete"),
    "negative offset": (b"1\n-1\n150\n", "sparse file: malformed number"),
    "empty offset": (b"1\n\n150\n", "sparse file: malformed number"),
    "spaces": (b"1\n 0\n150\n", "sparse file: malformed number"),
    "carriage returns": (b"1\r\n0\r\n150\r\n", "sparse file: malformed number"),
    "commas": (b"1\n0,150\n\n", "sparse file: malformed number"),
}


@pytest.mark.parametrize("case", BAD_MAPS)
def test_malformed_map_in_the_data_is_refused(case: str) -> None:
    numbers, want = BAD_MAPS[case]
    assert refusal(sparse_1_0(1000), member(b"x", padded(numbers or b"\0") + DATA)).startswith(f"f: {want}")


def test_map_needs_whole_blocks() -> None:
    assert refusal(sparse_1_0(10), member(b"x", b"1\n0\n5\nhello")).startswith(
        "f: sparse map: incomplete: got 11 bytes"
    )
    two = map_1_0([(10 * number, 1) for number in range(100)])
    assert len(two) == 2 * BLOCK
    assert refusal(sparse_1_0(1000), member(b"x", two[:1000])).startswith("f: sparse map: incomplete")
    assert refusal(sparse_1_0(1000), member(b"x", two), end=b"").startswith(
        "f: sparse map: not the stored data"
    )


def test_truncated_sparse_file_is_refused() -> None:
    old = old_gnu([(10 * number, 1) for number in range(30)], 1000, 30)
    new = sparse_1_0(1500) + member(b"x", map_1_0([(10 * i, 1) for i in range(150)]) + DATA)
    end = len(new) - (-len(DATA) % BLOCK)
    for tar, last in (old + b"x" * 30, len(old) + 30), (new, end):
        for length in range(1, last, 7):
            assert "truncated " in refusal(tar[:length], end=b"")
        assert len(scan(tar[:last]).rows) == 1


BAD_OLD = {
    "POSIX magic": (
        old_gnu([(850, 150)], 1000, 150, magic=POSIX),
        "f: sparse file in a header that is not GNU's",
    ),
    "no magic": (old_gnu([(850, 150)], 1000, 150, magic=V7), "f: sparse file in a header that is not GNU's"),
    "malformed offset": (
        header(b"f", b"S", magic=GNU, size=b"00000000226\0", chunks=b"x" * 24, realsize=b"00000001750\0"),
        "f: malformed number",
    ),
    "malformed size": (
        header(b"f", b"S", magic=GNU, size=b"00000000226\0", chunks=chunk(0, 150), realsize=b"garbage"),
        "f: malformed number",
    ),
}


@pytest.mark.parametrize("case", BAD_OLD)
def test_malformed_old_sparse_header_is_refused(case: str) -> None:
    members, want = BAD_OLD[case]
    assert refusal(members, padded(DATA)).startswith(want)


def test_malformed_extension_block_is_refused() -> None:
    blocks = old_gnu([(10 * number, 1) for number in range(30)], 1000, 30)
    broken = blocks[:BLOCK] + b"garbage" + blocks[BLOCK + 7 :]
    assert refusal(broken, padded(DATA[:30])).startswith("f: malformed number")


def test_sparse_maps_are_not_longer_than_other_extension_headers() -> None:
    chunks = (1 << 20) // 24
    extents = [(2 * number, 1) for number in range(chunks + 1)]
    data = bytes(chunks + 1)
    [row] = scan(old_gnu(extents[:-1], 1 << 20, chunks) + padded(data[:-1])).rows
    assert len(row.extents) == chunks
    assert refusal(old_gnu(extents, 1 << 20, chunks + 1), padded(data)).startswith("f: sparse map: too long")
    [row] = scan(sparse_1_0(1 << 20) + member(b"x", map_1_0(extents) + data)).rows
    assert len(row.extents) == chunks + 1
    extents = [(2 * number, 1) for number in range(4 * chunks)]
    assert len(map_1_0(extents)) > 1 << 20
    assert refusal(sparse_1_0(1 << 30), member(b"x", map_1_0(extents) + bytes(4 * chunks))).startswith(
        "f: sparse map: incomplete: got 1048576 bytes"
    )
