"""What a sink is to the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from paralayer.engine.jobs import Job
    from paralayer.stream import Stream
    from paralayer.survivors import Batch


class Placed(Protocol):
    """A batch that has its place in the output; how far its data has been taken is part of it."""

    layer: int
    needs: int | None
    """Offset in the layer's stream of the first byte that it still needs; None: no more data."""
    until: int
    """Offset in the layer's stream behind the last byte that it needs."""


class SinkJob(Protocol):
    """A part of a batch that a worker takes over."""

    job: Job
    layer: int
    begin: int | None
    """Offset in the layer's stream of the first byte that it needs; None when it needs nothing any more."""
    fds: Sequence[int]
    """Descriptors that the job gets, before that of the memfd that streams are in."""


class Sink(Protocol):
    """Where survivors go. A context manager: the output appears with `commit` or not at all."""

    ordered: bool
    """Data must come in the order of the output."""
    root_first: bool
    """The root directory must come before anything else; else it comes last."""
    can_restart: bool

    def root(self, batch: Batch, *, explicit: bool) -> None:
        """Take the root directory; `explicit` when the image has an entry for it."""

    def place(self, batch: Batch) -> Placed:
        """Take the next batch in output order; what is stored of it stands in the order of the layer's stream."""

    def take(self, placed: Placed, stream: Stream | None, upto: int, *, spare: bool) -> Sequence[SinkJob]:
        """Take some of the data of a batch, as far as its layer is decoded: to `upto`.

        The sink does it at once, or returns jobs; there is a worker with nothing to do, if there is one to `spare`. As long as `needs` moves, it is called again. Without data (`needs`
        None) there is no stream.
        """

    def finished(self, job: SinkJob, result: Any) -> Sequence[SinkJob]:
        """Take the result of a job; return jobs that follow from it. Any job may need less by now."""

    def links(self, links: Sequence[tuple[bytes, bytes]]) -> None:
        """Take the hard links, (path, path of the file), when everything is placed."""

    def restart(self) -> None:
        """Forget everything; nothing is at work on the output. Only if it `can_restart`."""

    def complete(self) -> None:
        """Complete the output; all of it is at `temporary` now."""

    def commit(self) -> None:
        """Give the output its name."""

    def abort(self) -> None:
        """Leave nothing."""

    def close(self) -> None:
        """Release what is held."""

    lost: Counter[str]
    """What was left out or changed because the output cannot hold it, and how often."""

    @property
    def temporary(self) -> str | None:
        """The output's name until it gets its own; None: it has none."""

    @property
    def held(self) -> int:
        """Bytes of memory, besides the process's own, that hold what is not written yet."""

    @property
    def written(self) -> int:
        """Bytes of the output."""
