"""A conversion, again and again, each time between what it is compared with.

The machine's noise is larger than many a difference that matters. So every round measures everything once, one after
the other, and ratios are taken within a round; each conversion is a process of its own, started as a user would. All
outputs are compared with that of `--jobs 1`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.limits import decode_seconds, extract, write_seconds
from benchmarks.measure import PARALAYER, Run, peak_memory, run
from paralayer.engine.limits import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Format = Literal["tar", "directory"]

JOBS = usable_cpus()
UMOCI = shutil.which("umoci")
_MIB = 1 << 20
_TAR = ("tar", "--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--format=posix")
_NO_TIMES = "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"


class Contest:
    """Conversions of one layout to one format, in the directory `scratch`; round after round.

    `runs` has what was measured: `limit` (seconds, as wall time), `jobs 1`, `jobs N`, and what else was asked for.
    """

    def __init__(self, layout: Path, format: Format, scratch: Path) -> None:  # noqa: A002 - the field's word
        self.layout = layout
        self.format = format
        self.runs: dict[str, list[Run]] = {}
        self._scratch = scratch
        self._output = scratch / ("output.tar" if format == "tar" else "output")
        self._flat = scratch / "flat.tar"
        self.result: dict[str, Any] = json.loads(run(self.command(1, output=self._flat)).output)
        self._want = self._digest(self._flat)

    def command(self, jobs: int, *options: str, output: Path | None = None) -> list[str | Path]:
        """Return the command that converts the layout."""
        target = output or self._output
        return [*PARALAYER, "convert", "--json", "--jobs", str(jobs), *options, self.layout, target]

    def convert(self, jobs: int, *options: str) -> Run:
        """Convert once; the output stays, for `check`."""
        return run(self.command(jobs, *options))

    def check(self) -> None:
        """Assert that the output is that of one job, and remove it."""
        if self.format == "directory" and self._want is None:
            self._extract()
        assert self._digest(self._output) == self._want, f"{self._output} is not what it should be"
        self.clear()

    def clear(self) -> None:
        """Remove the output, and with it what is still on its way to the disk."""
        if self._output.is_dir():
            shutil.rmtree(self._output)
        else:
            self._output.unlink(missing_ok=True)

    def measure(self, name: str, jobs: int, *options: str) -> Run:
        """Convert, check, and keep the measurement under `name`."""
        self.clear()
        measured = self.convert(jobs, *options)
        self.runs.setdefault(name, []).append(measured)
        self.check()
        return measured

    def measure_limit(self) -> float:
        """Keep, as `limit`, the seconds that the conversion takes at least with all jobs."""
        decoding = decode_seconds(self.layout)
        if self.format == "tar":
            writing = write_seconds(self.result["bytes_written"], self._scratch)
        else:
            writing = self._extract().cpu
        seconds = (decoding + writing) / JOBS
        self.runs.setdefault("limit", []).append(Run(seconds, decoding, writing, ""))
        return seconds

    def measure_umoci(self) -> Run:
        """Keep, as `umoci`, what `umoci unpack` takes."""
        bundle = self._scratch / "bundle"
        measured = run(["umoci", "unpack", "--image", f"{self.layout}:latest", bundle])
        self.runs.setdefault("umoci", []).append(measured)
        shutil.rmtree(bundle)
        return measured

    def peak(self, jobs: int, *options: str) -> int:
        """Return the peak memory of a conversion that is not timed."""
        self.clear()
        most = peak_memory(self.command(jobs, *options))
        self.check()
        return most

    def ratio(self, name: str, other: str) -> float:
        """Return the median, over the rounds, of the wall times' ratio."""
        pairs = zip(self.runs[name], self.runs[other], strict=False)
        return median(one.seconds / two.seconds for one, two in pairs)

    def cpu_ratio(self, name: str, other: str) -> float:
        """Return the median, over the rounds, of the CPU times' ratio."""
        pairs = zip(self.runs[name], self.runs[other], strict=False)
        return median(one.cpu / two.cpu for one, two in pairs)

    def seconds(self, name: str) -> list[float]:
        """Return the wall times of all rounds."""
        return [measured.seconds for measured in self.runs[name]]

    def reported_peaks(self, name: str) -> list[int]:
        """Return what paralayer itself says of its peak memory."""
        return [json.loads(measured.output)["peak_memory"] for measured in self.runs[name]]

    def bound(self, memory: int) -> int:
        """Return the bytes that all processes together may have, but for 1 KiB an entry."""
        return memory + 60 * _MIB + JOBS * 25 * _MIB

    def _extract(self) -> Run:
        """Extract the flat archive; the first time that tells what the directory has to be."""
        tree = self._scratch / "extracted"
        measured = extract(self._flat, tree)
        if self._want is None:
            self._want = digest_of_tree(tree)
        shutil.rmtree(tree)
        return measured

    def _digest(self, output: Path) -> str | None:
        if self.format == "tar":
            with open(output, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        return digest_of_tree(output) if output.is_dir() else None


def digest_of_tree(directory: Path) -> str:
    """Return a digest of everything in a directory but its own metadata, which tar has only where the image has it."""
    names: Sequence[bytes] = sorted(os.listdir(os.fsencode(directory)))
    command: list[str | bytes | Path] = [*_TAR, _NO_TIMES, "-C", directory, "-cf", "-", "--", *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        digest = hashlib.sha256()
        while chunk := process.stdout.read(_MIB):
            digest.update(chunk)
    assert process.returncode == 0
    return digest.hexdigest()
