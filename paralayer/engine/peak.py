"""The most memory that a conversion was seen to use."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SAMPLE_SECONDS = 0.5
_SHARE = 100  # looking takes one part of so many of the time at most: the kernel walks all page tables


class Peak:
    """`bytes` is the most that was seen: of this process and its workers, with the decoded layers.

    With workers it is the sum of all PSS, looked at now and then. Alone, it is this process's largest resident set,
    which the kernel keeps. Decoded layers are mapped nowhere, so they count besides.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._pids: Sequence[int] = ()
        self._stored: Callable[[], int] = int
        self._next = 0.0

    def watch(self, pids: Sequence[int], stored: Callable[[], int]) -> None:
        """Look at these workers from now on; `stored` returns the bytes of decoded layers."""
        self._stored = stored
        self._pids = pids

    def sample(self) -> None:
        """Look, unless that was done a moment ago."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SAMPLE_SECONDS
        if self._pids:
            try:
                used = sum(map(_proportional_set, [os.getpid(), *self._pids]))
            except OSError:
                return  # one of them is ending
        else:
            used = _largest_resident_set()
        self.bytes = max(self.bytes, used + self._stored())
        self._next = max(self._next, now + _SHARE * (time.monotonic() - now))


def _proportional_set(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(b"Pss:")) << 10


def _largest_resident_set() -> int:
    # getrusage(2) has the larger of this program's and that of the one that started it.
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmHWM"].split()[0]) << 10
