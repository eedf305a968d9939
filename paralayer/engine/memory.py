"""Decoded layers in memory, and the budget for all of them.

A layer's decoded bytes are one sparse memfd in which file offset equals stream offset. The worker that decodes it
writes forward and never reads; everybody else reads and never writes. So no lock is needed: bytes are handed over by
the message that announces them. Released pages read as zeros, so nothing may read below `released`.

The budget counts the bytes that decoders were granted and that have not been released. It decides when bytes are
dropped and read a second time, never what comes out.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import TYPE_CHECKING

import psutil

from paralayer.errors import SinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PAGE = os.sysconf("SC_PAGESIZE")
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
_SAMPLE_SECONDS = 0.25
_SMALLEST_GRANT, _LARGEST_GRANT = 1 << 20, 128 << 20


class LayerStream:
    """The decoded bytes of one layer; `fd` is its memfd.

    `decoded` bytes have been written, those before `released` are gone again.
    """

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.fd = os.memfd_create(f"layer-{layer}", os.MFD_CLOEXEC)
        self.decoded = 0
        self.granted = 0
        self.released = 0

    def release(self, upto: int) -> int:
        """Free the pages before `upto`; return how many bytes became free."""
        upto = min(upto, self.granted)
        freed = upto - self.released
        if freed <= 0:
            return 0
        start, stop = self.released // _PAGE * _PAGE, upto // _PAGE * _PAGE
        if stop > start:
            _punch(self.fd, start, stop - start)
        self.released = upto
        return freed

    def close(self) -> int:
        """Free everything; return how many granted bytes became free."""
        os.close(self.fd)
        freed, self.released = self.granted - self.released, self.granted
        return freed


class Budget:
    """How many decoded bytes may be present: `total`."""

    def __init__(self, total: int, jobs: int) -> None:
        self.total = total
        self.used = 0
        self.unit = max(_SMALLEST_GRANT, min(_LARGEST_GRANT, total // (4 * jobs)))

    def grant(self, stream: LayerStream, *, essential: bool) -> bool:
        """Let a stream grow by one unit, if there is room.

        An essential stream, whose bytes are released as they come, always has room for one unit; it would wait for
        ever otherwise.
        """
        held = stream.granted - stream.released
        if self.used + self.unit > self.total and not (essential and held < self.unit):
            return False
        stream.granted += self.unit
        self.used += self.unit
        return True

    def free(self, freed: int) -> None:
        """Take back what `LayerStream.release` or `.close` returned."""
        self.used -= freed


class Peak:
    """The most memory that a set of processes was seen to have: their PSS, and the decoded layers beside it.

    Memfds are not mapped anywhere, so no PSS has them. Seen means every `_SAMPLE_SECONDS` while events come.
    """

    def __init__(self, budget: Budget) -> None:
        self.bytes = 0
        self._processes = [psutil.Process()]
        self._budget = budget
        self._next = 0.0

    def watch(self, pids: Sequence[int]) -> None:
        """Look at these processes and this one from now on."""
        self._processes = [psutil.Process(), *(psutil.Process(pid) for pid in pids)]

    def sample(self) -> None:
        """Look, unless it was done a moment ago."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SAMPLE_SECONDS
        try:
            pss = sum(process.memory_full_info().pss for process in self._processes)
        except psutil.Error:
            return  # one is ending
        self.bytes = max(self.bytes, pss + self._budget.used)


def default_budget() -> int:
    """Return a quarter of the memory that is available to this process: free memory or what its cgroup leaves."""
    available = [psutil.virtual_memory().available]
    available += [limit - used for limit, used in _cgroup_limits() if limit > used]
    return int(min(available) // 4)


def _cgroup_limits() -> list[tuple[int, int]]:
    """Return (limit, used) of the memory controllers that hold this process, cgroup v1 and v2."""
    found = []
    for directory, limit, used in _cgroup_files("memory"):
        try:
            with open(f"{directory}/{limit}") as limit_file, open(f"{directory}/{used}") as used_file:
                bound = limit_file.read().strip()
                if bound != "max":
                    found.append((int(bound), int(used_file.read())))
        except OSError:
            continue  # that controller is not mounted here
    return found


def cgroup_cpus() -> float | None:
    """Return the CPU quota of this process's cgroups in processors; None: no quota."""
    quotas = []
    for directory, _, _ in _cgroup_files("cpu"):
        for read in (_quota_v2, _quota_v1):
            try:
                quota = read(directory)
            except OSError:
                continue  # the other version's files
            if quota is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _quota_v2(directory: str) -> float | None:
    with open(f"{directory}/cpu.max") as file:
        quota, period = file.read().split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(directory: str) -> float | None:
    with open(f"{directory}/cpu.cfs_quota_us") as quota, open(f"{directory}/cpu.cfs_period_us") as period:
        allowed = int(quota.read())
        return None if allowed <= 0 else allowed / int(period.read())


def _cgroup_files(controller: str) -> list[tuple[str, str, str]]:
    """Return (directory, limit file, usage file) for each cgroup above this process."""
    try:
        with open("/proc/self/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = f"/sys/fs/cgroup/{controller}" if controllers else "/sys/fs/cgroup"
        files = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes")
            if controllers
            else ("memory.max", "memory.current")
        )
        while True:
            found.append((root + path.rstrip("/"), *files))
            if path in ("", "/"):
                break
            path = os.path.dirname(path)
    return found


def _load_fallocate() -> Callable[[int, int, int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int
    return function


_fallocate = _load_fallocate()


def _punch(fd: int, offset: int, length: int) -> None:
    if _fallocate(fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, offset, length):
        code = ctypes.get_errno()
        raise SinkError("memory", f"a memfd cannot be released: {os.strerror(code)}")
