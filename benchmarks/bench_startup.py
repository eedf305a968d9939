"""What the smallest uses take: a process that only answers, and one that converts an image of 5 MB."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.measure import PARALAYER, run
from benchmarks.rounds import repeat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture


def test_help(benchmark: BenchmarkFixture) -> None:
    """Isolates the imports that the command line needs: neither numpy nor a decoder."""
    answer = repeat(benchmark, lambda: run([*PARALAYER, "--help"]), 10)
    assert "paralayer convert" in answer.output


def test_small_image(benchmark: BenchmarkFixture, make_layout: Callable[[str], Path], scratch: Path) -> None:
    """Isolates what does not depend on the image: imports, no workers, one output."""
    output = scratch / "output.tar"
    command: list[str | Path] = [*PARALAYER, "convert", "--quiet", make_layout("small-image"), output]
    repeat(benchmark, lambda: run(command), 10, setup=lambda: output.unlink(missing_ok=True))
    assert output.stat().st_size % 512 == 0
