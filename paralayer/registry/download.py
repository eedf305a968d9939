"""Blobs from a registry over several connections, each into the place from which its reader follows it.

One thread for each connection. What it fetches next is decided by `segments`; that a broken body is asked for again
from the offset that was reached, here. The first error that is final ends everything.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from paralayer.errors import RegistryError
from paralayer.image.source import io_errors
from paralayer.registry.access import BrokenConnection
from paralayer.registry.cache import missing
from paralayer.registry.segments import CHUNK, Segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from paralayer.growing import Growing
    from paralayer.image.descriptor import Digest
    from paralayer.registry.cache import CachedBlob
    from paralayer.registry.client import BlobResponse, Registry
    from paralayer.registry.segments import Segment

_LOOK_SECONDS = 0.01  # between two looks whether readers have made room: they cannot tell
_FOLLOW_SECONDS = 0.05  # between two looks at what other processes fetch
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class BlobRequest:
    """A blob that is to be fetched."""

    digest: Digest
    size: int
    growing: Growing
    cached: CachedBlob | None = None
    """Where its bytes are stored, if not in `growing`, whose descriptor then reads this file."""


@dataclass(slots=True)
class _Blob:
    request: BlobRequest
    where: str
    publishing: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False
    complete: bool = False  # and `on_complete` has returned
    seen: int = 0  # bytes that were missing when a process that fetches it was last seen to get on
    seen_seconds: float = 0.0


class _Stopped(Exception):  # noqa: N818 - an interruption is no error of anybody's
    """`close` was called, or another thread failed."""


class Downloads:
    """Fetches blobs, in the order of `requests`, until it is closed; a context manager.

    `lead` is how many bytes may be taken and not consumed, over all blobs; None for any number. `on_complete` is called
    with the index of a blob when all of it is published, each once; `on_error` with the first error, at most once, as
    far as `close` was not called. Both are called from threads of this object.

    A blob that another process fetches into the cache is read from there. When that process stands still for
    `patience_seconds`, its blob is fetched here as well, into the same place: these are the same bytes.
    """

    def __init__(
        self,
        registry: Registry,
        requests: Iterable[BlobRequest],
        *,
        connections: int,
        lead: int | None,
        on_complete: Callable[[int], None],
        on_error: Callable[[BaseException], None],
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._registry = registry
        self._segments = Segments(connections=connections, lead=lead)
        self._on_complete = on_complete
        self._on_error = on_error
        self._patience_seconds = patience_seconds
        self._blobs: list[_Blob] = []
        self._due: deque[int] = deque()  # blobs of which something may be to be published
        self._followed: set[int] = set()  # blobs that another process fetches
        self._changed = threading.Condition()  # guards what is above, and `_segments`
        self._looking = False  # a thread looks whether there is room
        self._idle = 0  # threads without anything to fetch
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        for request in requests:
            self.add(request)
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name="download", daemon=True)
            for work in [self._fetch] * connections + [self._follow]
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, request: BlobRequest, *, first: bool = False) -> int:
        """Fetch one more blob, before all others if it is to be `first`; return its index."""
        cached = request.cached
        left = missing(cached.present if cached else [], request.size)
        here = cached is None or cached.complete or cached.mine
        source = self._registry.reference
        where = f"{source.registry}/{source.repository}: blob {request.digest}"
        with self._changed:
            index = self._segments.add(request.size, left, here=here, first=first)
            self._blobs.append(_Blob(request, where, seen_seconds=time.monotonic()))
            self._due.append(index)
            if not here:
                self._followed.add(index)
            self._changed.notify_all()
        return index

    def wait(self) -> None:
        """Return when all blobs are complete, or `close` was called; raise the first error."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping.is_set() or all(blob.complete for blob in self._blobs)
            )
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        """End all threads; what is not complete stays so. The registry is closed if it was still in use."""
        self._stop()
        for thread in self._threads:
            thread.join()

    def _stop(self) -> None:
        with self._changed:
            self._stopping.set()
            busy = any(not blob.complete for blob in self._blobs)
            self._changed.notify_all()
        if busy:
            self._registry.close()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - whatever it is, nobody must wait for this thread
            with self._changed:
                if self._stopping.is_set():
                    return
                self._stopping.set()
                self._error = error
            self._on_error(error)  # first: what is stopped by it ends with errors that tell less
            self._stop()

    def _fetch(self) -> None:
        buffer = memoryview(bytearray(CHUNK + 1))  # one more, to see the end
        while True:
            task = self._next()
            if isinstance(task, int):
                self._publish(task)
            else:
                self._fetch_segment(task, buffer)

    def _next(self) -> Segment | int:
        """Return what to fetch, or the index of a blob that may have something to be published."""
        with self._changed:
            while True:
                self._check()
                if self._due:
                    return self._due.popleft()
                segment = self._segments.take(self._readers)
                if segment is not None:
                    self._changed.notify_all()  # somebody else has to look now
                    return segment
                look = not self._looking and self._segments.pending  # one thread for all
                self._looking = self._looking or look
                self._idle += 1
                self._changed.wait(_LOOK_SECONDS if look else None)
                self._idle -= 1
                if look:
                    self._looking = False

    def _fetch_segment(self, segment: Segment, buffer: memoryview) -> None:
        failures = 0
        while True:
            before = segment.at
            try:
                self._receive(segment, buffer)
            except BrokenConnection as error:
                self._check()
                if segment.at == segment.stop:
                    return
                failures = 1 if segment.at > before else failures + 1
                delay = self._registry.delay(failures, error.retry_after_seconds)
                if delay is None:
                    where = self._blobs[segment.blob].where
                    what = f"{error.what}, {failures} times in a row" if failures > 1 else error.what
                    raise RegistryError(where, what) from error
                if self._stopping.wait(delay):
                    raise _Stopped from None
            else:
                return

    def _check(self) -> None:
        if self._stopping.is_set():
            raise _Stopped

    @property
    def _readers(self) -> list[Growing]:
        return [blob.request.growing for blob in self._blobs]

    def _receive(self, segment: Segment, buffer: memoryview) -> None:
        """Store what is missing of a segment, or give it back."""
        blob = self._blobs[segment.blob]
        size = blob.request.size
        plain = segment.whole or (segment.at, segment.stop) == (0, size)
        start, stop = (0, None) if plain else (segment.at, segment.stop)
        with closing(self._registry.open_blob(blob.request.digest, start, stop, size=size)) as body:
            if not plain:
                with self._changed:
                    mine = True
                    if body.ranged:
                        self._segments.ranged(segment)
                    else:
                        mine = self._segments.not_ranged(segment)
                    self._changed.notify_all()
                if not mine:
                    return
            self._skip(body, segment.at - body.start, buffer)
            while segment.at < segment.stop and self._wait_for_room(segment):
                self._store(segment, body, buffer)

    def _skip(self, body: BlobResponse, count: int, buffer: memoryview) -> None:
        while count:
            self._check()
            count -= self._read(body, buffer[:count])

    def _read(self, body: BlobResponse, buffer: memoryview) -> int:
        count = body.readinto(buffer)
        if not count:
            raise BrokenConnection("the blob ends early")
        return count

    def _wait_for_room(self, segment: Segment) -> bool:
        """Return when there is room for more of a segment, or False: it was given back for the sake of another one."""
        with self._changed:
            while True:
                self._check()
                if self._segments.may_receive(segment, self._readers):
                    return True
                if not self._idle and self._segments.is_in_the_way(self._readers):
                    self._segments.give_back(segment)
                    self._changed.notify_all()
                    return False
                self._changed.wait(_LOOK_SECONDS)

    def _store(self, segment: Segment, body: BlobResponse, buffer: memoryview) -> None:
        """Fill the buffer, and store it; of a body that breaks, store what came."""
        room = min(CHUNK, segment.granted - segment.at)
        count = 0
        try:
            while count < room:
                count += self._read(body, buffer[count:room])
            if segment.at + count == segment.stop and body.readinto(buffer[count:]):
                where = self._blobs[segment.blob].where
                raise RegistryError(where, "the registry sends more than it was asked for", want=segment.stop)
        except BrokenConnection:
            if count:
                self._keep(segment, buffer[:count])
            raise
        self._keep(segment, buffer[:count])

    def _keep(self, segment: Segment, data: memoryview) -> None:
        blob = self._blobs[segment.blob]
        with io_errors(blob.where):
            (blob.request.cached or blob.request.growing).store(segment.at, data)
        with self._changed:
            self._segments.arrived(segment, segment.at + len(data))
        self._publish(segment.blob)

    def _publish(self, index: int) -> None:
        """Publish what is whole by now. Threads take turns at one blob, so that what is published never gets less."""
        blob = self._blobs[index]
        growing = blob.request.growing
        with blob.publishing:
            with self._changed:
                prefix = self._segments.prefix(index)
                complete = self._segments.is_complete(index)
            if prefix > growing.published:
                growing.publish(prefix)
            if blob.closed or not complete:
                return
            growing.close()
            blob.closed = True
        self._on_complete(index)
        with self._changed:
            blob.complete = True
            self._changed.notify_all()

    def _follow(self) -> None:
        """Look after the blobs that other processes fetch."""
        while True:
            with self._changed:
                self._check()
                if not self._followed:
                    self._changed.wait()
                    continue
                followed = list(self._followed)
            for index in followed:
                self._look(index)
            if self._stopping.wait(_FOLLOW_SECONDS):
                return

    def _look(self, index: int) -> None:
        blob = self._blobs[index]
        cached = blob.request.cached
        assert cached is not None
        cached.look()
        left = missing(cached.present, cached.size)
        count = sum(stop - start for start, stop in left)
        now = time.monotonic()
        if count != blob.seen:
            blob.seen, blob.seen_seconds = count, now
        here = cached.mine or now - blob.seen_seconds > self._patience_seconds
        with self._changed:
            self._segments.update(index, left, here=here)
            if here or not left:
                self._followed.discard(index)
            self._changed.notify_all()
        self._publish(index)
