"""What newer layers hide is not stored, whatever becomes of it afterwards."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

import paralayer
from images import write_image
from layouts import blob_of
from model import directory, file, hardlink, merge, symlink, whiteout
from paralayer.engine.hiding import Hiding, HidingPaths
from paralayer.engine.jobs import Decode, Indexed
from paralayer.engine.memory import Arena, LayerStream
from paralayer.table import DIRECTORY, FILE, OPAQUE, WHITEOUT
from trees import diff, from_model, snapshot_tar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model import Entry

LARGE = random.Random(3).randbytes(256 << 10)
OTHER = LARGE[::-1]


@pytest.fixture
def told() -> Iterator[HidingPaths]:
    paths = HidingPaths()
    yield paths
    paths.close()


@pytest.mark.parametrize(
    ("path", "hidden"),
    {
        b"f": True,
        b"d": False,
        b"gone/deep/f": True,
        b"o": False,
        b"o/f": True,
        b"f/below": True,
        b"ff": False,
    }.items(),
)
def test_files_whiteouts_and_opaque_directories_hide(told: HidingPaths, path: bytes, hidden: bool) -> None:
    told.add(5, [b"d", b"f", b"gone", b"o"], [DIRECTORY, FILE, WHITEOUT, OPAQUE])
    hiding = Hiding(told.fd, 4)
    assert not hiding.hides(path)
    hiding.refresh()
    assert hiding.hides(path) == hidden


def test_an_opaque_root_hides_everything(told: HidingPaths) -> None:
    told.add(1, [b""], [OPAQUE])
    hiding = Hiding(told.fd, 0)
    hiding.refresh()
    assert hiding.hides(b"any/thing")


def test_only_newer_layers_hide_whenever_they_come(told: HidingPaths) -> None:
    told.add(3, [b"own"], [FILE])
    hiding = Hiding(told.fd, 3)
    hiding.refresh()
    told.add(2, [b"older"], [FILE])
    told.add(4, [b"newer"], [FILE])
    hiding.refresh()
    assert [hiding.hides(path) for path in (b"own", b"older", b"newer")] == [False, False, True]


def test_hidden_data_takes_no_memory(told: HidingPaths, tmp_path: Path) -> None:
    (layer,) = paralayer.open_image(
        write_image(str(tmp_path / "image"), [[file(b"f", LARGE), file(b"g", OTHER)]])
    ).layers
    told.add(1, [b"f"], [FILE])
    arena, table = Arena(64 << 20, 1), os.memfd_create("table")
    try:
        stream = LayerStream(arena)
        stream.grant(essential=False)
        slots = stream.slots(0, stream.granted)
        job = Decode(0, "layer", layer.media_type, blob_of(layer), slots)
        *_, last = job.run([stream.fd, table, told.fd])
        assert isinstance(last, Indexed)
        assert not last.whole
        begin = last.decoded - len(LARGE)
        assert arena.present < len(LARGE) + (64 << 10)
        content = memoryview(bytearray(begin + len(LARGE)))
        stream.read(content, 0)
        assert OTHER in bytes(content)
    finally:
        arena.close()
        os.close(table)


# title → (layers, second readings of the serial reference)
STACKS: dict[str, tuple[list[list[Entry]], int]] = {
    "hidden, and nobody wants it": ([[file(b"f", LARGE), file(b"g", OTHER)], [file(b"f")]], 0),
    "a hard link keeps what is hidden": (
        [[file(b"f", LARGE), file(b"g", OTHER), hardlink(b"link", b"f")], [file(b"f")]],
        1,
    ),
    "a newer layer links to what an even newer one hides": (
        [[file(b"f", LARGE), file(b"g", OTHER)], [hardlink(b"link", b"f")], [whiteout(b"f")]],
        1,
    ),
    "the layer turns out disorderly": (
        [[file(b"f", LARGE), file(b"g", OTHER), file(b"x/y", LARGE)], [file(b"f")]],
        1,
    ),
    "what seemed hidden comes through a symlink": (
        [
            [directory(b"real"), symlink(b"s", b"real")],
            [file(b"s/f", LARGE), file(b"g", OTHER)],
            [directory(b"s"), file(b"s/f")],
        ],
        1,
    ),
}


@pytest.mark.parametrize(("stack", "again"), STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_hidden_is_there_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: list[list[Entry]], again: int, jobs: int
) -> None:
    monkeypatch.setattr("paralayer.engine.plan.SMALL_IMAGE", 0)
    output = tmp_path / "out.tar"
    image = write_image(str(tmp_path / "image"), stack)
    result = paralayer.convert_tar(image, output, jobs=jobs)
    assert not diff(from_model(merge(stack)), snapshot_tar(str(output)))
    if jobs == 1:
        assert result.second_readings == again


@pytest.mark.parametrize("format_", ["tar", "squashfs", "directory"])
def test_an_announcement_may_end_within_what_is_hidden(tmp_path: Path, format_: str) -> None:
    # The grant ends in the hidden file, but the scanner has seen the header behind it in the same chunk.
    grant = (1 << 20) + 40_000
    before = [file(b"a%d" % number, OTHER[: 127 << 10]) for number in range(8)]
    stack = [
        [*before, file(b"b", OTHER[:20_000]), file(b"h", LARGE[:40_000]), file(b"z", OTHER)],
        [file(b"h")],
    ]
    image = write_image(str(tmp_path / "image"), stack)
    output = tmp_path / "out"
    spec = getattr(paralayer.ImageSpec, format_)(output)
    result = paralayer.convert(image, spec, jobs=1, memory=4 * grant)
    assert result.second_readings == 0
    assert paralayer.verify(image, f"{'dir' if format_ == 'directory' else format_}:{output}").same
