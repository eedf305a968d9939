"""A directory, which all processes write: the whole command, beside its limit and beside `--jobs 1`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.contest import JOBS, Contest
from benchmarks.layouts import SHAPES

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

    benchmark.pedantic(convert, setup=compare, teardown=contest.check, rounds=5)
    benchmark.extra_info["times the limit"] = round(contest.ratio("jobs N", "limit"), 2)
    benchmark.extra_info["times as fast as --jobs 1"] = round(contest.ratio("jobs 1", "jobs N"), 2)
