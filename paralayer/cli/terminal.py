"""What commands do with a terminal: progress and interrupts."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn, Self, TextIO

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from paralayer.progress import PackerProgress
    from paralayer.verification import VerifyProgress


def is_terminal(stream: TextIO | None) -> bool:
    """Say whether someone looks at a stream."""
    return stream is not None and stream.isatty()  # a closed one is None


def size_text(size: float) -> str:
    """Return bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


class Display:
    """The progress of a command on a terminal's standard error; nothing elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._live: Any = None
        if not quiet and is_terminal(sys.stderr):
            from paralayer.display import LiveDisplay

            self._live = LiveDisplay()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show_bytes(self, done: int, total: int) -> None:
        """Take how many bytes of all are there."""
        if self._live is not None:
            self._live.show_bytes(done, total)

    def show(self, event: PackerProgress | VerifyProgress) -> None:
        """Take an event."""
        if self._live is not None:
            self._live.show(event)


class InterruptedByUser(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived: no error of anybody's, so that nobody takes it for one of an image or a file."""


class interrupts:  # noqa: N801 - used as a function
    """Within, SIGINT, SIGTERM and SIGHUP raise InterruptedByUser, once; those that are ignored stay so (nohup).

    Modules that load numpy are to be imported before: it takes any error while it loads for one of its own.
    """

    def __enter__(self) -> None:
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heard = [number for number in wanted if signal.getsignal(number) != signal.SIG_IGN]
        self._old = {number: signal.signal(number, self._raise) for number in heard}

    def _raise(self, number: int, frame: FrameType | None) -> NoReturn:
        del frame
        for each in self._old:
            # Not SIG_IGN: one more that has come already must find a handler.
            signal.signal(each, lambda *_: None)
        raise InterruptedByUser(f"interrupted by {signal.Signals(number).name}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, InterruptedByUser):
            # The process ends now, and no further signal is to change how, not even behind the last handler's end.
            signal.pthread_sigmask(signal.SIG_BLOCK, set(self._old))
            return
        for number, handler in self._old.items():
            signal.signal(number, handler)
