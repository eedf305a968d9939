"""A look at where a layer begins.

The root's entry has to come first in the output, but is wherever the image has it, mostly nowhere or in the oldest
layer. Where a layer has one, it is its first entry: so says every program that writes layers, though no rule. A look
at the beginning of each layer therefore lets output start long before the oldest layer is indexed. It is a guess,
and whoever uses it has to check it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from paralayer.compression import open_decoder
from paralayer.engine.jobs import BlobReader
from paralayer.errors import ParalayerError
from paralayer.table import DIRECTORY, Table, TableWriter
from paralayer.tar.scanner import Scanner

if TYPE_CHECKING:
    from paralayer.image import Layer

_ENOUGH = 16 << 10  # decoded bytes: a header with extended ones before it, and some more


def root_entry(layer: Layer) -> Table | None:
    """Return a table whose first row is the root's entry, if the layer begins with it."""
    fd = os.memfd_create("peek", os.MFD_CLOEXEC)
    try:
        blob = BlobReader(layer.blob, "", None)
        try:
            table = TableWriter(fd)
            scanner = Scanner(table, layer.index, "")
            scanner.feed(open_decoder(blob.read, layer.media_type, "").read()[:_ENOUGH])
            scanner.rows.flush()
        finally:
            blob.close()
        first = Table(fd, table.length)
    except ParalayerError:
        return None  # whatever it is, decoding the layer will tell
    finally:
        os.close(fd)
    if len(first.rows) and first.rows["kind"][0] == DIRECTORY and not first.paths()[0]:
        return first
    return None
