"""A squashfs file: the whole command, beside what people do without it, and beside its limit.

Both mksquashfs and we have the same compressor, level and block size, tail ends in fragments, and look for duplicates.
`$PARALAYER_MKSQUASHFS` may name further mksquashfs programs to be compared with, separated by colons.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import time
from typing import TYPE_CHECKING

import pytest

from benchmarks.contest import JOBS, UMOCI, Contest
from benchmarks.limits import decode_seconds
from benchmarks.measure import PARALAYER, Run, run
from benchmarks.rounds import note, repeat
from paralayer.sinks.squashfs.compressor import Compressor
from paralayer.sinks.squashfs.options import Compression

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

BLOCK_SIZE = 128 << 10
COMPRESSION = Compression("zstd", 3)
OURS = ("--compression", "zstd:3", "--block-size", "128K")
_SAME = ("-comp", "zstd", "-Xcompression-level", "3", "-b", "128K", "-tailends", "-exports", "-noappend")
THEIRS = (*_SAME, "-mkfs-time", "0", "-processors", str(JOBS), "-quiet", "-no-progress")
PROGRAMS = ["mksquashfs", *filter(None, os.environ.get("PARALAYER_MKSQUASHFS", "").split(":"))]
_PIPE = '"$1" convert --quiet --jobs "$2" "$3" - | "$4" - "$5" -tar "${@:6}"'
_UNPACK = 'umoci unpack --image "$1:latest" "$2" && "$3" "$2/rootfs" "$4" "${@:5}"'


class SquashfsContest(Contest):
    """Conversions to squashfs, each compared with that of `--jobs 1`; the flat tar is there as well."""

    def __init__(self, layout: Path, scratch: Path, program: str) -> None:
        super().__init__(layout, "tar", scratch)
        self._program = program
        self._output = scratch / "output.squashfs"
        self._theirs = scratch / "theirs.squashfs"
        self.convert(1)
        self._want = self._digest(self._output)
        self._inodes = inodes(self._output)
        self.size = self._output.stat().st_size
        self.their_size = 0
        self.clear()

    def command(self, jobs: int, *options: str, output: Path | None = None) -> list[str | Path]:
        """See `Contest`; the options of squashfs are not for the flat tar."""
        return super().command(jobs, *options, *(() if output else OURS), output=output)

    def measure_piped(self) -> Run:
        """Keep, as `piped`, what our tar piped into mksquashfs takes."""
        return self._measure_theirs("piped", _PIPE, *PARALAYER, str(JOBS), self.layout)

    def measure_unpacked(self) -> Run:
        """Keep, as `unpacked`, what `umoci unpack` and mksquashfs take."""
        bundle = self._scratch / "bundle"
        measured = self._measure_theirs("unpacked", _UNPACK, self.layout, bundle)
        shutil.rmtree(bundle)
        return measured

    def _measure_theirs(self, name: str, script: str, *arguments: str | Path) -> Run:
        shell = ("bash", "-e", "-o", "pipefail", "-c", script, "bash")
        measured = run([*shell, *arguments, self._program, self._theirs, *THEIRS])
        self.runs.setdefault(name, []).append(measured)
        assert inodes(self._theirs) == self._inodes, "theirs has as many inodes"
        self.their_size = self._theirs.stat().st_size
        self._theirs.unlink()
        return measured

    def measure_limit(self) -> float:
        """Keep, as `limit`, the seconds of the bare codecs: the blobs decoded, what survives compressed in blocks."""
        decoding = decode_seconds(self.layout)
        compressing = compress_seconds(self._flat)
        seconds = (decoding + compressing) / JOBS
        self.runs.setdefault("limit", []).append(Run(seconds, decoding, compressing, ""))
        return seconds


def inodes(image: Path) -> int:
    """Return the number of inodes that a superblock tells."""
    with open(image, "rb") as file:
        return int.from_bytes(file.read(8)[4:], "little")


def compress_seconds(archive: Path) -> float:
    """Return the CPU seconds of compressing the files of a flat archive, each block in memory already."""
    compressor = Compressor(COMPRESSION, BLOCK_SIZE)
    seconds = 0.0
    for block in blocks(archive):
        started = time.process_time()
        compressor.compress(block)
        seconds += time.process_time() - started
    return seconds


def blocks(archive: Path) -> Iterator[bytes]:
    """Give the data blocks of all files, and their tail ends together as fragment blocks."""
    fragment = b""
    with tarfile.open(archive, "r|") as members:
        for member in members:
            file = members.extractfile(member) if member.isreg() else None
            while file is not None and (data := file.read(BLOCK_SIZE)):
                if len(data) == BLOCK_SIZE:
                    yield data
                    continue
                if len(fragment) + len(data) > BLOCK_SIZE:
                    yield fragment
                    fragment = b""
                fragment += data
    if fragment:
        yield fragment


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    """Return a mksquashfs."""
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"missing: {name}")
    return name


@pytest.mark.parametrize("name", ["real", "small-files"])
def test_squashfs(
    benchmark: BenchmarkFixture,
    make_layout: Callable[[str], Path],
    scratch: Path,
    name: str,
    program: str,
) -> None:
    """Isolates nothing: what a user waits for, beside our tar piped into mksquashfs. The limit is the CPU time of the bare codecs over the jobs."""
    contest = SquashfsContest(make_layout(name), scratch, program)

    def compare() -> None:
        contest.measure_limit()
        contest.measure_piped()

    def convert() -> None:
        contest.runs.setdefault("jobs N", []).append(contest.convert(JOBS))

    repeat(benchmark, convert, setup=compare, teardown=contest.check)
    note(
        benchmark,
        to_limit=contest.ratio("jobs N", "limit"),
        as_cpu_to_limit=contest.cpu_ratio("jobs N", "limit"),
        piped_to_ours=contest.ratio("piped", "jobs N"),
        size_to_theirs=contest.size / contest.their_size,
    )


@pytest.mark.skipif(not UMOCI, reason="missing: umoci")
def test_squashfs_and_umoci(
    benchmark: BenchmarkFixture, make_layout: Callable[[str], Path], scratch: Path, program: str
) -> None:
    """Isolates nothing: what a user waits for, beside `umoci unpack` and mksquashfs, which take a minute."""
    contest = SquashfsContest(make_layout("real"), scratch, program)

    def convert() -> None:
        contest.runs.setdefault("jobs N", []).append(contest.convert(JOBS))

    repeat(benchmark, convert, rounds=2, setup=contest.measure_unpacked, teardown=contest.check)
    note(benchmark, unpacked_to_ours=contest.ratio("unpacked", "jobs N"))
