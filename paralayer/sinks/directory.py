"""The directory sink: the tree itself, written by all workers.

The merger makes the directories, in output order; workers make everything else. No write leaves the output or goes
through a link from the image: every parent of a path is a directory that was made here, by mkdir, before anything in
it, and nothing is ever replaced or renamed, so no component of any path can be a symlink. Hard links come when all
files are there; then directories get their metadata, children before parents, since a mode can close a directory.

Without privileges owners stay as they are, and devices and attributes that need them are left out; each kind of loss
is counted. The tree is not synced to disk file by file.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from paralayer.engine.jobs import Finished, Job, Run
from paralayer.sinks.making import Maker
from paralayer.sinks.output import Output
from paralayer.sinks.window import LARGE
from paralayer.stream import Slots, Stream
from paralayer.survivors import Batch, Rules, write_table
from paralayer.table import BLOCK, CHAR, DIRECTORY, FILE, Length, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer.sinks.sink import Placed, SinkJob

_JOB_FILES = 256
_JOB_BYTES = 16 << 20
_LARGE = 64 << 20  # files from here on are written in parts, by several workers
_NOWHERE = 1 << 63  # in a stream, for what needs nothing of it


@dataclass(frozen=True, slots=True)
class WriteFiles:
    """Job: make rows `start` to `stop` of a batch, none of them a directory.

    Descriptors: of the output, of the batch's table, of the arena. The result is a Counter of what was lost.
    """

    name: str
    part: tuple[Length, Length]  # of the batch's table, with all of the rows
    start: int
    stop: int
    skipped: tuple[int, ...]  # rows that are written in parts
    slots: Slots

    def run(self, fds: Sequence[int]) -> Run:
        """See `Job`."""
        top, table_fd, arena = fds
        stream = Stream(arena, self.slots)
        before, after = self.part
        table = Table(table_fd, after, before)
        rules = Rules()
        rows = table.rows.copy()
        small = rows[self.start - before.rows : self.stop - before.rows]
        small = small[(small["stored"] > 0) & (small["stored"] < LARGE)]
        maker = Maker(top, self.name, int((small["data"] + small["stored"]).max(initial=0)))
        rows["layer"] = 0  # one table has the extra bytes of all of them
        batch = Batch(0, rows, table.paths(), [table], rules)
        kinds = rows["kind"].tolist()
        with maker:
            for row in range(self.start, self.stop):
                if row not in self.skipped and kinds[row - before.rows] != DIRECTORY:
                    maker.make(batch, row - before.rows, stream)
        yield Finished(maker.lost + rules.dropped)


@dataclass(frozen=True, slots=True)
class WritePart:
    """Job: copy a part of the stream into a file that is there."""

    name: str
    path: bytes
    begin: int
    length: int
    at: int  # in the file
    slots: Slots

    def run(self, fds: Sequence[int]) -> Run:
        """See `Job`."""
        top, arena = fds
        with Maker(top, self.name) as maker:
            fd = maker.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.lseek(fd, self.at, os.SEEK_SET)
                Stream(arena, self.slots).send(fd, self.begin, self.begin + self.length)
            finally:
                os.close(fd)
        yield Finished(Counter[str]())


@dataclass(slots=True, eq=False)
class _Part:
    """See `SinkJob`."""

    job: Job
    layer: int
    begin: int | None
    fds: Sequence[int]
    placed: _DirectoryBatch


@dataclass(slots=True, eq=False)
class _DirectoryBatch:
    """A placed batch: the first `index` rows, and `done` bytes of the next one, are in jobs."""

    layer: int
    needs: int | None
    until: int
    batch: Batch
    table_fd: int
    lengths: list[Length]  # of the table, every _JOB_FILES rows and at its end
    kinds: list[int]
    data: list[int]
    stored: list[int]
    index: int = 0
    done: int = 0
    jobs: int = 0
    in_parts: list[int] = field(default_factory=list)


class DirectorySink:
    """See the module."""

    ordered = False
    root_first = False
    can_restart = True
    held = 0

    def __init__(self, path: str, *, replace: bool = False) -> None:
        self._output = Output(path, replace=replace, directory=True)
        self.temporary = self._output.temporary
        self._name = path
        self._open: set[int] = set()  # tables of batches
        self._begin()

    def _begin(self) -> None:
        os.mkdir(self._output.temporary, 0o700)
        self._top = os.open(self._output.temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for inherited in ("system.posix_acl_access", "system.posix_acl_default"):
            with contextlib.suppress(OSError):  # there is none, or the file system knows none
                os.removexattr(self._top, inherited)
        self._maker = Maker(self._top, self._name)
        self._late: list[
            tuple[Batch, list[int]]
        ] = []  # directories and large files: metadata come at the end
        self._devices: set[bytes] = set()
        self._links: Sequence[tuple[bytes, bytes]] = ()
        self._root: Batch | None = None
        self.lost: Counter[str] = Counter()
        self.written = 0

    def restart(self) -> None:
        """See `Sink`."""
        self.close()
        self._output.abort()
        self._begin()

    def root(self, batch: Batch, *, explicit: bool) -> None:
        """See `Sink`."""
        del explicit
        self._root = batch

    def place(self, batch: Batch) -> _DirectoryBatch:
        """See `Sink`."""
        rows = batch.rows
        directories = np.flatnonzero(rows["kind"] == DIRECTORY).tolist()
        with self._maker:
            for index in directories:
                self._maker.make_directory(batch.paths[index])
        self._late.append((batch, directories))
        devices = np.flatnonzero((rows["kind"] == CHAR) | (rows["kind"] == BLOCK)).tolist()
        self._devices.update(batch.paths[index] for index in devices)
        has_data = (rows["kind"] == FILE) & (rows["stored"] > 0)
        fd = os.memfd_create("batch", os.MFD_CLOEXEC)
        self._open.add(fd)
        placed = _DirectoryBatch(
            layer=batch.layer,
            needs=int(rows["data"][has_data][0]) if has_data.any() else None,
            until=int((rows["data"] + rows["stored"])[has_data].max(initial=0)),
            batch=batch,
            table_fd=fd,
            lengths=write_table(batch, fd, _JOB_FILES),
            kinds=rows["kind"].tolist(),
            data=rows["data"].tolist(),
            stored=rows["stored"].tolist(),
        )
        self.written += int(rows["size"].sum())
        return placed

    def take(self, placed: Placed, stream: Stream | None, upto: int, *, spare: bool) -> Sequence[SinkJob]:
        """See `Sink`."""
        del spare
        assert isinstance(placed, _DirectoryBatch)
        jobs: list[_Part] = []
        start, size, begin, end = placed.index, 0, _NOWHERE, 0
        index, count = placed.index, len(placed.kinds)
        whole = True
        while index < count and whole:
            if placed.kinds[index] == FILE and placed.stored[index]:
                data, stored = placed.data[index], placed.stored[index]
                if data + stored > upto or stored >= _LARGE or placed.done:
                    whole = stream is not None and self._take_parts(placed, index, stream, upto, jobs)
                else:
                    begin, end = min(begin, data), max(end, data + stored)
                    size += stored
            index += whole
            if index - start >= _JOB_FILES or size >= _JOB_BYTES or index == count or not whole:
                if any(kind != DIRECTORY for kind in placed.kinds[start:index]):
                    skipped = tuple(row for row in placed.in_parts if start <= row < index)
                    part = placed.lengths[start // _JOB_FILES], placed.lengths[-(-index // _JOB_FILES)]
                    slots = stream.slots(begin, end) if stream is not None and end else Slots(1)
                    job = WriteFiles(self._name, part, start, index, skipped, slots)
                    jobs.append(_Part(job, placed.layer, begin, (self._top, placed.table_fd), placed))
                start, size, begin, end = index, 0, _NOWHERE, 0
        placed.index = index
        placed.needs = placed.data[index] + placed.done if index < count else None
        placed.jobs += len(jobs)
        self._close_done(placed)
        return jobs

    def _take_parts(
        self, placed: _DirectoryBatch, index: int, stream: Stream, upto: int, jobs: list[_Part]
    ) -> bool:
        """Take one file in parts, from `placed.done` on; return whether all of it is taken."""
        path, data, stored = placed.batch.paths[index], placed.data[index], placed.stored[index]
        stop = min(stored, upto - data)
        if stop <= placed.done:
            return False
        if not placed.done:
            with self._maker:
                self._maker.make_file(path, int(placed.batch.rows["size"][index]))
            placed.in_parts.append(index)
            self._late.append((placed.batch, [index]))
        passed = 0
        for offset, size in placed.batch.extents(index):
            first, last = max(passed, placed.done), min(passed + size, stop)
            for begin in range(first, last, _LARGE):
                length = min(_LARGE, last - begin)
                slots = stream.slots(data + begin, data + begin + length)
                part = WritePart(self._name, path, data + begin, length, offset + begin - passed, slots)
                jobs.append(_Part(part, placed.layer, data + begin, (self._top,), placed))
            passed += size
        placed.done = stop if stop < stored else 0
        return stop == stored

    def finished(self, job: SinkJob, result: Any) -> Sequence[SinkJob]:
        """See `Sink`."""
        assert isinstance(job, _Part)
        self.lost += result
        job.begin = None
        job.placed.jobs -= 1
        self._close_done(job.placed)
        return ()

    def _close_done(self, placed: _DirectoryBatch) -> None:
        if not placed.jobs and placed.index == len(placed.kinds) and placed.table_fd in self._open:
            self._open.discard(placed.table_fd)
            os.close(placed.table_fd)

    def links(self, links: Sequence[tuple[bytes, bytes]]) -> None:
        """See `Sink`."""
        self._links = links

    def complete(self) -> None:
        """See `Sink`."""
        assert self._root is not None
        with self._maker:
            for path, target in self._links:
                if target in self._devices:
                    self._maker.make_link_to_device(path, target)
                else:
                    self._maker.make_link(path, target)
            for batch, indices in reversed(self._late):
                for index in reversed(indices):
                    self._maker.finish(batch, index)
            self._maker.finish(self._root, 0)
        self.lost += self._maker.lost

    def commit(self) -> None:
        """See `Sink`."""
        self._output.commit()

    def abort(self) -> None:
        """See `Sink`."""
        self._output.abort()

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self._open:
            os.close(fd)
        self._open.clear()
        os.close(self._top)
