"""Conversions from a registry on loopback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.registry import AVAILABLE, RegistryContest
from benchmarks.rounds import note, repeat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture


@pytest.mark.skipif(not AVAILABLE, reason="needs docker-registry and skopeo")
@pytest.mark.parametrize("format_", ["tar", "squashfs"])
def test_a_registry_gives_what_the_disk_gives(
    benchmark: BenchmarkFixture, make_layout: Callable[[str], Path], scratch: Path, format_: str
) -> None:
    """Isolates nothing: limited and unlimited downloads, beside the bare download and the conversion on disk."""
    with RegistryContest(make_layout("real"), format_, scratch).serve() as contest:
        repeat(benchmark, contest.measure)
        note(
            benchmark,
            limited=contest.limited_ratio(),
            unlimited=contest.contest.ratio("unlimited", "jobs N"),
        )
