"""A directory, which all processes write: the whole command, beside its limit and beside `--jobs 1`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.contest import JOBS, Contest
from benchmarks.layouts import SHAPES
from benchmarks.rounds import note, repeat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture


@pytest.mark.parametrize("name", SHAPES)
def test_directory(
    benchmark: BenchmarkFixture, make_layout: Callable[[str], Path], scratch: Path, name: str
) -> None:
    """Isolates nothing: what a user waits for. The limit is the CPU time of decoding the blobs and extracting the flat tar, over the jobs."""
    contest = Contest(make_layout(name), "directory", scratch)

    def compare() -> None:
        contest.measure_limit()
        contest.measure("jobs 1", 1)

    def convert() -> None:
        contest.runs.setdefault("jobs N", []).append(contest.convert(JOBS))

    repeat(benchmark, convert, setup=compare, teardown=contest.check)
    note(benchmark, to_limit=contest.ratio("jobs N", "limit"), to_one_job=contest.ratio("jobs N", "jobs 1"))
