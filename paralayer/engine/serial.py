"""The serial reference: jobs run in this process, one after the other, when the next event is asked for.

Whatever worker processes yield is, byte for byte, what this yields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from paralayer.engine.jobs import Event, Finished, Job, MemoryWanted, Run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


class Executor(Protocol):
    """Does jobs, several at a time. A context manager: leaving it ends whatever is still running."""

    idle: set[int]
    """The numbers of the workers that have nothing to do."""

    def submit(self, worker: int, job: Job, fds: Sequence[int]) -> None:
        """Give a job to an idle worker. The descriptors may be closed when its `Finished` has come."""

    def wait(self, *, block: bool) -> tuple[int, Event] | None:
        """Return the next event of any worker: those of one come in order, and end with `Finished`.

        None if there is none yet, and `block` is false.
        """

    def answer(self, worker: int, granted: int | None) -> None:
        """Answer the `MemoryWanted` of a worker, which waits for it."""

    def pids(self) -> list[int]:
        """Return the processes that belong to the executor."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Serial:
    """An `Executor` of one worker, which is this process."""

    def __init__(self) -> None:
        self.idle = {0}
        self._run: Run | None = None
        self._answer: int | None = None
        self._waits_for_answer = False

    def submit(self, worker: int, job: Job, fds: Sequence[int]) -> None:
        """See `Executor`."""
        self.idle.discard(worker)
        self._run = job.run(fds)
        self._answer = None

    def wait(self, *, block: bool) -> tuple[int, Event] | None:
        """See `Executor`."""
        if not block:
            return None
        assert self._run is not None
        assert not self._waits_for_answer
        try:
            event = self._run.send(self._answer)
        except StopIteration:
            event = Finished()
        self._answer = None
        self._waits_for_answer = isinstance(event, MemoryWanted)
        if isinstance(event, Finished):
            self._run = None
            self.idle.add(0)
        return 0, event

    def answer(self, worker: int, granted: int | None) -> None:
        """See `Executor`."""
        del worker
        self._answer = granted
        self._waits_for_answer = False

    def pids(self) -> list[int]:
        """See `Executor`."""
        return []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._run is not None:
            self._run.close()
