"""The layers of an image in a registry, while they are downloaded: newest first, through memory or into a cache."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from paralayer.errors import DigestError, RegistryError
from paralayer.fetching import Fetched
from paralayer.growing import Growing
from paralayer.image import Blob
from paralayer.image.descriptor import shown
from paralayer.registry.access import BrokenConnection
from paralayer.registry.cache import BlobCache
from paralayer.registry.client import RemoteBlob
from paralayer.registry.download import BlobRequest, Downloads

if TYPE_CHECKING:
    from types import TracebackType

    from paralayer.image import Image
    from paralayer.registry.cache import CachedBlob

_LEAD_LEAST, _LEAD_MOST = 8 << 20, 256 << 20
_HEAD = 128 << 10  # bytes of a blob in which the first entry's header certainly is


class Downloading(Fetched):
    """Layers that come from a registry, newest first."""

    def __init__(self, image: Image, memory: int, cache: str | None) -> None:
        super().__init__([layer.blob.size for layer in image.layers], start=self._begin, head=self._head)
        self._layers = image.layers
        self._lead = None if cache else max(_LEAD_LEAST, min(_LEAD_MOST, memory // 8))
        self._cache = BlobCache(cache) if cache else None
        self._cached: dict[int, CachedBlob] = {}
        self._downloads: Downloads | None = None
        self._stack = ExitStack()

    def accept(self, layer: int) -> None:
        """See `Fetched`."""
        if layer in self._cached:
            self._cached[layer].accept()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        damaged = None
        if isinstance(error, DigestError):
            for index, cached in self._cached.items():
                if self._layers[index].digest == error.want:
                    damaged = cached.path if cached.complete else damaged
                    cached.refuse()
        for cached in self._cached.values():
            cached.close()
        super().__exit__(kind, error, traceback)
        if damaged is not None and isinstance(error, DigestError):
            what = f"{error.what} in the cache, {shown(damaged)}, which is removed now"
            raise DigestError(error.where, what, error.got, error.want) from None

    def _begin(self) -> None:
        """Start to fetch, once."""
        if self._downloads is not None:
            return
        requests = []
        for layer in reversed(self._layers):
            blob = layer.blob
            if not isinstance(blob, RemoteBlob):
                self.add(layer)
                continue
            cached = self._cache.open(blob.digest, blob.size) if self._cache else None
            if cached is not None:
                self._cached[layer.index] = cached
                if cached.complete:
                    self.add(replace(layer, blob=Blob(cached.path, 0, blob.size)))
                    continue
            growing = self._growing(blob, cached)
            requests.append(BlobRequest(blob.digest, blob.size, growing, cached))
            self.add(replace(layer, blob=growing))
        registry = next(blob.registry for layer in self._layers if isinstance(blob := layer.blob, RemoteBlob))
        self._stack.callback(registry.disconnect)
        self._downloads = self._stack.enter_context(
            Downloads(
                registry,
                requests,
                connections=registry.access.connections,
                lead=self._lead,
                on_complete=lambda _: None,
                on_error=self.fail,
            )
        )

    def _growing(self, blob: RemoteBlob, cached: CachedBlob | None) -> Growing:
        if cached is not None:
            return Growing(cached.open(), size=blob.size, wake=self.wake)
        fd = os.memfd_create("blob", os.MFD_CLOEXEC)
        return Growing(fd, size=blob.size, wake=self.wake, again=partial(self._again, blob))

    def _again(self, blob: RemoteBlob) -> Growing:
        """Fetch a blob that was not kept once more."""
        assert self._downloads is not None
        growing = self._growing(blob, None)
        self._downloads.add(BlobRequest(blob.digest, blob.size, growing), first=True)
        return growing

    def _head(self, layer: int) -> tuple[str, bytes] | None:
        """See `Arrivals`: asked for before the layer's turn to be fetched."""
        blob = self._layers[layer].blob
        assert isinstance(blob, RemoteBlob)
        size = min(blob.size, _HEAD)
        buffer = memoryview(bytearray(size))
        count = 0
        try:
            with closing(blob.registry.open_blob(blob.digest, 0, size, size=blob.size)) as body:
                while count < size and (got := body.readinto(buffer[count:])):
                    count += got
        except (BrokenConnection, RegistryError):
            return None  # fetching it all will tell, or has told already
        return self._layers[layer].media_type, bytes(buffer[:count])
