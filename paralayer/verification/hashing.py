"""Contents that lie in one file, a decoded layer or a tar archive, as pieces and holes: planned here, hashed by jobs."""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paralayer.engine.jobs import Finished, Run
from paralayer.errors import ImageError
from paralayer.verification.tree import DIGEST, PART, count_parts, digest_of_zeros

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from paralayer.engine.jobs import Job
    from paralayer.verification.tree import Node

HOLE = -1
_PIECE = struct.Struct("qq")
_COUNT = struct.Struct("I")

JOB_BYTES = 16 << 20
JOB_PARTS = 1024
"""Of a job: a message with that many digests or numbers is well below what a worker takes."""
_JOB_PIECES = 4096
_LARGE = 64 << 20  # bytes; larger files are hashed by several workers


@dataclass(slots=True)
class Part:
    """One part of a file's content, which is pieces: (offset, length), the offset HOLE for zeros."""

    node: Node
    number: int
    begin: int
    """Offset of the first stored byte."""
    end: int
    """Offset behind the last stored byte."""
    scattered: list[tuple[int, int]] | None = None
    """The pieces, unless they are one."""

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Return what there is between holes, and the holes."""
        return self.scattered or [(self.begin, self.end - self.begin)]


@dataclass(frozen=True, slots=True)
class Targets:
    """Which parts the digests of a job are of, in order: (node, number of the first part, how many parts)."""

    of: Sequence[tuple[Node, int, int]]

    def put(self, digests: bytes) -> None:
        """Take the job's result."""
        at = 0
        for node, first, count in self.of:
            size = count * DIGEST
            node.put(first, digests[at : at + size])
            at += size


@dataclass(slots=True)
class Task:
    """A job, the descriptors that it gets, and where its result, digests, goes."""

    job: Job
    fds: Sequence[int]
    targets: Targets
    size: int
    """Bytes of content, for the progress."""
    begin: int = 0
    """Offset of the first byte that it reads, where that matters."""
    owned: Sequence[int] = ()
    """Descriptors that are closed behind it."""


@dataclass(frozen=True, slots=True)
class HashPieces:
    """Job: hash parts of files. Descriptor, the last one: of what the pieces lie in, which `where` names."""

    where: str
    pieces: bytes
    counts: bytes  # pieces of each part

    def run(self, fds: Sequence[int]) -> Run:
        """See `Job`."""
        buffer = memoryview(bytearray(PART))
        pieces = _PIECE.iter_unpack(self.pieces)
        digests = [
            _digest([next(pieces) for _ in range(count)], fds[-1], buffer, self.where)
            for (count,) in _COUNT.iter_unpack(self.counts)
        ]
        yield Finished(b"".join(digests))


def spans_of(size: int) -> Iterator[tuple[int, int]]:
    """Yield (first part, the one behind the last) of a file, as many parts together as one job should do.

    Of a very large file those are more, since most of it must be holes.
    """
    count = count_parts(size)
    step = max(_LARGE // PART, min(JOB_PARTS, count // 64))
    for first in range(0, count, step):
        yield first, min(first + step, count)


def plan(node: Node, begin: int, extents: Iterable[tuple[int, int]] | None = None) -> Iterator[Part]:
    """Yield the parts of a file whose stored bytes begin at `begin`.

    `extents` are (offset in the file, length) of what is stored of a sparse one, in order; None: all of it is. The
    digests of holes are put in place at once.
    """
    if extents is None:
        if 0 < node.size <= PART:  # nearly all files
            yield Part(node, 0, begin, begin + node.size)
            return
        for number, offset in enumerate(range(0, node.size, PART)):
            length = min(PART, node.size - offset)
            yield Part(node, number, begin + offset, begin + offset + length)
        return
    number, pieces, filled = 0, list[tuple[int, int]](), 0
    for stored, length in _with_holes(begin, extents, node.size):
        at = 0
        while at < length:
            room = min(PART - filled, length - at)
            pieces.append((stored if stored == HOLE else stored + at, room))
            at += room
            filled += room
            if filled == PART:
                yield from _part(node, number, pieces)
                number, pieces, filled = number + 1, [], 0
    if filled:
        yield from _part(node, number, pieces)


def _with_holes(begin: int, extents: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset of the stored bytes or HOLE, length) for all of a sparse file."""
    at = 0
    for offset, length in extents:
        if offset > at:
            yield HOLE, offset - at
        yield begin, length
        begin += length
        at = offset + length
    if size > at:
        yield HOLE, size - at


def _part(node: Node, number: int, pieces: list[tuple[int, int]]) -> Iterator[Part]:
    stored = [(offset, length) for offset, length in pieces if offset != HOLE]
    if stored:
        yield Part(node, number, stored[0][0], sum(stored[-1]), pieces)
    else:
        node.put(number, digest_of_zeros(sum(length for _, length in pieces)))


def gather(parts: Iterable[Part], where: str, fd: int) -> Iterator[Task]:
    """Yield tasks for parts of the file `fd`, several in each; what is too scattered for a message is hashed here."""
    taken: list[Part] = []
    size = pieces = 0
    for part in parts:
        count = 1 if part.scattered is None else len(part.scattered)
        if count > _JOB_PIECES:
            digest = _digest(part.pieces, fd, memoryview(bytearray(PART)), where)
            part.node.put(part.number, digest)
            continue
        if taken and (
            pieces + len(part.pieces) > _JOB_PIECES or len(taken) == JOB_PARTS or size >= JOB_BYTES
        ):
            yield _task(taken, where, fd, size)
            taken, size, pieces = [], 0, 0
        taken.append(part)
        size += part.end - part.begin
        pieces += count
    if taken:
        yield _task(taken, where, fd, size)


def _task(parts: list[Part], where: str, fd: int, size: int) -> Task:
    pieces, counts = array("q"), array("I")
    for part in parts:
        for piece in part.pieces:
            pieces.extend(piece)
        counts.append(len(part.pieces))
    targets = Targets([(part.node, part.number, 1) for part in parts])
    job = HashPieces(where, pieces.tobytes(), counts.tobytes())
    return Task(job, [fd], targets, size, min(part.begin for part in parts))


def _digest(pieces: Sequence[tuple[int, int]], fd: int, buffer: memoryview, where: str) -> bytes:
    digest = hashlib.sha256()
    for offset, length in pieces:
        if offset == HOLE:
            digest.update(bytes(length))
            continue
        done = 0
        while done < length:
            got = os.preadv(fd, [buffer[: length - done]], offset + done)
            if not got:
                raise ImageError(where, "was cut while it was read")
            digest.update(buffer[:got])
            done += got
    return digest.digest()
