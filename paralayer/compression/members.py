"""Formats that are members one after another: the part that gzip, bzip2 and xz share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from paralayer.compression.source import CHUNK
from paralayer.errors import LayerError

if TYPE_CHECKING:
    from paralayer.compression.source import Source

_PIECE = 128 << 10  # most stored bytes handed to a member's codec at once; mostly decoded within one chunk
FIRST_PIECE = 2 << 10  # see `Members`
_ENOUGH = 32 << 10  # below `CHUNK`; shorter outputs are joined: a chunk costs its consumer a system call


class Codec(Protocol):
    """What `bz2`, `lzma` and `isal.igzip_lib` have in common."""

    @property
    def needs_input(self) -> bool:
        """Whether it cannot go on without more data."""

    @property
    def eof(self) -> bool:
        """Whether the member has come to its end."""

    @property
    def unused_data(self) -> bytes:
        """What is left of the last piece behind the member's end."""

    def decompress(self, data: memoryview | bytes, max_length: int = -1, /) -> bytes:
        """Return up to `max_length` decoded bytes."""


class Members(ABC):
    """Members (gzip) or streams (bzip2, xz) one after another, a codec object for each.

    A codec copies what it has not used of its last piece. So a member starts with a small piece and gets larger
    ones as it goes on; otherwise each of thousands of tiny members (eStargz) would copy all the others.
    """

    compression: str

    def __init__(self, source: Source, error: type[Exception]) -> None:
        self._source = source
        self._error = error
        self._codec: Codec | None = None
        self._piece = FIRST_PIECE

    @abstractmethod
    def _begin(self) -> Codec | None:
        """Finish the member before, if any; return the codec of the next one, None at the end of the blob."""

    def read(self) -> bytes:
        """See `Decoder`."""
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
                self._piece = FIRST_PIECE
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
