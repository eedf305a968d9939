"""gzip. Source: RFC 1952."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from paralayer.compression.members import FIRST_PIECE, Codec, Members
from paralayer.errors import LayerError

if TYPE_CHECKING:
    from paralayer.compression.source import Source

MAGIC = b"\x1f\x8b"


class Gzip(Members):
    """gzip members; zeros may follow the last one, as on tapes.

    ISA-L decodes the raw deflate data only. Its own gzip mode refuses a right header checksum that is cut by the
    end of a piece, and long headers cut so, and it accepts reserved flags (isal 1.9.1). `isal_zlib.decompressobj`
    is no alternative: with a limited output it may keep decoded bytes that it gives no sign of. Headers, CRC and
    size are therefore checked here; that costs 2 to 3 %.
    """

    compression = "gzip"

    def __init__(self, source: Source) -> None:
        from isal import igzip_lib, isal_zlib

        super().__init__(source, cast("type[Exception]", igzip_lib.error))
        self._new = igzip_lib.IgzipDecompressor
        self._raw_deflate = igzip_lib.DECOMP_DEFLATE
        self._crc32 = isal_zlib.crc32
        self._in_member = False
        self._crc = 0
        self._size = 0

    def _decode(self, limit: int) -> bytes:
        out = super()._decode(limit)
        self._crc = self._crc32(out, self._crc)
        self._size += len(out)
        return out

    def _begin(self) -> Codec | None:
        source = self._source
        if self._in_member:
            self._in_member = False
            self._check_trailer()
        if source.take_zeros() and source.peek(1):
            raise source.garbage(self.compression)
        if not source.peek(1):
            return None
        self._read_header()
        self._in_member = True
        self._crc = self._size = 0
        return self._new(self._raw_deflate)

    def _read_header(self) -> None:
        source = self._source
        if not MAGIC.startswith(source.peek(2)):
            raise source.garbage(self.compression)
        fixed = source.take(10)
        method, flags = fixed[2], fixed[3]
        if method != 8:
            raise LayerError(source.where, "gzip compression method", method, 8)
        if flags & 0xE0:
            raise LayerError(source.where, "reserved gzip flags", f"{flags:#04x}", "none of 0xe0")
        if not flags:
            return
        crc = self._crc32(fixed)
        if flags & 0x04:
            length = source.take(2)
            extra = source.take(int.from_bytes(length, "little"))
            crc = self._crc32(extra, self._crc32(length, crc))
        for flag in (0x08, 0x10):  # name, comment
            if flags & flag:
                crc = self._skip_text(crc)
        if flags & 0x02:
            want = int.from_bytes(source.take(2), "little")
            if crc & 0xFFFF != want:
                raise LayerError(source.where, "gzip header checksum", f"{crc & 0xFFFF:04x}", f"{want:04x}")

    def _skip_text(self, crc: int) -> int:
        source = self._source
        while True:
            piece = bytes(source.piece(FIRST_PIECE))
            if not piece:
                raise source.truncated()
            text, end, rest = piece.partition(b"\0")
            crc = self._crc32(text + end, crc)
            if end:
                source.give_back(rest)
                return crc

    def _check_trailer(self) -> None:
        trailer = self._source.take(8)
        crc = int.from_bytes(trailer[:4], "little")
        size = int.from_bytes(trailer[4:], "little")
        if crc != self._crc:
            raise LayerError(self._source.where, "gzip checksum", f"{self._crc:08x}", f"{crc:08x}")
        if size != self._size & 0xFFFFFFFF:
            raise LayerError(
                self._source.where, "gzip member size modulo 2^32", self._size & 0xFFFFFFFF, size
            )
