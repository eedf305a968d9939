"""The tree of an image: a conversion into a sink that keeps what each path is and hashes contents.

The merge is the same one that made the output: what is verified is everything behind it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paralayer.table import BLOCK, CHAR, DIRECTORY, FIFO, FILE, SYMLINK
from paralayer.verification.hashing import HOLE, gather, plan
from paralayer.verification.tree import NO_XATTRS, Node, Tree, check_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from paralayer.engine.jobs import Job
    from paralayer.sinks.sink import Placed, SinkJob
    from paralayer.stream import Stream
    from paralayer.survivors import Batch
    from paralayer.verification.hashing import Part, Targets
    from paralayer.verification.tree import Kind

_KINDS: dict[int, Kind] = {
    FILE: "file",
    SYMLINK: "symlink",
    CHAR: "character device",
    BLOCK: "block device",
    DIRECTORY: "directory",
    FIFO: "fifo",
}


@dataclass(slots=True)
class _Hashing:
    """See `SinkJob`."""

    job: Job
    layer: int
    begin: int | None
    targets: Targets
    fds: Sequence[int] = ()


@dataclass(slots=True)
class _TreeBatch:
    """A placed batch: `left` are the parts of its files that are not in jobs, the last one first."""

    layer: int
    needs: int | None
    until: int
    left: list[Part]


class TreeSink:
    """A `Sink` whose output is `tree`."""

    ordered = False
    root_first = False
    can_restart = True
    temporary = None
    held = 0
    written = 0

    def __init__(self) -> None:
        self.tree = Tree()
        self.lost: Counter[str] = Counter()

    def restart(self) -> None:
        """See `Sink`."""
        self.tree = Tree()

    def root(self, batch: Batch, *, explicit: bool) -> None:
        """See `Sink`."""
        del explicit
        self.place(batch)

    def place(self, batch: Batch) -> _TreeBatch:
        """See `Sink`."""
        rows = batch.rows
        with_xattrs = set(np.flatnonzero(rows["xattrs"] > 0).tolist())
        sparse = set(np.flatnonzero(rows["sparse"] > 0).tolist())
        times = (rows["mtime"].astype(object) * 10**9 + rows["nsec"]).tolist()
        columns = [rows[name].tolist() for name in ("kind", "mode", "uid", "gid", "size", "data")]
        left: list[Part] = []
        for index, (path, time, kind, mode, uid, gid, size, data) in enumerate(
            zip(batch.paths, times, *columns, strict=True)
        ):
            node = Node(_KINDS[kind], mode, uid, gid, time)
            if index in with_xattrs:
                node.xattrs = dict(batch.xattrs(index)) or NO_XATTRS
            if kind == FILE:
                check_size(size, f"layer {batch.layer}", path)
                node.size = size
                left.extend(plan(node, data, batch.extents(index) if index in sparse else None))
            elif kind == SYMLINK:
                node.target = batch.linkname(index)
            elif kind in (CHAR, BLOCK):
                node.device = int(rows["major"][index]), int(rows["minor"][index])
            self.tree.nodes[path] = node
        left.sort(key=lambda part: part.begin, reverse=True)
        return _TreeBatch(
            layer=batch.layer,
            needs=left[-1].begin if left else None,
            until=max((part.end for part in left), default=0),
            left=left,
        )

    def take(self, placed: Placed, stream: Stream | None, upto: int, *, spare: bool) -> Sequence[SinkJob]:
        """See `Sink`."""
        del spare
        assert isinstance(placed, _TreeBatch)
        ready = []
        while placed.left and placed.left[-1].end <= upto:
            ready.append(placed.left.pop())
        placed.needs = placed.left[-1].begin if placed.left else None
        if not ready:
            return ()
        assert stream is not None
        for part in ready:
            part.scattered = [place for piece in part.pieces for place in _places(stream, *piece)]
        tasks = gather(ready, f"layer {placed.layer}", stream.fd)
        return [_Hashing(task.job, placed.layer, task.begin, task.targets) for task in tasks]

    def finished(self, job: SinkJob, result: Any) -> Sequence[SinkJob]:
        """See `Sink`."""
        assert isinstance(job, _Hashing)
        job.targets.put(result)
        job.begin = None
        return ()

    def links(self, links: Sequence[tuple[bytes, bytes]]) -> None:
        """See `Sink`."""
        nodes = self.tree.nodes
        for path, file in links:
            nodes[path] = nodes[file]
            nodes[file].names += 1

    def complete(self) -> None:
        """See `Sink`."""

    def commit(self) -> None:
        """See `Sink`."""

    def abort(self) -> None:
        """See `Sink`."""

    def close(self) -> None:
        """See `Sink`."""


def _places(stream: Stream, begin: int, length: int) -> Iterable[tuple[int, int]]:
    """Return where a piece of a file's content is in the memfd of the stream."""
    return [(HOLE, length)] if begin == HOLE else stream.pieces(begin, begin + length)
