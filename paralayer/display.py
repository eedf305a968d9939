"""The progress display on a terminal: one calm line, without a thread of its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from paralayer.progress import PackerProgress

if TYPE_CHECKING:
    from collections.abc import Callable

    from paralayer.verification import VerifyProgress

_REFRESH_SECONDS = 0.1
_BAR = 24
_MARKS = {"started": "▸", "bytes": "▸", "indexed": "●", "finished": "✓"}
_WAITING = "·"
_MIB = 1 << 20


class LiveDisplay:
    """Shows decoded bytes, rate, time left, and a mark per layer, newest first: · ▸ ● ✓ (waiting, decoding, indexed, done)."""

    def __init__(self) -> None:
        # Refreshed by events only: a thread would keep this process from forking its workers.
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._layers: dict[int, PackerProgress] = {}
        self._begin = self._next = 0.0

    def start(self) -> None:
        """Begin."""
        self._begin = time.monotonic()
        self._live.start()

    def stop(self) -> None:
        """End, and leave the terminal as it was."""
        self._live.stop()

    def show(self, event: PackerProgress | VerifyProgress) -> None:
        """Take an event; refresh if the last time is a while ago."""
        if isinstance(event, PackerProgress):
            self._note(event)
            self._refresh(self._line)
        else:
            side = "first" if event.side == "a" else "second"
            self._refresh(
                lambda seconds: self._bytes_line(event.done, event.total, f"of the {side} read", seconds)
            )

    def show_bytes(self, done: int, total: int) -> None:
        """Take how many bytes of all are there; refresh as with `show`."""
        self._refresh(lambda seconds: self._bytes_line(done, total, "downloaded", seconds))

    def _refresh(self, line: Callable[[float], Text]) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _REFRESH_SECONDS
            self._live.update(line(now - self._begin), refresh=True)

    def _note(self, event: PackerProgress) -> None:
        known = self._layers.get(event.layer)
        # A second reading counts from zero again; what was indexed stays so.
        if known is None or known.event in ("started", "bytes") or event.event == "finished":
            self._layers[event.layer] = event

    def _line(self, seconds: float) -> Text:
        layers = self._layers.values()
        read = sum(layer.read for layer in layers)
        total = next(iter(layers)).total
        decoded = sum(layer.decoded for layer in layers)
        part = min(1.0, read / total) if total else 1.0
        left = f"{seconds * (1 - part) / part:.0f} s left" if part else "? s left"
        count = next(iter(layers)).layers
        marks = "".join(
            _MARKS[self._layers[layer].event] if layer in self._layers else _WAITING
            for layer in range(count - 1, max(-1, count - 1 - _BAR), -1)
        )
        return self._with_bar(
            part,
            f"{read / _MIB:.0f} of {total / _MIB:.0f} MiB read, {decoded / _MIB:.0f} decoded  "
            f"{decoded / _MIB / max(seconds, 0.001):.0f} MiB/s  {left}  {marks}",
        )

    def _bytes_line(self, done: int, total: int, what: str, seconds: float) -> Text:
        part = min(1.0, done / total) if total else 1.0
        return self._with_bar(part, f"{done / _MIB:.0f}/{total / _MIB:.0f} MiB {what}  {seconds:.0f} s")

    def _with_bar(self, part: float, text: str) -> Text:
        """Return a line with a bar as long as there is room for."""
        text = f" {part:4.0%}  {text}"
        bar = max(0, min(_BAR, self._console.width - len(text)))
        return Text(
            ("━" * round(part * bar)).ljust(bar, "╌") + text,
            no_wrap=True,
            overflow="ellipsis",
        )
