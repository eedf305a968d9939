"""The squashfs sink: an image that the kernel mounts, written by all workers.

Workers compress data blocks and fragment blocks, in jobs that are cut however data comes; `placement` brings their
results into the one order that the files have; the tables are made of the merged tree at the end (`tree`). So the
bytes depend on the image and the options alone.

The image is written from its beginning to its end, but for the superblock, which comes last.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paralayer.errors import SinkError, quote
from paralayer.sinks.output import Output, start_writeback, write_all
from paralayer.sinks.squashfs import superblock
from paralayer.sinks.squashfs.compressor import Compressor
from paralayer.sinks.squashfs.data import PackFiles, PackSparse, Settings
from paralayer.sinks.squashfs.placement import (
    BEHIND_BLOCKS,
    FragmentGroup,
    Part,
    Placement,
)
from paralayer.sinks.squashfs.records import ends_of
from paralayer.sinks.squashfs.superblock import Flags, Superblock
from paralayer.sinks.squashfs.tree import Tree
from paralayer.table import FILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from paralayer.sinks.sink import Placed, SinkJob
    from paralayer.sinks.squashfs.options import Options
    from paralayer.stream import Stream
    from paralayer.survivors import Batch

_JOB_BYTES = 4 << 20
_JOB_FILES = 1024
_JOB_BLOCKS = 2048  # with as many digests, what a message holds
_BLOCKS_MAX = 1 << 24  # of one file: their sizes are in memory, 4 bytes each
_PADDING = 4096
_SUFFIX_MAX = 7  # with the dot
_FLUSH = 32 << 20  # written bytes after which the kernel is told to begin


@dataclass(slots=True, eq=False)
class _SquashfsBatch:
    """A placed batch: the files with content of it, and how far they are in parts: `index` files, `done` of the next."""

    layer: int
    needs: int | None
    until: int
    batch: Batch
    rows: NDArray[np.int64]
    entries: NDArray[np.int64]
    kinds: list[bytes]
    data: NDArray[np.int64]
    sizes: NDArray[np.int64]
    ends: NDArray[np.int64]  # in the stream
    bytes_before: NDArray[np.int64]  # of all files before, and at the end of all
    blocks_before: NDArray[np.int64]  # likewise, tail ends counted
    sparse: NDArray[np.int64]  # the files that are
    index: int = 0
    done: int = 0


class SquashfsSink:
    """See the module; `jobs` is how many workers there are."""

    ordered = True
    root_first = False
    can_restart = True

    def __init__(self, path: str, options: Options, *, jobs: int, replace: bool = False) -> None:
        self._name = path
        self._options = options
        self._settings = Settings(
            options.compression, options.block_size, fragments=options.fragments, dedup=options.dedup
        )
        self._ahead = 2 * jobs + 2  # parts that are being packed, or wait for others
        self._compressor = Compressor(options.compression, options.block_size)
        self._output = Output(path, replace=replace)
        self._fd = self._output.create()
        self.temporary = self._output.temporary
        self.lost: Counter[str] = Counter()
        self.written = 0
        self._begin()

    def _begin(self) -> None:
        begin = superblock.SIZE + len(self._compressor.options)
        self._placement = Placement(self._fd, begin, self._settings)
        self._tree = Tree(self._name, self._compressor, exports=self._options.exports)
        self._entries = 0
        self._flushed = 0

    def restart(self) -> None:
        """See `Sink`."""
        self._placement.close()
        os.ftruncate(self._fd, 0)
        self._begin()

    def root(self, batch: Batch, *, explicit: bool) -> None:
        """See `Sink`."""
        del explicit
        self._tree.add(batch)
        self._entries += 1

    def place(self, batch: Batch) -> _SquashfsBatch:
        """See `Sink`."""
        self._tree.add(batch)
        rows = np.flatnonzero((batch.rows["kind"] == FILE) & (batch.rows["size"] > 0))
        data, sizes = batch.rows["data"][rows], batch.rows["size"][rows]
        ends = data + batch.rows["stored"][rows]
        largest = self._options.block_size * _BLOCKS_MAX
        if (too_large := np.flatnonzero(sizes > largest)).size:
            path = batch.paths[rows[too_large[0]]]
            want = f"at most {largest} with these blocks"
            raise SinkError(self._name, f"{quote(path)}: size", int(sizes[too_large[0]]), want)
        placed = _SquashfsBatch(
            layer=batch.layer,
            needs=int(data[0]) if len(rows) else None,
            until=int(ends.max(initial=0)),
            batch=batch,
            rows=rows,
            entries=rows + self._entries,
            kinds=[_kind(batch.paths[row]) for row in rows.tolist()],
            data=data,
            sizes=sizes,
            ends=ends,
            bytes_before=ends_of(sizes),
            blocks_before=ends_of(-(-sizes // self._options.block_size)),
            sparse=np.flatnonzero(batch.rows["sparse"][rows]),
        )
        self._entries += len(batch.rows)
        return placed

    def take(self, placed: Placed, stream: Stream | None, upto: int, *, spare: bool) -> Sequence[SinkJob]:
        """See `Sink`."""
        del spare
        assert isinstance(placed, _SquashfsBatch)
        if stream is None:
            return ()
        parts: list[Part] = []
        while self._placement.waiting < self._ahead and placed.index < len(placed.rows):
            sparse = placed.sparse[np.searchsorted(placed.sparse, placed.index) :]
            try:
                if len(sparse) and sparse[0] == placed.index:
                    part = self._cut_sparse(placed, stream, upto)
                else:
                    stop = int(sparse[0]) if len(sparse) else len(placed.rows)
                    part = self._cut(placed, stream, upto, stop)
            except OSError as error:
                raise self._error(error) from None
            if part is None:
                break
            parts.append(part)
            self._placement.add(part)
        return parts

    def _cut(self, placed: _SquashfsBatch, stream: Stream, upto: int, stop: int) -> Part | None:
        """Cut the next part out of what is there of the files before number `stop`: whole files, or a part of one."""
        block_size = self._options.block_size
        first, done = placed.index, placed.done
        begin = int(placed.data[first]) + done
        if not done:
            stop = min(
                stop,
                first + _JOB_FILES,
                _last(placed.bytes_before, placed.bytes_before[first] + _JOB_BYTES),
                _last(placed.blocks_before, placed.blocks_before[first] + _JOB_BLOCKS),
                int(np.searchsorted(placed.ends, upto, "right")),
            )
        complete = not done and stop > first
        if complete:
            placed.index = stop
            at, lengths = placed.data[first:stop], placed.sizes[first:stop]
        else:
            stop = first + 1
            left = int(placed.sizes[first]) - done
            length = min(left, upto - begin, _JOB_BYTES, _JOB_BLOCKS * block_size)
            complete = length == left
            if not complete:
                length = length // block_size * block_size
            if length <= 0:
                return None
            at, lengths = np.array([begin]), np.array([length])
            placed.index, placed.done = (stop, 0) if complete else (first, done + length)
        self._set_needs(placed)
        blocks = lengths // block_size if self._options.fragments else -(-lengths // block_size)
        parts = np.column_stack((at, lengths, blocks)).astype("<i8").tobytes()
        job = PackFiles(self._settings, parts, stream.slots(begin, int(at[-1] + lengths[-1])))
        tails = np.maximum(lengths - blocks * block_size, 0)
        return Part(
            job,
            placed.layer,
            begin,
            [os.memfd_create("blocks", os.MFD_CLOEXEC)],
            stream,
            entries=placed.entries[first:stop],
            kinds=placed.kinds[first:stop],
            sizes=placed.sizes[first:stop].tolist(),
            blocks=blocks.tolist(),
            tails=tails,
            tails_at=at + lengths - tails,
            goes_on=not complete,
        )

    def _cut_sparse(self, placed: _SquashfsBatch, stream: Stream, upto: int) -> Part | None:
        """Cut the next part of a sparse file; `done` is of the file, holes included."""
        block_size = self._options.block_size
        index = placed.index
        size = int(placed.sizes[index])
        extents = np.array(placed.batch.extents(int(placed.rows[index])), np.int64).reshape(-1, 2)
        begins, ends = extents[:, 0], extents.sum(axis=1)
        stored = int(placed.data[index]) + np.cumsum(extents[:, 1]) - extents[:, 1]
        # The part ends behind whole blocks whose content is there, at the latest where it gets too large, or where a hole
        # does that it is all of: that costs little however long it is.
        stop = min(size, placed.done + min(_JOB_BYTES, _JOB_BLOCKS * block_size))
        following = int(np.searchsorted(ends, placed.done, "right"))
        hole = (int(begins[following]) if following < len(begins) else size) // block_size * block_size
        stop = max(stop, min(hole, placed.done + _JOB_BLOCKS * block_size))
        missing = np.flatnonzero(stored + extents[:, 1] > upto)
        if len(missing):
            there = int(begins[missing[0]] + max(0, upto - stored[missing[0]]))
            stop = min(stop, there // block_size * block_size)
        if stop <= placed.done:
            return None
        begin = _stored_at(begins, ends, stored, placed.done)
        first, after = np.searchsorted(ends, placed.done, "right"), np.searchsorted(begins, stop)
        length = stop - placed.done
        last = stop == size
        blocks = length // block_size if last and self._options.fragments else -(-length // block_size)
        tail = max(0, length - blocks * block_size)
        fds = [os.memfd_create("blocks", os.MFD_CLOEXEC), os.memfd_create("extents", os.MFD_CLOEXEC)]
        relative = extents[first:after] - [[placed.done, 0]]
        write_all(fds[1], relative.astype("<i8").tobytes())
        data, slots = begin, stream.slots(0, 0)
        if first < after:
            data = int(stored[first])
            slots = stream.slots(begin, min(upto, int(stored[after - 1] + extents[after - 1, 1])))
        job = PackSparse(self._settings, data, length, blocks, slots)
        if last:
            placed.index += 1
            placed.done = 0
            self._set_needs(placed)
        else:
            placed.done = stop
            placed.needs = _stored_at(begins, ends, stored, stop)
        return Part(
            job,
            placed.layer,
            begin,
            fds,
            stream,
            entries=placed.entries[index : index + 1],
            kinds=placed.kinds[index : index + 1],
            sizes=[size],
            blocks=[blocks],
            tails=np.array([tail]),
            tails_at=np.array([BEHIND_BLOCKS]),
            goes_on=not last,
        )

    def _set_needs(self, placed: _SquashfsBatch) -> None:
        more = placed.index < len(placed.rows)
        placed.needs = int(placed.data[placed.index]) + placed.done if more else None

    def finished(self, job: SinkJob, result: Any) -> Sequence[SinkJob]:
        """See `Sink`."""
        if isinstance(job, Part):
            words, job.digests, holes = result
            job.words, job.holes = array("I", words), frozenset(array("I", holes))
        else:
            assert isinstance(job, FragmentGroup)
            job.words = array("I", result)
            job.begin = None
        try:
            groups = self._placement.advance()
        except OSError as error:
            raise self._error(error) from None
        if self._placement.position - self._flushed >= _FLUSH:
            start_writeback(self._fd)
            self._flushed = self._placement.position
        return groups

    def links(self, links: Sequence[tuple[bytes, bytes]]) -> None:
        """See `Sink`."""
        self._tree.link(links)
        self._tree.settle()

    def complete(self) -> None:
        """See `Sink`."""
        try:
            self._write_tables()
            os.fsync(self._fd)
        except OSError as error:
            raise self._error(error) from None
        self.lost += self._tree.lost

    def commit(self) -> None:
        """See `Sink`."""
        self._output.commit()

    def _write_tables(self) -> None:
        options, placement = self._options, self._placement
        placement.finish()
        content, fragments = placement.content(self._entries)
        position = placement.position
        pieces, tables = self._tree.pack(position, content, fragments)
        write_all(self._fd, b"".join(pieces), position)
        flags = Flags(0)
        if not options.fragments:
            flags |= Flags.NO_FRAGMENTS
        if options.dedup:
            flags |= Flags.DUPLICATES
        if options.exports:
            flags |= Flags.EXPORTABLE
        if options.compression.name == "none":
            flags |= Flags.UNCOMPRESSED
        if self._compressor.options:
            flags |= Flags.COMPRESSOR_OPTIONS
        head = Superblock(
            time=options.time,
            block_size=options.block_size,
            compressor=self._compressor.id,
            flags=flags,
            fragments=placement.fragments,
            tables=tables,
        )
        write_all(self._fd, head.pack() + self._compressor.options)
        os.ftruncate(self._fd, tables.end)  # blocks that were given up may reach beyond; padding is zeros
        self.written = tables.end + (-tables.end % _PADDING if options.pad else 0)
        os.ftruncate(self._fd, self.written)

    def abort(self) -> None:
        """See `Sink`."""
        self._output.abort()

    def close(self) -> None:
        """Close the output."""
        self._placement.close()
        os.close(self._fd)

    @property
    def held(self) -> int:
        """See `Sink`."""
        return self._placement.held

    def _error(self, error: OSError) -> SinkError:
        return SinkError(self._name, error.strerror or "cannot be written")


def _kind(path: bytes) -> bytes:
    """Return the suffix of a file's name, if it is short enough to tell a kind of files."""
    _, dot, suffix = path[-_SUFFIX_MAX:].rpartition(b".")
    return suffix if dot and b"/" not in suffix else b""


def _last(before: NDArray[np.int64], bound: int) -> int:
    """Return the number of files before which there is no more than `bound`."""
    return int(np.searchsorted(before, bound, "right")) - 1


def _stored_at(begins: NDArray[np.int64], ends: NDArray[np.int64], stored: NDArray[np.int64], at: int) -> int:
    """Return where in the stream the content of a sparse file is from `at` on."""
    index = int(np.searchsorted(ends, at, "right"))
    if index == len(ends):
        return int(stored[-1] + ends[-1] - begins[-1])
    return int(stored[index]) + max(0, at - int(begins[index]))
