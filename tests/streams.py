"""Images whose layers arrive, and what there is to see of that."""

from __future__ import annotations

import os
import threading
from itertools import groupby
from typing import TYPE_CHECKING, Any

import paralayer
from paralayer import LayerMeta, StreamingPacker
from processes import PATIENCE
from trees import snapshot_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer import ConversionResult, ImageSpec, LayerWriter, PackerProgress

FORMS = ("tar", "directory", "squashfs")


class Arriving:
    """The layers of an image, as they are told and given to a `StreamingPacker`."""

    def __init__(self, layout: str, *, known: bool = True) -> None:
        image = paralayer.open_image(layout)
        self.layout = layout
        self.created = image.created
        self.paths = [
            layer.blob.path for layer in image.layers if isinstance(layer.blob, paralayer.image.Blob)
        ]
        self.metas = [
            LayerMeta(layer.index, layer.media_type, layer.digest, layer.blob.size, layer.diff_id)
            if known
            else LayerMeta(layer.index, layer.media_type)
            for layer in image.layers
        ]

    def packer(self, spec: ImageSpec, **options: Any) -> StreamingPacker:
        return StreamingPacker(self.metas, spec, created=self.created, **options)

    def data(self, index: int) -> bytes:
        with open(self.paths[index], "rb") as stream:
            return stream.read()

    def give(self, packer: StreamingPacker, *indexes: int) -> None:
        """Give layers as files."""
        for index in indexes:
            packer.notify_layer_ready(index, self.paths[index])

    def write(self, packer: StreamingPacker, index: int, size: int = 1 << 18) -> None:
        """Give a layer in pieces."""
        with packer.open_layer(index) as writer:
            write_pieces(writer, self.data(index), size)


def write_pieces(writer: LayerWriter, data: bytes, size: int) -> None:
    for at in range(0, len(data), size):
        piece = data[at : at + size]
        assert writer.write(piece) == len(piece)


class Events(list["PackerProgress"]):
    """Progress that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def __call__(self, event: PackerProgress) -> None:
        with self._changed:
            self.append(event)
            self._changed.notify_all()

    def wait(self, name: str, layer: int) -> None:
        """Wait for an event of a layer."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.has(name, layer), PATIENCE), f"no {name} of {layer}"

    def has(self, name: str, layer: int) -> bool:
        return any((event.event, event.layer) == (name, layer) for event in self)

    def check(self, layers: int) -> None:
        """Assert what `PackerProgress` says of the order."""
        assert {event.layer for event in self} == set(range(layers))
        for index in range(layers):
            own = [event for event in self if event.layer == index]
            runs = [name for name, _ in groupby(event.event for event in own)]
            assert [name for name in runs if name != "bytes"] == ["started", "indexed", "finished"], runs
            assert (runs[0], runs[-1]) == ("started", "finished")
            first = own[: [event.event for event in own].index("indexed") + 1]
            assert first[-1].read == first[-1].size == own[-1].read
            assert all(0 <= event.read <= event.size <= event.total for event in own)
            assert {event.layers for event in own} == {layers}


def ended(packer: StreamingPacker) -> ConversionResult:
    """Finish, unless that takes for ever."""
    packer.finishing().exception(PATIENCE)
    return packer.finish()


def content(path: str) -> object:
    """Return all that there is of an output."""
    if os.path.isdir(path):
        return snapshot_directory(os.fsencode(path))
    with open(path, "rb") as stream:
        return stream.read()


def descriptors() -> Sequence[str]:
    """Return what the descriptors of this process are of, sorted."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return sorted(found)
