"""The tar sink: one flat archive, to a file or to a pipe.

Sizes are known from the tables, so each batch has its place in the archive as soon as it is placed, and a file is
written in whatever order data comes. The order of the entries suits tar readers: the root, parents before children,
each path once, hard links last. Entries of one directory can stand apart, since newest layers come first; readers that
set a directory's time when they leave it (GNU tar without --delay-directory-restore) set it too early.

The merger writes it (`archive`). Workers that have nothing else to do take parts of a file: with more workers than
layers, what the merger does by itself takes 0.4 s instead of 1.2 for 0.9 GB.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paralayer.engine.jobs import Finished, Job, Run
from paralayer.errors import SinkError
from paralayer.sinks.archive import ArchiveWriter, Entries, Extent
from paralayer.sinks.output import Output, start_writeback, write_all
from paralayer.sinks.window import LARGE
from paralayer.stream import Slots, Stream
from paralayer.table import FILE, HARDLINK, ROW
from paralayer.tar.header import padding
from paralayer.tar.writer import END, pack_headers, pack_links

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer.sinks.sink import Placed, SinkJob
    from paralayer.survivors import Batch

_TAKE_MAX = 8 << 20  # bytes of a stream taken in one call, some milliseconds: the engine has others to serve
_JOB_FILES = 2000  # with 24 bytes each, what a message holds
_SHARED_HEADERS = 16 << 20  # bytes; jobs have them from a copy
_FLUSH = 32 << 20  # written bytes after which the kernel is told to begin: the last fsync finds little left


@dataclass(frozen=True, slots=True)
class WriteEntries:
    """Job: write entries to their place. Descriptors: of the archive, of the batch's headers, of the arena.

    `entries`, 64-bit integers for each: where its headers end, where its data begin in the stream, and how many they are.
    Headers in between are those of entries without data. Nothing is written from `upto` of the stream on, nor `done` bytes
    of the first one's data.
    """

    name: str
    position: int
    headers_begin: int
    entries: bytes
    done: int
    upto: int
    slots: Slots

    def run(self, fds: Sequence[int]) -> Run:
        """See `Job`."""
        output, headers_fd, arena = fds
        table = np.frombuffer(self.entries, "<i8").reshape(-1, 3)
        offsets = np.concatenate(([0], table[:, 0] - self.headers_begin))
        headers = os.pread(headers_fd, int(offsets[-1]), self.headers_begin)
        data, stored = table[:, 1], table[:, 2]
        entries = Entries.plan(self.position, headers, offsets, data, stored, stored, {}, self.done)
        try:
            fd = os.open(f"/proc/self/fd/{output}", os.O_WRONLY | os.O_CLOEXEC)  # with a position of its own
            try:
                ArchiveWriter(fd, seeks=True).write(entries, Stream(arena, self.slots), self.upto)
            finally:
                os.close(fd)
        except OSError as error:
            raise SinkError(self.name, error.strerror or "cannot be written") from None
        yield Finished()


@dataclass(slots=True, eq=False)
class _TarBatch:
    """A placed batch. `headers_fd` has its headers, for jobs, of which there are so many."""

    layer: int
    needs: int | None
    until: int
    entries: Entries
    headers_fd: int = -1
    jobs: int = 0


@dataclass(slots=True, eq=False)
class _Part:
    """See `SinkJob`."""

    job: Job
    layer: int
    begin: int | None
    fds: Sequence[int]
    placed: _TarBatch


class TarSink:
    """See the module; `output` is a file's name, or None for the descriptor `fd`."""

    held = 0

    root_first = True

    def __init__(self, path: str | None, *, replace: bool = False, fd: int = 1) -> None:
        self._output = Output(path, replace=replace) if path is not None else None
        self._name = path if path is not None else "standard output"
        if self._output is not None:
            self._fd = self._output.create()
        else:
            self._fd = os.dup(fd)
        self.temporary = self._output.temporary if self._output is not None else None
        self.can_restart = self._output is not None
        self.ordered = not self.can_restart
        self._writer = ArchiveWriter(self._fd, seeks=self._output is not None)
        self._open: set[int] = set()  # headers of batches
        self.lost: Counter[str] = Counter()
        self._begin()

    def _begin(self) -> None:
        self._end = 0  # of what is placed
        self._dirty = 0  # bytes that the kernel was not told to write yet
        self._kept: list[Batch] = []  # hard links take their files' metadata from them
        self.written = 0

    def restart(self) -> None:
        """See `Sink`."""
        self._close_headers()
        os.ftruncate(self._fd, 0)
        self._begin()

    def root(self, batch: Batch, *, explicit: bool) -> None:
        """See `Sink`."""
        if explicit:
            self.take(self.place(batch), None, 0, spare=False)

    def place(self, batch: Batch) -> _TarBatch:
        """See `Sink`."""
        rows = batch.rows
        headers, offsets = pack_headers(batch)
        has_data = (rows["kind"] == FILE) & (rows["stored"] > 0)
        ends = rows["data"] + rows["stored"]
        sparse = {index: _holes(batch, index) for index in np.flatnonzero(rows["sparse"] > 0).tolist()}
        columns = (rows["data"], rows["stored"], rows["size"])
        placed = _TarBatch(
            layer=batch.layer,
            needs=int(rows["data"][has_data][0]) if has_data.any() else None,
            until=int(ends[has_data].max(initial=0)),
            entries=Entries.plan(self._end, headers, offsets, *columns, sparse),
        )
        self._end += len(headers) + sum(size + padding(size) for size in placed.entries.sizes if size)
        self._kept.append(batch)
        return placed

    def take(self, placed: Placed, stream: Stream | None, upto: int, *, spare: bool) -> Sequence[SinkJob]:
        """See `Sink`."""
        assert isinstance(placed, _TarBatch)
        entries = placed.entries
        if placed.needs is not None:
            upto = min(upto, placed.needs + _TAKE_MAX)
        before = entries.position
        part = None
        try:
            if (
                spare
                and stream is not None
                and self._output is not None
                and len(entries.headers) <= _SHARED_HEADERS
            ):
                part = self._part(placed, stream, upto)
            if part is None:
                self._writer.write(entries, stream, upto)
            placed.needs = entries.needs
            self._dirty += entries.position - before
            if self._output is not None and self._dirty >= _FLUSH:
                start_writeback(self._fd)
                self._dirty = 0
        except OSError as error:
            raise SinkError(self._name, error.strerror or "cannot be written") from None
        return [] if part is None else [part]

    def _part(self, placed: _TarBatch, stream: Stream, upto: int) -> _Part | None:
        """Leave what comes next to a job, as far as its data is there: whole files, or a part of a large one.

        None where there is nothing, or a sparse file.
        """
        entries = placed.entries
        first, index, done = entries.index, entries.index, 0
        last = min([len(entries.data), *(sparse for sparse in entries.sparse if sparse >= first)])
        files: list[int] = []
        position = entries.position - entries.done
        while index < last:
            begin, stored = entries.data[index], entries.stored[index]
            if stored:
                if len(files) == _JOB_FILES:
                    break
                if begin + stored > upto:
                    if stored >= LARGE and begin + (entries.done if index == first else 0) < upto:
                        files.append(index)
                        done = upto - begin
                    break
                files.append(index)
                position += stored + padding(stored)
            index += 1
        if not files:
            return None
        offsets = entries.header_offsets
        stop = index + 1 if done else index
        position += done + offsets[stop] - offsets[first + 1 if entries.done else first]
        rows = [(offsets[file + 1], entries.data[file], entries.stored[file]) for file in files]
        if files[-1] + 1 < stop:
            rows.append((offsets[stop], 0, 0))
        begin = rows[0][1] + (entries.done if files[0] == first else 0)
        job = WriteEntries(
            self._name,
            entries.position,
            offsets[first],
            np.array(rows, "<i8").tobytes(),
            entries.done,
            upto,
            stream.slots(begin, min(upto, entries.data[files[-1]] + entries.stored[files[-1]])),
        )
        if placed.headers_fd < 0:
            placed.headers_fd = os.memfd_create("headers", os.MFD_CLOEXEC)
            self._open.add(placed.headers_fd)
            write_all(placed.headers_fd, entries.headers)
        entries.index, entries.done, entries.position = index, done, position
        placed.jobs += 1
        return _Part(job, placed.layer, begin, (self._fd, placed.headers_fd), placed)

    def finished(self, job: SinkJob, result: Any) -> Sequence[SinkJob]:
        """See `Sink`."""
        del result
        assert isinstance(job, _Part)
        job.begin = None
        placed = job.placed
        placed.jobs -= 1
        if not placed.jobs and placed.needs is None and placed.headers_fd in self._open:
            self._open.discard(placed.headers_fd)
            os.close(placed.headers_fd)
        return ()

    def links(self, links: Sequence[tuple[bytes, bytes]]) -> None:
        """See `Sink`."""
        if not links:
            self._kept.clear()
            return
        targets = {target for _, target in links}
        rows = {
            path: batch.rows[index]
            for batch in self._kept
            for index, path in enumerate(batch.paths)
            if path in targets
        }
        self._kept.clear()
        linked = np.array([rows[target] for _, target in links], ROW)
        linked["kind"], linked["size"] = HARDLINK, 0
        headers, _ = pack_links(linked, list(links))
        self._append(headers)

    def complete(self) -> None:
        """See `Sink`."""
        self._append(END)
        self.written = self._end
        if self._output is None:
            return
        try:
            os.ftruncate(self._fd, self._end)
            os.fsync(self._fd)
        except OSError as error:
            raise SinkError(self._name, error.strerror or "cannot be written") from None

    def commit(self) -> None:
        """See `Sink`."""
        if self._output is not None:
            self._output.commit()

    def abort(self) -> None:
        """See `Sink`."""
        if self._output is not None:
            self._output.abort()

    def close(self) -> None:
        """Close the output."""
        self._close_headers()
        os.close(self._fd)

    def _close_headers(self) -> None:
        for fd in self._open:
            os.close(fd)
        self._open.clear()

    def _append(self, data: bytes) -> None:
        try:
            self._writer.seek(self._end)
            self._writer.put([data])
        except OSError as error:
            raise SinkError(self._name, error.strerror or "cannot be written") from None
        self._end += len(data)


def _holes(batch: Batch, index: int) -> list[Extent]:
    """Return the extents of a sparse file with the holes before them."""
    extents = []
    at = 0
    stored = int(batch.rows["data"][index])
    for offset, length in batch.extents(index):
        extents.append(Extent(offset - at, stored, length))
        at = offset + length
        stored += length
    return extents
