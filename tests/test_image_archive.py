"""Tar archives read in place: members as byte ranges, whatever the dialect; damage is an error, never a hang."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from layouts import Layout, TarFormat, archive_of, blob_of
from paralayer.errors import ImageError
from paralayer.image import Platform, open_image
from paralayer.image.archive import Archive, _number
from paralayer.tar.header import HeaderError, parse_number

if TYPE_CHECKING:
    from pathlib import Path

HOST = str(Platform.host())
END = bytes(1024)


def member(
    name: str,
    data: bytes = b"",
    kind: bytes = b"0",
    linkname: str = "",
    fmt: TarFormat = tarfile.USTAR_FORMAT,
) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, linkname, len(data)
    header = info.tobuf(fmt, "utf-8", "surrogateescape")
    return header + data + bytes(-len(data) % 512)


def patched(block: bytes, offset: int, value: bytes) -> bytes:
    """Return a header with other bytes at `offset`, and a checksum that fits."""
    block = block[:offset] + value + block[offset + len(value) :]
    total = sum(block[:148]) + sum(block[156:512]) + 8 * 32
    return block[:148] + b"%06o\0 " % total + block[156:]


def pax(*records: bytes) -> bytes:
    return member("pax", b"".join(records), b"x")


def archive(tmp_path: Path, *parts: bytes, end: bytes = END) -> Archive:
    path = tmp_path / "archive.tar"
    path.write_bytes(b"".join(parts) + end)
    return Archive(str(path))


def read(source: Archive, name: str) -> bytes | None:
    blob = source.blob(name)
    if blob is None:
        return None
    with open(blob.path, "rb") as f:
        f.seek(blob.offset)
        return f.read(blob.size)


@pytest.mark.parametrize("prefix", ["", "./", "/", ".//"])
@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_blobs_are_byte_ranges_of_the_archive(tmp_path: Path, fmt: TarFormat, prefix: str) -> None:
    layout = Layout(tmp_path / "layout")
    layers = [b"a" * 511, b"", b"b" * 513]
    path = archive_of(layout.finish(layout.image(layers, HOST)), prefix, fmt)
    for source in (path, f"oci-archive:{path}", f"oci:{path}"):
        blobs = [blob_of(layer) for layer in open_image(source).layers]
        assert {blob.path for blob in blobs} == {path}
        with open(path, "rb") as f:
            whole = f.read()
        assert [whole[blob.offset : blob.offset + blob.size] for blob in blobs] == layers


LONG = "d" * 150 + "/" + "n" * 200
MEMBERS: dict[str, tuple[list[bytes], str, bytes | None]] = {
    # title: (the archive, a name, its content)
    "absent": ([member("a", b"1")], "b", None),
    "last of equal names": ([member("a", b"1"), member("./a", b"2")], "a", b"2"),
    "GNU long name": ([member(LONG, b"1", fmt=tarfile.GNU_FORMAT), member("b", b"2")], LONG, b"1"),
    "PAX name": ([member(LONG, b"1", fmt=tarfile.PAX_FORMAT), member("b", b"2")], LONG, b"1"),
    "long name is for one member": (
        [member(LONG, b"1", fmt=tarfile.GNU_FORMAT), member("b", b"2")],
        "b",
        b"2",
    ),
    "name that is not UTF-8": ([member("\udcff", b"1", fmt=tarfile.GNU_FORMAT)], "\udcff", b"1"),
    "prefix field": ([member("p" * 99 + "/" + "n" * 90, b"1")], "p" * 99 + "/" + "n" * 90, b"1"),
    "PAX size": ([pax(b"9 size=3\n"), member("a") + b"abc".ljust(512, b"\0"), member("b", b"2")], "b", b"2"),
    "PAX size, the data": ([pax(b"9 size=3\n"), member("a") + b"abc".ljust(512, b"\0")], "a", b"abc"),
    "empty PAX size": ([pax(b"8 size=\n"), member("a", b"abc"), member("b", b"2")], "b", b"2"),
    "size with NULs before it": ([patched(member("a", b"abc"), 124, b"\0 0000000002")], "a", b"ab"),
    "empty PAX names": (
        [pax(b"8 path=\n", b"13 linkpath=\n"), member("b", kind=b"1", linkname="a"), member("a", b"1")],
        "b",
        b"1",
    ),
    "base-256 size": ([patched(member("a", b"abc"), 124, b"\x80" + bytes(10) + b"\2")], "a", b"ab"),
    "global header": ([member("g", b"9 path=x\n", b"g"), member("a", b"1")], "a", b"1"),
    "hard link": ([member("a", b"1"), member("b", kind=b"1", linkname="./a")], "b", b"1"),
    "size of a link": (
        [patched(member("b", kind=b"1", linkname="a"), 124, b"00000001000\0"), member("a", b"1")],
        "b",
        b"1",
    ),
    "symbolic link": ([member("d/a", b"1"), member("e/b", kind=b"2", linkname="../d/./a")], "e/b", b"1"),
    "chain of links": (
        [member("a", b"1"), member("b", kind=b"2", linkname="a"), member("c", kind=b"1", linkname="b")],
        "c",
        b"1",
    ),
    "leading slash": ([member("/a", b"1")], "a", b"1"),
    "hard link with a leading slash": ([member("a", b"1"), member("b", kind=b"1", linkname="/a")], "b", b"1"),
    "link to nothing": ([member("b", kind=b"2", linkname="a")], "b", None),
    "type NUL": ([member("a", b"1", b"\0")], "a", b"1"),
    "contiguous file": ([member("a", b"1", b"7")], "a", b"1"),
    "sparse file beside": (
        [pax(b"22 GNU.sparse.major=1\n"), member("s", b"x"), member("a", b"1")],
        "a",
        b"1",
    ),
    "old sparse file beside": (
        [
            patched(member("s", kind=b"S"), 482, b"\1"),
            bytes(504) + b"\1" + bytes(7),
            bytes(512),
            member("a", b"1"),
        ],
        "a",
        b"1",
    ),
}


@pytest.mark.parametrize(
    "end", [END, b"", bytes(512), END + b"rest"], ids=["whole", "no end", "half an end", "more"]
)
@pytest.mark.parametrize("case", MEMBERS.values(), ids=MEMBERS)
def test_member_is_found(tmp_path: Path, case: tuple[list[bytes], str, bytes | None], end: bytes) -> None:
    parts, name, want = case
    source = archive(tmp_path, *parts, end=end)
    assert read(source, name) == want
    assert read(source, f"./{name}") == want


def test_checksum_may_count_signed_bytes(tmp_path: Path) -> None:
    header = member("\udcff\udcfe", b"1", fmt=tarfile.GNU_FORMAT)
    total = sum(b - 256 if b > 127 else b for b in header[:148] + header[156:512]) + 8 * 32
    assert read(archive(tmp_path, header[:148] + b"%06o\0 " % total + header[156:]), "\udcff\udcfe") == b"1"


def test_checksum_may_be_in_base_256(tmp_path: Path) -> None:
    total = sum(FILE[:148] + b" " * 8 + FILE[156:512])
    packed = b"\x80" + total.to_bytes(7, "big")
    assert read(archive(tmp_path, FILE[:148] + packed + FILE[156:]), "a") == b"x" * 600


@given(
    st.binary(min_size=12, max_size=12)
    | st.text("01278 \0", min_size=12, max_size=12).map(str.encode)
    | st.integers(-(1 << 87), (1 << 87) - 1)
    .map(lambda number: number.to_bytes(11, "big", signed=True))
    .map(lambda low: (b"\xff" if low[0] & 0x80 else b"\x80") + low)
)
def test_number_is_read_as_in_layers(field: bytes) -> None:
    try:
        want = parse_number(field)
    except HeaderError:
        want = None
    assert _number(field) == want


def test_last_padding_may_be_missing(tmp_path: Path) -> None:
    assert read(archive(tmp_path, member("a", b"12345")[: 512 + 5], end=b""), "a") == b"12345"


UNUSABLE: dict[str, tuple[list[bytes], str]] = {
    "directory": ([member("a", kind=b"5")], "a: member: got a directory, want a regular file"),
    "directory of type NUL": ([patched(member("a", kind=b"\0"), 0, b"a/")], "got a directory"),
    "device": ([member("a", kind=b"3")], "a special file"),
    "FIFO": ([member("a", kind=b"6")], "a special file"),
    "sparse file": (
        [
            pax(b"22 GNU.sparse.major=1\n", b"22 GNU.sparse.minor=0\n", b"21 GNU.sparse.name=a\n"),
            member("s", b"x"),
        ],
        "a sparse file",
    ),
    "old sparse file": ([member("a", b"x", b"S")], "a sparse file"),
    "unknown type": ([member("a", b"x", b"Z")], "a special file"),
    "loop": (
        [member("a", kind=b"2", linkname="b"), member("b", kind=b"1", linkname="a")],
        "a is a loop of links",
    ),
    "link out": (
        [member("a", kind=b"2", linkname="../../etc/passwd")],
        "a is a link out of the archive: got ../",
    ),
    "absolute link": (
        [member("a", kind=b"2", linkname="/etc/passwd")],
        "a is a link out of the archive: got /etc/",
    ),
    "link to the parent": ([member("a", kind=b"2", linkname="..")], "a is a link out of the archive: got .."),
    "hard link out": ([member("a", kind=b"1", linkname="../a")], "a is a link out of the archive"),
}


@pytest.mark.parametrize("case", UNUSABLE.values(), ids=UNUSABLE)
def test_member_that_is_no_file_is_refused_when_it_is_used(
    tmp_path: Path, case: tuple[list[bytes], str]
) -> None:
    parts, message = case
    source = archive(tmp_path, *parts, member("other", b"1"))
    assert read(source, "other") == b"1"
    with pytest.raises(ImageError, match=message):
        source.blob("a")


FILE = member("a", b"x" * 600)
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "file is empty: want a tar archive"),
    "text": (b"hello\n" * 1000, "not a tar archive"),
    "short text": (b"hello\n", "not a tar archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(600), "compressed with gzip: decompress it first"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed with zstd"),
    "xz": (b"\xfd7zXZ\0" + bytes(600), "compressed with xz"),
    "bzip2": (b"BZh91AY&SY", "compressed with bzip2"),
    "data cut": (FILE[:700], "tar header at offset 0: archive is truncated: got 188 bytes of data, want 600"),
    "header cut": (FILE + FILE[:100], "tar header at offset 1536: archive is truncated"),
    "rubbish between": (FILE + b"x" * 512 + FILE, "tar header at offset 1536: checksum does not match"),
    "lone zero block": (FILE + bytes(512) + FILE, "a single zero block within the archive"),
    "negative size": (patched(FILE, 124, b"\xff" * 12), "size is negative"),
    "size of 95 bits": (patched(FILE, 124, b"\x80" + b"\xff" * 11), "archive is truncated"),
    "size no number": (patched(FILE, 124, b"12x45678901\0"), "size: got 12x45678901, want an octal number"),
    "PAX size -512": (pax(b"13 size=-512\n") + FILE, "PAX size: got -512, want a decimal number"),
    "PAX size of 5000 digits": (pax(b"5010 size=" + b"1" * 4999 + b"\n") + FILE, "PAX size"),
    "PAX length 0": (pax(b"0 path=a\n") + FILE, "malformed PAX record"),
    "PAX length too large": (pax(b"99 path=a\n") + FILE, "malformed PAX record"),
    "NUL in a PAX key": (pax(b"9 pa\0h=a\n") + FILE, "malformed PAX record"),
    "NUL in a PAX path": (pax(b"12 path=a\0b\n") + FILE, "offset 0: PAX path contains NUL"),
    "NUL at the end of a PAX path": (pax(b"11 path=a\0\n") + FILE, "PAX path contains NUL"),
    "NUL in a PAX path that is not the last": (pax(b"10 path=\0\n", b"10 path=ab\n") + FILE, "contains NUL"),
    "NUL in a PAX linkpath": (pax(b"15 linkpath=\0a\n") + FILE, "PAX linkpath contains NUL"),
    "NUL in a sparse file's name": (pax(b"22 GNU.sparse.name=a\0\n") + FILE, "GNU.sparse.name contains NUL"),
    "PAX without key": (pax(b"5 =a\n") + FILE, "malformed PAX record"),
    "PAX header too large": (
        patched(member("x", kind=b"x"), 124, b"00010000000\0") + bytes(1 << 21),
        "too large: got 2097152",
    ),
    "PAX header cut": (pax(b"9 path=a\n")[:515], "archive is truncated"),
    "sparse map cut": (patched(member("s", kind=b"S"), 482, b"\1") + b"\1" * 512, "archive is truncated"),
}


@pytest.mark.parametrize("case", DAMAGED.values(), ids=DAMAGED)
def test_damaged_archive_is_refused(tmp_path: Path, case: tuple[bytes, str]) -> None:
    data, message = case
    with pytest.raises(ImageError, match=message):
        archive(tmp_path, data, end=b"")


def test_many_extended_headers_do_not_recurse(tmp_path: Path) -> None:
    headers = (pax(b"9 path=b\n") + member("././@LongLink", b"c\0", b"L")) * 3000
    assert read(archive(tmp_path, headers, FILE), "c") == b"x" * 600


def test_fifo_in_place_of_an_archive_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError, match="got a FIFO, want a regular file"):
        open_image(str(tmp_path / "fifo"))


def test_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    archive(tmp_path, member("etc/passwd", b"root"))
    with pytest.raises(ImageError, match="neither an OCI layout nor what docker save writes"):
        open_image(str(tmp_path / "archive.tar"))


def whole_archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("short", LONG, "x" * 300):
            info = tarfile.TarInfo(name)
            info.size = 700
            tar.addfile(info, io.BytesIO(b"x" * 700))
    return out.getvalue()


WHOLE = whole_archive()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, len(WHOLE) - 1),
    st.binary(min_size=1, max_size=12),
    st.integers(0, len(WHOLE)),
    st.booleans(),
)
@example(124, b"\x80", len(WHOLE), True)
def test_any_damage_is_an_error_or_harmless(
    tmp_path: Path, at: int, junk: bytes, end: int, mended: bool
) -> None:
    data = WHOLE[:at] + junk + WHOLE[at + len(junk) :]
    if mended:
        start = at // 512 * 512
        data = (
            data[:start] + patched(data[start : start + 512].ljust(512, b"\0"), 0, b"") + data[start + 512 :]
        )
    path = tmp_path / "damaged.tar"
    path.write_bytes(data[:end])
    try:
        source = Archive(str(path))
        blobs = [source.blob(name) for name in ("short", LONG, "x" * 300)]
    except ImageError:
        return
    assert all(blob.offset + blob.size <= min(end, len(data)) for blob in blobs if blob)
