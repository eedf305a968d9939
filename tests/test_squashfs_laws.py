"""A squashfs image holds the model's tree, and is a function of the layers and the options alone."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, assume, given, settings

from engines import UNLIMITED, Engines, run
from images import write_image
from model import WHITEOUT, directory, file, hardlink, merge, opaque, whiteout
from paralayer.engine.jobs import Finished
from paralayer.engine.memory import Arena, LayerStream
from paralayer.sinks.squashfs import placement as placement_module
from paralayer.sinks.squashfs import sink as sink_module
from paralayer.sinks.squashfs.sink import SquashfsSink
from paralayer.survivors import Batch, Rules, gather_root
from paralayer.table import Table, TableWriter
from paralayer.tar.scanner import Scanner
from squashfs_data import (
    BLOCK_SIZE,
    NOISE,
    TEXT,
    images,
    layered,
    options,
    read_image,
    write_sparse_layer,
)
from squashfs_judges import JUDGES, held
from strategies import without_refused
from trees import diff, from_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from model import Entry, Node
    from paralayer.sinks.sink import SinkJob
    from paralayer.sinks.squashfs.options import Options
    from squashfs_data import DataReader, Drawn, Place
    from squashfs_judges import Judge

MIB = 1 << 20
FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
SOME = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@contextmanager
def scratch(top: str = "/dev/shm") -> Iterator[str]:
    """Give a new directory, for one example."""
    with tempfile.TemporaryDirectory(dir=top) as path:
        yield path


# The tree


@SOME
@given(layered(), images)
def test_image_holds_the_tree_of_the_model(drawn: Drawn, options: Options) -> None:
    with scratch() as top, Engines() as engines:
        layout = write_image(f"{top}/layout", drawn.tars())
        run(layout, SquashfsSink(f"{top}/out", options, jobs=1), engines)
        reader = read_image(f"{top}/out")
    tree = reader.tree()
    assert diff(tree, held(from_model(merge(drawn.stack)))) == []
    check_options(reader, tree, options)


def check_options(reader: DataReader, tree: dict[bytes, Node], options: Options) -> None:
    """Assert that an image is what was asked for: what equal files share, too."""
    assert (reader.block_size, reader.time) == (options.block_size, options.time)
    said = (options.compression.name == "none", not options.fragments, options.dedup, options.exports)
    assert said == tuple(bool(reader.flags & flag) for flag in (0x10B, 0x10, 0x40, 0x80))
    assert (reader.export_table != 0xFFFF_FFFF_FFFF_FFFF) == options.exports
    assert len(reader.image) == reader.end + (-reader.end % 4096 if options.pad else 0)
    places: dict[bytes, list[Place]] = {}
    for path, number in reader.paths.items():
        if number in reader.places and path == tree[path].group[0]:
            places.setdefault(tree[path].data, []).append(reader.places[number])
    for data, found in places.items():
        if not options.fragments:
            assert all(place.fragment == 0xFFFF_FFFF for place in found)
        if options.dedup:
            assert len(set(found)) == 1, "equal files are there once"
        elif any(data):
            assert len(set(found)) == len(found), "each file is there"


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_judges_see_the_tree_of_the_model(judge: Judge, tmp_path: Path) -> None:
    judge.require()
    with Engines() as engines:

        @FEW
        @given(layered(), images)
        def law(drawn: Drawn, options: Options) -> None:
            if options.compression.name in judge.unknown:
                return
            if judge.name == "kernel":  # what is not padded is not a whole number of sectors
                options = replace(options, pad=True)
            want = held(from_model(merge(drawn.stack)))
            assume(not any(name.startswith(WHITEOUT) for path in want for name in path.split(b"/")))
            assume(len(want) > 1)  # 7z does not take less for an image
            with scratch(str(tmp_path)) as top:
                layout = write_image(f"{top}/layout", drawn.tars())
                run(layout, SquashfsSink(f"{top}/out", options, jobs=1), engines)
                assert judge.differences(f"{top}/out", want, f"{top}/scratch") == []

        law()


# Any jobs, any memory

SIZES = [
    *(0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 10 * BLOCK_SIZE, 100_000),
    *(MIB - 512, MIB, MIB + BLOCK_SIZE - 1, 2 * MIB + 1, 4 * MIB, 4 * MIB + BLOCK_SIZE + 1),
]
"""Around blocks, around what decoders announce at a time, and beyond what a job takes."""
PATHS = [b"a", b"b.c", b"c.c", b"d/a", b"d/b.h", b"e/f/a"]
KINDS = [*["file"] * 7, "whiteout", "link", "link", "opaque", "root", "directory"]

LARGE = b"".join(NOISE[number:] for number in range(3))
WITH_HOLES = NOISE[: 7 * BLOCK_SIZE] + bytes(300 * BLOCK_SIZE) + NOISE[: BLOCK_SIZE + 7] + bytes(5 * MIB)
DATA = [LARGE, LARGE, LARGE[1:], TEXT * (5 * MIB // len(TEXT)), WITH_HOLES]


def heavy_stack(chance: random.Random) -> list[list[Entry]]:
    """Return layers of at most 5 MiB, in which data is hidden, linked, equal to other data, or comes twice."""
    stack: list[list[Entry]] = []
    for serial in range(chance.randint(2, 4)):
        layer: list[Entry] = []
        left = 5 * MIB
        for _ in range(chance.randint(2, 7)):
            kind, path = chance.choice(KINDS), chance.choice(PATHS)
            files = sorted(
                {old.path for each in (*stack, layer) for old in each if old.kind == "file"} - {path}
            )
            if kind == "file":
                size = min(left, chance.choice(SIZES))
                left -= size
                layer.append(file(path, chance.choice(DATA)[:size], mtime=serial + 1))
            elif kind == "whiteout":
                layer.append(whiteout(path))
            elif kind == "opaque":
                layer.append(opaque(b"d"))
            elif kind in ("root", "directory"):
                layer.append(directory(b"./" if kind == "root" else b"d", 0o700, mtime=serial))
            elif files:
                layer.append(hardlink(path, chance.choice(files)))
        stack.append(layer)
    return without_refused(stack)


@pytest.fixture
def engines() -> Iterator[Engines]:
    with Engines() as engines:
        yield engines


@pytest.mark.parametrize("seed", range(12))
def test_any_jobs_and_any_memory_give_the_same_bytes(seed: int, engines: Engines) -> None:
    chance = random.Random(seed)
    stack = heavy_stack(chance)
    forms = chance.choices(["plain", "plain", "pax"], k=3)
    asked = options(
        compression=chance.choice(["zstd:1", "none"]),
        fragments=chance.random() < 0.7,
        dedup=chance.random() < 0.7,
    )
    some = chance.choice([64 << 10, MIB, 2 * MIB + 1, 5 * MIB])
    results = []
    with scratch() as top:
        layers = [write_sparse_layer(layer, forms, 70_000) for layer in stack]
        layout = write_image(f"{top}/layout", layers)
        for number, (jobs, memory) in enumerate([(1, UNLIMITED), (2, UNLIMITED), (3, some), (2, 1), (1, 1)]):
            run(layout, SquashfsSink(f"{top}/{number}", asked, jobs=jobs), engines, jobs=jobs, memory=memory)
            results.append(read_image(f"{top}/{number}"))
    assert [number for number, each in enumerate(results) if each.image != results[0].image] == []
    tree = results[0].tree()
    assert diff(tree, held(from_model(merge(stack)))) == []
    check_options(results[0], tree, asked)


# title → (newer layer, whether the output starts over)
LATE: dict[str, tuple[list[Entry], bool]] = {
    "a path that comes twice": (
        [file(b"a", NOISE[: 3 * MIB]), file(b"b", NOISE), file(b"a", NOISE[5:])],
        True,
    ),
    "a root behind data": ([file(b"a", NOISE[: 3 * MIB]), file(b"b", NOISE), directory(b"./", 0o700)], False),
}


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(("layer", "again"), LATE.values(), ids=LATE)
def test_what_was_written_too_early_is_written_again(
    layer: list[Entry], again: bool, jobs: int, engines: Engines, tmp_path: Path
) -> None:
    stack = [[file(b"a"), file(b"old", NOISE[: MIB + 1])], layer]
    layout = write_image(f"{tmp_path}/layout", stack)
    images = []
    for memory in (1, UNLIMITED):
        sink = SquashfsSink(f"{tmp_path}/{memory}", options(), jobs=jobs)
        _, restarted = run(layout, sink, engines, jobs=jobs, memory=memory)
        assert restarted == (again and memory == 1)
        images.append(read_image(f"{tmp_path}/{memory}"))
    assert images[0].image == images[1].image
    assert diff(images[0].tree(), held(from_model(merge(stack)))) == []


@pytest.mark.parametrize("memory", [1, UNLIMITED])
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("size", [3000, MIB + 1])
def test_files_of_which_only_links_are_left_come_in_any_order(
    tmp_path: Path, size: int, jobs: int, memory: int, engines: Engines
) -> None:
    """The newer layer links to the last file first, and hides all own names."""
    names = [b"a", b"b", b"c"]
    stack = [
        [file(name, LARGE[number:][:size]) for number, name in enumerate(names)],
        [hardlink(b"z" + name, name) for name in reversed(names)] + [whiteout(name) for name in names],
    ]
    layout = write_image(str(tmp_path / "layout"), stack, compression="zstd")
    run(layout, SquashfsSink(f"{tmp_path}/out", options(), jobs=jobs), engines, jobs=jobs, memory=memory)
    assert diff(read_image(f"{tmp_path}/out").tree(), held(from_model(merge(stack)))) == []


# Any timing


class Drive:
    """Gives a sink the files of one layer as the engine might, in whatever order chance has.

    What the sink does not need any more, and what is not decoded yet, is garbage in the stream.
    """

    def __init__(self, tar: bytes, sink: SquashfsSink, chance: random.Random) -> None:
        self._tar = tar
        self._sink = sink
        self._chance = chance
        self._arena = Arena(len(tar) + (64 << 20), 1)
        self._stream = LayerStream(self._arena)
        while self._stream.granted < len(tar):
            self._stream.grant(essential=False)
        self._decoded = self._released = 0
        self._jobs: list[SinkJob] = []  # not done
        self._unfinished: list[SinkJob] = []  # that may need something of the stream

    def run(self) -> None:
        """Do all of it."""
        self._stream.write(memoryview(b"\xa5" * len(self._tar)), 0)
        try:
            self._sink.root(gather_root(None, 0, Rules()), explicit=False)
            placed = [self._sink.place(batch) for batch in self._batches()]
            while placed or self._jobs:
                needs = [each.needs for each in placed if each.needs is not None]
                self._release(needs)
                move = self._chance.choice(["decode", "take", "take", "finish", "finish"])
                if placed and placed[0].needs is None:
                    del placed[0]
                elif move == "decode":
                    self._decode()
                elif move == "take" and placed:
                    taken = self._sink.take(placed[0], self._stream, self._decoded, spare=False)
                    self._jobs += taken
                    self._unfinished += taken
                elif self._jobs:
                    self._finish(self._jobs.pop(self._chance.randrange(len(self._jobs))))
            self._sink.links([])
            self._sink.complete()
            self._sink.commit()
        finally:
            self._sink.abort()
            self._sink.close()
            self._arena.close()

    def _batches(self) -> list[Batch]:
        fd = os.memfd_create("table")
        try:
            writer = TableWriter(fd)
            scanner = Scanner(writer, 0, "layer 0")
            scanner.feed(self._tar)
            scanner.finish()
            table = Table(fd, writer.length)
        finally:
            os.close(fd)
        paths = table.paths()
        cuts = sorted({0, len(paths), *(self._chance.randint(0, len(paths)) for _ in range(3))})
        return [
            Batch(0, table.rows[first:stop], paths[first:stop], [table], Rules())
            for first, stop in pairwise(cuts)
        ]

    def _decode(self) -> None:
        step = self._chance.choice([1, 512, BLOCK_SIZE, 3 * BLOCK_SIZE + 1, 1 << 20])
        more = self._tar[self._decoded : self._decoded + step]
        self._stream.write(memoryview(more), self._decoded)
        self._decoded += len(more)

    def _finish(self, job: SinkJob) -> None:
        (event,) = list(job.job.run([*job.fds, self._stream.fd]))
        assert isinstance(event, Finished)
        more = self._sink.finished(job, event.result)
        self._jobs += more
        self._unfinished += more

    def _release(self, needs: list[int]) -> None:
        self._unfinished = [job for job in self._unfinished if job.begin is not None]
        begins = [job.begin for job in self._unfinished if job.begin is not None]
        bound = min([self._decoded, *needs, *begins])
        assert bound >= self._released, "what was not needed is needed after all"
        self._stream.write(memoryview(b"\x5a" * (bound - self._released)), self._released)
        self._released = bound


TAILS = [1, 2, 100, 1000, 2000, 3000, BLOCK_SIZE - 1]
LIMITS = {
    "_JOB_BYTES": [BLOCK_SIZE, 5 * BLOCK_SIZE, 4 * MIB],
    "_JOB_FILES": [1, 3, 1024],
    "_JOB_BLOCKS": [1, 3, 2048],
}
"""How much a job takes at most: nothing that the bytes of an image may depend on."""


def many_files(chance: random.Random) -> list[Entry]:
    """Return files most of which have a tail end, and some of which are equal."""
    entries: list[Entry] = []
    for number in range(chance.randint(10, 60)):
        at = chance.choice([0, 0, number])
        whole = b"".join(
            chance.choices([bytes(BLOCK_SIZE), NOISE[at:][:BLOCK_SIZE]], k=chance.choice([0, 0, 1, 3]))
        )
        tail = chance.choice([NOISE[at:], NOISE[at:], bytes(BLOCK_SIZE)])[: chance.choice(TAILS)]
        entries.append(file(b"%d.%d" % (number, chance.randrange(3)), whole + tail))
    return entries


@pytest.mark.parametrize("seed", range(40))
def test_any_timing_and_any_cut_give_the_same_bytes(seed: int) -> None:
    """With little room for fragment blocks that are not written yet, so that files wait for them."""
    chance = random.Random(seed)
    entries = many_files(chance)
    asked = options(compression="none", fragments=seed % 5 > 0, dedup=seed % 3 > 0)
    tar = write_sparse_layer(entries, chance.choices(["plain", "plain", "gnu", "pax"], k=5), 777)
    results = []
    with scratch() as top, pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement_module, "_LAG", 0)
        patch.setattr(placement_module, "_OPEN", 2)
        patch.setattr(placement_module, "_GROUP", BLOCK_SIZE)
        for number in range(3):
            if number:
                patch.setattr(placement_module, "_GROUP", chance.choice([1, 2, 4]) * BLOCK_SIZE)
                for name, limits in LIMITS.items():
                    patch.setattr(sink_module, name, chance.choice(limits))
            sink = SquashfsSink(f"{top}/{number}", asked, jobs=number)
            Drive(tar, sink, random.Random(chance.random())).run()
            results.append(read_image(f"{top}/{number}"))
    assert results[1].image == results[0].image
    assert results[2].image == results[0].image
    tree = results[0].tree()
    assert diff(tree, held(from_model(merge([entries])))) == []
    check_options(results[0], tree, asked)


class Interruption(BaseException):
    """As a signal's handler raises it."""


def test_interruption_anywhere_closes_nothing_twice() -> None:
    """What was closed already may be the number of something else by then."""
    entries = [file(b"%d.%d" % (number, number % 6), LARGE[number:][: number * 400]) for number in range(40)]
    tar = write_sparse_layer(entries, ["plain", "plain", "pax"], 777)
    lines = interrupted(tar, sys.maxsize)
    assert lines > 1000
    for number in random.Random(0).sample(range(lines), 80):
        assert interrupted(tar, number) == number


def interrupted(tar: bytes, lines: int) -> int:
    """Interrupt a conversion behind so many lines of the placement, unless it ends before; return how many there were."""
    done = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal done
        if frame.f_code.co_filename != placement_module.__file__:
            return None
        if event == "line":
            if done == lines:
                raise Interruption
            done += 1
        return trace

    before = open_files()
    with scratch() as top, pytest.MonkeyPatch.context() as patch, contextlib.suppress(Interruption):
        patch.setattr(placement_module, "_LAG", 0)
        patch.setattr(placement_module, "_GROUP", BLOCK_SIZE)
        sink = SquashfsSink(f"{top}/out", options(compression="none"), jobs=1)
        others = sys.gettrace()
        sys.settrace(trace)
        try:
            Drive(tar, sink, random.Random(0)).run()
        finally:
            sys.settrace(others)
    for left in open_files() - before:
        os.close(left)  # one that was not noted yet, or not any more
    return done


def open_files() -> set[int]:
    return {number for number in map(int, os.listdir("/proc/self/fd")) if is_open(number)}


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:  # that of the listing
        return False
    return True
