"""Conversions to squashfs, beside mksquashfs, which is given our tar or what umoci unpacks; see `benchmarks.contest`.

All have the same compressor, level and block size, tail ends in fragments, and look for duplicates.
`$PARALAYER_MKSQUASHFS` may name further mksquashfs programs to be compared with, separated by colons.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import time
from typing import TYPE_CHECKING

from benchmarks.contest import JOBS, Contest
from benchmarks.limits import decode_seconds
from benchmarks.measure import PARALAYER, Run, run
from paralayer.sinks.squashfs.compressor import Compressor
from paralayer.sinks.squashfs.options import Compression

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

BLOCK_SIZE = 128 << 10
COMPRESSION = Compression("zstd", 3)
PROGRAMS = ("mksquashfs", *filter(None, os.environ.get("PARALAYER_MKSQUASHFS", "").split(":")))
"""Whether they are there or not."""

_OURS = ("--compression", "zstd:3", "--block-size", "128K")
_SAME = ("-comp", "zstd", "-Xcompression-level", "3", "-b", "128K", "-tailends", "-exports", "-noappend")
_THEIRS = (*_SAME, "-mkfs-time", "0", "-processors", str(JOBS), "-quiet", "-no-progress")
_PIPE = '"$1" convert --quiet --jobs "$2" "$3" - | "$4" - "$5" -tar "${@:6}"'


class SquashfsContest(Contest):
    """Conversions to squashfs, each compared with that of `--jobs 1`; the flat tar is there as well.

    `runs` has for each program `piped PROGRAM` and `unpacked PROGRAM`, and `verify`, which reads what `jobs N` wrote.
    """

    def __init__(self, layout: Path, scratch: Path) -> None:
        super().__init__(layout, "tar", scratch)
        self._output = scratch / "output.squashfs"
        self._theirs = scratch / "theirs.squashfs"
        self.convert(1)
        self._want = self._digest(self._output)
        self._inodes = inodes(self._output)
        self.size = self._output.stat().st_size
        self.their_sizes: dict[str, int] = {}
        self.clear()

    def command(self, jobs: int, *options: str, output: Path | None = None) -> list[str | Path]:
        """See `Contest`; the options of squashfs are not for the flat tar."""
        return super().command(jobs, *options, *(() if output else _OURS), output=output)

    def measure_limit(self) -> float:
        """Keep, as `limit`, the seconds of the bare codecs: the blobs decoded, what survives compressed in blocks."""
        decoding = decode_seconds(self.layout)
        compressing = compress_seconds(self._flat)
        seconds = (decoding + compressing) / JOBS
        self.runs.setdefault("limit", []).append(Run(seconds, decoding, compressing, ""))
        return seconds

    def measure_verified(self) -> None:
        """Keep, as `jobs N`, a conversion with all jobs, and as `verify` the comparison of its output with the image."""
        self.clear()
        self.runs.setdefault("jobs N", []).append(self.convert(JOBS))
        self.runs.setdefault("verify", []).append(self.verify())
        self.check()

    def verify(self) -> Run:
        """Compare the output with the image, and assert that they are the same."""
        measured = run([*PARALAYER, "verify", "--json", "--jobs", str(JOBS), self.layout, self._output])
        report = json.loads(measured.output)
        assert report["same"]
        assert report["paths_a"] == report["paths_b"] >= self.result["survivors"]
        return measured

    def measure_piped(self, program: str) -> None:
        """Keep, as `piped PROGRAM`, what our tar piped into mksquashfs takes."""
        command: list[str | Path] = ["bash", "-e", "-o", "pipefail", "-c", _PIPE, "bash"]
        command += [*PARALAYER, str(JOBS), self.layout, program, self._theirs, *_THEIRS]
        self.runs.setdefault(f"piped {program}", []).append(self._pack(program, command))

    def measure_unpacked(self, programs: Sequence[str]) -> None:
        """Keep, as `unpacked PROGRAM`, what `umoci unpack` and then mksquashfs take; umoci does it once for all."""
        bundle = self._scratch / "bundle"
        unpacking = run(["umoci", "unpack", "--image", f"{self.layout}:latest", bundle])
        for program in programs:
            packing = self._pack(program, [program, bundle / "rootfs", self._theirs, *_THEIRS])
            both = Run(
                unpacking.seconds + packing.seconds,
                unpacking.user + packing.user,
                unpacking.system + packing.system,
                "",
            )
            self.runs.setdefault(f"unpacked {program}", []).append(both)
        shutil.rmtree(bundle)

    def size_ratio(self, program: str) -> float:
        """Return our output's size over that of the program's last one."""
        return self.size / self.their_sizes[program]

    def _pack(self, program: str, command: Sequence[str | Path]) -> Run:
        measured = run(command)
        assert inodes(self._theirs) == self._inodes, "theirs has as many inodes"
        self.their_sizes[program] = self._theirs.stat().st_size
        self._theirs.unlink()
        return measured


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
