"""The order of fetching, with everything that happens to it played through in one thread."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paralayer.registry.segments import CHUNK, SMALLEST_SEGMENT, Segment, Segments

if TYPE_CHECKING:
    from collections.abc import Callable

KIB = 1 << 10


@dataclass
class Reader:
    """Reads a blob in steps of `step` bytes, once it was started."""

    size: int
    step: int
    consumed: int = 0
    wanted: int | None = None
    started: bool = False

    def read(self, prefix: int) -> bool:
        """Consume one step if that is there, else wait for it; say whether it got on."""
        upto = self.consumed + self.step
        if not self.started or self.consumed == self.size:
            return False
        if prefix < min(upto, self.size):
            moved, self.wanted = self.wanted != upto, upto
            return moved
        self.consumed, self.wanted = min(upto, self.size), None
        return True


class Play:
    """Connections, a registry and readers, each of which moves when it is told."""

    def __init__(
        self, sizes: list[int], *, connections: int, lead: int | None, jobs: int, ranges: bool, step: int
    ) -> None:
        self.connections, self.lead, self.ranges, self.jobs = connections, lead, ranges, jobs
        self.segments = Segments(connections=connections, lead=lead)
        self.readers = [Reader(size, step) for size in sizes]
        self.numbers = [self.segments.add(size, [(0, size)] if size else []) for size in sizes]
        self.flights: list[Segment] = []
        self.answered: set[int] = set()
        self.fetched = [[] for _ in sizes]  # type: list[list[tuple[int, int]]]
        self.disturbed = False

    def start_reader(self, number: int) -> bool:
        busy = sum(reader.started and reader.consumed < reader.size for reader in self.readers)
        if self.readers[number].started or busy >= self.jobs:
            return False
        self.readers[number].started = True
        return True

    def read(self, number: int) -> bool:
        return self.readers[number].read(self.segments.prefix(number))

    def connect(self) -> bool:
        if len(self.flights) == self.connections:
            return False
        segment = self.segments.take(self.readers)
        if segment is None:
            return False
        assert segment.at < segment.stop
        self.flights.append(segment)
        return True

    def receive(self, index: int, count: int) -> bool:
        """Let some bytes of a flight arrive; its first move is the registry's answer."""
        if index >= len(self.flights):
            return False
        segment = self.flights[index]
        size = self.readers[segment.blob].size
        if id(segment) not in self.answered:
            self.answered.add(id(segment))
            if not segment.whole and (segment.at, segment.stop) != (0, size):
                if self.ranges:
                    self.segments.ranged(segment)
                elif not self.segments.not_ranged(segment):
                    self.drop(index)
            return True
        if not self.segments.may_receive(segment, self.readers):
            if self.segments.is_in_the_way(self.readers):
                self.give_back(index)
                return True
            return False
        upto = min(segment.at + count, segment.granted, segment.stop)
        self.fetched[segment.blob].append((segment.at, upto))
        self.segments.arrived(segment, upto)
        if upto == segment.stop:
            self.drop(index)
        return True

    def give_back(self, index: int) -> bool:
        if index >= len(self.flights):
            return False
        self.segments.give_back(self.flights[index])
        self.drop(index)
        return True

    def drop(self, index: int) -> None:
        self.answered.discard(id(self.flights.pop(index)))

    def held(self) -> int:
        stored = sum(stop - start for parts in self.fetched for start, stop in parts)
        return stored - sum(reader.consumed for reader in self.readers)

    def check(self) -> None:
        for number, parts in enumerate(self.fetched):
            reach = 0
            for start, stop in sorted(parts):
                assert start >= reach, "a byte was stored twice"
                reach = stop
            prefix = self.segments.prefix(number)
            assert self.readers[number].consumed <= prefix
            covered = 0
            for start, stop in sorted(parts):
                covered = stop if start == covered else covered
            assert prefix == covered
        if self.lead is not None and self.ranges:
            waited = self.jobs * (SMALLEST_SEGMENT + max(r.step for r in self.readers))
            segment = max(SMALLEST_SEGMENT, self.lead // (2 * self.connections))
            assert self.held() <= self.lead + waited + self.jobs * segment

    def run(self, chance: Random, breaks: int) -> None:
        """Go on by chance until everything is read; so many flights break. Something can always move."""
        while not all(
            self.segments.is_complete(n) and r.consumed == r.size for n, r in enumerate(self.readers)
        ):
            moves: list[Callable[[], bool]] = [partial(self.start_reader, n) for n in self.numbers]
            moves += [partial(self.read, n) for n in self.numbers]
            moves += [self.connect] * self.connections
            moves += [partial(self.receive, i, chance.choice([1, CHUNK])) for i in range(self.connections)]
            chance.shuffle(moves)
            moved = False
            for move in moves[: chance.randint(1, len(moves))]:
                moved = move() or moved
                self.check()
            if not moved:
                assert any(move() for move in moves), "nothing can move"
            if breaks and chance.random() < 0.1:
                breaks -= 1
                self.give_back(chance.randrange(self.connections))


@pytest.mark.parametrize("ranges", [True, False])
@given(
    # None of them so small that it is all the same how it is fetched, as those that hypothesis prefers.
    sizes=st.lists(
        st.sampled_from([0, 1, 300 * KIB, 700 * KIB + 1, 1500 * KIB, 3000 * KIB]), min_size=1, max_size=4
    ),
    connections=st.integers(1, 4),
    lead=st.sampled_from([0, 400 * KIB, 1000 * KIB, 3000 * KIB, None]),
    jobs=st.integers(1, 3),
    step=st.sampled_from([50_000, 600_000]),
    breaks=st.integers(0, 5),
    seed=st.integers(0, 1 << 32),
)
def test_every_byte_is_stored_once_in_bounded_memory_and_nothing_ever_stands_still(
    ranges: bool,
    sizes: list[int],
    connections: int,
    lead: int | None,
    jobs: int,
    step: int,
    breaks: int,
    seed: int,
) -> None:
    play = Play(sizes, connections=connections, lead=lead, jobs=jobs, ranges=ranges, step=step)
    play.run(Random(seed), breaks)


def taken(segments: Segments, sizes: list[int]) -> list[tuple[int, int, int]]:
    """Return blob, start and stop of everything that idle readers leave room for."""
    readers = [Reader(size, 1) for size in sizes]
    found = []
    while segment := segments.take(readers):
        found.append((segment.blob, segment.at, segment.stop))
        if not segment.whole:
            segments.ranged(segment)
        segments.arrived(segment, segment.stop)
    return found


MIB = 1 << 20

ORDERS: dict[str, tuple[list[int], int | None, list[tuple[int, int, int]]]] = {
    "small blobs whole, in order": ([3, 5, 0, 7], None, [(0, 0, 3), (1, 0, 5), (3, 0, 7)]),
    "no room for the second": (
        [300 * KIB, 300 * KIB],
        400 * KIB,
        [(0, 0, 256 * KIB), (0, 256 * KIB, 300 * KIB)],
    ),
    "shorter towards the end": (
        [40 * MIB],
        None,
        [(0, 0, 10 * MIB), (0, 10 * MIB, 35 * MIB // 2), (0, 35 * MIB // 2, 185 * MIB // 8)],
    ),
    "never longer than 16 MiB": ([200 * MIB], None, [(0, 0, 16 * MIB), (0, 16 * MIB, 32 * MIB)]),
    "nothing overtakes what has no room": ([300 * KIB, 1], 200 * KIB, []),
}


@pytest.mark.parametrize(("sizes", "lead", "want"), ORDERS.values(), ids=ORDERS.keys())
def test_blobs_are_taken_in_order(
    sizes: list[int], lead: int | None, want: list[tuple[int, int, int]]
) -> None:
    segments = Segments(connections=2, lead=lead)
    for size in sizes:
        segments.add(size, [(0, size)] if size else [])
    got = taken(segments, sizes)
    assert (got if lead is not None else got[: len(want)]) == want


def test_what_is_consumed_makes_room() -> None:
    segments = Segments(connections=1, lead=300 * KIB)
    sizes = [200 * KIB, 200 * KIB]
    for size in sizes:
        segments.add(size, [(0, size)])
    assert taken(segments, sizes) == [(0, 0, 200 * KIB)]
    readers = [Reader(sizes[0], 1, consumed=99 * KIB), Reader(sizes[1], 1)]
    assert segments.take(readers) is None
    readers[0].consumed = 100 * KIB
    assert segments.take(readers) is not None


def test_only_what_is_missing_is_taken() -> None:
    segments = Segments(connections=2, lead=None)
    segments.add(100, [(10, 20), (90, 100)])
    assert taken(segments, [100]) == [(0, 10, 20), (0, 90, 100)]
    assert segments.is_complete(0)


def test_a_blob_that_another_fetches_is_left_to_it_until_it_gives_up() -> None:
    segments = Segments(connections=2, lead=None)
    segments.add(100, [(0, 100)], here=False)
    segments.add(5, [(0, 5)])
    assert not taken(Segments(connections=1, lead=None), [])
    assert taken(segments, [100, 5]) == [(1, 0, 5)]
    segments.update(0, [(40, 100)], here=False)
    assert segments.prefix(0) == 40
    assert not segments.pending
    segments.update(0, [(60, 100)], here=True)
    assert taken(segments, [100, 5]) == [(0, 60, 100)]


def test_a_blob_that_is_needed_again_comes_before_all_others() -> None:
    segments = Segments(connections=2, lead=None)
    segments.add(5, [(0, 5)])
    segments.add(6, [(0, 6)], first=True)
    assert taken(segments, [5, 6]) == [(1, 0, 6), (0, 0, 5)]


def test_one_connection_alone_tries_whether_the_registry_has_ranges() -> None:
    segments = Segments(connections=4, lead=None)
    size = 100 * MIB
    segments.add(size, [(0, size)])
    segments.add(7, [(0, 7)])
    readers = [Reader(size, 1), Reader(7, 1)]
    probe, small = segments.take(readers), segments.take(readers)
    assert probe is not None
    assert small is not None
    assert [probe.blob, small.blob] == [0, 1]
    assert segments.take(readers) is None
    assert segments.not_ranged(probe)
    assert (probe.at, probe.stop, probe.whole) == (0, size, True)
    assert segments.take(readers) is None


def test_a_blob_of_which_ranges_came_is_fetched_whole_when_no_more_of_them_come() -> None:
    segments = Segments(connections=4, lead=None)
    size = 100 * MIB
    segments.add(size, [(0, size)])
    readers = [Reader(size, 1)]
    first = segments.take(readers)
    assert first is not None
    segments.ranged(first)
    second, third = segments.take(readers), segments.take(readers)
    assert second is not None
    assert third is not None
    assert not segments.not_ranged(second)
    assert segments.take(readers) is None
    segments.give_back(first)
    assert segments.not_ranged(third)
    assert (third.at, third.stop, third.whole) == (0, size, True)
    assert not segments.pending


def test_a_flight_of_a_whole_blob_makes_way_for_a_reader_for_which_nobody_fetches() -> None:
    segments = Segments(connections=1, lead=0)
    sizes = [100 * MIB, 100 * MIB]
    for size in sizes:
        segments.add(size, [(0, size)])
    readers = [Reader(size, 1) for size in sizes]
    readers[0].wanted = 1
    flight = segments.take(readers)
    assert flight is not None
    assert segments.not_ranged(flight)
    segments.arrived(flight, flight.granted)
    readers[0].wanted = None
    assert not segments.may_receive(flight, readers)
    assert not segments.is_in_the_way(readers)
    readers[1].wanted = 1
    assert segments.is_in_the_way(readers)
    reached = flight.at
    segments.give_back(flight)
    other = segments.take(readers)
    assert other is not None
    assert (other.blob, other.at, other.whole) == (1, 0, True)
    readers[0].wanted = reached + 1
    again = segments.take(readers)
    assert again is not None
    assert (again.blob, again.at, again.stop, again.whole) == (0, reached, sizes[0], True)
