"""What a worker is given: the protocol of jobs, and the decode job.

A job is a frozen value that crosses to another process, with file descriptors beside it. `run` is a generator: it
yields events and is sent an answer to each `MemoryWanted`. The same generator runs in a worker process and in this
one; nothing else does the work of a job.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from paralayer.compression import READ_SIZE, open_decoder
from paralayer.engine.hiding import Hiding
from paralayer.errors import DigestError, ImageError, LayerError
from paralayer.growing import read_state
from paralayer.stream import Slots, Stream
from paralayer.table import Length, TableWriter
from paralayer.tar.scanner import Scanner

if TYPE_CHECKING:
    from paralayer.image import Blob, Digest

ANNOUNCE = 32 << 20
"""Decoded bytes between two announcements of progress."""
LOOKAHEAD = 1 << 20
"""Bytes of a growing blob that there should be before a chunk is decoded."""
_POLL_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Progress:
    """`decoded` bytes of a layer are there, `read` of its blob have been used.

    `length` of its table is published; `orderly` says whether the layer is, as far as that (see the scanner).
    """

    layer: int
    decoded: int
    read: int
    length: Length
    orderly: bool


@dataclass(frozen=True, slots=True)
class Waiting(Progress):
    """The job goes on when it is answered."""


@dataclass(frozen=True, slots=True)
class MemoryWanted(Waiting):
    """The slots are used up. The answer is more of them, or None: drop what is decoded."""


@dataclass(frozen=True, slots=True)
class BytesWanted(Waiting):
    """The blob is still growing. The answer, when it has `upto` bytes or is complete, is None."""

    upto: int


@dataclass(frozen=True, slots=True)
class Arriving:
    """A blob that may still grow: its descriptors come with the job, of the bytes and of their state."""


@dataclass(frozen=True, slots=True)
class Indexed(Progress):
    """A layer is decoded, checked and indexed; `identity` is of the file that it was read from.

    `whole`: all of the stream was stored, as far as it was granted. Else files that newer layers hide are missing.
    """

    identity: tuple[int, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """A job has come to its end; `result` is whatever the job's sink makes of it."""

    result: Any = None


Event = Progress | Finished
Run = Generator[Event, Sequence[int] | None, None]


class Job(Protocol):
    """Something that a worker does."""

    def run(self, fds: Sequence[int]) -> Run:
        """Do it. The descriptors stay the caller's."""


@dataclass(frozen=True, slots=True)
class Decode:
    """Decode a layer into its stream, as far as that has slots, and index it.

    Descriptors: of the arena; of the blob if it is arriving, and of its state; unless this is the second reading, of
    the table and of what newer layers hide. The second reading neither checks nor indexes again: it makes sure that the
    file is the one that was checked, stores everything, and ends at `until`.
    """

    layer: int
    where: str
    media_type: str
    blob: Blob | Arriving
    slots: Slots
    digest: Digest | None = None  # to be checked
    diff_id: Digest | None = None  # to be checked
    identity: tuple[int, ...] | None = None  # second reading: of the file
    until: int | None = None

    def run(self, fds: Sequence[int]) -> Run:
        """See `Job`."""
        arena_fd, *index_fds = fds
        stream: Stream | None = Stream(arena_fd, self.slots)
        blob: BlobReader
        if isinstance(self.blob, Arriving):
            blob = ArrivingReader(index_fds.pop(0), index_fds.pop(0), self.where, self.digest)
        else:
            blob = FileReader(self.blob, self.where, self.digest)
        try:
            if self.identity is not None and self.identity != blob.identity:
                raise ImageError(self.where, f"{blob.name} was changed while it was converted")
            diff_id = self.diff_id.hasher() if self.diff_id else None
            scanner = None
            hidden: deque[tuple[int, int]] = deque()
            if index_fds:
                table_fd, hiding_fd = index_fds
                hiding = Hiding(hiding_fd, self.layer)
                hiding.refresh()
                scanner = Scanner(TableWriter(table_fd), self.layer, self.where, hiding.hides)
                hidden = scanner.hidden
            whole = True
            decoded = announced = 0

            def state() -> tuple[int, int, int, Length, bool]:
                if scanner is None:
                    return self.layer, decoded, blob.position, Length(), False
                scanner.rows.flush()
                return self.layer, decoded, blob.position, scanner.rows.table.length, scanner.rows.orderly

            decoder = None
            while True:
                while not blob.has(LOOKAHEAD):
                    yield BytesWanted(*state(), blob.position + LOOKAHEAD)
                    announced = decoded
                decoder = decoder or open_decoder(blob.read, self.media_type, self.where)
                if not (chunk := decoder.read()):
                    break
                if scanner is not None:
                    scanner.feed(chunk)
                if diff_id is not None:
                    diff_id.update(chunk)
                whole = whole and not hidden
                view = memoryview(chunk)
                while stream is not None and decoded + len(view) > stream.granted:
                    room = stream.granted - decoded
                    _store(stream, view[:room], decoded, hidden)
                    decoded += room
                    view = view[room:]
                    more = yield MemoryWanted(*state())
                    announced = decoded
                    if more is None:
                        stream = None
                    else:
                        stream.add(more)
                if stream is not None:
                    _store(stream, view, decoded, hidden)
                decoded += len(view)
                if decoded - announced >= ANNOUNCE:
                    announced = decoded
                    yield Progress(*state())
                    if scanner is not None:
                        hiding.refresh()
                if self.until is not None and decoded >= self.until:
                    break
            if scanner is None:
                yield Progress(*state())
                return
            scanner.finish()
            blob.check()
            if (
                self.diff_id is not None
                and diff_id is not None
                and diff_id.hexdigest() != self.diff_id.encoded
            ):
                got = f"{self.diff_id.algorithm}:{diff_id.hexdigest()}"
                raise DigestError(self.where, "diff_id of the decoded layer", got, self.diff_id)
            yield Indexed(*state(), blob.identity, whole)
        except LayerError:
            # Bytes that are not those of the digest come first among all that can be wrong.
            if self.digest is not None:
                length = scanner.rows.table.length if scanner is not None else Length()
                while True:
                    while not blob.has(LOOKAHEAD):
                        upto = blob.position + LOOKAHEAD
                        yield BytesWanted(
                            self.layer, announced, blob.position, length, orderly=False, upto=upto
                        )
                    if not blob.read(READ_SIZE):
                        break
                blob.check()
            raise
        finally:
            blob.close()


class BlobReader(ABC):
    """A blob as stored, read forward once; with a digest, hashed on the way."""

    name: str
    """Of what it is in, for messages."""
    identity: tuple[int, ...]
    """The same as long as the bytes are."""

    def __init__(self, where: str, digest: Digest | None) -> None:
        self.position = 0
        self._where = where
        self._digest = digest
        self._hash = digest.hasher() if digest else None

    def has(self, size: int) -> bool:
        """Say whether so many bytes can be read, or all there is, without waiting."""
        del size
        return True

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end of the blob."""
        data = self._read(size)
        self.position += len(data)
        if self._hash is not None:
            self._hash.update(data)
        return data

    @abstractmethod
    def _read(self, size: int) -> bytes:
        """Return up to `size` bytes from `position`."""

    def check(self) -> None:
        """Compare what was read, which is all of it, with the digest."""
        if (
            self._hash is not None
            and self._digest is not None
            and self._hash.hexdigest() != self._digest.encoded
        ):
            got = f"{self._digest.algorithm}:{self._hash.hexdigest()}"
            raise DigestError(self._where, "digest of the blob", got, self._digest)

    @abstractmethod
    def close(self) -> None:
        """Close what it has opened."""


class FileReader(BlobReader):
    """A blob that is a part of a file."""

    def __init__(self, blob: Blob, where: str, digest: Digest | None) -> None:
        super().__init__(where, digest)
        self._blob = blob
        self.name = blob.path
        try:
            self._fd = os.open(blob.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ImageError(where, f"{blob.path}: {error.strerror}") from None
        stat = os.fstat(self._fd)
        self.identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)

    def _read(self, size: int) -> bytes:
        size = min(size, self._blob.size - self.position)
        if not size:
            return b""
        try:
            data = os.pread(self._fd, size, self._blob.offset + self.position)
        except OSError as error:
            raise ImageError(self._where, f"{self.name}: {error.strerror}") from None
        if not data:
            raise ImageError(
                self._where, f"{self.name} was cut while it was read", self.position, self._blob.size
            )
        return data

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class ArrivingReader(BlobReader):
    """A blob that may still grow; descriptors are the caller's."""

    name = "what arrives"
    identity = ()

    def __init__(self, fd: int, state_fd: int, where: str, digest: Digest | None) -> None:
        super().__init__(where, digest)
        self._fd = fd
        self._state_fd = state_fd
        self._published = 0
        self._complete = False

    def has(self, size: int) -> bool:
        """See `BlobReader`."""
        if not self._complete and self._published - self.position < size:
            self._published, self._complete, aborted = read_state(self._state_fd)
            if aborted:
                raise ImageError(self._where, "its arrival was given up")
        return self._complete or self._published - self.position >= size

    def _read(self, size: int) -> bytes:
        # Decoders seldom use more than `LOOKAHEAD` for one chunk: where there is much that decodes to nothing.
        parent = os.getppid()
        while not self.has(1) and os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        return os.pread(self._fd, min(size, self._published - self.position), self.position)

    def close(self) -> None:
        """See `BlobReader`."""


def _store(stream: Stream, data: memoryview, offset: int, hidden: deque[tuple[int, int]]) -> None:
    """Write a part of the stream, without what is hidden; forget what is hidden before its end."""
    end = offset + len(data)
    at = offset
    while hidden and hidden[0][0] < end:
        begin, stop = hidden[0]
        if begin > at:
            stream.write(data[at - offset : begin - offset], at)
        at = max(at, min(stop, end))
        if stop > end:
            return
        hidden.popleft()
    stream.write(data[at - offset :], at)
