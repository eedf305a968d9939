"""Sparse files in layers: made by GNU tar in each of its formats, and written by hand, right or wrong."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import BLOCK, END_OF_ARCHIVE, pack_number
from scans import GNU, POSIX, V7, Row, header, long_name, member, padded, pax, refusal, rows_of, scan

if TYPE_CHECKING:
    from pathlib import Path

    from hypothesis import DataObject  # noqa: F401

Chunks = list[tuple[int, int]]

STEP = 1 << 16
FILES: dict[str, tuple[Chunks, int]] = {
    "nothing but a hole": ([], 1 << 20),
    "data first": ([(0, 5000)], 1 << 20),
    "data last": ([((1 << 20) - 5000, 5000)], 1 << 20),
    "data in the middle": ([(STEP, 1)], 1 << 20),
    "four chunks, what an old header holds": ([(i * STEP, 700) for i in range(4)], 1 << 20),
    "five chunks": ([(i * STEP, 700) for i in range(5)], 1 << 20),
    "25 chunks, one extension block": ([(i * STEP, 700) for i in range(25)], 1 << 21),
    "26 chunks": ([(i * STEP, 700) for i in range(26)], 1 << 21),
    "100 chunks": ([(STEP + i * STEP, 700) for i in range(100)], 1 << 23),
    "large": ([(0, 10), (1 << 40, 10)], 1 << 41),
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
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_sparse_file_of_gnu_tar_is_expanded(tmp_path: Path, name: bytes, form: str, case: str) -> None:
    chunks, size = FILES[case]
    path = bytes(tmp_path) + b"/" + name
    (tmp_path / "x").parent.mkdir(exist_ok=True)
    if b"/" in name:
        (tmp_path / name.partition(b"/")[0].decode()).mkdir()
    with open(path, "wb") as stream:
        stream.truncate(size)
        for number, (offset, length) in enumerate(chunks):
            stream.seek(offset)
            stream.write(bytes([65 + number % 50]) * length)
    tar = subprocess.run(
        ["tar", "--sparse", *FORMATS[form], "--mtime=@5", "--owner=0", "--group=0", "--mode=640", "-cf", "-", "-C", tmp_path, "--", name],
        check=True,
        capture_output=True,
    ).stdout
    end = tar.ljust(len(tar))
    [row] = scan(end, range(1000, len(tar), 1000)).rows
    assert row == replace(Row(name, mode=0o640, mtime=5), size=size, stored=row.stored, extents=row.extents)
    assert len(row.stored) < size or not row.extents
    assert sum(length for _, length in row.extents) == len(row.stored)
    at = 0
    content = dict.fromkeys(range(0))
    with open(path, "rb") as stream:
        for offset, length in row.extents:
            stream.seek(offset)
            assert stream.read(length) == row.stored[at : at + length]
            at += length
    for offset, length in chunks:
        assert any(begin <= offset and offset + length <= begin + each for begin, each in row.extents)
    assert content == {}
