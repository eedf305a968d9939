"""What this process may use: processors and memory, by its affinity, its cgroups (v1 and v2) and the machine."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def usable_cpus() -> int:
    """Return how many processors may be used: a cgroup's quota counts, the machine's number does not."""
    cpus = len(os.sched_getaffinity(0))
    quotas = []
    for version, directory in _cgroups("cpu"):
        if version == 2:
            quota, _, period = _read(f"{directory}/cpu.max").partition(" ")
        else:
            quota, period = _read(f"{directory}/cpu.cfs_quota_us"), _read(f"{directory}/cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():
            quotas.append(int(quota) / int(period))
    return max(1, min(cpus, math.ceil(min(quotas, default=cpus))))


def default_budget() -> int:
    """Return a quarter of the memory that is available: the smaller of free memory and the cgroups' limits, in bytes."""
    fields = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines())
    available = [int(fields["MemAvailable"].split()[0]) << 10]
    for version, directory in _cgroups("memory"):
        limit = _read(f"{directory}/{'memory.max' if version == 2 else 'memory.limit_in_bytes'}")
        if limit.isdecimal():
            available.append(int(limit))
    return min(available) // 4


def _cgroups(controller: str) -> Iterator[tuple[int, str]]:
    """Yield (version, directory) of each cgroup that this process is in, for one controller, up to the root."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = f"/sys/fs/cgroup/{controller}" if controllers else "/sys/fs/cgroup"
        path = path.rstrip("/")
        while True:
            yield (1 if controllers else 2), root + path
            if not path:
                break
            path = os.path.dirname(path).rstrip("/")


def _read(path: str) -> str:
    """Return a file's text; nothing where the kernel does not have it, or not here."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
