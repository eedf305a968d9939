"""Which bytes of which blob a connection fetches next: decisions only, without threads, sockets or clocks.

Guarantees, where nothing fails: every byte is taken once; what was taken and not consumed yet is at most `lead`, and
one segment (and what its reader asked for at once) for each reader that waits. A byte that a reader waits for can be
taken whatever the room, so nothing deadlocks as long as readers go on and a connection is free. A registry without
ranges makes an exception of all three: a flight that has the whole blob to fetch may have to wait for room, and is
given up, to be fetched again from its start, when another reader needs its connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer.registry.cache import Range

SEGMENT = 16 << 20
_SHORTEST = 1 << 20
"""Of segments that are short only because the end is near: shorter ones would cost more by their round trip."""
SMALLEST_SEGMENT = 256 << 10
"""Of segments that are short because of the lead."""
CHUNK = 1 << 20
"""Bytes that are stored at once; a whole blob gets room in these."""


class Reader(Protocol):
    """How far the reader of a blob is."""

    @property
    def consumed(self) -> int:
        """What is before this offset takes no room any more."""

    @property
    def wanted(self) -> int | None:
        """The reader waits for what is before this offset, which may lie behind the end."""


@dataclass(slots=True, eq=False)
class Segment:
    """A part of a blob that a connection has taken."""

    blob: int
    at: int
    """The offset of the next byte that is to be stored."""
    stop: int
    granted: int
    """Before this offset there is room."""
    whole: bool
    """It is to be asked for without a range, so that everything before `at` comes again."""


@dataclass(slots=True)
class _Blob:
    size: int
    missing: list[Range]
    here: bool
    flights: list[Segment] = field(default_factory=list)


class Segments:
    """The blobs of a download. `lead` is in bytes over all of them, None for any number."""

    def __init__(self, *, connections: int, lead: int | None, limit: int = SEGMENT) -> None:
        self._connections = connections
        self._lead = lead
        self._limit = limit
        if lead is not None:
            self._limit = min(limit, max(SMALLEST_SEGMENT, lead // (2 * connections)))
        self._blobs: list[_Blob] = []
        self._order: list[int] = []
        self._ranges: bool | None = None
        self._probe: Segment | None = None

    def add(self, size: int, missing: list[Range], *, here: bool = True, first: bool = False) -> int:
        """Add a blob behind all others, or before them; return its number. Not `here`: somebody else fetches it."""
        number = len(self._blobs)
        self._blobs.append(_Blob(size, missing, here))
        self._order.insert(0 if first else len(self._order), number)
        return number

    def update(self, number: int, missing: list[Range], *, here: bool) -> None:
        """Tell what somebody else has left of a blob, and whether the rest is to be fetched here."""
        self._blobs[number].missing = missing
        self._blobs[number].here = here

    @property
    def pending(self) -> bool:
        """Whether there is something left to be taken."""
        return any(blob.missing and blob.here for blob in self._blobs)

    def prefix(self, number: int) -> int:
        """Return before which offset all bytes of a blob are there."""
        blob = self._blobs[number]
        return min([start for start, _ in blob.missing[:1]] + [f.at for f in blob.flights] + [blob.size])

    def is_complete(self, number: int) -> bool:
        """Say whether all bytes of a blob are there."""
        return not self._blobs[number].missing and not self._blobs[number].flights

    def take(self, readers: Sequence[Reader]) -> Segment | None:
        """Return what a free connection has to fetch now, None if there is nothing, or no room.

        Blobs are served in order; when there is no room for the first of them, only those whose readers wait.
        """
        held = self._held(readers)
        full = False
        for number in self._order:
            blob = self._blobs[number]
            if not blob.here or not blob.missing or (cut := self._cut(blob)) is None:
                continue
            start, stop, whole = cut
            size = min(CHUNK, stop - start) if whole else stop - start
            fits = not full and (self._lead is None or held + size <= self._lead)
            if not fits and not _waits(readers[number], start):
                full = True
                continue
            segment = Segment(number, start, stop, start + size, whole=whole)
            if whole:
                blob.missing.clear()
            elif stop == blob.missing[0][1]:
                blob.missing.pop(0)
            else:
                blob.missing[0] = (stop, blob.missing[0][1])
            blob.flights.append(segment)
            if self._ranges is None and (start, stop) != (0, blob.size):
                self._probe = segment
            return segment
        return None

    def may_receive(self, segment: Segment, readers: Sequence[Reader]) -> bool:
        """Say whether there is room for the next bytes of a segment; true for all but whole blobs."""
        if segment.at < segment.granted:
            return True
        size = min(CHUNK, segment.stop - segment.at)
        if (
            self._lead is not None
            and not _waits(readers[segment.blob], segment.at)
            and self._held(readers) + size > self._lead
        ):
            return False
        segment.granted = segment.at + size
        return True

    def is_in_the_way(self, readers: Sequence[Reader]) -> bool:
        """Say whether a connection that has no room is needed by a reader for which nobody fetches."""
        return any(
            blob.here and blob.missing and _waits(reader, blob.missing[0][0])
            for blob, reader in zip(self._blobs, readers, strict=True)
        )

    def arrived(self, segment: Segment, upto: int) -> None:
        """Tell that a segment's bytes before this offset are stored."""
        segment.at = upto
        if upto == segment.stop:
            self._blobs[segment.blob].flights.remove(segment)
            self._forget(segment)

    def give_back(self, segment: Segment) -> None:
        """Tell that a connection does not go on with a segment; what has not arrived can be taken again."""
        blob = self._blobs[segment.blob]
        blob.flights.remove(segment)
        blob.missing = sorted([*blob.missing, (segment.at, segment.stop)])
        self._forget(segment)

    def ranged(self, segment: Segment) -> None:
        """Tell that the registry answered with the range that it was asked for."""
        if self._ranges is None:
            self._ranges = True
        self._forget(segment)

    def not_ranged(self, segment: Segment) -> bool:
        """Tell that the registry answered with the whole blob; say whether the segment is all of that from now on.

        It is not while other connections are at the same blob; then it is given back, and the blob waits for them.
        """
        self._ranges = False
        self._forget(segment)
        blob = self._blobs[segment.blob]
        if len(blob.flights) > 1:
            self.give_back(segment)
            return False
        segment.at = min([segment.at] + [start for start, _ in blob.missing[:1]])
        segment.stop, segment.whole = blob.size, True
        blob.missing.clear()
        return True

    def _forget(self, probe: Segment) -> None:
        if self._probe is probe:
            self._probe = None

    def _cut(self, blob: _Blob) -> tuple[int, int, bool] | None:
        """Return start and stop of what would be taken of a blob, and whether without a range.

        Before it is known whether the registry has ranges, one connection alone tries it. Segments are shorter
        towards the end, so that all connections come to it at the same time, and readers do not wait for one of many
        bytes.
        """
        start, stop = blob.missing[0]
        if (start, stop) == (0, blob.size) and blob.size <= self._limit:
            return start, stop, False
        if self._ranges is False:
            return None if blob.flights else (start, blob.size, True)
        if self._ranges is None and self._probe is not None:
            return None
        left = sum(stop - start for blob in self._blobs if blob.here for start, stop in blob.missing)
        share = max(left // (2 * self._connections), _SHORTEST)
        return start, min(stop, start + min(self._limit, share)), False

    def _held(self, readers: Sequence[Reader]) -> int:
        """Return how many bytes are taken, or granted to whole blobs, and not consumed."""
        if self._lead is None:
            return 0
        held = 0
        for blob, reader in zip(self._blobs, readers, strict=True):
            held += blob.size - reader.consumed
            held -= sum(stop - start for start, stop in blob.missing)
            held -= sum(flight.stop - flight.granted for flight in blob.flights)
        return held


def _waits(reader: Reader, offset: int) -> bool:
    return reader.wanted is not None and offset < reader.wanted
