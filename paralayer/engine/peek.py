"""A look at where a layer begins.

The root's entry has to come first in the output, but is wherever the image has it, mostly nowhere or in the oldest
layer. Where a layer has one, it is its first entry: so says every program that writes layers, though no rule. A look
at the beginning of each layer therefore lets output start long before the oldest layer is indexed. It is a guess,
and whoever uses it has to check it.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from paralayer.compression import open_decoder
from paralayer.engine.jobs import LOOKAHEAD, ArrivingReader, BlobReader, FileReader
from paralayer.errors import ImageError, ParalayerError
from paralayer.image import Blob
from paralayer.table import DIRECTORY, Table, TableWriter
from paralayer.tar.scanner import Scanner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from paralayer.compression.source import Read
    from paralayer.engine.arrivals import Arrivals
    from paralayer.engine.reading import Reading

_ENOUGH = 16 << 10  # decoded bytes: a header with extended ones before it, and some more


class Beginnings:
    """How layers begin, looked at once each. `readings` has those that have come, and more as they come."""

    def __init__(self, arrivals: Arrivals, readings: Mapping[int, Reading]) -> None:
        self._arrivals = arrivals
        self._readings = readings
        self._roots: dict[int, Table | None] = {}

    def newest_root(self, *, guessing: bool) -> tuple[bool, int, Table | None]:
        """Return whether all is known that matters, and the newest layer that begins with an entry of the root.

        Of that layer there is a table whose first row is the entry; None: no layer does. What has not come yet is not
        known; with `guessing`, it has no such entry.
        """
        for layer in reversed(range(self._arrivals.count)):
            if not self._look(layer):
                if not guessing:
                    return False, -1, None
            elif (table := self._roots[layer]) is not None:
                return True, layer, table
        return True, -1, None

    def root_of(self, layer: int) -> Table | None:
        """Return a table whose first row is the root's entry, if the layer begins with it, as far as it has come."""
        return self._roots[layer] if self._look(layer) else None

    def _look(self, layer: int) -> bool:
        """Look at how a layer begins, if that can be seen already."""
        if layer in self._roots:
            return True
        reading = self._readings.get(layer)
        if reading is not None and (reading.growing is None or reading.growing.has(LOOKAHEAD)):
            self._roots[layer] = _root_entry(reading)
        elif (head := self._arrivals.head(layer)) is not None:
            media_type, data = head
            self._roots[layer] = _first(layer, media_type, io.BytesIO(data).read)
        return layer in self._roots


def _root_entry(reading: Reading) -> Table | None:
    layer = reading.layer
    blob: BlobReader
    try:
        if isinstance(reading.blob, Blob):
            blob = FileReader(reading.blob, "", None)
        else:
            assert reading.growing is not None
            blob = ArrivingReader(reading.growing.fd, reading.growing.state_fd, "", None)
    except ImageError:
        return None  # decoding the layer will tell
    try:
        return _first(layer.index, layer.media_type, blob.read)
    finally:
        blob.close()


def _first(layer: int, media_type: str, read: Read) -> Table | None:
    fd = os.memfd_create("peek", os.MFD_CLOEXEC)
    try:
        table = TableWriter(fd)
        scanner = Scanner(table, layer, "")
        scanner.feed(open_decoder(read, media_type, "").read()[:_ENOUGH])
        scanner.rows.flush()
        first = Table(fd, table.length)
    except ParalayerError:
        return None  # whatever it is, decoding the layer will tell
    finally:
        os.close(fd)
    if len(first.rows) and first.rows["kind"][0] == DIRECTORY and not first.paths()[0]:
        return first
    return None
