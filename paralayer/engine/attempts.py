"""A conversion from its beginning, as often as it takes: once, or again with less taken for granted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paralayer.engine.conversion import Conversion, Counts
from paralayer.engine.plan import processes
from paralayer.engine.root import RootArrived
from paralayer.engine.serial import Serial
from paralayer.overlay import OverturnedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from paralayer.engine.arrivals import Arrivals
    from paralayer.engine.jobs import Event
    from paralayer.engine.peak import Peak
    from paralayer.engine.serial import Executor
    from paralayer.sinks.sink import Sink
    from paralayer.survivors import Rules


def convert_layers(
    arrivals: Arrivals,
    sink: Sink,
    rules: Rules,
    *,
    jobs: int,
    memory: int,
    check: bool = True,
    check_diff_ids: bool = False,
    peak: Peak | None = None,
    observe: Callable[[Event], None] = lambda _: None,
    finished: Callable[[int], None] = lambda _: None,
) -> Counts:
    """Convert the layers that arrive into `sink`, with so many jobs and bytes of memory; the sink is to be completed.

    `check` is of blob digests, `check_diff_ids` of decoded streams. `observe` gets every event of a decode job,
    `finished` the number of a layer of which nothing is needed any more.
    """
    workers = max(1, processes(jobs, arrivals.sizes))

    def attempt(*, early: bool) -> Counts:
        with open_executor(jobs, arrivals.sizes) as executor:
            conversion = Conversion(
                arrivals,
                sink,
                executor,
                rules,
                memory=memory,
                jobs=workers,
                check=check,
                check_diff_ids=check_diff_ids,
                early=early,
                observe=observe,
                finished=finished,
            )
            if peak is not None:
                peak.watch(executor.pids(), conversion.stored)
            return conversion.run()

    early = True
    while True:
        try:
            return attempt(early=early)
        except OverturnedError as error:
            sink.restart()
            rules.dropped.clear()
            arrivals.again()
            early = isinstance(error, RootArrived)


def open_executor(jobs: int, sizes: Sequence[int | None]) -> Executor:
    """Return what does the work on blobs, or whatever it is, of these sizes."""
    workers = processes(jobs, sizes)
    if not workers:
        return Serial()
    from paralayer.engine.pool import Pool

    return Pool(workers)
