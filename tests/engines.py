"""Conversions as `paralayer.convert` does them, but with worker processes whatever the image's size."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

from paralayer.engine.arrivals import Arrivals
from paralayer.engine.conversion import Conversion, Counts
from paralayer.engine.pool import Pool
from paralayer.engine.serial import Serial
from paralayer.image import open_image
from paralayer.overlay import OverturnedError
from paralayer.survivors import Rules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paralayer.engine.serial import Executor
    from paralayer.sinks.sink import Sink

UNLIMITED = 1 << 40


class Engines:
    """Executors that serve all examples of a test; one that an error has left is replaced."""

    def __init__(self) -> None:
        self._pools: dict[int, Pool] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextmanager
    def __call__(self, jobs: int) -> Iterator[Executor]:
        """Give an executor: for one job the serial reference, else worker processes."""
        if jobs == 1:
            with Serial() as serial:
                yield serial
            return
        pool = self._pools.get(jobs)
        if pool is None:
            pool = self._pools[jobs] = self._stack.enter_context(Pool(jobs))
        try:
            yield pool
        except BaseException:
            self._pools.pop(jobs).__exit__(None, None, None)
            raise


def run(
    layout: str,
    sink: Sink,
    engines: Engines,
    *,
    jobs: int = 1,
    memory: int = UNLIMITED,
    rules: Rules | None = None,
) -> tuple[Counts, bool]:
    """Convert; return what was done, and whether it was begun again."""
    rules = rules or Rules()
    layers = open_image(layout).layers
    restarted = False

    def attempt(*, early: bool) -> Counts:
        with engines(jobs) as executor, Arrivals.of(layers) as arrivals:
            return Conversion(arrivals, sink, executor, rules, memory=memory, jobs=jobs, early=early).run()

    with ExitStack() as stack:
        stack.callback(sink.close)
        stack.callback(sink.abort)
        try:
            counts = attempt(early=True)
        except OverturnedError:
            restarted = True
            sink.restart()
            counts = attempt(early=False)
        sink.complete()
        sink.commit()
    return counts, restarted
