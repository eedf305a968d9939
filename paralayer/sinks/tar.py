"""The tar sink: one flat archive, to a file or to a pipe.

Sizes are known from the tables, so each batch has its place in the archive as soon as it is placed, and a file is
written in whatever order data comes. The order of the entries suits tar readers: the root, parents before children,
each path once, hard links last. Entries of one directory can stand apart, since newest layers come first; readers that
set a directory's time when they leave it (GNU tar without --delay-directory-restore) set it too early.

Large extents are sent from the stream to a file by the kernel; small ones are read together into one buffer and
written from there, with their headers, in one call. Holes of sparse files
are holes of a file and zeros in a pipe.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paralayer.errors import SinkError
from paralayer.sinks.output import Output, start_writeback
from paralayer.sinks.window import LARGE, Window, reach
from paralayer.table import FILE, HARDLINK, ROW
from paralayer.tar.header import padding
from paralayer.tar.writer import END, pack_headers, pack_links

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer.sinks.sink import Placed, SinkJob
    from paralayer.stream import Stream
    from paralayer.survivors import Batch

_TAKE_MAX = 8 << 20  # bytes of a stream taken in one call, some milliseconds: the engine has others to serve
_PIECES_MAX = 1000  # of one writev; Linux takes 1024
_ZEROS = bytes(1 << 16)
_FLUSH = (
    32 << 20
)  # written bytes after which the kernel is told to begin, so that the last fsync finds little left


@dataclass(slots=True)
class _Extent:
    """A part of a file's content: `stored` in the layer's stream, `hole` zeros before it."""

    hole: int
    stored: int
    length: int


@dataclass(slots=True, eq=False)
class _TarBatch:
    """A placed batch and how far it is written: the first `index` entries and `done` bytes of the next one's data."""

    layer: int
    needs: int | None
    until: int
    position: int  # in the archive, of what is written next
    headers: bytes
    header_offsets: list[int]
    kinds: list[int]
    data: list[int]
    stored: list[int]
    sizes: list[int]
    reach: list[int]  # see `window`
    sparse: dict[int, list[_Extent]]
    index: int = 0
    done: int = 0


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
        # Pipes and sockets would get the pages themselves, which are written to again before somebody has read them.
        self._sends = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self.lost: Counter[str] = Counter()
        self._window = Window()
        self._begin()

    def _begin(self) -> None:
        self._end = 0  # of what is placed
        self._at = 0  # file position
        self._flushed = 0
        self._kept: list[Batch] = []  # hard links take their files' metadata from them
        self.written = 0

    def restart(self) -> None:
        """See `Sink`."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._begin()

    def root(self, batch: Batch, *, explicit: bool) -> None:
        """See `Sink`."""
        if explicit:
            self.take(self.place(batch), None, 0)

    def place(self, batch: Batch) -> _TarBatch:
        """See `Sink`."""
        rows = batch.rows
        headers, offsets = pack_headers(batch)
        has_data = (rows["kind"] == FILE) & (rows["stored"] > 0)
        ends = rows["data"] + rows["stored"]
        small = np.flatnonzero(has_data & (rows["stored"] < LARGE))
        reaches = np.zeros(len(rows), np.int64)
        reaches[small] = reach(rows["data"][small], ends[small])
        placed = _TarBatch(
            layer=batch.layer,
            needs=int(rows["data"][has_data][0]) if has_data.any() else None,
            until=int(ends[has_data].max(initial=0)),
            position=self._end,
            headers=headers,
            header_offsets=offsets.tolist(),
            kinds=rows["kind"].tolist(),
            data=rows["data"].tolist(),
            stored=rows["stored"].tolist(),
            sizes=rows["size"].tolist(),
            reach=reaches.tolist(),
            sparse={index: _holes(batch, index) for index in np.flatnonzero(rows["sparse"] > 0).tolist()},
        )
        self._end += len(headers) + sum(size + padding(size) for size in placed.sizes if size)
        self._kept.append(batch)
        return placed

    def take(self, placed: Placed, stream: Stream | None, upto: int) -> Sequence[SinkJob]:
        """See `Sink`."""
        assert isinstance(placed, _TarBatch)
        if placed.needs is not None:
            upto = min(upto, placed.needs + _TAKE_MAX)
        try:
            if self._output is not None and placed.position != self._at:
                os.lseek(self._fd, placed.position, os.SEEK_SET)
            self._at = placed.position
            self._write(placed, stream, upto)
            placed.position = self._at
            if self._output is not None and self._at - self._flushed >= _FLUSH:
                start_writeback(self._fd)
                self._flushed = self._at
        except OSError as error:
            raise SinkError(self._name, error.strerror or "cannot be written") from None
        return ()

    def finished(self, job: SinkJob, result: Any) -> Sequence[SinkJob]:
        """See `Sink`; there are no jobs."""
        raise NotImplementedError

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
        os.close(self._fd)

    def _append(self, data: bytes) -> None:
        try:
            if self._output is not None and self._at != self._end:
                os.lseek(self._fd, self._end, os.SEEK_SET)
            self._at = self._end
            self._put([data])
        except OSError as error:
            raise SinkError(self._name, error.strerror or "cannot be written") from None
        self._end += len(data)

    def _write(self, placed: _TarBatch, stream: Stream | None, upto: int) -> None:
        """Write entries as far as their data is there, from where `placed` is."""
        headers = memoryview(placed.headers)
        offsets, data, stored, kinds = placed.header_offsets, placed.data, placed.stored, placed.kinds
        window = self._window
        window.forget()
        pieces: list[bytes | memoryview] = []
        first = placed.index  # headers from here on are not in `pieces` yet
        index, count = placed.index, len(kinds)
        while index < count:
            if len(pieces) >= _PIECES_MAX:
                self._put(pieces)
                pieces = []
            if kinds[index] != FILE or not (stored[index] or placed.sizes[index]):
                index += 1
                continue
            length = stored[index]
            begin = data[index]
            if length < LARGE and index not in placed.sparse:
                end = begin + length
                if end > upto:
                    break
                assert stream is not None
                if not window.has(begin, end):
                    self._put(pieces)
                    pieces = []
                    window.fill(stream, begin, min(upto, placed.reach[index]))
                pieces.append(headers[offsets[first] : offsets[index + 1]])
                pieces.append(window.view(begin, end))
                if length % 512:
                    pieces.append(_ZEROS[: padding(length)])
                index += 1
                first = index
                continue
            if not placed.done:
                if length and begin >= upto:
                    break
                pieces.append(headers[offsets[first] : offsets[index + 1]])
            self._put(pieces)
            pieces = []
            first = index + 1
            if not self._write_large(placed, index, stream, upto):
                placed.index, placed.needs = index, begin + placed.done
                return
            placed.done = 0
            index += 1
        if first < index:
            pieces.append(headers[offsets[first] : offsets[index]])
        self._put(pieces)
        placed.index = index
        placed.needs = data[index] if index < count else None

    def _write_large(self, placed: _TarBatch, index: int, stream: Stream | None, upto: int) -> bool:
        """Write the data of one entry from `placed.done` on; return whether all of it is written."""
        begin = placed.data[index]
        extents = placed.sparse.get(index) or [_Extent(0, begin, placed.stored[index])]
        for extent in extents:
            end = extent.stored + extent.length
            at, stop = begin + placed.done, min(end, upto)
            if at >= end:
                continue
            if stop <= at:
                return False
            if at == extent.stored:
                self._skip(extent.hole)
            assert stream is not None
            self._send(stream, at, stop)
            placed.done = stop - begin
            if stop < end:
                return False
        size = placed.sizes[index]
        self._skip(size - sum(extent.hole + extent.length for extent in extents if extent.length))
        self._put([_ZEROS[: padding(size)]])
        return True

    # To the output, at the file position

    def _put(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Write all of the pieces."""
        left = sum(map(len, pieces))
        while left:
            written = os.writev(self._fd, pieces)
            self._at += written
            left -= written
            if left:
                pieces = _after(pieces, written)

    def _send(self, stream: Stream, begin: int, end: int) -> None:
        """Send part of a stream."""
        if self._sends:
            try:
                stream.send(self._fd, begin, end)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._sends = False  # the kernel does not send to a file that is opened for appending
            else:
                self._at += end - begin
                return
        for at in range(begin, end, Window.SIZE):
            self._window.fill(stream, at, end)
            self._put([self._window.view(at, min(at + Window.SIZE, end))])

    def _skip(self, length: int) -> None:
        """Write zeros, or nothing where the output is a file."""
        if self._output is not None:
            self._at = os.lseek(self._fd, length, os.SEEK_CUR)
            return
        while length > 0:
            self._put([_ZEROS[:length]])
            length -= min(length, len(_ZEROS))


def _holes(batch: Batch, index: int) -> list[_Extent]:
    """Return the extents of a sparse file with the holes before them."""
    extents = []
    at = 0
    stored = int(batch.rows["data"][index])
    for offset, length in batch.extents(index):
        extents.append(_Extent(offset - at, stored, length))
        at = offset + length
        stored += length
    return extents


def _after(pieces: Sequence[bytes | memoryview], written: int) -> list[bytes | memoryview]:
    """Return what is left of pieces when so many bytes of them are written."""
    for index, piece in enumerate(pieces):
        if written < len(piece):
            return [memoryview(piece)[written:], *pieces[index + 1 :]]
        written -= len(piece)
    return []
