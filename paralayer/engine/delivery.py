"""Survivors to the sink: batches in output order, their data as far as it is there, and memory given back behind it.

A layer is delivered when all its survivors are placed and the sink needs none of its bytes any more. What a batch still
needs of a layer that was dropped waits for that layer's second reading.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from paralayer.survivors import Rules, gather

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from paralayer.engine.jobs import Finished
    from paralayer.engine.reading import Reading
    from paralayer.overlay import Survivors
    from paralayer.sinks.sink import Placed, Sink, SinkJob
    from paralayer.table import Table


class Delivery:
    """Gives survivors to `sink`. `readings` and `tables` are by layer, as they come; `finished` gets those delivered."""

    def __init__(
        self,
        sink: Sink,
        readings: Mapping[int, Reading],
        tables: Sequence[Table | None],
        rules: Rules,
        finished: Callable[[int], None],
    ) -> None:
        self.survivors = 0
        self.due: dict[int, None] = {}
        """Layers, in this order, of whose data there may be some to take."""
        self.packs: deque[SinkJob] = deque()
        """Jobs of the sink that no worker has yet."""
        self.packing: dict[int, SinkJob] = {}
        """Those that one has, by the job's number."""
        self._sink = sink
        self._readings = readings
        self._tables = tables
        self._rules = rules
        self._finished = finished
        self._order: deque[Placed] = deque()  # ordered sinks: batches in output order

    def place(self, held: Sequence[tuple[Survivors, bool]]) -> None:
        """Give the sink survivors, each with whether they complete their layer, and their data as far as it is there."""
        for survivors, complete in held:
            reading = self._readings[survivors.layer]
            reading.resolved = complete
            if survivors.paths:
                reading.stale = reading.stale or (survivors.moved and not reading.whole)
                self.survivors += len(survivors.paths)
                for batch in gather(survivors, self._tables, self._rules).ascending():
                    placed = self._sink.place(batch)
                    reading.placed.append(placed)
                    self._order.append(placed)
        for survivors, _ in held:
            self.take(self._readings[survivors.layer])

    def take(self, reading: Reading) -> None:
        """Let the sink take what is there of a layer's data, soon."""
        self.due[reading.layer.index] = None

    def take_some(self, *, spare: bool) -> None:
        """Let the sink take some of the data that is due; there is a worker with nothing to do, if there is one to `spare`."""
        reading = self._readings[next(iter(self.due))]
        del self.due[reading.layer.index]
        for placed in list(self._takers(reading)):
            needs = placed.needs
            if needs is not None and not reading.has(needs):
                continue  # to be read again
            stream = reading.stream
            upto = stream.decoded if stream is not None else 0
            for job in self._sink.take(placed, stream, upto, spare=spare):
                reading.jobs.append(job)
                self.packs.append(job)
            if placed.needs is None:
                reading.placed.remove(placed)
                self._order.remove(placed)
                if self._sink.ordered and self._order:
                    self.take(self._readings[self._order[0].layer])
            elif placed.needs != needs:
                self.take(reading)  # there may be more
        self.release(reading)

    def pack_finished(self, job: SinkJob, event: Finished) -> None:
        """Give the sink the result of a job."""
        for following in reversed(self._sink.finished(job, event.result)):
            self._readings[following.layer].jobs.append(following)
            self.packs.appendleft(following)
        if self._order:
            self.take(self._readings[self._order[0].layer])  # the sink may have had enough until now
        for reading in self._readings.values():
            if reading.jobs:
                reading.jobs = [unfinished for unfinished in reading.jobs if unfinished.begin is not None]
                self.release(reading)

    def release(self, reading: Reading) -> None:
        """Give back what nobody needs any more of a layer's decoded bytes."""
        stream = reading.stream
        idle = reading.job is None and not reading.jobs and reading.layer.index not in self.due
        if reading.resolved and idle and not reading.placed and not reading.finished:
            reading.finished = True
            self._finished(reading.layer.index)
        if stream is None or not (reading.resolved or reading.window):
            return
        served = self._served(reading) if reading.window else reading.placed
        needed = [placed.needs for placed in served if placed.needs is not None]
        needed = [needs for needs in needed if reading.has(needs)]  # others need a second reading
        # What a window has not had when it ends is read again.
        if idle and not any(needs < stream.decoded or not reading.window for needs in needed):
            reading.close_stream()
            return
        bounds = needed + [job.begin for job in reading.jobs if job.begin is not None]
        if reading.table_fd is not None:
            bounds.append(reading.flowed_bytes)  # data of entries that are not resolved yet comes behind
        stream.release(min([*bounds, stream.decoded]))

    # Second readings

    def next_dropped(self) -> Reading | None:
        """Return the next layer that must be read again, and can be."""
        for _, reading in sorted(self._readings.items(), reverse=True):
            if reading.job is not None or not self._takers(reading):
                continue
            if reading.window and not reading.jobs and not self.packing:
                reading.close_stream()  # it ended short of what is needed now, and that is not coming
            if reading.stream is None:
                return reading
        return None

    def end_of_need(self, reading: Reading) -> int:
        """Return where in a layer's stream that ends which one more reading of it serves."""
        return max(placed.until for placed in self._served(reading))

    def is_served_next(self, frontier: Reading) -> bool:
        """Say whether everything before the frontier can be taken without reading any layer again."""
        return not self._sink.ordered or all(
            placed.needs is None
            or placed.layer == frontier.layer.index
            or self._readings[placed.layer].has(placed.needs)
            for placed in self._order
        )

    def _takers(self, reading: Reading) -> list[Placed]:
        """Return the batches of a layer whose data can be taken now."""
        if self._sink.ordered:
            return [self._order[0]] if self._order and self._order[0] in reading.placed else []
        return reading.placed

    def _served(self, reading: Reading) -> list[Placed]:
        """Return the batches of a layer that get their data while it passes through a window once."""
        if not self._sink.ordered:
            return reading.placed
        served: list[Placed] = []
        for placed in reading.placed:
            if placed.needs is not None:
                if served and placed.needs < served[-1].until:
                    break
                served.append(placed)
        return served
