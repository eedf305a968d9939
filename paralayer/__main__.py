"""The command, also as ``python -m paralayer``: from here on an interruption is told in one line."""

from __future__ import annotations

import gc
import os
import signal
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import FrameType


def main() -> NoReturn:
    """Run the command line and exit."""
    # What is made here lives long or is no cycle, so looking for garbage at every 700th object finds nothing: without,
    # a small image takes a fifth less CPU.
    gc.set_threshold(20_000)
    # First: the imports take longer than all else that happens before a command has something to clean up.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)
    from paralayer.cli import main as run

    run()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    os.write(2, f"paralayer: interrupted by {signal.Signals(number).name}\n".encode())
    os._exit(130)


if __name__ == "__main__":
    main()
