"""Layers as they become ready to be decoded, from whatever thread."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Self

from paralayer.growing import Growing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from paralayer.image import Layer


class Arrivals:
    """All that is to come is `count` layers; each is ready, or begins to grow, when it is added.

    `start` is called when the engine is ready to take. `head` returns the media type of a layer that is not there yet and
    how its blob begins, if that can be had, so that the root's entry is found. A context manager; the engine is the one
    that takes.
    """

    def __init__(
        self,
        sizes: Sequence[int | None],
        *,
        start: Callable[[], None] = lambda: None,
        head: Callable[[int], tuple[str, bytes] | None] = lambda _: None,
    ) -> None:
        self.count = len(sizes)
        self.sizes = list(sizes)
        """Stored bytes of each layer, None where that is not known yet."""
        self.start = start
        self.head = head
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Becomes readable when there may be something new: a layer, bytes of a growing one, or an error."""
        self._lock = threading.RLock()  # a finalizer may call `fail` wherever it is held
        self._added: dict[int, Layer] = {}
        self._new: list[Layer] = []
        self.error: BaseException | None = None
        """What `fail` was told first."""
        self._closed = False

    @classmethod
    def of(cls, layers: Sequence[Layer]) -> Self:
        """Return arrivals of layers that are all there."""
        arrivals = cls([layer.blob.size for layer in layers])
        for layer in layers:
            arrivals.add(layer)
        return arrivals

    def add(self, layer: Layer) -> None:
        """Add a layer that is ready, or begins to grow; each once."""
        with self._lock:
            assert layer.index not in self._added
            self._new.append(layer)
        self.renew(layer)
        self.wake()

    def renew(self, layer: Layer) -> None:
        """Know the blob of a layer that grows once more."""
        with self._lock:
            self._added[layer.index] = layer
            failed = self.error is not None
        if failed:
            _give_up([layer])

    def fail(self, error: BaseException) -> None:
        """Let the conversion end with this error; the first one counts. Nobody waits for bytes of a layer from then on."""
        with self._lock:
            self.error = self.error or error
            added = list(self._added.values())
        _give_up(added)
        self.wake()

    def wake(self) -> None:
        """Let the engine look for what is new."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self.fd, 1)

    def take(self) -> list[Layer]:
        """Return the layers that are new since the last time, or raise the error."""
        with self._lock:
            try:
                os.eventfd_read(self.fd)
            except BlockingIOError:
                return []
            if self.error is not None:
                raise self.error
            new, self._new = self._new, []
            for layer in new:
                self.sizes[layer.index] = layer.blob.size or self.sizes[layer.index]
            return new

    def again(self) -> None:
        """Let all layers that have come be new again."""
        with self._lock:
            self._new = list(self._added.values())
        self.wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            self._added, self._new = {}, []
            os.close(self.fd)


def _give_up(layers: Iterable[Layer]) -> None:
    for layer in layers:
        if isinstance(layer.blob, Growing):
            layer.blob.abort()
