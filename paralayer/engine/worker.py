"""A worker process: takes jobs from its socket, sends their events back, until the socket closes.

It has no state between jobs. When the other end is gone, however that came, the next receive or send tells, so that
no worker outlives its parent by more than one chunk of work.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import socket
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paralayer.engine.jobs import Decode, Event, Finished, Run, Waiting
from paralayer.errors import ParalayerError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer.engine.jobs import Job

MESSAGE_MAX = 160 << 10  # bytes; what a socket of this kind takes by default is 208 KiB
FDS_MAX = 8
_trim = getattr(ctypes.CDLL(None), "malloc_trim", int)
"""The C library's, where it has one: of what an index took, which comes in many sizes, it keeps some MiB by itself."""
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
"""Blocked while a worker starts, until it has said what they mean to it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a job that waits."""

    slots: Sequence[int] | None


@dataclass(frozen=True, slots=True)
class Failed:
    """A job ended with an error."""

    error: ParalayerError


def send(end: socket.socket, message: object, fds: tuple[int, ...] = ()) -> None:
    """Send one message."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    assert len(data) <= MESSAGE_MAX, "messages are small; bulk goes through memfds"
    socket.send_fds(end, [data], fds)


def receive(end: socket.socket) -> tuple[Any, list[int]] | None:
    """Return the next message and its descriptors, None when the other end is closed."""
    try:
        data, fds, _, _ = socket.recv_fds(end, MESSAGE_MAX, FDS_MAX)
    except ConnectionResetError:
        return None
    return (pickle.loads(data), fds) if data else None  # noqa: S301 - from our own parent or child


def serve(end: socket.socket) -> None:
    """Do jobs until the other end closes.

    Messages are (job's number, job or Answer) in, (job's number, event or Failed) out. Of the jobs that can go on, the
    one that came first does, up to its next event: mostly it is the one that output waits for.
    """
    runs: dict[int, tuple[Job, Run, list[int]]] = {}
    ready: dict[int, Sequence[int] | None] = {}  # that can go on, with what they are to be sent
    came = select.poll()
    came.register(end, select.POLLIN)
    while True:
        if not ready or came.poll(0):
            if (received := receive(end)) is None:
                return
            (number, message), fds = received
            if isinstance(message, Answer):
                ready[number] = message.slots
            else:
                runs[number] = message, message.run(fds), fds
                ready[number] = None
            continue
        number = min(ready)
        job, run, fds = runs[number]
        event = _step(run, ready.pop(number))
        try:
            send(end, (number, event))
        except (BrokenPipeError, ConnectionResetError):
            return
        if isinstance(event, Finished | Failed):
            del runs[number]
            run.close()
            for fd in fds:
                os.close(fd)
            if isinstance(job, Decode):
                _trim(0)
        elif not isinstance(event, Waiting):
            ready[number] = None


def _step(run: Run, answer: Sequence[int] | None) -> Event | Failed:
    """Let a job go on up to its next event; return that."""
    try:
        return run.send(answer)
    except StopIteration:
        return Finished()
    except ParalayerError as error:
        return Failed(error)
    except MemoryError:
        return Failed(WorkerError(f"worker process {os.getpid()}", "out of memory"))
    except Exception:  # noqa: BLE001 - whatever it was, the parent must learn of it
        trace = traceback.format_exc()[-4000:]
        return Failed(WorkerError(f"worker process {os.getpid()}", f"internal error\n{trace}"))


def main(fd: int) -> None:
    """Be a worker process on the socket `fd`."""
    # These go to the whole process group; the parent decides what they mean.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    with socket.socket(fileno=fd) as end:
        serve(end)


if __name__ == "__main__":
    main(int(sys.argv[1]))
