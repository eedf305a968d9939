"""What the benchmarks use of pytest-benchmark, with types."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

Result = TypeVar("Result")


def repeat(
    benchmark: BenchmarkFixture,
    function: Callable[[], Result],
    rounds: int = 5,
    *,
    setup: Callable[[], object] | None = None,
    teardown: Callable[[], object] | None = None,
) -> Result:
    """Measure `function`, each round with what comes before and after unmeasured; return its last result.

    Once where nothing is measured.
    """

    def prepare() -> None:
        if setup is not None:
            setup()

    result: Result = benchmark.pedantic(  # type: ignore[no-untyped-call]
        function, setup=prepare, teardown=teardown, rounds=rounds
    )
    return result


def note(benchmark: BenchmarkFixture, **figures: float) -> None:
    """Put figures beside the measurement."""
    benchmark.extra_info.update({name: round(figure, 2) for name, figure in figures.items()})


def median_seconds(benchmark: BenchmarkFixture) -> float | None:
    """Return the median of the rounds; None where nothing was measured."""
    return None if benchmark.stats is None else float(benchmark.stats.stats.median)
