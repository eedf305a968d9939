"""What squashfs metadata is made of, part by part: compressors, metadata blocks, records, the order of names."""

from __future__ import annotations

import lzma
import struct
import subprocess
import sys
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from paralayer.errors import SinkError
from paralayer.sinks.squashfs.compressor import Compressor
from paralayer.sinks.squashfs.metadata import BLOCK, MetadataWriter, pack_lookup_table
from paralayer.sinks.squashfs.options import Compression
from paralayer.sinks.squashfs.order import Paths
from paralayer.sinks.squashfs.records import copy, ends_of, put, runs

if TYPE_CHECKING:
    from pathlib import Path

BLOCK_SIZE = 131072

# Compressors

PARSED = {
    "zstd": Compression("zstd", 3),
    "zstd:1": Compression("zstd", 1),
    "zstd:22": Compression("zstd", 22),
    "gzip": Compression("gzip", 9),
    "gzip:1": Compression("gzip", 1),
    "xz": Compression("xz", None),
    "lz4": Compression("lz4", None),
    "none": Compression("none", None),
}
REFUSED = {
    "": "compression: got '', want zstd, gzip, xz, lz4 or none",
    "lzo": "compression: got 'lzo', want zstd, gzip, xz, lz4 or none",
    "ZSTD": "compression: got 'ZSTD', want zstd, gzip, xz, lz4 or none",
    "zstd:": "compression: got 'zstd:', want a level from 1 to 22",
    "zstd:0": "compression: got 'zstd:0', want a level from 1 to 22",
    "zstd:23": "compression: got 'zstd:23', want a level from 1 to 22",
    "zstd:+3": r"compression: got 'zstd:\+3', want a level from 1 to 22",
    "gzip:10": "compression: got 'gzip:10', want a level from 1 to 9",
    "gzip:٣": "compression: got 'gzip:٣', want a level from 1 to 9",
    "xz:6": "compression: got 'xz:6', want xz without a level",
    "none:1": "compression: got 'none:1', want none without a level",
}
MKSQUASHFS = {
    "zstd:15": ("-comp", "zstd"),
    "zstd:3": ("-comp", "zstd", "-Xcompression-level", "3"),
    "gzip:9": ("-comp", "gzip"),
    "gzip:6": ("-comp", "gzip", "-Xcompression-level", "6"),
    "xz": ("-comp", "xz"),
    "lz4": ("-comp", "lz4"),
    "none": ("-noI", "-noD", "-noF", "-noX"),
}


@pytest.mark.parametrize("text", PARSED)
def test_a_compression_is_a_name_and_a_level(text: str) -> None:
    assert Compression.parse(text) == PARSED[text]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_compression_is_refused_with_what_is_one(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{REFUSED[text]}$"):
        Compression.parse(text)


@pytest.mark.requires("mksquashfs")
@pytest.mark.parametrize("text", MKSQUASHFS)
def test_compressors_say_of_themselves_what_mksquashfs_says(text: str, tmp_path: Path) -> None:
    """And they compress as well, up to what differs between versions of the libraries."""
    data = b"".join(b"%d squared is %d\n" % (number, number**2) for number in range(9000))[:BLOCK_SIZE]
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(data)
    made = tmp_path / "image"
    command = ["mksquashfs", str(tmp_path / "tree"), str(made), "-no-fragments", *MKSQUASHFS[text]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    image = made.read_bytes()
    compressor = Compressor(Compression.parse(text), BLOCK_SIZE)
    (number,) = struct.unpack_from("<H", image, 20)
    (flags,) = struct.unpack_from("<H", image, 24)
    (inode_table,) = struct.unpack_from("<Q", image, 64)
    assert compressor.id == number
    assert bool(compressor.options) == bool(flags & 0x400)
    assert image[96 : 96 + len(compressor.options)] == compressor.options
    stored = inode_table - 96 - len(compressor.options)
    assert len(compressor.compress(data) or data) == pytest.approx(stored, rel=0.01)


@pytest.mark.parametrize("text", PARSED)
def test_compressed_data_comes_back(text: str) -> None:
    compressor = Compressor(Compression.parse(text), BLOCK_SIZE)
    data = b"over and over " * 5000
    compressed = compressor.compress(memoryview(data))
    if text == "none":
        assert compressed is None
        return
    assert compressed is not None
    assert len(compressed) < len(data)
    assert decompress(text.partition(":")[0], compressed) == data
    assert Compressor(Compression.parse(text), BLOCK_SIZE).compress(data) == compressed
    compressor.compress(b"something else " * 3000)
    assert compressor.compress(data) == compressed


@pytest.mark.parametrize("text", PARSED)
def test_what_does_not_shrink_is_not_compressed(text: str) -> None:
    compressor = Compressor(Compression.parse(text), BLOCK_SIZE)
    assert compressor.compress(np.random.default_rng(1).bytes(BLOCK_SIZE)) is None
    assert compressor.compress(b"x") is None


def test_frames_and_streams_have_what_the_kernel_needs() -> None:
    data = b"over and over " * 5000
    frame = Compressor(Compression.parse("zstd"), BLOCK_SIZE).compress(data)
    assert frame is not None
    parameters = zstandard.get_frame_parameters(frame)
    assert (parameters.content_size, parameters.has_checksum) == (len(data), False)
    stream = Compressor(Compression.parse("xz"), BLOCK_SIZE).compress(data)
    assert stream is not None
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    decoder.decompress(stream)
    assert decoder.check == lzma.CHECK_CRC32


def test_lz4_without_its_package_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lz4", None)
    monkeypatch.delitem(sys.modules, "lz4.block", raising=False)
    with pytest.raises(SinkError, match=r"the Python package lz4 is not installed.*paralayer\[lz4\]"):
        Compressor(Compression.parse("lz4"), BLOCK_SIZE)


def decompress(name: str, data: bytes) -> bytes:
    if name == "zstd":
        return zstandard.ZstdDecompressor().decompress(data)
    if name == "gzip":
        return zlib.decompress(data)
    if name == "xz":
        return lzma.decompress(data, lzma.FORMAT_XZ)
    import lz4.block

    return bytes(lz4.block.decompress(data, uncompressed_size=BLOCK_SIZE))


# Metadata blocks


def unpacked(blocks: bytes) -> list[bytes]:
    """Return the bytes of metadata blocks made with zstd."""
    found = []
    while blocks:
        (header,) = struct.unpack_from("<H", blocks)
        stored = blocks[2 : 2 + (header & 0x7FFF)]
        found.append(stored if header & 0x8000 else zstandard.ZstdDecompressor().decompress(stored))
        blocks = blocks[2 + len(stored) :]
    return found


def zstd() -> Compressor:
    return Compressor(Compression.parse("zstd"), BLOCK_SIZE)


@given(st.integers(0, 3 * BLOCK + 5), st.lists(st.integers(0, 3 * BLOCK), max_size=6), st.booleans())
def test_how_a_table_is_appended_changes_nothing(size: int, cuts: list[int], shrinks: bool) -> None:
    data = bytes(size) if shrinks else np.random.default_rng(size).bytes(size)
    writer = MetadataWriter(zstd())
    places = []
    for start, stop in pairwise([0, *sorted(min(cut, size) for cut in cuts), size]):
        assert writer.size == start
        places.append((start, writer.place(start)))
        writer.append(data[start:stop])
    blocks = writer.finish()
    packed = b"".join(blocks)
    assert unpacked(packed) == [data[at : at + BLOCK] for at in range(0, size, BLOCK)]
    starts = [0, *np.cumsum([len(block) for block in blocks]).tolist()]
    for position, place in places:
        assert place == (starts[position // BLOCK], position % BLOCK)
        assert [int(each[0]) for each in writer.places(np.array([position]))] == list(place)


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1])
def test_a_lookup_table_lists_its_blocks(size: int) -> None:
    records = np.random.default_rng(size).bytes(size)
    data, start = pack_lookup_table(records, 1000, zstd())
    positions = [each[0] for each in struct.iter_unpack("<Q", data[start - 1000 :])]
    assert len(positions) == -(-size // BLOCK)
    blocks = [unpacked(data[position - 1000 : start - 1000])[0] for position in positions]
    assert b"".join(blocks) == records


# Records


@given(st.lists(st.binary(max_size=9), max_size=30))
def test_records_of_any_lengths_are_copied_to_their_places(records: list[bytes]) -> None:
    source = np.frombuffer(b"-".join([*reversed(records), b""]), np.uint8)
    lengths = np.array([len(record) for record in records], np.int64)
    starts = ends_of(lengths[::-1] + 1)[:-1][::-1]
    ends = ends_of(lengths)
    buffer = np.zeros(ends[-1], np.uint8)
    copy(buffer, ends[:-1], source, starts, lengths)
    assert buffer.tobytes() == b"".join(records)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**24)), max_size=30))
def test_records_of_one_length_are_put_at_any_positions(items: list[tuple[int, int]]) -> None:
    gaps = np.array([gap for gap, _ in items], np.int64)
    records = np.array([(number, 7) for _, number in items], [("number", "<u4"), ("seven", "u1")])
    ends = ends_of(gaps + 5)
    buffer = np.zeros(ends[-1], np.uint8)
    put(buffer, ends[:-1] + gaps, records)
    assert buffer.tobytes() == b"".join(bytes(gap) + struct.pack("<IB", number, 7) for gap, number in items)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 5)), max_size=20))
def test_runs_follow_one_another(items: list[tuple[int, int]]) -> None:
    first = np.array([each for each, _ in items], np.int64)
    count = np.array([each for _, each in items], np.int64)
    assert runs(first, count).tolist() == [start + step for start, number in items for step in range(number)]


# The order of names

names = st.one_of(
    st.sampled_from([b"a", b"b", b"a-", b"ab", b"\x01", b"\xff"]), st.binary(min_size=1, max_size=3)
)
any_paths = st.sets(
    st.lists(names.map(lambda name: name.replace(b"/", b".").replace(b"\0", b"~")), max_size=5).map(tuple),
    max_size=30,
)


@given(any_paths, st.randoms(use_true_random=False), st.integers(1, 40))
def test_names_are_in_the_order_of_a_walk_that_sorts(
    paths: set[tuple[bytes, ...]],
    random: object,
    batch: int,
) -> None:
    every = {path[:depth] for path in paths for depth in range(len(path) + 1)} | {()}
    given_order = sorted(every)
    random.shuffle(given_order)  # type: ignore[attr-defined]
    collected = Paths()
    joined = [b"/".join(path) for path in given_order]
    for first in range(0, len(joined), batch):
        collected.add(joined[first : first + batch])
    assert len(collected) == len(every)
    wanted = set(joined[::3])
    assert collected.find(wanted) == {path: number for number, path in enumerate(joined) if path in wanted}
    order = collected.order()

    walked = sorted(every)  # tuples of names: directories before what is in them
    listed = [(), *(path for above in walked for path in walked if path and path[:-1] == above)]
    assert [given_order[number] for number in order.path.tolist()] == listed
    assert [walked[number] for number in order.walk.tolist()] == listed
    assert [walked[number] if number >= 0 else None for number in order.directory.tolist()] == [
        path[:-1] if path else None for path in listed
    ]
    text = order.text.tobytes()
    found = [
        text[at : at + size] for at, size in zip(order.start.tolist(), order.length.tolist(), strict=True)
    ]
    assert found == [path[-1] if path else b"" for path in listed]
