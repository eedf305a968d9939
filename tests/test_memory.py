"""Streams in slots of one arena: each has its own bytes, whatever the slots are, and memory is used again."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paralayer.engine.memory import Arena, LayerStream
from paralayer.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(8 * MIB, 2)
    yield arena
    arena.close()


def read(stream: Stream, begin: int, end: int) -> bytes:
    buffer = bytearray(end - begin)
    stream.read(memoryview(buffer), begin)
    return bytes(buffer)


def filled(arena: Arena, data: bytes) -> LayerStream:
    stream = LayerStream(arena)
    while stream.granted < len(data):
        assert stream.grant(essential=False)
    stream.write(memoryview(data), 0)
    stream.decoded = len(data)
    return stream


@given(seed=st.integers(0, 1 << 30))
def test_streams_have_their_own_bytes_whatever_is_released_meanwhile(seed: int) -> None:
    chance = random.Random(seed)
    arena = Arena(8 * MIB, 5)
    wants: list[tuple[LayerStream, bytes]] = []
    for _ in range(20):
        data = chance.randbytes(4) * chance.randrange(1, 1 << 16)
        if arena.used + len(data) + MIB <= arena.total:
            wants.append((filled(arena, data), data))
        if wants:
            stream, data = chance.choice(wants)
            stream.release(chance.randint(0, len(data)))
        for stream, data in wants:
            begin = chance.randint(stream.released, len(data))
            end = chance.randint(begin, len(data))
            assert read(stream, begin, end) == data[begin:end]
            other_process = Stream(stream.fd, stream.slots(begin, end))
            assert read(other_process, begin, end) == data[begin:end]
        if len(wants) > 3:
            wants.pop(0)[0].close()
    for stream, _ in wants:
        stream.close()
    assert not arena.used
    arena.close()


def test_a_part_is_sent_across_slots(arena: Arena, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(MIB)
    stream = filled(arena, data)
    with open(tmp_path / "sent", "wb") as file:
        stream.send(file.fileno(), 1000, MIB - 7)
    assert (tmp_path / "sent").read_bytes() == data[1000 : MIB - 7]


def test_a_window_through_a_long_stream_uses_the_same_memory(arena: Arena) -> None:
    stream = LayerStream(arena)
    for at in range(0, 100 * MIB, MIB):
        assert stream.grant(essential=True)
        stream.write(memoryview(bytes([at // MIB]) * MIB), at)
        assert read(stream, at, at + 3) == bytes([at // MIB]) * 3
        stream.release(at + MIB)
    assert arena.present == os.fstat(stream.fd).st_size == arena.unit
    stream.close()
    assert not arena.used


def test_little_of_what_is_free_stays_in_memory(arena: Arena) -> None:
    streams = [filled(arena, bytes([n]) * MIB) for n in range(6)]
    assert arena.present == 6 * MIB
    for stream in streams[::2]:
        stream.close()
    assert arena.present <= 3 * MIB + arena.total // 8
    for n in (1, 3, 5):
        assert read(streams[n], 0, MIB) == bytes([n]) * MIB
    again = filled(arena, b"x" * 2 * MIB)
    assert read(again, 0, 2 * MIB) == b"x" * 2 * MIB


def test_an_essential_stream_has_the_grant_that_others_leave(arena: Arena) -> None:
    other, stream = LayerStream(arena), LayerStream(arena)
    while other.grant(essential=False):
        pass
    assert arena.used == arena.total - arena.unit
    assert stream.grant(essential=True)
    assert arena.used == arena.total
    assert stream.grant(essential=True) is None
    stream.release(1)
    assert stream.grant(essential=True)


def test_what_is_held_elsewhere_leaves_less_room(arena: Arena) -> None:
    arena.elsewhere = arena.total - 3 * arena.unit
    other, stream = LayerStream(arena), LayerStream(arena)
    assert other.grant(essential=False)
    assert other.grant(essential=False)
    assert other.grant(essential=False) is None
    arena.elsewhere = arena.total
    assert stream.grant(essential=True), "one grant is there whatever else there is"
    assert stream.grant(essential=True) is None


def test_slots_that_are_given_up_are_freed_and_never_taken_again() -> None:
    arena = Arena(64 * MIB, 2)
    first = filled(arena, b"x" * (arena.total - arena.unit))
    assert arena.give_up() is None
    shard = first._shard
    arena._kept = arena.total  # as with much memory: it keeps so many
    first.close()
    given_up = arena.give_up()
    assert given_up is not None
    job, fd = given_up
    freed = set(job.numbers)
    list(job.run([fd]))
    assert not arena.present
    assert not shard.free
    taken = shard.take(len(freed))
    assert not set(taken) & freed
    arena.close()


def test_streams_that_are_written_at_the_same_time_are_in_different_memfds() -> None:
    arena = Arena(8 * MIB, 4)
    assert len(arena.shards) == 2
    first, second = LayerStream(arena), LayerStream(arena)
    assert first.fd != second.fd
    assert first.grant(essential=False)
    assert second.grant(essential=False)
    first.write(memoryview(b"x" * arena.unit), 0)
    first.decoded = arena.unit
    first.trim()
    third = LayerStream(arena)
    assert third.fd == first.fd, "nobody writes there any more"
    fourth = LayerStream(arena)
    third.close()
    second.close()
    first.close()
    fourth.close()
    last = LayerStream(arena)
    assert len(last._shard.free) == max(len(shard.free) for shard in arena.shards) > 0
    assert [shard.writers for shard in arena.shards] == [shard is last._shard for shard in arena.shards]
    arena.close()


def test_what_was_not_used_of_a_grant_is_given_back(arena: Arena) -> None:
    stream = filled(arena, b"x" * (arena.slot + 1))
    assert arena.used == arena.unit
    stream.trim()
    assert arena.used == 2 * arena.slot
    stream.release(arena.slot + 1)
    assert arena.used == arena.slot
    stream.close()
    assert not arena.used


@pytest.mark.parametrize("total", [1, 64 * MIB, 6 << 30, 1 << 40])
def test_a_job_can_be_told_the_slots_of_all_memory(total: int) -> None:
    arena = Arena(total, 2)
    assert arena.total // arena.slot <= 8192
    assert arena.unit % arena.slot == 0
    arena.close()
