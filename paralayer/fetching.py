"""The layers of an image as they come: local ones at once, those of a registry while they are downloaded."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from paralayer.engine.arrivals import Arrivals
from paralayer.image import Blob

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paralayer.image import Image


class Fetched(Arrivals):
    """The layers of an image; `accept` is to be called when a layer's digest was found right."""

    def accept(self, layer: int) -> None:
        """Keep what was fetched of a layer, where there is a cache."""


@contextmanager
def fetch(image: Image, *, memory: int, cache: str | os.PathLike[str] | None) -> Iterator[Fetched]:
    """Give the layers of `image`. Of `memory`, an eighth at most is for bytes that are fetched ahead of decoders.

    With `cache`, a directory, what is fetched is kept there, as soon as `accept` is called, and used the next time.
    """
    if all(isinstance(layer.blob, Blob) for layer in image.layers):
        with Fetched([layer.blob.size for layer in image.layers]) as arrivals:
            for layer in image.layers:
                arrivals.add(layer)
            yield arrivals
    else:
        from paralayer.downloading import Downloading  # it loads an HTTP library

        with Downloading(image, memory, None if cache is None else os.fspath(cache)) as arrivals:
            yield arrivals
