"""The serial reference: jobs run in this process, one after the other, when the next event is asked for.

Whatever worker processes yield is, byte for byte, what this yields.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Protocol, Self

from paralayer.engine.jobs import Event, Finished, Job, Run, Waiting

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


class Executor(Protocol):
    """Does jobs, several at a time. A context manager: leaving it ends whatever is still running.

    A job that waits (for memory or for bytes) stands aside until it is answered; its worker can do others meanwhile.
    """

    idle: set[int]
    """The numbers of the workers that do nothing, whether jobs of theirs wait or not."""

    def submit(self, worker: int, job: Job, fds: Sequence[int]) -> int:
        """Give a job to a worker that is idle; return the job's number.

        The descriptors may be closed when its `Finished` has come.
        """

    def wait(self, *, block: bool) -> tuple[int, Event] | None:
        """Return the next event and the number of its job: those of one come in order, and end with `Finished`.

        None if there is none yet, and either `block` is false or what `wake_by` named has become readable.
        """

    def answer(self, number: int, slots: Sequence[int] | None) -> None:
        """Let a job go on that waits."""

    def wake_by(self, fd: int | None) -> None:
        """Let `wait` end when this descriptor becomes readable, until another one or None is named."""

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
        self._count = 0
        self._runs: dict[int, Run] = {}
        self._going: list[
            tuple[int, Sequence[int] | None]
        ] = []  # that do not wait, with what they are to be sent
        self._wake: int | None = None

    def submit(self, worker: int, job: Job, fds: Sequence[int]) -> int:
        """See `Executor`."""
        self.idle.discard(worker)
        self._count += 1
        self._runs[self._count] = job.run(fds)
        self._going.append((self._count, None))
        return self._count

    def wait(self, *, block: bool) -> tuple[int, Event] | None:
        """See `Executor`."""
        if not block:
            return None
        if not self._going:
            assert self._wake is not None, "something is to come"
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            poll.poll()
            return None
        number, answer = self._going.pop()
        run = self._runs[number]
        try:
            event = run.send(answer)
        except StopIteration:
            event = Finished()
        if isinstance(event, Finished):
            self._runs.pop(number).close()
        elif not isinstance(event, Waiting):
            self._going.append((number, None))
        if not self._going:
            self.idle.add(0)
        return number, event

    def answer(self, number: int, slots: Sequence[int] | None) -> None:
        """See `Executor`."""
        self.idle.discard(0)
        self._going.append((number, slots))

    def wake_by(self, fd: int | None) -> None:
        """See `Executor`."""
        self._wake = fd

    def pids(self) -> list[int]:
        """See `Executor`."""
        return []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for run in self._runs.values():
            run.close()
