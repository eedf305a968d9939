"""Streaming decoders for layer blobs: the content says which one, not the media type.

Guarantees of every decoder:

- It reads its source to the end, and has verified every checksum, size and frame in it when it returns the
  empty chunk. A stream that is damaged, cut short or followed by something else ends in a `LayerError`; errors
  of the codecs never get out. Bytes that were returned before are not yet verified.
- A chunk has at most `CHUNK` bytes whatever the compression ratio, and memory stays within a few chunks plus the
  codec's window, which is at most `MAX_WINDOW`.
- How the source cuts its bytes into pieces changes nothing but the sizes of the chunks.
- One compression is removed. What is inside may look compressed again; it is not touched.

Formats: gzip RFC 1952, zstd RFC 8878, xz "The .xz File Format" 1.2.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from paralayer.errors import LayerError

if TYPE_CHECKING:
    from typing import BinaryIO

Read = Callable[[int], bytes]
"""Returns up to that many stored bytes, at least one, or b"" at the end of the blob."""

KIB = 1024
MIB = 1024 * KIB

# Decoding and `os.pwrite` of each chunk into a memfd, gzip and zstd: 128 KiB to 1 MiB differ by less than the
# noise of the measurement (5 to 10 %), so this is a matter of memory.
CHUNK = 256 * KIB
READ_SIZE = 128 * KIB
MAX_WINDOW = 128 * MIB

_PIECE = 64 * KIB  # most stored bytes handed to a member's codec at once; mostly decoded within one chunk
_FIRST_PIECE = 2 * KIB  # see `_Members`
_ENOUGH = 32 * KIB  # below `CHUNK`; shorter outputs are joined: a chunk costs its consumer a system call

_BLOCK = 512
_GZIP_MAGIC = b"\x1f\x8b"
_XZ_MAGIC = b"\xfd7zXZ\0"
_BZIP2_MAGIC = re.compile(rb"BZh[1-9](?:\x31\x41\x59\x26\x53\x59|\x17\x72\x45\x38\x50\x90)")
_ZSTD_MAGIC = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)
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
    source = _Source(read, where)
    head = source.peek(_BLOCK)
    if _is_tar_block(head):
        return _Plain(source)
    if head.startswith(_GZIP_MAGIC):
        return _Gzip(source)
    if _ZSTD_MAGIC.match(head):
        return _Zstd(source)
    if _BZIP2_MAGIC.match(head):
        return _Bzip2(source)
    if head.startswith(_XZ_MAGIC):
        return _Xz(source)
    if stated := _SUFFIX.search(media_type):
        want = f"{stated[1]} as in {media_type}"
        if not head:
            raise LayerError(where, "compressed data is truncated", "an empty blob", want)
        raise LayerError(where, "unknown compression", f"bytes {head[:8].hex(' ')}", want)
    return _Plain(source)


def _is_tar_block(block: bytes) -> bool:
    if len(block) < _BLOCK:
        return False
    field = re.match(rb" *([0-7]+)", block[148:156])
    if field is None:
        return not any(block)
    # The field itself counts as spaces; some old tars summed signed bytes.
    total = sum(block) - sum(block[148:156]) + 8 * 0x20
    high = sum(byte > 0x7F for byte in block[:148] + block[156:])
    return int(field[1], 8) in (total, total - 256 * high)


class _Source:
    """The stored bytes, with a buffer that is a contiguous part of them."""

    def __init__(self, read: Read, where: str) -> None:
        self.where = where
        self._read: Read | None = read
        self._fetched = 0
        self._data = b""
        self._view = memoryview(b"")
        self._pos = 0

    def _set(self, data: bytes) -> None:
        self._data = data
        self._view = memoryview(data)
        self._pos = 0

    def _fetch(self) -> bytes:
        data = self._read(READ_SIZE) if self._read else b""
        if not data:
            self._read = None
        self._fetched += len(data)
        return data

    def peek(self, size: int) -> bytes:
        """Return the next `size` bytes without consuming them; fewer only at the end."""
        while len(self._data) - self._pos < size and (data := self._fetch()):
            self._set(self._data[self._pos :] + data)
        return self._data[self._pos : self._pos + size]

    def take(self, size: int) -> bytes:
        """Consume exactly `size` bytes; refuse the blob if it ends before."""
        data = self.peek(size)
        if len(data) < size:
            raise self.truncated()
        self._pos += size
        return data

    def piece(self, size: int) -> memoryview:
        """Consume 1 to `size` bytes, none only at the end."""
        if self._pos == len(self._data):
            self._set(self._fetch())
        piece = self._view[self._pos : self._pos + size]
        self._pos += len(piece)
        return piece

    def rest(self) -> bytes:
        """Consume what is buffered, or else what the source has next: fewer than `READ_SIZE + _BLOCK` bytes."""
        data = self._data[self._pos :] or self._fetch()
        self._set(b"")
        return data

    def give_back(self, unused: bytes) -> None:
        """Put back bytes that were consumed last, if need be from before the buffer's start."""
        if len(unused) <= self._pos:
            self._pos -= len(unused)
        else:
            self._set(unused + self._data[self._pos :])

    def take_zeros(self) -> int:
        """Consume zero bytes up to another byte or the end; return how many."""
        count = 0
        while self.peek(1) == b"\0":
            rest = self._data[self._pos :]
            zeros = len(rest) - len(rest.lstrip(b"\0"))
            self._pos += zeros
            count += zeros
        return count

    def truncated(self) -> LayerError:
        return LayerError(self.where, "compressed data is truncated", f"its end at byte {self._fetched}")

    def garbage(self, compression: str) -> LayerError:
        got = f"bytes {self.peek(8).hex(' ')}"
        return LayerError(self.where, f"garbage after {compression} data", got, "the end of the blob")


class _Plain:
    compression = "none"

    def __init__(self, source: _Source) -> None:
        self._source = source

    def read(self) -> bytes:
        return self._source.rest()


class _Codec(Protocol):
    """What `bz2`, `lzma` and `isal.igzip_lib` have in common."""

    @property
    def needs_input(self) -> bool: ...
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: memoryview | bytes, max_length: int = -1, /) -> bytes: ...


class _Members(ABC):
    """Members (gzip) or streams (bzip2, xz) one after another, a codec object for each.

    A codec copies what it has not used of its last piece. So a member starts with a small piece and gets larger
    ones as it goes on; otherwise each of thousands of tiny members (eStargz) would copy all the others.
    """

    compression: str

    def __init__(self, source: _Source, error: type[Exception]) -> None:
        self._source = source
        self._error = error
        self._codec: _Codec | None = None
        self._piece = _FIRST_PIECE

    @abstractmethod
    def _begin(self) -> _Codec | None:
        """Finish the member before, if any; return the codec of the next one, None at the end of the blob."""

    def read(self) -> bytes:
        out = self._decode(CHUNK)
        if len(out) >= _ENOUGH or not out:
            return out
        parts = [out]
        size = len(out)
        while size < _ENOUGH and (out := self._decode(CHUNK - size)):
            parts.append(out)
            size += len(out)
        return b"".join(parts)

    def _decode(self, limit: int) -> bytes:
        """Return 1 to `limit` bytes of one member, none at the end of the blob."""
        while True:
            codec = self._codec
            if codec is None:
                codec = self._codec = self._begin()
                if codec is None:
                    return b""
                self._piece = _FIRST_PIECE
            piece: memoryview | bytes = b""
            if codec.needs_input:
                piece = self._source.piece(self._piece)
                if not piece:
                    raise self._source.truncated()
                self._piece = min(4 * self._piece, _PIECE)
            try:
                out = codec.decompress(piece, limit)
            except self._error as error:
                raise self._damaged(error) from error
            if codec.eof:
                self._source.give_back(codec.unused_data)
                self._codec = None
            if out:
                return out

    def _damaged(self, error: Exception) -> LayerError:
        return LayerError(self._source.where, f"{self.compression} data is damaged", error)


class _Gzip(_Members):
    """gzip members; zeros may follow the last one, as on tapes.

    ISA-L decodes the raw deflate data only. Its own gzip mode refuses a right header checksum that is cut by the
    end of a piece, and long headers cut so, and it accepts reserved flags (isal 1.9.1). `isal_zlib.decompressobj`
    is no alternative: with a limited output it may keep decoded bytes that it gives no sign of. Headers, CRC and
    size are therefore checked here; that costs 2 to 3 %.
    """

    compression = "gzip"

    def __init__(self, source: _Source) -> None:
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

    def _begin(self) -> _Codec | None:
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
        if not _GZIP_MAGIC.startswith(source.peek(2)):
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
            piece = bytes(source.piece(_FIRST_PIECE))
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


class _Bzip2(_Members):
    compression = "bzip2"

    def __init__(self, source: _Source) -> None:
        import bz2

        super().__init__(source, OSError)
        self._new = bz2.BZ2Decompressor

    def _begin(self) -> _Codec | None:
        head = self._source.peek(10)
        if not head:
            return None
        if not _BZIP2_MAGIC.match(head):
            raise self._source.garbage(self.compression)
        return self._new()


class _Xz(_Members):
    """xz streams; stream padding is zeros in multiples of four bytes."""

    compression = "xz"

    def __init__(self, source: _Source) -> None:
        import lzma

        super().__init__(source, lzma.LZMAError)
        self._lzma = lzma

    def _begin(self) -> _Codec | None:
        source = self._source
        zeros = source.take_zeros()
        if zeros % 4:
            raise LayerError(source.where, "xz stream padding", f"{zeros} bytes", "a multiple of 4")
        head = source.peek(len(_XZ_MAGIC))
        if not head:
            return None
        if head != _XZ_MAGIC:
            raise source.garbage(self.compression)
        # liblzma's own needs come on top of the dictionary.
        return self._lzma.LZMADecompressor(format=self._lzma.FORMAT_XZ, memlimit=MAX_WINDOW + MIB)

    def _damaged(self, error: Exception) -> LayerError:
        if str(error) == "Memory usage limit exceeded":
            limit = f"at most {MAX_WINDOW} (128 MiB)"
            return LayerError(self._source.where, "xz dictionary too large", error, limit)
        return super()._damaged(error)


class _Zstd:
    """zstd frames, decoded into one buffer again and again: 9 % faster than a new object for each chunk.

    python-zstandard's reader takes the end of its source for the end of the data wherever that is, and does not
    say where a frame ends. So `_ZstdFrames` stands between the source and it.
    """

    compression = "zstd"

    def __init__(self, source: _Source) -> None:
        import zstandard

        self._where = source.where
        self._error = zstandard.ZstdError
        self._buffer = memoryview(bytearray(CHUNK))
        self._reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(
            cast("BinaryIO", _ZstdFrames(source)), read_size=READ_SIZE, read_across_frames=True
        )

    def read(self) -> memoryview:
        try:
            size = self._reader.readinto(self._buffer)
        except self._error as error:
            raise LayerError(self._where, "zstd data is damaged", error) from error
        return self._buffer[:size]


class _ZstdFrames:
    """The source, as a file whose every frame is followed as it passes, to the last byte of the last one.

    Looks at frame headers (RFC 8878, 3.1.1.1) and block headers (3.1.1.2) only. What libzstd checks as well is
    checked here only where its error would not name what is wrong.
    """

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._held = b""  # the start of a header that the end of a piece cut
        self._skip = 0  # bytes of contents still to pass; 0 if some of a header are held
        self._in_frame = False  # what comes next is a block header, not a frame header
        self._checksum = 0  # bytes after the frame's last block

    def read(self, _size: int) -> bytes:
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
        if not _ZSTD_MAGIC.match(head):
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
