"""Layers as they become ready to be decoded, from whatever thread."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
        self._lock = threading.Lock()
        self._added: dict[int, Layer] = {}
        self._new: list[Layer] = []
        self._error: BaseException | None = None
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
            self._added[layer.index] = layer
            self._new.append(layer)
        self.wake()

    def fail(self, error: BaseException) -> None:
        """Let the conversion end with this error; the first one counts."""
        with self._lock:
            self._error = self._error or error
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
            if self._error is not None:
                raise self._error
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

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._closed = True
            os.close(self.fd)
