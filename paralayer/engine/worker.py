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
from typing import TYPE_CHECKING, Any

from paralayer.engine.jobs import Finished, Run, Waiting
from paralayer.errors import ParalayerError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Sequence

MESSAGE_MAX = 160 << 10  # bytes; what a socket of this kind takes by default is 208 KiB
FDS_MAX = 8
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

    Messages are (job's number, job or Answer) in, (job's number, event or Failed) out.
    """
    waiting: dict[int, tuple[Run, list[int]]] = {}
    while (received := receive(end)) is not None:
        (number, message), fds = received
        answer = None
        if isinstance(message, Answer):
            run, fds = waiting.pop(number)
            answer = message.slots
        else:
            run = message.run(fds)
        try:
            if _advance(end, number, run, answer):
                waiting[number] = run, fds
                continue
        except ParalayerError as error:
            send(end, (number, Failed(error)))
        except (BrokenPipeError, ConnectionResetError):
            return
        except MemoryError:
            send(end, (number, Failed(WorkerError(f"worker process {os.getpid()}", "out of memory"))))
        except Exception:  # noqa: BLE001 - whatever it was, the parent must learn of it
            trace = traceback.format_exc()[-4000:]
            send(
                end,
                (number, Failed(WorkerError(f"worker process {os.getpid()}", f"internal error\n{trace}"))),
            )
        run.close()
        for fd in fds:
            os.close(fd)


def _advance(end: socket.socket, number: int, run: Run, answer: Sequence[int] | None) -> bool:
    """Let a job go on until it waits (true) or has finished."""
    try:
        while True:
            event = run.send(answer)
            answer = None
            send(end, (number, event))
            if isinstance(event, Waiting):
                return True
            if isinstance(event, Finished):
                return False
    except StopIteration:
        send(end, (number, Finished()))
        return False


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
