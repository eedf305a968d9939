"""A command as a process of its own: its seconds, wall and CPU, and the most memory of all its processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PARALAYER = (os.path.join(os.path.dirname(sys.executable), "paralayer"),)
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Run:
    """What a command took; `user` and `system` are seconds of all its processes together."""

    seconds: float
    user: float
    system: float
    output: str

    @property
    def cpu(self) -> float:
        """CPU seconds."""
        return self.user + self.system


def run(command: Sequence[str | Path]) -> Run:
    """Run a command to its end; RuntimeError if it fails."""
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = _start(command, errors)
        assert process.stdout is not None
        with process.stdout:
            output = process.stdout.read()
        # Of wait4, the usage has all descendants that were waited for, and of no other child of this process.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        _check(process, errors)
    return Run(seconds, usage.ru_utime, usage.ru_stime, output.decode())


def peak_memory(command: Sequence[str | Path]) -> int:
    """Run a command to its end; return the most bytes that its processes were seen to have together.

    That is their PSS and, once for all of them, their memfds, which nothing may have mapped. Looking, 50 times a
    second, costs some of the CPU: time the command in another run.
    """
    most = 0
    with tempfile.TemporaryFile() as errors, _start(command, errors, subprocess.DEVNULL) as process:
        while process.poll() is None:
            most = max(most, _memory(process.pid))
            time.sleep(_SAMPLE_SECONDS)
        _check(process, errors)
    return most


def _memory(pid: int) -> int:
    pss = 0
    memfds: dict[int, int] = {}
    try:
        main = psutil.Process(pid)
        processes = [main, *main.children(recursive=True)]
    except psutil.Error:
        return 0  # it has just ended
    for process in processes:
        try:
            pss += process.memory_full_info().pss
            for name in os.listdir(f"/proc/{process.pid}/fd"):
                path = f"/proc/{process.pid}/fd/{name}"
                if os.readlink(path).startswith("/memfd:"):
                    status = os.stat(path)
                    memfds[status.st_ino] = status.st_blocks * 512
        except (psutil.Error, OSError):
            continue  # a process has ended, or closed the file
    return pss + sum(memfds.values())


def _start(
    command: Sequence[str | Path], errors: IO[bytes], output: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)


def _check(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    if process.returncode:
        errors.seek(0)
        message = errors.read().decode(errors="replace")
        raise RuntimeError(f"{process.args!r}: exit status {process.returncode}\n{message}")
