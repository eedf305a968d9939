"""A blob that grows: what both sides see of it, and who wakes whom."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from images import digest_of
from paralayer.engine.arrivals import Arrivals
from paralayer.engine.jobs import ArrivingReader
from paralayer.errors import ImageError
from paralayer.growing import Growing, read_state
from paralayer.image import Digest, Layer
from processes import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = os.sysconf("SC_PAGESIZE")


@pytest.fixture
def wakes() -> list[int]:
    """Return a list that gets longer with each time the reader is woken."""
    return []


@pytest.fixture
def growing(wakes: list[int]) -> Iterator[Growing]:
    made = Growing(os.memfd_create("blob", os.MFD_CLOEXEC), size=None, wake=lambda: wakes.append(1))
    yield made
    made.release()


def put(growing: Growing, data: bytes) -> None:
    growing.store(growing.published, data)
    growing.publish(growing.published + len(data))


def test_reader_sees_what_is_published(growing: Growing) -> None:
    reader = ArrivingReader(growing.fd, growing.state_fd, "layer 0", Digest.parse(digest_of(b"abcde"), ""))
    assert not reader.has(1)
    growing.store(0, b"abc")
    assert not reader.has(1)
    growing.publish(2)
    assert (reader.has(2), reader.has(3)) == (True, False)
    assert reader.read(10) == b"ab"
    growing.publish(3)
    put(growing, b"de")
    assert reader.read(1) == b"c"
    assert (reader.has(2), reader.has(3)) == (True, False)
    growing.close()
    assert reader.has(3)
    assert (reader.read(10), reader.read(10)) == (b"de", b"")
    reader.check()
    assert read_state(growing.state_fd) == (5, True, False)
    assert growing.size == 5


def test_reader_is_woken_by_what_it_wants_and_by_the_end(growing: Growing, wakes: list[int]) -> None:
    put(growing, b"ab")
    assert growing.want(2)
    assert not growing.want(4)
    put(growing, b"c")
    assert not wakes
    put(growing, b"de")
    assert len(wakes) == 1
    put(growing, b"f")
    assert len(wakes) == 1, "nothing more was wanted"
    growing.close()
    assert len(wakes) == 2, "who waits for memory waits no longer"
    assert growing.want(100)


def test_reader_in_the_middle_of_something_learns_that_no_more_comes(growing: Growing) -> None:
    reader = ArrivingReader(growing.fd, growing.state_fd, "layer 0", None)
    with ThreadPoolExecutor(1) as threads:
        read = threads.submit(reader.read, 1)
        growing.abort()
        with pytest.raises(ImageError, match="layer 0: its arrival was given up"):
            read.result()


def test_writer_waits_while_its_reader_is_behind(growing: Growing) -> None:
    put(growing, b"abcde")
    assert growing.wait_for_room(2), "nobody reads yet"
    growing.follow()
    ways: list[tuple[Callable[[], None], bool]] = [
        (lambda: growing.consume(3), True),
        (growing.leave, True),
        (growing.abort, False),
    ]
    with ThreadPoolExecutor(1) as threads:
        for let_go, wanted in ways:
            growing.follow()
            room = threads.submit(growing.wait_for_room, 2)
            wait_for(lambda: growing._changed._waiters)  # type: ignore[attr-defined]
            growing.consume(2)
            assert not room.done()
            let_go()
            assert room.result() == wanted


def test_what_is_consumed_is_freed_if_it_can_be_had_again() -> None:
    def make(again: bool) -> Growing:
        fd = os.memfd_create("blob", os.MFD_CLOEXEC)
        return Growing(fd, size=None, wake=lambda: None, again=(lambda: make(True)) if again else None)

    for again in (False, True):
        growing = make(again)
        put(growing, b"x" * (4 * PAGE))
        assert growing.has(4 * PAGE)
        growing.consume(3 * PAGE + 5)
        assert growing.spent == again
        assert growing.has(1) != again
        assert growing.present == (PAGE if again else 0)
        assert os.pread(growing.fd, 1, 3 * PAGE) == b"x"
        growing.release()


def test_nothing_is_stored_after_the_end(growing: Growing) -> None:
    """The descriptors' numbers may be of something else then."""
    put(growing, b"x")
    growing.end()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        growing.store(1, b"x")
    growing.publish(2)
    growing.close()
    growing.end()
    assert not growing.wait_for_room(0)


def test_an_error_ends_all_that_grows(growing: Growing, wakes: list[int]) -> None:
    def layer(index: int, blob: Growing) -> Layer:
        return Layer(index, "application/vnd.oci.image.layer.v1.tar", blob, None, None)

    late = Growing(os.memfd_create("blob", os.MFD_CLOEXEC), size=None, wake=lambda: None)
    with Arrivals([None, None]) as arrivals:
        arrivals.add(layer(0, growing))
        arrivals.fail(KeyError("first"))
        arrivals.fail(KeyError("second"))
        arrivals.add(layer(1, late))
        assert not growing.wait_for_room(0)
        assert not late.wait_for_room(0)
        with pytest.raises(KeyError, match="first"):
            arrivals.take()
    arrivals.fail(KeyError("third"))
    arrivals.wake()
    late.release()


def test_an_error_may_be_told_by_a_finalizer_in_the_middle_of_a_call() -> None:
    """The collector runs wherever it likes, also where the lock is held."""
    with Arrivals([None]) as arrivals:
        done = threading.Event()

        def nested() -> None:
            with arrivals._lock:
                arrivals.fail(KeyError())
            done.set()

        thread = threading.Thread(target=nested, daemon=True)
        thread.start()
        thread.join(60)
        assert done.is_set()
