"""One conversion: jobs out, events in, survivors to the sink.

Layers are decoded and indexed by jobs; each table goes to the overlay as it comes, and the survivors of every layer
that is resolved by then go to the sink in output order. Their data is taken from the layer's stream, which is
released behind it. The rules of memory:

- The *frontier* is the layer whose turn it is and that is not yet indexed. As far as it is orderly its survivors are
  known while it is decoded, so its bytes are taken as they come and released behind: it goes through a small window,
  always has room, and never waits for another layer.
- Any other layer that finds no room drops what it has and goes on indexing only. When it is resolved, and something
  of it survives, it is read a second time, through a window like the frontier's. (A sink that is ordered takes one
  layer at a time; only the one whose turn it is, is read again.)
- A layer that is still growing rather waits than drops, as long as the frontier gets on: whoever fills it is held back.

Nothing of this changes the output, only when its bytes are written. Two things are taken for granted while output
flows early: that the frontier stays orderly enough (see `paralayer.overlay`), and that the root's entry is where a
look at the layers' beginnings found it (where a sink needs the root first). When either turns out wrong, there is an
OverturnedError, and `paralayer.engine.attempts` begins again with a sink that has forgotten everything. For a sink that
cannot forget, every layer is indexed before the first byte is written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paralayer.changeset import Entries
from paralayer.engine.delivery import Delivery
from paralayer.engine.hiding import HidingPaths
from paralayer.engine.jobs import (
    BytesWanted,
    Decode,
    Event,
    Finished,
    Indexed,
    MemoryWanted,
    Waiting,
)
from paralayer.engine.memory import Arena, LayerStream
from paralayer.engine.peek import Beginnings
from paralayer.engine.plan import next_layer
from paralayer.engine.reading import Reading
from paralayer.engine.root import Root
from paralayer.errors import ImageError
from paralayer.overlay import Overlay, Survivors
from paralayer.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from paralayer.engine.arrivals import Arrivals
    from paralayer.engine.serial import Executor
    from paralayer.sinks.sink import Sink
    from paralayer.survivors import Rules


# A batch costs about a millisecond whatever its size; these make it a few percent of decoding.
_FLOW_ROWS = 2000
_FLOW_BYTES = 32 << 20
_MARGIN = 8  # a part of the memory: what a sink makes between two looks at what it holds


@dataclass(slots=True)
class Counts:
    """What a conversion did; bytes."""

    entries: int = 0
    survivors: int = 0
    decoded: int = 0
    second_readings: int = 0


class Conversion:
    """Converts the layers that arrive into `sink`. `check` is of blob digests, `check_diff_ids` of decoded streams."""

    def __init__(
        self,
        arrivals: Arrivals,
        sink: Sink,
        executor: Executor,
        rules: Rules,
        *,
        memory: int,
        jobs: int,
        check: bool = True,
        check_diff_ids: bool = False,
        early: bool = True,
        observe: Callable[[Event], None] = lambda _: None,
        finished: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.counts = Counts()
        self._arrivals = arrivals
        self._sink = sink
        self._executor = executor
        self._arena = Arena(memory - memory // _MARGIN, jobs)
        self._jobs = jobs
        self._check = check
        self._check_diff_ids = check_diff_ids
        self._early = early and sink.can_restart
        self._observe = observe
        self._overlay = Overlay(arrivals.count)
        self._hiding = HidingPaths()
        self._tables: list[Table | None] = [None] * arrivals.count
        self._readings: dict[int, Reading] = {}  # by layer: those that have come
        self._waiting: list[int] = []  # layers that have come and were not begun
        self._workers: dict[int, int] = {}  # job → worker
        self._decoding: dict[int, Reading] = {}  # by job
        self._blocked: dict[int, Reading] = {}  # by job: waits for memory
        self._starved: dict[int, tuple[Reading, int]] = {}  # by job: waits for so many bytes
        self._held: list[
            tuple[Survivors, bool]
        ] = []  # until the root is known; whether they complete their layer
        beginnings = Beginnings(arrivals, self._readings)
        self._root = Root(sink, self._overlay, beginnings, self._tables, rules, early=self._early)
        self._delivery = Delivery(sink, self._readings, self._tables, rules, finished)
        self._freeing: set[int] = set()  # jobs

    def run(self) -> Counts:
        """Do it; the sink is complete but for its commit."""
        self._executor.wake_by(self._arrivals.fd)
        self._arrivals.start()  # now: a process that has threads already cannot fork workers
        try:
            self._resolve()
            while True:
                self._arrive()
                self._schedule()
                self._unblock()
                if self._is_stuck() and self._guess_root():
                    continue
                delivery = self._delivery
                if len(self._readings) == self._arrivals.count and not (
                    self._waiting or self._decoding or delivery.packing or delivery.due or self._freeing
                ):
                    break
                # Workers first: each that waits for its next job or for memory is a core that does nothing.
                came = self._executor.wait(block=not self._delivery.due)
                if came is not None:
                    self._handle(*came)
                elif self._delivery.due:
                    idle = len(self._executor.idle) - len(self._delivery.packs)
                    self._delivery.take_some(spare=self._jobs > 1 and idle > 0)
        except ImageError:
            if self._arrivals.error is not None:  # it made the layers that arrive end early
                raise self._arrivals.error from None
            raise
        finally:
            self._executor.wake_by(None)
            for reading in self._readings.values():
                reading.close_stream()
                self._leave_blob(reading)
                if reading.table_fd is not None:
                    os.close(reading.table_fd)
                    reading.table_fd = None
            self._hiding.close()
            self._arena.close()
        assert not self._arena.used
        assert self._overlay.done
        self._root.finish()
        assert not any(reading.placed for reading in self._readings.values())
        self.counts.survivors = self._delivery.survivors + len(self._overlay.links)
        self._sink.links(self._overlay.links)
        return self.counts

    def stored(self) -> int:
        """Return the bytes in memory of decoded layers, and of what the sink has not written yet."""
        growing = [reading.growing for reading in self._readings.values() if reading.growing is not None]
        return self._arena.present + sum(part.present for part in growing) + self._sink.held

    # Layers and bytes in

    def _arrive(self) -> None:
        for layer in self._arrivals.take():
            self._readings[layer.index] = Reading(layer)
            self._waiting.append(layer.index)
            self._root.check_arrival(layer.index)
        for job, (reading, upto) in list(self._starved.items()):
            if reading.growing is not None and reading.growing.want(upto):
                del self._starved[job]
                self._root.check_arrival(reading.layer.index)
                self._executor.answer(job, None)

    # Jobs out

    def _schedule(self) -> None:
        delivery = self._delivery
        # Whoever waits for memory packs in the meantime; that is where memory comes from.
        for worker in sorted(self._executor.idle):
            if delivery.packs:
                job = delivery.packs.popleft()
                stream = self._readings[job.layer].stream
                fds = [*job.fds, self._arena.shards[0].fd if stream is None else stream.fd]
                delivery.packing[self._executor.submit(worker, job.job, fds)] = job
            elif worker in {self._workers[job] for job in self._blocked}:
                if self._overlay.turn in self._waiting:  # the frontier frees what the others wait for
                    self._waiting.remove(self._overlay.turn)
                    self._read(worker, self._readings[self._overlay.turn])
            elif layers := self._decodable(worker):
                layer = next_layer(self._waiting, self._arrivals.sizes, self._jobs)
                layer = layer if layer in layers else max(layers)
                self._waiting.remove(layer)
                self._read(worker, self._readings[layer])
            elif not delivery.due and (dropped := delivery.next_dropped()) is not None:
                self._read_again(worker, dropped)
            elif self._overlay.done and (given_up := self._arena.give_up()):
                # What is left is written by this process; freeing memory at the end would take it a tenth of a second.
                free, fd = given_up
                self._freeing.add(self._executor.submit(worker, free, [fd]))

    def _decodable(self, worker: int) -> list[int]:
        """Return the layers that a worker might begin: those of which there is enough, or whichever is its only one."""
        layers = [layer for layer in self._waiting if self._readings[layer].has_begun()]
        return layers or ([] if worker in self._workers.values() else self._waiting)

    def _read(self, worker: int, reading: Reading) -> None:
        layer = reading.layer
        stream = reading.stream = LayerStream(self._arena)
        reading.table_fd = os.memfd_create(f"table-{layer.index}", os.MFD_CLOEXEC)
        stream.grant(essential=False)
        check_diff_id = self._check_diff_ids or (self._check and layer.digest is None)
        job = Decode(
            layer.index,
            reading.where,
            layer.media_type,
            reading.blob,
            stream.slots(0, stream.granted),
            digest=layer.digest if self._check else None,
            diff_id=layer.diff_id if check_diff_id else None,
        )
        self._start(worker, reading, job, [stream.fd, reading.table_fd, self._hiding.fd])

    def _read_again(self, worker: int, reading: Reading) -> None:
        layer = reading.layer
        self.counts.second_readings += 1
        reading.window, reading.stale = True, False
        stream = reading.stream = LayerStream(self._arena)
        stream.grant(essential=True)
        job = Decode(
            layer.index,
            reading.where,
            layer.media_type,
            reading.blob,
            stream.slots(0, stream.granted),
            identity=reading.identity,
            until=self._delivery.end_of_need(reading),
        )
        self._start(worker, reading, job, [stream.fd])

    def _start(self, worker: int, reading: Reading, job: Decode, fds: Sequence[int]) -> None:
        blob = reading.growing
        if blob is not None:
            if blob.spent:
                assert blob.again is not None
                blob = blob.again()
                reading.layer = replace(reading.layer, blob=blob)
                self._arrivals.renew(reading.layer)
            blob.follow()
            fds = [fds[0], blob.fd, blob.state_fd, *fds[1:]]
        number = self._executor.submit(worker, job, fds)
        reading.job = number
        self._workers[number] = worker
        self._decoding[number] = reading

    # Events in

    def _handle(self, job: int, event: Event) -> None:
        if job in self._freeing:
            self._freeing.remove(job)
            return
        if job in self._delivery.packing:
            assert isinstance(event, Finished)
            self._delivery.pack_finished(self._delivery.packing.pop(job), event)
            return
        reading = self._decoding[job]
        if isinstance(event, Finished):
            del self._decoding[job], self._workers[job]
            reading.job = None
            self._leave_blob(reading)
            self._delivery.release(reading)
            return
        if reading.growing is not None:
            reading.growing.consume(event.read)
        if reading.stream is not None:
            reading.stream.decoded = event.decoded
        self._observe(event)
        if isinstance(event, Indexed):
            reading.orderly, reading.length = event.orderly, event.length
            self._index(reading, event)
            return
        if reading.table_fd is not None:
            reading.orderly, reading.length = event.orderly, event.length
            reading.window = (
                reading.window and reading.orderly
            )  # else what comes is not resolved before its end
            self._flow(reading, now=isinstance(event, Waiting))
        if reading.window:
            self._delivery.take(reading)
        if isinstance(event, MemoryWanted):
            self._blocked[job] = reading
        elif isinstance(event, BytesWanted):
            self._starved[job] = reading, event.upto
            self._arrivals.wake()

    def _index(self, reading: Reading, event: Indexed) -> None:
        index = reading.layer.index
        assert reading.table_fd is not None
        reading.window = False  # all that is decoded is there
        if reading.stream is not None:
            reading.stream.trim()
        table = self._tables[index] = Table(reading.table_fd, event.length)
        os.close(reading.table_fd)
        reading.table_fd = None
        reading.identity = event.identity
        rows = table.rows
        self.counts.entries += len(rows)
        self.counts.decoded += event.decoded
        self._arrivals.sizes[index] = event.read
        paths, kinds = table.paths(), rows["kind"].tolist()
        if event.orderly:
            self._hiding.add(index, paths, kinds)
        reading.whole = event.whole
        reading.stale = not (event.whole or event.orderly)  # what is hidden is only known of orderly layers
        self._overlay.add(
            Entries(
                index,
                reading.where,
                event.orderly,
                paths,
                kinds,
                rows["parent"].tolist(),
                rows["target"].tolist(),
                lambda row: table.linkname(rows[row]),
            )
        )
        self._resolve()

    # Survivors to the sink

    def _resolve(self) -> None:
        self._held.extend((survivors, True) for survivors in self._overlay.resolve())
        self._root.check()
        if (self._held or self._overlay.done) and self._root.is_settled():
            self._deliver()
        if not self._overlay.done and self._overlay.turn in self._readings:
            self._flow(self._readings[self._overlay.turn], now=True)

    def _flow(self, reading: Reading, *, now: bool) -> None:
        """Resolve what is published of the frontier; unless it must be `now`, when there is enough to make it pay."""
        if not self._early or not reading.orderly or reading.layer.index != self._overlay.turn:
            return
        if reading.table_fd is None or reading.stream is None:
            return  # complete, or dropped before its turn came
        rows = reading.length.rows - reading.flowed.rows
        size = reading.stream.decoded - reading.flowed_bytes
        if not now and rows < _FLOW_ROWS and size < _FLOW_BYTES:
            return
        table = Table(reading.table_fd, reading.length, reading.flowed)
        reading.flowed, reading.flowed_bytes = reading.length, reading.stream.decoded
        index = reading.layer.index
        self._tables[index] = table
        kinds, parents = table.rows["kind"].tolist(), table.rows["parent"].tolist()
        self._held.append((self._overlay.advance(table.paths(), kinds, parents), False))
        if self._root.is_settled():
            reading.window = self._delivery.is_served_next(reading)
            self._deliver()
            self._delivery.take(reading)

    def _deliver(self) -> None:
        held, self._held = self._held, []
        self._delivery.place(held)

    def _guess_root(self) -> bool:
        """Let output start without looking at all layers; say whether that changes anything."""
        if not self._held or not self._root.guess():
            return False
        self._resolve()
        return True

    def _unblock(self) -> None:
        """Answer decoders that wait for memory, as far as there is some by now or none is to be expected."""
        if self._blocked:
            self._arena.elsewhere = self._sink.held + self._hiding.size
        for job, reading in list(self._blocked.items()):
            stream = reading.stream
            assert stream is not None
            if slots := stream.grant(essential=reading.window):
                self._executor.answer(job, slots)
            elif (
                reading.window
                or reading.jobs
                or self._delivery.due
                or self._delivery.packs
                or self._delivery.packing
                or (reading.grows and self._is_frontier_on_its_way())
            ):
                continue
            elif self._guess_root():
                return
            else:
                reading.close_stream()
                self._executor.answer(job, None)
            del self._blocked[job]

    def _is_stuck(self) -> bool:
        """Say whether nothing goes on before something arrives."""
        return not (
            self._delivery.due
            or self._delivery.packing
            or self._decoding.keys() - self._blocked.keys() - self._starved.keys()
        )

    def _is_frontier_on_its_way(self) -> bool:
        """Say whether the frontier will free memory, or is yet to come."""
        if self._overlay.done:
            return False
        frontier = self._readings.get(self._overlay.turn)
        return (
            frontier is None
            or frontier.layer.index in self._waiting
            or (frontier.job is not None and frontier.job not in self._blocked)
        )

    def _leave_blob(self, reading: Reading) -> None:
        if reading.growing is not None:
            reading.growing.leave()
