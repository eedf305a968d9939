"""Entries to their place in a tar archive, a file or a pipe, with data out of a layer's stream.

Large extents are sent from the stream to a file by the kernel; small ones are read together into one buffer and
written from there, with their headers, in one call. Holes of sparse files are holes of a file and zeros in a pipe.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from paralayer.sinks.window import LARGE, Window, reach
from paralayer.tar.header import padding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer.stream import Stream
    from paralayer.tar.writer import Offsets

_PIECES_MAX = 1000  # of one writev; Linux takes 1024
_ZEROS = bytes(1 << 16)


@dataclass(slots=True)
class Extent:
    """A part of a file's content: `stored` in the layer's stream, `hole` zeros before it."""

    hole: int
    stored: int
    length: int


@dataclass(slots=True, eq=False)
class Entries:
    """Entries that follow one another in the archive, and how far they are written.

    That is up to `position`: the first `index` entries and `done` bytes of the next one's data. A list has an item for
    each entry; `stored` is 0 for what has no data in the stream.
    """

    position: int
    headers: bytes
    header_offsets: list[int]
    data: list[int]
    stored: list[int]
    sizes: list[int]
    reach: list[int]
    """See `window`."""
    sparse: dict[int, list[Extent]]
    index: int = 0
    done: int = 0

    @classmethod
    def plan(
        cls,
        position: int,
        headers: bytes,
        header_offsets: Offsets,
        data: Offsets,
        stored: Offsets,
        sizes: Offsets,
        sparse: dict[int, list[Extent]],
        done: int = 0,
    ) -> Self:
        """Return entries of which nothing is written but `done` bytes of the first one."""
        small = np.flatnonzero((stored > 0) & (stored < LARGE))
        reaches = np.zeros(len(data), np.int64)
        reaches[small] = reach(data[small], data[small] + stored[small])
        columns = (header_offsets.tolist(), data.tolist(), stored.tolist(), sizes.tolist(), reaches.tolist())
        return cls(position, headers, *columns, sparse, done=done)

    @property
    def needs(self) -> int | None:
        """Offset in the stream of the first byte that is still to be written; None: there is none."""
        return self.data[self.index] + self.done if self.index < len(self.data) else None


class ArchiveWriter:
    """Writes to the descriptor `fd`, which stays the caller's: anywhere if it `seeks`. OSError if the system refuses."""

    def __init__(self, fd: int, *, seeks: bool) -> None:
        self._fd = fd
        self._seeks = seeks
        # Pipes and sockets would get the pages themselves, which are written to again before somebody has read them.
        self._sends = stat.S_ISREG(os.fstat(fd).st_mode)
        self._window = Window()
        self._at = 0

    def seek(self, position: int) -> None:
        """Go on at a position of the archive, which is where it is unless it seeks."""
        if self._seeks and position != self._at:
            os.lseek(self._fd, position, os.SEEK_SET)
        self._at = position

    def write(self, entries: Entries, stream: Stream | None, upto: int) -> None:
        """Write entries, from where they are, as far as the stream has their data: to `upto`."""
        self.seek(entries.position)
        headers = memoryview(entries.headers)
        offsets, data, stored = entries.header_offsets, entries.data, entries.stored
        window = self._window
        window.forget()
        pieces: list[bytes | memoryview] = []
        first = entries.index  # headers from here on are not in `pieces` yet
        index, count = entries.index, len(data)
        while index < count:
            if len(pieces) >= _PIECES_MAX:
                self.put(pieces)
                pieces = []
            if not stored[index] and index not in entries.sparse:
                index += 1
                continue
            length = stored[index]
            begin = data[index]
            if length < LARGE and index not in entries.sparse:
                end = begin + length
                if end > upto:
                    break
                assert stream is not None
                if not window.has(begin, end):
                    self.put(pieces)
                    pieces = []
                    window.fill(stream, begin, min(upto, entries.reach[index]))
                pieces.append(headers[offsets[first] : offsets[index + 1]])
                pieces.append(window.view(begin, end))
                if length % 512:
                    pieces.append(_ZEROS[: padding(length)])
                index += 1
                first = index
                continue
            if not entries.done:
                if length and begin >= upto:
                    break
                pieces.append(headers[offsets[first] : offsets[index + 1]])
            self.put(pieces)
            pieces = []
            first = index + 1
            if not self._write_large(entries, index, stream, upto):
                entries.index, entries.position = index, self._at
                return
            entries.done = 0
            index += 1
        if first < index:
            pieces.append(headers[offsets[first] : offsets[index]])
        self.put(pieces)
        entries.index, entries.position = index, self._at

    def _write_large(self, entries: Entries, index: int, stream: Stream | None, upto: int) -> bool:
        """Write the data of one entry from `entries.done` on; return whether all of it is written."""
        begin = entries.data[index]
        extents = entries.sparse.get(index) or [Extent(0, begin, entries.stored[index])]
        for extent in extents:
            end = extent.stored + extent.length
            at, stop = begin + entries.done, min(end, upto)
            if at >= end:
                continue
            if stop <= at:
                return False
            if at == extent.stored:
                self._skip(extent.hole)
            assert stream is not None
            self._send(stream, at, stop)
            entries.done = stop - begin
            if stop < end:
                return False
        size = entries.sizes[index]
        self._skip(size - sum(extent.hole + extent.length for extent in extents if extent.length))
        self.put([_ZEROS[: padding(size)]])
        return True

    # To the output, at the file position

    def put(self, pieces: Sequence[bytes | memoryview]) -> None:
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
            self.put([self._window.view(at, min(at + Window.SIZE, end))])

    def _skip(self, length: int) -> None:
        """Write zeros, or nothing where the output is a file."""
        if self._seeks:
            self._at = os.lseek(self._fd, length, os.SEEK_CUR)
            return
        while length > 0:
            self.put([_ZEROS[:length]])
            length -= min(length, len(_ZEROS))


def _after(pieces: Sequence[bytes | memoryview], written: int) -> list[bytes | memoryview]:
    """Return what is left of pieces when so many bytes of them are written."""
    for index, piece in enumerate(pieces):
        if written < len(piece):
            return [memoryview(piece)[written:], *pieces[index + 1 :]]
        written -= len(piece)
    return []
