"""A worker process: takes jobs from its socket, sends their events back, until the socket closes.

It has no state between jobs. When the other end is gone, however that came, the next receive or send tells, so that
no worker outlives its parent by more than one chunk of work.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import traceback
from dataclasses import dataclass
from typing import Any

from paralayer.engine.jobs import Event, Finished, Job, MemoryWanted
from paralayer.errors import ParalayerError, WorkerError

MESSAGE_MAX = 160 << 10  # bytes; what a socket of this kind takes by default is 208 KiB
FDS_MAX = 8
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
"""Blocked while a worker starts, until it has said what they mean to it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a `MemoryWanted`."""

    granted: int | None


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
    """Do jobs until the other end closes."""
    while (message := receive(end)) is not None:
        try:
            _do(end, *message)
        except ParalayerError as error:
            send(end, Failed(error))
        except (BrokenPipeError, ConnectionResetError):
            return
        except MemoryError:
            send(end, Failed(WorkerError(f"worker process {os.getpid()}", "out of memory")))
        except Exception:  # noqa: BLE001 - whatever it was, the parent must learn of it
            trace = traceback.format_exc()[-4000:]
            send(end, Failed(WorkerError(f"worker process {os.getpid()}", f"internal error\n{trace}")))


def _do(end: socket.socket, job: Job, fds: list[int]) -> None:
    """Do a job, and others while it waits for an answer."""
    run = job.run(fds)
    answer: int | None = None
    try:
        while True:
            event: Event = run.send(answer)
            send(end, event)
            if isinstance(event, Finished):
                return
            answer = None
            if isinstance(event, MemoryWanted):
                while (message := receive(end)) is not None and not isinstance(message[0], Answer):
                    _do(end, *message)
                if message is None:
                    raise BrokenPipeError
                answer = message[0].granted
    except StopIteration:
        send(end, Finished())
    finally:
        run.close()
        for fd in fds:
            os.close(fd)


def main(fd: int) -> None:
    """Be a worker process on the socket `fd`."""
    # An interrupt goes to the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    with socket.socket(fileno=fd) as end:
        serve(end)


if __name__ == "__main__":
    main(int(sys.argv[1]))
