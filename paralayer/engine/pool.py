"""Worker processes as an `Executor`.

A process without threads of its own forks them, which takes milliseconds. One with threads must not (a lock that
another thread holds at that moment stays locked in the child for ever), so there each worker is a new interpreter.

Each worker has a socket pair with its parent. It carries small messages; bulk data is in memfds, whose descriptors
travel with the jobs. The parent learns of a worker's death by the end of its socket, and a worker of its parent's.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from paralayer.engine import worker as worker_process
from paralayer.engine.jobs import Event, Finished, Job, Waiting
from paralayer.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


_WAKE = -1


@dataclass(slots=True)
class _Worker:
    """A process, and our end of its socket."""

    pid: int
    end: socket.socket
    process: subprocess.Popen[bytes] | None  # None: forked


class Pool:
    """An `Executor` of `count` processes."""

    def __init__(self, count: int) -> None:
        self.idle = set(range(count))
        self._workers: list[_Worker] = []
        self._going = [0] * count  # jobs of each worker that do not wait
        self._jobs: dict[int, int] = {}  # job → worker
        self._count = 0
        self._wake: int | None = None
        self._selector = selectors.DefaultSelector()
        self._ready: deque[int] = deque()

    def __enter__(self) -> Self:
        try:
            for number in range(len(self.idle)):
                before = signal.pthread_sigmask(signal.SIG_BLOCK, worker_process.SIGNALS)
                try:
                    worker = self._start()
                    self._workers.append(worker)  # before a signal can come that makes an end
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
                self._selector.register(worker.end, selectors.EVENT_READ, number)
        except BaseException:
            self._end()
            raise
        return self

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                if len(os.listdir("/proc/self/task")) == 1:
                    return _Worker(self._fork(ours, theirs), ours, None)
                process = subprocess.Popen(
                    [sys.executable, "-I", "-c", _START, repr(sys.path), str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
            except BaseException:
                ours.close()
                raise
            return _Worker(process.pid, ours, process)

    def _fork(self, ours: socket.socket, theirs: socket.socket) -> int:
        pid = os.fork()
        if pid:
            return pid
        # Another worker's socket that stayed open here would hide from that worker that its parent is gone.
        status = 1
        try:
            ours.close()
            self._selector.close()
            for other in self._workers:
                other.end.close()
            worker_process.main(theirs.detach())
            status = 0
        finally:
            os._exit(status)

    def submit(self, worker: int, job: Job, fds: Sequence[int]) -> int:
        """See `Executor`."""
        self._count += 1
        self._jobs[self._count] = worker
        self._go(worker)
        self._send(worker, (self._count, job), tuple(fds))
        return self._count

    def answer(self, number: int, slots: Sequence[int] | None) -> None:
        """See `Executor`."""
        self._go(self._jobs[number])
        self._send(self._jobs[number], (number, worker_process.Answer(slots)))

    def wake_by(self, fd: int | None) -> None:
        """See `Executor`."""
        if self._wake is not None:
            self._selector.unregister(self._wake)
        if fd is not None:
            self._selector.register(fd, selectors.EVENT_READ, _WAKE)
        self._wake = fd

    def wait(self, *, block: bool) -> tuple[int, Event] | None:
        """See `Executor`."""
        while not self._ready:
            ready = [key.data for key, _ in self._selector.select(None if block else 0)]
            self._ready.extend(worker for worker in ready if worker != _WAKE)
            if not self._ready and (ready or not block):
                return None
        worker = self._ready.popleft()
        message = worker_process.receive(self._workers[worker].end)
        if message is None:
            raise self._death(worker)
        number, event = message[0]
        if isinstance(event, worker_process.Failed):
            raise event.error
        if isinstance(event, Finished):
            del self._jobs[number]
        if isinstance(event, Finished | Waiting):
            self._going[worker] -= 1
            if not self._going[worker]:
                self.idle.add(worker)
        return number, event

    def _go(self, worker: int) -> None:
        self._going[worker] += 1
        self.idle.discard(worker)

    def pids(self) -> list[int]:
        """See `Executor`."""
        return [worker.pid for worker in self._workers]

    def _send(self, number: int, message: object, fds: tuple[int, ...] = ()) -> None:
        try:
            worker_process.send(self._workers[number].end, message, fds)
        except (BrokenPipeError, ConnectionResetError):
            raise self._death(number) from None

    def _death(self, number: int) -> WorkerError:
        worker = self._workers.pop(number)
        self._selector.unregister(worker.end)
        worker.end.close()
        code = _reap(worker)
        got = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return WorkerError(f"worker process {worker.pid}", "died", got)

    def _end(self) -> None:
        for worker in self._workers:
            worker.end.close()
            # Not reaped yet, so the number is its own; unless the program around us reaps all children.
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        for worker in self._workers:
            _reap(worker)
        self._workers.clear()
        self._selector.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()


_START = "import sys; sys.path[:] = eval(sys.argv[1]); from paralayer.engine.worker import main; main(int(sys.argv[2]))"


def _reap(worker: _Worker) -> int:
    """Wait for a process that is dead or dying; return its exit status, negative for a signal."""
    if worker.process is not None:
        return worker.process.wait()
    try:
        _, status = os.waitpid(worker.pid, 0)
    except ChildProcessError:
        return 0  # the program around us reaps all children
    return os.waitstatus_to_exitcode(status)
