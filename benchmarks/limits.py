"""What no converter can do without, as CPU seconds: decoding the blobs, and writing the output's bytes.

That over the number of jobs is the limit that conversions are compared with.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import zstandard
from isal import isal_zlib

from benchmarks.measure import Run, run
from paralayer import open_image
from paralayer.image import Blob

if TYPE_CHECKING:
    from pathlib import Path

    from paralayer import Layer

_PIECE = 128 << 10
_BUFFER = 1 << 20


def decode_bare(layer: Layer, blob: bytes) -> int:
    """Decode a gzip or zstd blob with nothing but its codec, which checks its own checksums; return the decoded size."""
    size = 0
    if layer.media_type.endswith("zstd"):
        buffer = bytearray(2 * _PIECE)
        reader = zstandard.ZstdDecompressor().stream_reader(blob)
        while got := reader.readinto(buffer):
            size += got
        return size
    decoder = isal_zlib.decompressobj(wbits=31)
    view = memoryview(blob)
    for at in range(0, len(view), _PIECE):
        size += len(decoder.decompress(view[at : at + _PIECE]))
    assert decoder.eof
    return size


def decode_seconds(layout: Path) -> float:
    """Return the CPU seconds of decoding all blobs, which are in memory already."""
    seconds = 0.0
    for layer in open_image(str(layout)).layers:
        blob = read_blob(layer)
        started = time.process_time()
        decode_bare(layer, blob)
        seconds += time.process_time() - started
    return seconds


def write_seconds(size: int, scratch: Path) -> float:
    """Return the CPU seconds of writing that many bytes into a file: the same warm buffer again and again."""
    buffer = memoryview(os.urandom(_BUFFER))
    path = scratch / "written"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    try:
        started = time.process_time()
        while size:
            size -= os.write(fd, buffer[: min(size, _BUFFER)])
        return time.process_time() - started
    finally:
        os.close(fd)
        path.unlink()


def extract(archive: Path, directory: Path) -> Run:
    """Extract the flat archive with GNU tar, which is what writing a directory takes at least."""
    directory.mkdir()
    # Newest layer first, a directory gets entries long after its own; only so is its time set after them all.
    options = ("--delay-directory-restore", "--xattrs", "--xattrs-include=*")
    return run(["tar", *options, "-xpf", archive, "-C", directory])


def read_blob(layer: Layer) -> bytes:
    """Return a layer's blob as stored."""
    blob = layer.blob
    assert isinstance(blob, Blob)
    with open(blob.path, "rb") as file:
        file.seek(blob.offset)
        return file.read(blob.size)
