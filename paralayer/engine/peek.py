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
from paralayer.engine.jobs import ArrivingReader, BlobReader, FileReader
from paralayer.errors import ImageError, ParalayerError
from paralayer.growing import Growing
from paralayer.image import Blob
from paralayer.table import DIRECTORY, Table, TableWriter
from paralayer.tar.scanner import Scanner

if TYPE_CHECKING:
    from paralayer.compression.source import Read
    from paralayer.image import Layer

_ENOUGH = 16 << 10  # decoded bytes: a header with extended ones before it, and some more


def root_entry(layer: Layer) -> Table | None:
    """Return a table whose first row is the root's entry, if the layer begins with it, as far as that is there."""
    blob: BlobReader
    try:
        if isinstance(layer.blob, Growing):
            blob = ArrivingReader(layer.blob.fd, layer.blob.state_fd, "", None)
        else:
            assert isinstance(layer.blob, Blob)
            blob = FileReader(layer.blob, "", None)
    except ImageError:
        return None  # decoding the layer will tell
    try:
        return _first(layer.index, layer.media_type, blob.read)
    finally:
        blob.close()


def root_in(layer: int, media_type: str, head: bytes) -> Table | None:
    """Do the same with how the layer's blob begins."""
    return _first(layer, media_type, io.BytesIO(head).read)


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
