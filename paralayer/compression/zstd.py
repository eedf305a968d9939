"""zstd. Source: RFC 8878."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from paralayer.compression.source import CHUNK, MAX_WINDOW, READ_SIZE
from paralayer.errors import LayerError

if TYPE_CHECKING:
    from typing import BinaryIO

    from paralayer.compression.source import Source

MAGIC = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)


class Zstd:
    """zstd frames, decoded into one buffer again and again: 9 % faster than a new object for each chunk.

    python-zstandard's reader takes the end of its source for the end of the data wherever that is, and does not
    say where a frame ends. So `Frames` stands between the source and it.
    """

    compression = "zstd"

    def __init__(self, source: Source) -> None:
        import zstandard

        self._where = source.where
        self._error = zstandard.ZstdError
        self._buffer = memoryview(bytearray(CHUNK))
        self._reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(
            cast("BinaryIO", Frames(source)), read_size=READ_SIZE, read_across_frames=True
        )

    def read(self) -> memoryview:
        """See `Decoder`."""
        try:
            size = self._reader.readinto(self._buffer)
        except self._error as error:
            raise LayerError(self._where, "zstd data is damaged", error) from error
        return self._buffer[:size]


class Frames:
    """The source, as a file whose every frame is followed as it passes, to the last byte of the last one.

    Looks at frame headers (RFC 8878, 3.1.1.1) and block headers (3.1.1.2) only. What libzstd checks as well is
    checked here only where its error would not name what is wrong.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._held = b""  # the start of a header that the end of a piece cut
        self._skip = 0  # bytes of contents still to pass; 0 if some of a header are held
        self._in_frame = False  # what comes next is a block header, not a frame header
        self._checksum = 0  # bytes after the frame's last block

    def read(self, _size: int) -> bytes:
        """Return the next stored bytes, followed."""
        piece = self._source.rest()
        if piece:
            self._follow(piece)
        elif self._in_frame or self._held or self._skip:
            raise self._source.truncated()
        return piece

    def _follow(self, piece: bytes) -> None:
        data = self._held + piece
        size = len(data)
        pos = self._skip
        while pos < size:
            if not self._in_frame:
                length = self._parse_frame_header(data[pos : pos + 18])
                if not length:
                    break
                pos += length
            elif size - pos < 3:
                break
            else:
                header = data[pos] | data[pos + 1] << 8 | data[pos + 2] << 16
                pos += 4 if header & 6 == 2 else 3 + (header >> 3)  # a run has one byte, whatever its size
                if header & 1:
                    self._in_frame = False
                    pos += self._checksum
        self._held = data[pos:]
        self._skip = max(0, pos - size)

    def _parse_frame_header(self, head: bytes) -> int:
        """Return the length of the frame header, or of a whole skippable frame; 0 if `head` is too short."""
        where = self._source.where
        if len(head) < 4:
            return 0
        if not MAGIC.match(head):
            got = f"bytes {head[:8].hex(' ')}"
            raise LayerError(where, "garbage after zstd data", got, "another frame or the end of the blob")
        if head[1] == 0x2A:
            return 8 + int.from_bytes(head[4:8], "little") if len(head) >= 8 else 0
        if len(head) < 5:
            return 0
        descriptor = head[4]
        single_segment = descriptor >> 5 & 1
        dictionary_at = 6 - single_segment
        content_size_at = dictionary_at + (0, 1, 2, 4)[descriptor & 3]
        end = content_size_at + (single_segment, 2, 4, 8)[descriptor >> 6]
        if len(head) < end:
            return 0
        if dictionary := int.from_bytes(head[dictionary_at:content_size_at], "little"):
            raise LayerError(where, "zstd dictionary", f"a frame that needs number {dictionary}", "none")
        if single_segment:
            window = int.from_bytes(head[content_size_at:end], "little")
        else:
            base = 1 << (10 + (head[5] >> 3))
            window = base + base // 8 * (head[5] & 7)
        if window > MAX_WINDOW:
            raise LayerError(
                where, "zstd window too large", f"{window} bytes", f"at most {MAX_WINDOW} (128 MiB)"
            )
        self._in_frame = True
        self._checksum = 4 if descriptor & 4 else 0
        return end
