"""The most memory that a conversion was seen to use."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SAMPLE_SECONDS = 0.5


class Peak:
    """`bytes` is the most that was seen: of this process and its workers, with the decoded layers.

    With workers it is the sum of all PSS, looked at now and then. Alone, it is this process's largest resident set,
    which the kernel keeps. Decoded layers are mapped nowhere, so they count besides.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._processes: list[Any] = []
        self._stored: Callable[[], int] = int
        self._next = 0.0

    def watch(self, pids: Sequence[int], stored: Callable[[], int]) -> None:
        """Look at these workers from now on; `stored` returns the bytes of decoded layers."""
        self._stored = stored
        if pids:
            import psutil

            self._processes = [psutil.Process(), *(psutil.Process(pid) for pid in pids)]

    def sample(self) -> None:
        """Look, unless that was done a moment ago."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SAMPLE_SECONDS
        if self._processes:
            import psutil

            try:
                used = sum(process.memory_full_info().pss for process in self._processes)
            except psutil.Error:
                return  # one of them is ending
        else:
            used = _largest_resident_set()
        self.bytes = max(self.bytes, used + self._stored())


def _largest_resident_set() -> int:
    # getrusage(2) has the larger of this program's and that of the one that started it.
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmHWM"].split()[0]) << 10
