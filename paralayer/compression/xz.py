"""xz. Source: "The .xz File Format", 1.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paralayer.compression.members import Codec, Members
from paralayer.compression.source import MAX_WINDOW
from paralayer.errors import LayerError

if TYPE_CHECKING:
    from paralayer.compression.source import Source

MAGIC = b"\xfd7zXZ\0"


class Xz(Members):
    """xz streams; stream padding is zeros in multiples of four bytes."""

    compression = "xz"

    def __init__(self, source: Source) -> None:
        import lzma

        super().__init__(source, lzma.LZMAError)
        self._lzma = lzma

    def _begin(self) -> Codec | None:
        source = self._source
        zeros = source.take_zeros()
        if zeros % 4:
            raise LayerError(source.where, "xz stream padding", f"{zeros} bytes", "a multiple of 4")
        head = source.peek(len(MAGIC))
        if not head:
            return None
        if head != MAGIC:
            raise source.garbage(self.compression)
        # liblzma's own needs come on top of the dictionary.
        return self._lzma.LZMADecompressor(format=self._lzma.FORMAT_XZ, memlimit=MAX_WINDOW + (1 << 20))

    def _damaged(self, error: Exception) -> LayerError:
        if str(error) == "Memory usage limit exceeded":
            limit = f"at most {MAX_WINDOW} (128 MiB)"
            return LayerError(self._source.where, "xz dictionary too large", error, limit)
        return super()._damaged(error)
