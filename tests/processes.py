"""paralayer as a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
Found = TypeVar("Found")

COMMAND = (sys.executable, "-m", "paralayer")
CONVERT = (*COMMAND, "convert")
AS_NOBODY = (sys.executable, os.path.join(os.path.dirname(__file__), "as_nobody.py"), "convert")
PATIENCE = 120  # seconds until a test that waits in vain fails


def convert(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `paralayer convert` to its end."""
    return finish([*CONVERT, *map(str, arguments)], **options)


def finish(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; what it prints is text, of which any byte can be had back."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(
        command, check=False, timeout=PATIENCE, errors="surrogateescape", **{**streams, **options}
    )


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a session of its own; whatever is left of that at the end is killed."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, start_new_session=True, **{**streams, **options}) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            for left in session_of(process):
                os.kill(left, signal.SIGKILL)


def written_outputs(process: subprocess.Popen[bytes], top: Path) -> list[Path]:
    """Return what a process writes to `top` under no name yet, or a temporary one."""
    found = list(top.glob(".paralayer*"))
    for descriptor in Path("/proc", str(process.pid), "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if re.fullmatch(rf"{re.escape(str(top))}/#[0-9]+ \(deleted\)", os.readlink(descriptor)):
                found.append(descriptor)
    return found


def session_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the living processes of the session that `running` made."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as stat:
                state, _, _, session = stat.read().rpartition(b")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(session) == process.pid and state != b"Z":
            found.append(int(name))
    return found


def workers_of(process: subprocess.Popen[bytes], count: int) -> list[psutil.Process]:
    """Return the children of `process`, as soon as there are `count`."""

    def children() -> list[psutil.Process]:
        assert process.poll() is None, f"ended with {process.returncode}"
        found = psutil.Process(process.pid).children()
        return found if len(found) == count else []

    return wait_for(children)


def wait_for(condition: Callable[[], Found]) -> Found:
    """Return the value of `condition` as soon as it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)  # between two looks, not instead of one
    return found


def end_of(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Wait for the end of `process`; return its status and what it wrote to standard error."""
    assert process.stderr is not None
    error = process.stderr.read().decode("utf-8", "surrogateescape")
    return process.wait(PATIENCE), error


def one_line(error: str, *parts: str) -> str:
    """Return the only line of `error`; it has each of `parts`."""
    lines = error.splitlines()
    assert len(lines) == 1, error
    for part in parts:
        assert part in lines[0], error
    return lines[0]
