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
_MANY = 4  # grants; with little memory so much is never free, so that nothing is held beside the budget while it is freed


class Arena:
    """The memfd that all streams are in. Up to `total` bytes are granted, for so many jobs."""

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
        self.fd = os.memfd_create("arena", os.MFD_CLOEXEC)
        self._count = 0  # of slots
        self._free: list[int] = []  # the one that was used last is last: its pages are in the caches
        self._kept = total // _KEPT // self.slot  # of these
        self._empty: list[int] = []  # free ones without pages

    @property
    def present(self) -> int:
        """Bytes of the pages that are there."""
        return os.fstat(self.fd).st_blocks * 512

    def take(self) -> list[int]:
        """Return the slots of one grant."""
        count = self.unit // self.slot
        missing = count - len(self._free) - len(self._empty)
        if missing > 0:
            try:
                os.ftruncate(self.fd, (self._count + missing) * self.slot)
            except OSError as error:
                raise SinkError("memory", f"a memfd cannot grow: {error.strerror}") from None
            self._empty += reversed(range(self._count, self._count + missing))
            self._count += missing
        self.used += self.unit
        taken = [self._free.pop() for _ in range(min(count, len(self._free)))]
        return taken + [self._empty.pop() for _ in range(count - len(taken))]

    def free(self, numbers: list[int]) -> None:
        """Take slots back, in the order in which they were written."""
        self.used -= len(numbers) * self.slot
        self._free += numbers
        if len(self._free) > 2 * self._kept:
            cold = self._free[: -self._kept or None]
            del self._free[: len(cold)]
            self._empty += cold
            _free_pages(self.fd, self.slot, cold)

    def give_up(self) -> FreePages | None:
        """Return a job that frees the pages of free slots, if there are many: for when hardly any will be taken.

        They are never taken again, since nobody knows when the job is done with each.
        """
        if len(self._free) * self.slot < _MANY * self.unit:
            return None
        numbers, self._free = self._free, []
        return FreePages(self.slot, numbers)

    def close(self) -> None:
        """Free the memory."""
        os.close(self.fd)


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
        super().__init__(arena.fd, Slots(arena.slot))
        self._arena = arena
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
        numbers = arena.take()
        self.add(numbers)
        return numbers

    def release(self, upto: int) -> None:
        """Give back the slots before `upto`."""
        self.released = max(self.released, min(upto, self.granted))
        count = self.released // self._size - self._first
        if count > 0:
            self._arena.free(self._numbers[:count].tolist())
            del self._numbers[:count]
            self._first += count

    def trim(self) -> None:
        """Give back the slots that were not used, when all is decoded."""
        count = max(0, -(-self.decoded // self._size) - self._first)
        self._arena.free(self._numbers[count:].tolist())
        del self._numbers[count:]

    def close(self) -> None:
        """Give back everything; nobody may write or read any more."""
        self._arena.free(self._numbers.tolist())
        self._first += len(self._numbers)
        del self._numbers[:]
        self.released = self.granted
