"""The work of a decode job, one stage more at a time, in this process and without an engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.limits import decode_bare, read_blob
from paralayer.compression import open_decoder
from paralayer.engine.jobs import FileReader
from paralayer.image import Blob
from paralayer.table import TableWriter
from paralayer.tar.scanner import Scanner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer import Layer

STAGES = ("codec", "decoder", "digest", "scan", "store")
"""Each with all before it, but for `codec`: the bare library over a blob that is read at once, nothing kept."""


class Done(NamedTuple):
    """What a stage did."""

    decoded: int
    entries: int


def run_stage(stage: str, layers: Sequence[Layer]) -> Done:
    """Do all stages up to `stage` for each of the layers."""
    if stage == "codec":
        return Done(sum(decode_bare(layer, read_blob(layer)) for layer in layers), 0)
    number = STAGES.index(stage)
    decoded = entries = 0
    for layer in layers:
        assert isinstance(layer.blob, Blob)
        blob = FileReader(layer.blob, "", layer.digest if number >= 2 else None)
        stream, table = os.memfd_create("stream"), os.memfd_create("table")
        scanner = Scanner(TableWriter(table), layer.index, "")
        decoder = open_decoder(blob.read, layer.media_type, "")
        position = 0
        while chunk := decoder.read():
            if number >= 3:
                scanner.feed(chunk)
            if number >= 4:
                os.pwrite(stream, chunk, position)
            position += len(chunk)
        if number >= 2:
            blob.check()
        if number >= 3:
            scanner.finish()
        decoded += position
        entries += scanner.rows.table.length.rows
        blob.close()
        os.close(stream)
        os.close(table)
    return Done(decoded, entries)
