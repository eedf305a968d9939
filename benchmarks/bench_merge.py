"""The merge alone: the entry tables of ten layers in, the rows of the survivors out, in one process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from benchmarks.rounds import median_seconds, note, repeat
from benchmarks.stacks import ENTRIES, merge, stack_of

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture


# Orderly layers, such as all common tools write, are walked row by row; others are applied onto the older ones.
@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("orderly", [True, False], ids=["orderly", "implied-parents"])
def test_merge_leaves_what_survives(benchmark: BenchmarkFixture, scale: float, *, orderly: bool) -> None:
    """Isolates tables → survivors: reading the tables, the overlay, gathering the rows."""
    with stack_of(max(4000, int(ENTRIES * scale)), orderly=orderly) as stack:
        assert [ordered for _, _, ordered in stack.tables[1:]] == [orderly] * 9
        paths = repeat(benchmark, lambda: merge(stack))
        assert len(paths) == len(stack.want)
        assert set(paths) == stack.want
        if (seconds := median_seconds(benchmark)) is not None:
            note(benchmark, microseconds_per_entry=seconds / stack.entries * 1e6)
