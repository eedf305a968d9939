"""Every stream is decoded exactly, or refused with a `LayerError`, however its bytes arrive."""

from __future__ import annotations

import bz2
import functools
import hashlib
import io
import itertools
import lzma
import random
import struct
import subprocess
import sys
import tarfile
import zlib
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from paralayer.compression import CHUNK, MAX_WINDOW, READ_SIZE, open_decoder
from paralayer.compression.source import Source
from paralayer.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

OCI = "application/vnd.oci.image.layer.v1.tar"
DOCKER = "application/vnd.docker.image.rootfs.diff.tar"

TEXT = b"".join(b"line %d of the text\n" % i for i in range(60))
NOISE = random.Random(1).randbytes(CHUNK)


def pieces(parts: Iterable[bytes]) -> Callable[[int], bytes]:
    """Yield `parts` as a source does: cut to what is asked for, and nothing more once the end was told."""
    rest = b""
    ended = False
    iterator = iter(parts)

    def read(size: int) -> bytes:
        nonlocal rest, ended
        assert not ended, "read after the end"
        rest = rest or next(iterator, b"")
        piece, rest = rest[:size], rest[size:]
        ended = not piece
        return piece

    return read


def chunks(parts: Iterable[bytes], media_type: str = OCI) -> Iterator[bytes]:
    decoder = open_decoder(pieces(parts), media_type, "layer 3")
    while chunk := decoder.read():
        assert len(chunk) <= CHUNK
        yield bytes(chunk)
    assert len(decoder.read()) == 0


def decode(blob: bytes, media_type: str = OCI, step: int = 1 << 30) -> bytes:
    return b"".join(chunks((blob[i : i + step] for i in range(0, len(blob), step)), media_type))


def compression(blob: bytes, media_type: str = OCI) -> str:
    return open_decoder(io.BytesIO(blob).read, media_type, "layer 3").compression


def deflate(data: bytes, level: int = 6) -> bytes:
    codec = zlib.compressobj(level, zlib.DEFLATED, -15)
    return codec.compress(data) + codec.flush()


def gzip_header(
    *,
    flags: int = 0,
    extra: bytes = b"",
    name: bytes = b"",
    comment: bytes = b"",
    header_crc: int | None = None,
) -> bytes:
    header = b"\x1f\x8b\x08" + bytes([flags]) + b"\0\0\0\0\0\xff"
    if flags & 4:
        header += struct.pack("<H", len(extra)) + extra
    if flags & 8:
        header += name + b"\0"
    if flags & 16:
        header += comment + b"\0"
    if flags & 2:
        header += struct.pack("<H", zlib.crc32(header) & 0xFFFF if header_crc is None else header_crc)
    return header


def gzip_member(
    data: bytes, header: bytes = gzip_header(), crc: int = 0, size: int = 0, level: int = 6
) -> bytes:
    """Return a member whose checksum and size are wrong by `crc` and `size`."""
    return header + deflate(data, level) + struct.pack("<II", zlib.crc32(data) ^ crc, len(data) ^ size)


def zstd_frame(data: bytes, *, checksum: bool = True, content_size: bool = True, level: int = 3) -> bytes:
    codec = zstandard.ZstdCompressor(level, write_checksum=checksum, write_content_size=content_size)
    return codec.compress(data)


def skippable(size: int, number: int = 0) -> bytes:
    return struct.pack("<II", 0x184D2A50 + number, size) + b"\x28" * size


def zstd_header(
    *, window: int | None = 0x58, content_size: bytes = b"", dictionary: bytes = b"", checksum: bool = False
) -> bytes:
    """Return a frame header; `window` is the descriptor byte, None for a single segment."""
    descriptor = {0: 0, 1: 0, 2: 1, 4: 2, 8: 3}[len(content_size)] << 6 | (window is None) << 5
    descriptor |= checksum << 2 | {0: 0, 1: 1, 2: 2, 4: 3}[len(dictionary)]
    return (
        b"\x28\xb5\x2f\xfd"
        + bytes([descriptor])
        + (b"" if window is None else bytes([window]))
        + dictionary
        + content_size
    )


def zstd_raw(data: bytes, *, last: bool = True) -> bytes:
    return (len(data) << 3 | last).to_bytes(3, "little") + data


def zstd_run(byte: bytes, size: int, *, last: bool = True) -> bytes:
    return (size << 3 | 2 | last).to_bytes(3, "little") + byte


def xz_stream(data: bytes, check: int = lzma.CHECK_CRC64) -> bytes:
    return lzma.compress(data, check=check, preset=0)


def tar_archive(name: bytes = b"file", data: bytes = TEXT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def signed_checksum_tar(name: bytes) -> bytes:
    header = bytearray(tar_archive(name)[:512])
    header[148:156] = b" " * 8
    total = sum(byte - 256 * (byte > 127) for byte in header)
    header[148:156] = b"%06o\0 " % total
    return bytes(header) + bytes(1024)


def other_checksum_tar(name: bytes, pack: Callable[[int], bytes]) -> bytes:
    header = tar_archive(name)[:512]
    total = sum(header[:148] + b" " * 8 + header[156:])
    return header[:148] + pack(total) + header[156:] + bytes(1024)


ONE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip_member,
    "zstd": zstd_frame,
    "bzip2": bz2.compress,
    "xz": xz_stream,
    "none": lambda data: data,
}
CODECS = [name for name in ONE if name != "none"]
EMPTY_ZSTD = zstd_header() + zstd_raw(b"")
WINDOW_128_MIB = 17 << 3
NOT_FEW = 3000

GOOD: dict[str, tuple[str, bytes, bytes]] = {
    "gzip: one member": ("gzip", gzip_member(TEXT), TEXT),
    "gzip: stored blocks": ("gzip", gzip_member(NOISE, level=0), NOISE),
    "gzip: empty member": ("gzip", gzip_member(b""), b""),
    "gzip: empty members around": (
        "gzip",
        gzip_member(b"") * 3 + gzip_member(TEXT) + gzip_member(b"") * 3,
        TEXT,
    ),
    "gzip: two members": ("gzip", gzip_member(TEXT) + gzip_member(NOISE), TEXT + NOISE),
    "gzip: many tiny members": ("gzip", gzip_member(TEXT[:40]) * NOT_FEW, TEXT[:40] * NOT_FEW),
    "gzip: a short member, then a long one": (
        "gzip",
        gzip_member(TEXT) + gzip_member(bytes(2 * CHUNK)),
        TEXT + bytes(2 * CHUNK),
    ),
    "gzip: text flag": ("gzip", gzip_member(TEXT, gzip_header(flags=1)), TEXT),
    "gzip: header checksum": ("gzip", gzip_member(TEXT, gzip_header(flags=2)) * 2, TEXT * 2),
    "gzip: largest extra field": ("gzip", gzip_member(TEXT, gzip_header(flags=4, extra=NOISE[:65535])), TEXT),
    "gzip: empty extra field": ("gzip", gzip_member(TEXT, gzip_header(flags=6)), TEXT),
    "gzip: name": ("gzip", gzip_member(TEXT, gzip_header(flags=8, name=b"layer.tar")), TEXT),
    "gzip: empty name and comment": ("gzip", gzip_member(TEXT, gzip_header(flags=24)), TEXT),
    "gzip: name longer than a read": (
        "gzip",
        gzip_member(TEXT, gzip_header(flags=10, name=b"n" * (READ_SIZE + 10))),
        TEXT,
    ),
    "gzip: every header field": (
        "gzip",
        gzip_member(TEXT, gzip_header(flags=31, extra=b"e" * 5000, name=b"n" * 3000, comment=b"c" * 9000))
        * 2,
        TEXT * 2,
    ),
    "gzip: zero padding": ("gzip", gzip_member(TEXT) + bytes(1), TEXT),
    "gzip: much zero padding": ("gzip", gzip_member(TEXT) + bytes(3 * READ_SIZE), TEXT),
    "gzip in gzip": ("gzip", gzip_member(gzip_member(TEXT)), gzip_member(TEXT)),
    "zstd: one frame": ("zstd", zstd_frame(TEXT), TEXT),
    "zstd: no checksum, no size": ("zstd", zstd_frame(TEXT, checksum=False, content_size=False), TEXT),
    "zstd: empty frame": ("zstd", zstd_frame(b""), b""),
    "zstd: many frames": ("zstd", zstd_frame(TEXT[:40]) * NOT_FEW, TEXT[:40] * NOT_FEW),
    "zstd: only a skippable frame": ("zstd", skippable(10, 15), b""),
    "zstd: empty skippable frame": ("zstd", skippable(0) + zstd_frame(TEXT), TEXT),
    "zstd: skippable frames everywhere": (
        "zstd",
        skippable(3 * READ_SIZE)
        + zstd_frame(TEXT)
        + skippable(7, 2)
        + zstd_frame(NOISE)
        + skippable(READ_SIZE, 9),
        TEXT + NOISE,
    ),
    "zstd: raw and run blocks, empty last": (
        "zstd",
        zstd_header() + zstd_raw(TEXT, last=False) + zstd_run(b"x", 100_000, last=False) + zstd_raw(b""),
        TEXT + b"x" * 100_000,
    ),
    "zstd: run as last block": ("zstd", zstd_header() + zstd_run(b"x", 131_072) + EMPTY_ZSTD, b"x" * 131_072),
    "zstd: single segment, 1 byte of size": (
        "zstd",
        zstd_header(window=None, content_size=b"\4") + zstd_raw(b"abcd"),
        b"abcd",
    ),
    "zstd: 2 bytes of size": ("zstd", zstd_header(content_size=b"\4\0") + zstd_raw(TEXT[:260]), TEXT[:260]),
    "zstd: 4 bytes of size": ("zstd", zstd_header(content_size=b"\4\0\0\0") + zstd_raw(b"abcd"), b"abcd"),
    "zstd: 8 bytes of size": (
        "zstd",
        zstd_header(content_size=b"\4" + bytes(7)) + zstd_raw(b"abcd"),
        b"abcd",
    ),
    "zstd: dictionary number 0": ("zstd", zstd_header(dictionary=bytes(4)) + zstd_raw(b"abcd"), b"abcd"),
    "zstd: largest window": ("zstd", zstd_header(window=WINDOW_128_MIB) + zstd_raw(TEXT), TEXT),
    "bzip2: one stream": ("bzip2", bz2.compress(TEXT), TEXT),
    "bzip2: empty stream": ("bzip2", bz2.compress(b""), b""),
    "bzip2: many streams": ("bzip2", (bz2.compress(TEXT, 1) + bz2.compress(b"")) * 50, TEXT * 50),
    "xz: one stream": ("xz", xz_stream(TEXT), TEXT),
    "xz: empty stream": ("xz", xz_stream(b""), b""),
    "xz: many streams, padded": ("xz", (xz_stream(TEXT) + bytes(8)) * 50, TEXT * 50),
    "xz: much padding": ("xz", xz_stream(TEXT) + bytes(2 * READ_SIZE) + xz_stream(NOISE), TEXT + NOISE),
    "none: tar": ("none", tar_archive(), tar_archive()),
    "none: tar whose name begins with the gzip magic": (
        "none",
        tar_archive(b"\x1f\x8b\x08"),
        tar_archive(b"\x1f\x8b\x08"),
    ),
    "none: tar whose name begins with the zstd magic": (
        "none",
        tar_archive(b"\x28\xb5\x2f\xfd"),
        tar_archive(b"\x28\xb5\x2f\xfd"),
    ),
    "none: tar with a signed checksum": (
        "none",
        signed_checksum_tar(b"\x1f\x8b\xff\xfe"),
        signed_checksum_tar(b"\x1f\x8b\xff\xfe"),
    ),
    "none: tar with a checksum in base 256": (
        "none",
        other_checksum_tar(b"\x1f\x8b\x08", lambda total: b"\x80" + total.to_bytes(7, "big")),
        other_checksum_tar(b"\x1f\x8b\x08", lambda total: b"\x80" + total.to_bytes(7, "big")),
    ),
    "none: tar with NULs before the checksum": (
        "none",
        other_checksum_tar(b"\x1f\x8b\x08", lambda total: b"\0 %06o" % total),
        other_checksum_tar(b"\x1f\x8b\x08", lambda total: b"\0 %06o" % total),
    ),
    "none: empty tar": ("none", bytes(10240), bytes(10240)),
    "none: large tar": ("none", tar_archive(data=NOISE * 3), tar_archive(data=NOISE * 3)),
    "none: empty blob": ("none", b"", b""),
    "none: neither a tar nor a magic": ("none", TEXT, TEXT),
    "none: part of a magic": ("none", b"\x1f", b"\x1f"),
}

GZIP, ZSTD, BZIP2, XZ = (ONE[name](TEXT) for name in CODECS)

BAD: dict[str, tuple[bytes, str]] = {
    "gzip: checksum": (gzip_member(TEXT, crc=1), "gzip checksum"),
    "gzip: checksum of the first of two": (gzip_member(TEXT, crc=1) + GZIP, "gzip checksum"),
    "gzip: checksum of an empty member": (gzip_member(b"", crc=1), "gzip checksum"),
    "gzip: size": (gzip_member(TEXT, size=1), "gzip member size"),
    "gzip: deflate data": (GZIP[:10] + b"\xff" + GZIP[11:], "gzip data is damaged"),
    "gzip: header checksum": (gzip_member(TEXT, gzip_header(flags=2, header_crc=0x1234)), "header checksum"),
    "gzip: reserved flag": (gzip_member(TEXT, gzip_header(flags=0x20)), "reserved gzip flags: got 0x20"),
    "gzip: method": (b"\x1f\x8b\x07" + GZIP[3:], "method: got 7, want 8"),
    "gzip: garbage": (GZIP + b"garbage", "garbage after gzip data: got bytes 67 61"),
    "gzip: garbage after padding": (GZIP + bytes(9) + b"x", "garbage after gzip data: got bytes 78"),
    "gzip: member after padding": (GZIP + bytes(512) + GZIP, "garbage after gzip data"),
    "gzip: half a magic": (GZIP + b"\x1f", "truncated"),
    "gzip: then zstd": (GZIP + ZSTD, "garbage after gzip data"),
    "gzip: name without end": (
        gzip_header(flags=8, name=b"n" * 3000)[:-1],
        "truncated: got its end at byte 3010",
    ),
    "zstd: checksum": (ZSTD[:-1] + bytes([ZSTD[-1] ^ 1]), "zstd data is damaged"),
    "zstd: less than the content size": (
        zstd_header(content_size=b"\5\0\0\0") + zstd_raw(b"abcd"),
        "damaged",
    ),
    "zstd: more than the content size": (
        zstd_header(content_size=b"\3\0\0\0") + zstd_raw(b"abcd"),
        "damaged",
    ),
    "zstd: garbage": (ZSTD + b"garbage", "garbage after zstd data: got bytes 67 61"),
    "zstd: short garbage": (ZSTD + b"\0", "zstd data is damaged"),
    "zstd: zero padding": (ZSTD + bytes(512), "garbage after zstd data"),
    "zstd: then gzip": (ZSTD + GZIP, "garbage after zstd data"),
    "zstd: reserved block type": (zstd_header() + b"\7\0\0", "damaged"),
    "zstd: block above 128 KiB": (zstd_header() + zstd_raw(NOISE[:131_073]), "damaged"),
    "zstd: window": (
        zstd_header(window=WINDOW_128_MIB + 1) + zstd_raw(b""),
        "window too large: got 150994944 bytes, want at most 134217728 (128 MiB)",
    ),
    "zstd: largest window there is": (
        zstd_header(window=0xFF) + zstd_raw(b""),
        "window too large: got 4123168604160",
    ),
    "zstd: window of a single segment": (
        zstd_header(window=None, content_size=(MAX_WINDOW + 1).to_bytes(8, "little")) + zstd_raw(b""),
        "window too large: got 134217729 bytes",
    ),
    "zstd: window of the second frame": (ZSTD + zstd_header(window=0xA0) + zstd_raw(b""), "window too large"),
    "zstd: dictionary": (
        zstd_header(dictionary=b"\7\1") + zstd_raw(b""),
        "a frame that needs number 263, want none",
    ),
    "bzip2: garbage": (BZIP2 + b"garbage", "garbage after bzip2 data"),
    "bzip2: zero padding": (BZIP2 + bytes(4), "garbage after bzip2 data"),
    "bzip2: checksum": (BZIP2[:10] + bytes([BZIP2[10] ^ 1]) + BZIP2[11:], "bzip2 data is damaged"),
    "xz: garbage": (XZ + b"garbage", "garbage after xz data"),
    "xz: uneven padding": (XZ + bytes(6) + XZ, "xz stream padding: got 6 bytes, want a multiple of 4"),
    "xz: uneven padding at the end": (XZ + bytes(3), "xz stream padding"),
    "xz: footer": (XZ[:-1] + b"\0", "xz data is damaged"),
}


@pytest.mark.parametrize("step", [1 << 30, 4099, 100])
@pytest.mark.parametrize("title", GOOD)
def test_good_stream_is_decoded_exactly(title: str, step: int) -> None:
    kind, blob, want = GOOD[title]
    assert compression(blob) == kind
    assert decode(blob, step=step) == want


@pytest.mark.parametrize("title", [title for title, (_, blob, _) in GOOD.items() if len(blob) < 100_000])
def test_good_stream_is_decoded_exactly_byte_by_byte(title: str) -> None:
    _, blob, want = GOOD[title]
    assert decode(blob, step=1) == want


@pytest.mark.parametrize("step", [1 << 30, 7, 1])
@pytest.mark.parametrize("title", BAD)
def test_bad_stream_is_refused(title: str, step: int) -> None:
    blob, message = BAD[title]
    with pytest.raises(LayerError) as error:
        decode(blob, step=step)
    assert str(error.value).startswith("layer 3: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "size", [CHUNK + delta for delta in (-1, 0, 1)] + [2 * CHUNK, 2 * CHUNK + 1, 131_072]
)
@pytest.mark.parametrize("codec", ONE)
@pytest.mark.parametrize("data", [NOISE * 3, bytes(CHUNK * 3)], ids=["noise", "zeros"])
def test_sizes_around_a_chunk(codec: str, size: int, data: bytes) -> None:
    assert decode(ONE[codec](data[:size]) + ONE[codec](b"end")) == data[:size] + b"end"


UNITS: dict[str, list[bytes]] = {
    "gzip": [gzip_member(TEXT[:200]), gzip_member(b""), gzip_member(TEXT[:200])],
    "gzip with every header field": [
        gzip_member(TEXT[:50], gzip_header(flags=31, extra=b"extra", name=b"name", comment=b"comment")),
        gzip_member(TEXT[:50], gzip_header(flags=10, name=b"name")),
    ],
    "zstd": [zstd_frame(TEXT[:200]), zstd_frame(b""), zstd_frame(TEXT[:200], checksum=False)],
    "zstd with skippable frames": [skippable(20), zstd_frame(TEXT[:200], content_size=False), skippable(3)],
    "zstd of raw and run blocks": [
        zstd_header() + zstd_raw(b"abc", last=False) + zstd_run(b"x", 999),
        zstd_header() + zstd_run(b"x", 999, last=False) + zstd_raw(b"abc"),
        zstd_header() + zstd_run(b"x", 999, last=False) + zstd_raw(b""),
    ],
    "bzip2": [bz2.compress(TEXT[:200]), bz2.compress(b""), bz2.compress(TEXT[:200])],
    "xz": [xz_stream(TEXT[:200]), xz_stream(b"") + bytes(4), xz_stream(TEXT[:200])],
}


@pytest.mark.parametrize("title", UNITS)
def test_blob_cut_anywhere_but_between_members_is_refused(title: str) -> None:
    blob = b"".join(UNITS[title])
    whole = set(itertools.accumulate(map(len, UNITS[title])))
    if title == "xz":
        whole.add(len(UNITS[title][0] + UNITS[title][1]) - 4)
    accepted = set()
    for size in range(len(blob) + 1):
        try:
            decode(blob[:size], f"{OCI}+{title.split(maxsplit=1)[0]}")
        except LayerError:
            continue
        accepted.add(size)
    assert accepted == whole


@pytest.mark.parametrize(
    ("codec", "blob"),
    [
        pytest.param("gzip", gzip_member(TEXT[:60]) + gzip_member(TEXT[60:100]), id="gzip"),
        pytest.param(
            "gzip", gzip_member(TEXT[:100], gzip_header(flags=10, name=b"n")), id="gzip header checksum"
        ),
        pytest.param("zstd", zstd_frame(TEXT[:60]) + zstd_frame(TEXT[60:100]), id="zstd"),
        pytest.param("bzip2", bz2.compress(TEXT[:60]) + bz2.compress(TEXT[60:100]), id="bzip2"),
        pytest.param("xz", xz_stream(TEXT[:60]) + xz_stream(TEXT[60:100]), id="xz"),
    ],
)
def test_flipped_bit_never_yields_other_bytes(codec: str, blob: bytes) -> None:
    refused = 0
    for bit in range(8 * len(blob)):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            got = decode(bytes(damaged), f"{OCI}+{codec}")
        except LayerError:
            refused += 1
        else:
            assert got == TEXT[:100], bit
    assert refused > 6 * len(blob)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A blob of one codec in several members, and what it decodes to."""
    codec = draw(st.sampled_from(list(CODECS)))
    parts = draw(
        st.lists(
            st.one_of(
                st.binary(max_size=50),
                st.builds(bytes.__mul__, st.binary(min_size=1, max_size=5), st.integers(0, 20_000)),
                st.builds(lambda size: NOISE[:size], st.integers(0, 5000)),
            ),
            min_size=1,
            max_size=5,
        )
    )
    blob = b""
    for part in parts:
        if codec == "gzip":
            flags = draw(st.integers(0, 31))
            field = draw(st.binary(max_size=40)).replace(b"\0", b"n")
            header = gzip_header(flags=flags, extra=field, name=field, comment=field)
            blob += gzip_member(part, header, level=draw(st.integers(0, 9)))
        elif codec == "zstd":
            blob += skippable(draw(st.integers(0, 50))) if draw(st.booleans()) else b""
            blob += zstd_frame(part, checksum=draw(st.booleans()), content_size=draw(st.booleans()))
        else:
            blob += ONE[codec](part)
    return blob, b"".join(parts)


def cut(blob: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Cut `blob` into pieces of these sizes, again and again."""
    pos = 0
    for size in itertools.cycle(sizes):
        if pos >= len(blob):
            return
        yield blob[pos : pos + size]
        pos += size


@given(streams(), st.lists(st.integers(1, 300), min_size=1, max_size=20))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_any_split_of_the_input_is_one_read(stream: tuple[bytes, bytes], sizes: list[int]) -> None:
    blob, want = stream
    assert decode(blob) == want
    assert b"".join(chunks(cut(blob, sizes))) == want


@given(streams(), st.data())
@settings(max_examples=200, derandomize=True, deadline=None)
def test_damaged_stream_raises_nothing_but_a_layer_error(
    stream: tuple[bytes, bytes], data: st.DataObject
) -> None:
    blob = bytearray(stream[0])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(blob)))
        blob[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        decode(bytes(blob))
    except LayerError as error:
        assert error.where == "layer 3"  # noqa: PT017 - any outcome but another exception is right


@functools.cache
def bomb(codec: str) -> bytes:
    """Return 1 GiB of zeros, compressed."""
    mib = bytes(1 << 20)
    if codec == "zstd":
        return zstd_header() + zstd_run(b"\0", 131_072, last=False) * 8191 + zstd_run(b"\0", 131_072)
    if codec == "gzip":
        deflater = zlib.compressobj(1, zlib.DEFLATED, -15)
        once = deflater.compress(mib) + deflater.flush(zlib.Z_FULL_FLUSH)
        return gzip_header() + once * 1024 + b"\3\0" + bytes(8)
    if codec == "bzip2":
        return bz2.compress(mib * 8) * 128
    return lzma.compress(mib * 8, preset=0) * 128


@pytest.mark.parametrize("codec", CODECS)
def test_bomb_is_decoded_in_small_chunks(codec: str) -> None:
    decoder = open_decoder(io.BytesIO(bomb(codec)).read, OCI, "layer 3")
    sizes = [len(decoder.read()) for _ in range(20)]
    assert min(sizes) > 0
    assert max(sizes) <= CHUNK


def test_zstd_bomb_is_decoded_whole() -> None:
    decoder = open_decoder(io.BytesIO(bomb("zstd")).read, OCI, "layer 3")
    assert sum(iter(lambda: len(decoder.read()), 0)) == 1 << 30


@pytest.mark.parametrize("count", range(6))
def test_unused_bytes_of_several_pieces_go_back(count: int) -> None:
    source = Source(pieces([b"abc", b"def"]), "layer 3")
    taken = bytes(source.piece(3)) + bytes(source.piece(2))
    source.give_back(taken[len(taken) - count :])
    assert source.take(count + 1) == b"abcdef"[5 - count :]
    assert source.peek(1) == b""


@pytest.mark.parametrize(
    ("media_type", "stated"),
    [
        (OCI + "+gzip", "gzip"),
        (OCI + "+zstd", "zstd"),
        (DOCKER + ".gzip", "gzip"),
        (DOCKER + ".zstd", "zstd"),
    ],
)
def test_media_type_of_a_compression_needs_one_or_a_tar(media_type: str, stated: str) -> None:
    with pytest.raises(LayerError, match=rf"unknown compression: got bytes 6c 69 .*, want {stated} as in"):
        decode(TEXT, media_type)
    with pytest.raises(LayerError, match=f"truncated: got an empty blob, want {stated} as in"):
        decode(b"", media_type)
    with pytest.raises(LayerError, match="unknown compression"):
        decode(bytes(511), media_type)
    assert decode(tar_archive(), media_type) == tar_archive()
    assert decode(bytes(1024), media_type) == bytes(1024)


@pytest.mark.parametrize("media_type", [OCI, OCI + "+gzip", OCI + "+zstd", DOCKER + ".gzip", ""])
@pytest.mark.parametrize("codec", CODECS)
def test_content_decides_whatever_the_media_type_says(codec: str, media_type: str) -> None:
    blob = ONE[codec](TEXT)
    assert compression(blob, media_type) == codec
    assert decode(blob, media_type) == TEXT


def test_tar_with_a_wrong_checksum_is_judged_by_its_magic() -> None:
    blob = bytearray(tar_archive(b"\x1f\x8b\x08"))
    blob[148] ^= 1
    assert compression(bytes(blob)) == "gzip"
    assert compression(other_checksum_tar(b"\x1f\x8b\x08", lambda total: b"%06ox\0" % total)) == "gzip"


def test_xz_dictionary_above_the_limit_is_refused_and_one_at_the_limit_is_not() -> None:
    def stream(dictionary: int) -> bytes:
        # The smallest match finder, so that the test itself needs little memory.
        filters = [
            {"id": lzma.FILTER_LZMA2, "dict_size": dictionary, "mf": lzma.MF_HC3, "mode": lzma.MODE_FAST}
        ]
        return lzma.compress(TEXT, filters=filters)

    assert decode(stream(MAX_WINDOW)) == TEXT
    with pytest.raises(LayerError, match=r"xz dictionary too large: .* want at most 134217728 \(128 MiB\)"):
        decode(stream(MAX_WINDOW * 3 // 2))


@pytest.mark.parametrize("codec", ONE)
def test_error_of_the_source_passes_unchanged(codec: str) -> None:
    error = OSError("the source is gone")

    def parts() -> Iterator[bytes]:
        yield ONE[codec](NOISE)[:1000]
        raise error

    with pytest.raises(OSError, match="the source is gone") as raised:
        list(chunks(parts()))
    assert raised.value is error


def test_stream_of_the_zstd_tool_with_a_long_window_is_decoded() -> None:
    data = NOISE + bytes(1 << 20) + NOISE
    made = subprocess.run(["zstd", "-q", "--long=27", "-c"], input=data, capture_output=True, check=True)
    assert hashlib.sha256(decode(made.stdout)).digest() == hashlib.sha256(data).digest()


def test_only_the_codec_that_is_met_is_imported() -> None:
    script = (
        "import sys, io; from paralayer.compression import open_decoder\n"
        "codecs = {'isal.igzip_lib', 'zstandard', '_bz2', '_lzma'}\n"
        "assert not codecs & set(sys.modules)\n"
        f"open_decoder(io.BytesIO({GZIP!r}).read, '', '').read()\n"
        "assert codecs & set(sys.modules) == {'isal.igzip_lib'}, codecs & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
