"""A squashfs file mounted, read-only, for as long as it is read. Nothing stays mounted, however this process ends.

Root mounts through a loop device, in a mount namespace that belongs to a process of its own. It waits for the end of
its standard input, which the kernel closes at the latest when we are gone; with it the namespace goes, and with that
the mount and the loop device. Nobody else ever sees the mount, so it can lie over a directory that is there anyway;
it is reached through /proc/PID/root.

Other users mount with squashfuse_ll (squashfuse itself shows hard links as files of their own), which ends when we do
(PR_SET_PDEATHSIG, by setpriv). When it ends, however that comes, fusermount unmounts (`auto_unmount`). Only an empty
directory can stay, and only if we are killed.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from paralayer.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOP = """
mount -t squashfs -o loop,ro,nosuid,nodev,noexec -- "$1" "$2" || exit 1
cd / && echo mounted && exec cat
"""
_SECTOR = 512
_PATIENCE = 10  # seconds that a process gets to end by itself


@contextmanager
def mounted(path: str, where: str) -> Iterator[str]:
    """Yield the directory at which the file at `path` is mounted. `ImageError` when it cannot be."""
    if os.geteuid() == 0:
        if (size := os.path.getsize(path)) % _SECTOR:
            raise ImageError(
                where,
                "cannot be mounted: a loop device has whole sectors",
                f"{size} bytes",
                "a multiple of 512",
            )
        with _loop(path, where) as point:
            yield point
    else:
        with _squashfuse(path, where) as point:
            yield point


@contextmanager
def _loop(path: str, where: str) -> Iterator[str]:
    point = os.path.realpath(tempfile.gettempdir())
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        _LOOP,
        "sh",
        os.path.abspath(path),
        point,
    ]
    with _process(command, where) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"mounted\n":
            raise _refused(process, where)
        yield f"/proc/{process.pid}/root{point}"


@contextmanager
def _squashfuse(path: str, where: str) -> Iterator[str]:
    for tool in ("squashfuse_ll", "setpriv"):
        if shutil.which(tool) is None:
            raise ImageError(
                where, f"cannot be mounted: {tool} is not installed, and only root mounts without it"
            )
    point = tempfile.mkdtemp(prefix="paralayer-mount-")
    try:
        command = ["setpriv", "--pdeathsig", "TERM", "squashfuse_ll", "-f"]
        command += ["-o", "auto_unmount", os.path.abspath(path), point]
        with _process(command, where) as process:
            outside = os.stat(point).st_dev
            while os.stat(point).st_dev == outside:
                try:
                    process.wait(0.01)
                except subprocess.TimeoutExpired:
                    continue
                raise _refused(process, where)
            yield point
    finally:
        _remove_mount_point(point)


def _remove_mount_point(point: str) -> None:
    """Remove a directory as soon as it is not mounted any more, which fusermount sees to."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            os.rmdir(point)
        except OSError as error:
            # With the file system's process gone, it is not connected any more until it is unmounted.
            if error.errno not in (errno.EBUSY, errno.ENOTCONN) or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


@contextmanager
def _process(command: list[str], where: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that ends when it is told so, or killed."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise ImageError(where, f"cannot be mounted: {error.filename} is not installed") from None
    with process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def _refused(process: subprocess.Popen[bytes], where: str) -> ImageError:
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="backslashreplace").split("\n")
    return ImageError(where, f"cannot be mounted: {said[0]}")
