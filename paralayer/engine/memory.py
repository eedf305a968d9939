"""The memory for decoded bytes, and the budget for it.

The budget counts the slots that decoders were granted and that have not been released, and what is held elsewhere of
what was made of them. It decides when bytes are dropped and read a second time, never what comes out.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paralayer.engine.jobs import Finished
from paralayer.errors import SinkError
from paralayer.growing import punch
from paralayer.stream import Slots, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from paralayer.engine.jobs import Run

_SMALLEST_SLOT = 64 << 10  # every layer has one that is not full
_KEPT = 16  # a part of the budget: pages that are kept for whoever comes next
_SLOTS_MAX = 8192  # in the budget: a job is told those of all that it reads
_SMALLEST_GRANT, _LARGEST_GRANT = 1 << 20, 32 << 20
_SHARDS_MAX = 16  # each is a descriptor of every process
_WRITERS = 2  # of a memfd: more would wait for each other, fewer have less free memory in common
_MANY, _MANY_BYTES = 4, 16 << 20
"""Grants, over all memfds, and bytes in one. With little memory so much is never free, so that nothing is held beside the
budget while it is freed."""


class Arena:
    """The memory that all streams are in. Up to `total` bytes are granted, for so many jobs.

    It is in several memfds, since the kernel lets one process at a time write to each: 2 GB/s to fresh pages and 5 to used
    ones in all, which a few decoders reach.
    """

    def __init__(self, total: int, jobs: int) -> None:
        self.total = total
        self.slot = _SMALLEST_SLOT
        while total // self.slot > _SLOTS_MAX:
            self.slot *= 2
        unit = max(_SMALLEST_GRANT, min(_LARGEST_GRANT, total // (4 * jobs)))
        self.unit = -(-unit // self.slot) * self.slot
        self.used = 0
        self.elsewhere = 0
        """Bytes of the budget that something else than slots has now."""
        count = min(-(-jobs // _WRITERS), _SHARDS_MAX)
        self.shards = [Shard(self.slot) for _ in range(count)]
        self._kept = total // _KEPT // self.slot  # free slots that keep their pages

    @property
    def present(self) -> int:
        """Bytes of the pages that are there."""
        return sum(os.fstat(shard.fd).st_blocks * 512 for shard in self.shards)

    def shard(self) -> Shard:
        """Return where one more stream is best written: where the fewest are, and of these, where the most is free."""
        return min(self.shards, key=lambda shard: (shard.writers, -len(shard.free)))

    def put(self, shard: Shard, numbers: list[int]) -> None:
        """Take slots of a shard back, in the order in which they were written."""
        self.used -= len(numbers) * self.slot
        shard.free += numbers
        free = sum(len(shard.free) for shard in self.shards)
        if free > 2 * self._kept:
            for cold in sorted(self.shards, key=lambda shard: -len(shard.free)):
                free -= cold.free_pages(free - self._kept)

    def give_up(self) -> tuple[FreePages, int] | None:
        """Return a job that frees the pages of free slots, and its descriptor, if there are many in one place.

        That is for when hardly any will be taken. These never are, since nobody knows when the job is done with each.
        """
        shard = max(self.shards, key=lambda shard: len(shard.free))
        if len(shard.free) * self.slot < max(_MANY_BYTES, _MANY * self.unit // len(self.shards)):
            return None
        numbers, shard.free = shard.free, []
        return FreePages(self.slot, numbers), shard.fd

    def close(self) -> None:
        """Free the memory."""
        for shard in self.shards:
            os.close(shard.fd)


class Shard:
    """One memfd, in slots."""

    def __init__(self, slot: int) -> None:
        self.fd = os.memfd_create("arena", os.MFD_CLOEXEC)
        self.writers = 0
        """Streams that are still written."""
        self.free: list[int] = []
        """Slots with pages; the one that was used last is last: its pages are in the caches."""
        self._empty: list[int] = []  # free ones without pages
        self._slot = slot
        self._count = 0  # of slots

    def take(self, count: int) -> list[int]:
        """Return so many slots."""
        missing = count - len(self.free) - len(self._empty)
        if missing > 0:
            try:
                os.ftruncate(self.fd, (self._count + missing) * self._slot)
            except OSError as error:
                raise SinkError("memory", f"a memfd cannot grow: {error.strerror}") from None
            self._empty += reversed(range(self._count, self._count + missing))
            self._count += missing
        taken = [self.free.pop() for _ in range(min(count, len(self.free)))]
        return taken + [self._empty.pop() for _ in range(count - len(taken))]

    def free_pages(self, most: int) -> int:
        """Free the pages of so many free slots, or of all; return how many those were."""
        cold = self.free[:most]
        del self.free[:most]
        self._empty += cold
        _free_pages(self.fd, self._slot, cold)
        return len(cold)


@dataclass(frozen=True, slots=True)
class FreePages:
    """Job: free the pages of slots that nobody uses any more. Descriptor: of the arena."""

    slot: int
    numbers: list[int]

    def run(self, fds: Sequence[int]) -> Run:
        """See `Job`."""
        _free_pages(fds[0], self.slot, self.numbers)
        yield Finished()


def _free_pages(fd: int, slot: int, numbers: list[int]) -> None:
    for first, last in _runs(sorted(numbers)):
        try:
            punch(fd, first * slot, (last + 1 - first) * slot)
        except OSError as error:
            raise SinkError("memory", f"a memfd cannot be released: {error.strerror}") from None


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of numbers that follow one another."""
    first = 0
    for index, number in enumerate(numbers):
        if index + 1 == len(numbers) or numbers[index + 1] != number + 1:
            yield numbers[first], number
            first = index + 1


class LayerStream(Stream):
    """The decoded bytes of one layer: `decoded` of them have been written, those before `released` are gone again."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._shard = arena.shard()
        self._shard.writers += 1
        self._writes = True
        super().__init__(self._shard.fd, Slots(arena.slot))
        self.decoded = 0
        self.released = 0

    def grant(self, *, essential: bool) -> list[int] | None:
        """Grow by one grant, if there is room; return its slots.

        An essential stream, whose bytes are released as they come, always has room for one grant, which the others leave:
        it would wait for ever otherwise.
        """
        arena = self._arena
        held = self.granted - self.released
        room = arena.total - arena.elsewhere - (0 if essential else arena.unit)
        if arena.used + arena.unit > room and not (essential and held < arena.unit):
            return None
        numbers = self._shard.take(arena.unit // arena.slot)
        arena.used += arena.unit
        self.add(numbers)
        return numbers

    def release(self, upto: int) -> None:
        """Give back the slots before `upto`."""
        self.released = max(self.released, min(upto, self.granted))
        count = self.released // self._size - self._first
        if count > 0:
            self._arena.put(self._shard, self._numbers[:count].tolist())
            del self._numbers[:count]
            self._first += count

    def trim(self) -> None:
        """Give back the slots that were not used, when all is decoded."""
        self._end_writing()
        count = max(0, -(-self.decoded // self._size) - self._first)
        self._arena.put(self._shard, self._numbers[count:].tolist())
        del self._numbers[count:]

    def close(self) -> None:
        """Give back everything; nobody may write or read any more."""
        self._end_writing()
        self._arena.put(self._shard, self._numbers.tolist())
        self._first += len(self._numbers)
        del self._numbers[:]
        self.released = self.granted

    def _end_writing(self) -> None:
        self._shard.writers -= self._writes
        self._writes = False
