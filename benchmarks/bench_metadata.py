"""The metadata of a squashfs alone: the rows of what survives in, inodes, directories and tables out, in one process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from benchmarks.rounds import median_seconds, note, repeat
from benchmarks.survivors import ENTRIES, pack, paths_of, survivors_of

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture


# Batches come in the order of the tree or, where several layers have something in a directory, they do not.
@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("mixed", [False, True], ids=["apart", "mixed"])
def test_metadata_has_all_paths(benchmark: BenchmarkFixture, scale: float, *, mixed: bool) -> None:
    """Isolates what only one process can do, most of it when all data is there."""
    survivors = survivors_of(max(4000, int(ENTRIES * scale)), mixed=mixed)
    image = repeat(benchmark, lambda: pack(survivors))
    assert paths_of(image) == survivors.paths
    if (seconds := median_seconds(benchmark)) is not None:
        note(benchmark, microseconds_per_entry=seconds / survivors.entries * 1e6)
