"""Streaming decoders for layer blobs: the content says which one, not the media type.

Guarantees of every decoder:

- It reads its source to the end, and has verified every checksum, size and frame in it when it returns the
  empty chunk. A stream that is damaged, cut short or followed by something else ends in a `LayerError`; errors
  of the codecs never get out. Bytes that were returned before are not yet verified.
- A chunk has at most `source.CHUNK` bytes whatever the compression ratio, and memory stays within a few chunks plus the
  codec's window, which is at most `source.MAX_WINDOW`.
- How the source cuts its bytes into pieces changes nothing but the sizes of the chunks.
- One compression is removed. What is inside may look compressed again; it is not touched.

One module a format; `members` is what three of them share, `source` how they read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from paralayer.compression import bzip2, gzip, xz, zstd
from paralayer.compression.source import CHUNK, MAX_WINDOW, READ_SIZE, Source
from paralayer.errors import LayerError
from paralayer.tar import header

if TYPE_CHECKING:
    from paralayer.compression.source import Read

__all__ = ["CHUNK", "MAX_WINDOW", "READ_SIZE", "Decoder", "open_decoder"]

_SUFFIX = re.compile(r"[+.](gzip|zstd|bzip2|xz)$")


class Decoder(Protocol):
    """One pass over the decoded bytes of a blob."""

    compression: str
    """gzip, zstd, bzip2, xz or none."""

    def read(self) -> bytes | memoryview:
        """Return the next 1 to `CHUNK` decoded bytes, or none at the end, then and ever after.

        A memoryview is valid until the next call. After an error the decoder is of no use.
        """


def open_decoder(read: Read, media_type: str, where: str) -> Decoder:
    """Return the decoder for what `read` yields; `where` names the layer in errors.

    A first block that is a tar header (its checksum is right) or is all zeros makes the blob uncompressed, even
    if a file name in it begins with a magic. Otherwise the magic decides. Where there is none, the media type
    does: one that states a compression is refused, also for an empty blob, which is no stream of any of them;
    any other makes the blob uncompressed, whatever it holds.
    """
    source = Source(read, where)
    head = source.peek(header.BLOCK)
    if _is_tar_block(head):
        return Plain(source)
    if head.startswith(gzip.MAGIC):
        return gzip.Gzip(source)
    if zstd.MAGIC.match(head):
        return zstd.Zstd(source)
    if bzip2.MAGIC.match(head):
        return bzip2.Bzip2(source)
    if head.startswith(xz.MAGIC):
        return xz.Xz(source)
    if stated := _SUFFIX.search(media_type):
        want = f"{stated[1]} as in {media_type}"
        if not head:
            raise LayerError(where, "compressed data is truncated", "an empty blob", want)
        raise LayerError(where, "unknown compression", f"bytes {head[:8].hex(' ')}", want)
    return Plain(source)


def _is_tar_block(block: bytes) -> bool:
    if len(block) < header.BLOCK:
        return False
    return block == header.ZERO_BLOCK or header.has_valid_checksum(block)


class Plain:
    compression = "none"

    def __init__(self, source: Source) -> None:
        self._source = source

    def read(self) -> bytes:
        return self._source.rest()
