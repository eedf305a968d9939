"""The serial reference: jobs run in this process, one after the other, when the next event is asked for.

Whatever worker processes yield is, byte for byte, what this yields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from paralayer.engine.jobs import Event, Finished, Job, Run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


class Executor(Protocol):
    """Does jobs, several at a time. A context manager: leaving it ends whatever is still running."""

    idle: set[int]
    """The numbers of the workers that have nothing to do."""

    def submit(self, worker: int, job: Job, fds: Sequence[int]) -> None:
        """Give a job to a worker that is idle, or does nothing because it waits for an answer.

        The descriptors may be closed when its `Finished` has come.
        """

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
        self._runs: list[Run] = []  # the second one is done while the first one waits for an answer
        self._answer: int | None = None

    def submit(self, worker: int, job: Job, fds: Sequence[int]) -> None:
        """See `Executor`."""
        self.idle.discard(worker)
        self._runs.append(job.run(fds))

    def wait(self, *, block: bool) -> tuple[int, Event] | None:
        """See `Executor`."""
        if not block:
            return None
        try:
            if len(self._runs) > 1:
                event = next(self._runs[-1])
            else:
                answer, self._answer = self._answer, None
                event = self._runs[0].send(answer)
        except StopIteration:
            event = Finished()
        if isinstance(event, Finished):
            self._runs.pop().close()
            if not self._runs:
                self.idle.add(0)
        return 0, event

    def answer(self, worker: int, granted: int | None) -> None:
        """See `Executor`."""
        del worker
        self._answer = granted

    def pids(self) -> list[int]:
        """See `Executor`."""
        return []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for run in reversed(self._runs):
            run.close()
