"""Memory of all processes together, seen from outside, and the time that a small `--memory` costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.contest import JOBS, Contest, Format
from benchmarks.rounds import note, repeat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

_LITTLE = ("--memory", "64M")


@pytest.mark.parametrize("format_", ["tar", "directory"])
@pytest.mark.parametrize("name", ["real", "fat-layer", "small-files"])
def test_little_memory(
    benchmark: BenchmarkFixture, make_layout: Callable[[str], Path], scratch: Path, name: str, format_: Format
) -> None:
    """Isolates the budget: the same conversion with 64 MiB, beside one with what the tool takes by itself."""
    contest = Contest(make_layout(name), format_, scratch)

    def convert() -> None:
        contest.runs.setdefault("little", []).append(contest.convert(JOBS, *_LITTLE))

    if format_ == "directory":
        contest.measure_limit()  # tells what the directory has to be
    repeat(benchmark, convert, setup=lambda: contest.measure("plenty", JOBS), teardown=contest.check)
    peak = contest.peak(JOBS, *_LITTLE)
    assert peak <= contest.bound(64 << 20) + contest.result["entries"] * 1024
    note(benchmark, to_plenty=contest.ratio("little", "plenty"), peak_mebibytes=peak / (1 << 20))
