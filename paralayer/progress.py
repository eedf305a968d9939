"""What a conversion tells of itself while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from paralayer.engine.jobs import Event


@dataclass(frozen=True, slots=True)
class PackerProgress:
    """An event of a conversion.

    Of each layer come in this order: one `started`, any number of `bytes`, one `indexed` (decoded, checked and its
    entries known), any number of `bytes` (it is read a second time), one `finished` (the output has of it whatever
    survives). Layers overlap. `read` of the blob's `size` bytes are used, `decoded` bytes came out. `layers` and
    `total` are the image's number of layers and stored bytes.
    """

    event: Literal["started", "bytes", "indexed", "finished"]
    layer: int
    read: int
    size: int
    decoded: int
    layers: int
    total: int


class Reporter:
    """Turns the engine's events into those of the interface."""

    def __init__(
        self, sizes: Sequence[int | None], progress: Callable[[PackerProgress], None] | None
    ) -> None:
        self._sizes = sizes  # more of them are known as layers arrive
        self._indexed: set[int] = set()  # also when the output starts over: events are for the first time
        self._progress = progress
        self._last: dict[int, PackerProgress] = {}
        self._done: set[int] = set()

    @property
    def indexed(self) -> int:
        """How many layers are indexed."""
        return len(self._indexed)

    def observe(self, event: Event) -> None:
        """Report an event of a decode job."""
        from paralayer.engine.jobs import Finished, Indexed

        assert not isinstance(event, Finished)
        is_indexed = isinstance(event, Indexed) and event.layer not in self._indexed
        if is_indexed:
            self._indexed.add(event.layer)
        if self._progress is None or event.layer in self._done:
            return
        if event.layer not in self._last:
            self._report("started", event.layer, 0, 0)
        self._report("indexed" if is_indexed else "bytes", event.layer, event.read, event.decoded)

    def finished(self, layer: int) -> None:
        """Report that the output has what it needs of a layer."""
        if self._progress is not None and layer not in self._done:
            self._done.add(layer)
            last = self._last[layer]
            self._report("finished", layer, last.size, last.decoded)

    def _report(
        self, event: Literal["started", "bytes", "indexed", "finished"], layer: int, read: int, decoded: int
    ) -> None:
        assert self._progress is not None
        size, total = max(read, self._sizes[layer] or 0), sum(size or 0 for size in self._sizes)
        self._last[layer] = PackerProgress(
            event, layer, read, size, decoded, len(self._sizes), max(size, total)
        )
        self._progress(self._last[layer])
