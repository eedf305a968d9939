"""A squashfs file: the whole command, beside what people do without it, and beside its limit."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from benchmarks.contest import JOBS, UMOCI
from benchmarks.rounds import note, repeat
from benchmarks.squashfs import PROGRAMS, SquashfsContest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

_LITTLE = ("--memory", "64M")


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
    contest = SquashfsContest(make_layout(name), scratch)

    def compare() -> None:
        contest.measure_limit()
        contest.measure_piped(program)

    def convert() -> None:
        contest.runs.setdefault("jobs N", []).append(contest.convert(JOBS))

    repeat(benchmark, convert, setup=compare, teardown=contest.check)
    note(
        benchmark,
        to_limit=contest.ratio("jobs N", "limit"),
        as_cpu_to_limit=contest.cpu_ratio("jobs N", "limit"),
        piped_to_ours=contest.ratio(f"piped {program}", "jobs N"),
        size_to_theirs=contest.size_ratio(program),
    )


@pytest.mark.skipif(not UMOCI, reason="missing: umoci")
@pytest.mark.parametrize("name", ["real", "small-files"])
def test_squashfs_and_umoci(
    benchmark: BenchmarkFixture,
    make_layout: Callable[[str], Path],
    scratch: Path,
    name: str,
    program: str,
) -> None:
    """Isolates nothing: what a user waits for, beside `umoci unpack` and mksquashfs, which take a minute."""
    contest = SquashfsContest(make_layout(name), scratch)

    def convert() -> None:
        contest.runs.setdefault("jobs N", []).append(contest.convert(JOBS))

    repeat(
        benchmark,
        convert,
        rounds=2,
        setup=lambda: contest.measure_unpacked([program]),
        teardown=contest.check,
    )
    note(benchmark, unpacked_to_ours=contest.ratio(f"unpacked {program}", "jobs N"))


@pytest.mark.parametrize("name", ["real", "small-files"])
def test_squashfs_with_little_memory(
    benchmark: BenchmarkFixture, make_layout: Callable[[str], Path], scratch: Path, name: str
) -> None:
    """Isolates the budget: the same conversion with 64 MiB, beside one with what the tool takes by itself."""
    contest = SquashfsContest(make_layout(name), scratch)

    def convert() -> None:
        contest.runs.setdefault("little", []).append(contest.convert(JOBS, *_LITTLE))

    repeat(benchmark, convert, setup=lambda: contest.measure("plenty", JOBS), teardown=contest.check)
    peak = contest.peak(JOBS, *_LITTLE)
    assert peak <= contest.bound(64 << 20) + contest.result["entries"] * 1024
    note(benchmark, to_plenty=contest.ratio("little", "plenty"), peak_mebibytes=peak / (1 << 20))
