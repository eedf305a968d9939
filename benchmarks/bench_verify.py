"""Verification: an image against its squashfs file, which both are read whole, beside the conversion itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.contest import JOBS
from benchmarks.rounds import note, repeat
from benchmarks.squashfs import SquashfsContest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture


@pytest.mark.parametrize("name", ["real", "small-files"])
def test_verify_finds_the_squashfs_and_its_image_the_same(
    benchmark: BenchmarkFixture, make_layout: Callable[[str], Path], scratch: Path, name: str
) -> None:
    """Isolates nothing: what a user waits for."""
    contest = SquashfsContest(make_layout(name), scratch)

    def convert() -> None:
        contest.runs.setdefault("jobs N", []).append(contest.convert(JOBS))

    def verify() -> None:
        contest.runs.setdefault("verify", []).append(contest.verify())

    repeat(benchmark, verify, setup=convert, teardown=contest.check)
    note(benchmark, to_conversion=contest.ratio("verify", "jobs N"))
