"""The frontier: layers that are written while they are decoded, and what ends that."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import paralayer
from images import write_image
from model import directory, file, hardlink, merge, whiteout
from paralayer.sinks.tar import TarSink
from trees import NOT_ON_DISK, diff, from_model, snapshot_directory, snapshot_tar

if TYPE_CHECKING:
    from pathlib import Path

    from model import Entry

MIB = 1 << 20
NOISE = random.Random(7).randbytes(MIB)


def big(path: bytes, serial: int, size: int = MIB) -> Entry:
    return file(path, (b"%8d" % serial + NOISE)[:size])


MANY = [directory(b"d"), *(big(b"d/%d" % serial, serial) for serial in range(12))]
MORE = [big(b"more%d" % serial, 100 + serial) for serial in range(6)]

UNEXPECTED_ROOT = "a root that nobody expected starts a tar over"

# title → (layers, second readings with one job and little memory)
STACKS: dict[str, tuple[list[list[Entry]], int]] = {
    "orderly layers flow, however large": ([[*MORE], [*MANY]], 0),
    "a file larger than any window flows": (
        [[file(b"f", NOISE * 9)], [directory(b"d"), file(b"d/f", NOISE * 7)]],
        0,
    ),
    "an implied parent ends the flow": ([[file(b"old")], [*MANY, file(b"x/y"), *MORE]], 1),
    "a path that comes twice starts the output over": ([[file(b"old")], [*MANY, big(b"d/0", 99), *MORE]], 1),
    UNEXPECTED_ROOT: ([[*MORE, directory(b"./", 0o711)], [*MANY]], 2),
    "a root at the beginning of the oldest layer is expected": (
        [[directory(b"./", 0o711), *MORE], [*MANY]],
        0,
    ),
    "a hidden file that a hard link keeps is read again": (
        [[directory(b"d"), *MORE, big(b"d/f", 5), hardlink(b"link", b"d/f"), *MANY[2:]], [file(b"d")]],
        1,
    ),
    "files of which only links are left, the last first": (
        [
            [*MORE],
            [hardlink(b"z%d" % serial, b"more%d" % serial) for serial in (5, 3, 1)],
            [whiteout(b"more%d" % serial) for serial in (1, 3, 5)],
        ],
        1,
    ),
    "paths that come again, the last first": (
        [[*MORE, *(big(b"more%d" % serial, serial) for serial in (4, 2))], [file(b"x/y")]],
        1,
    ),
    "a hard link into an older layer": (
        [[*MORE], [directory(b"d"), hardlink(b"d/f", b"more1")], [file(b"more1")]],
        1,
    ),
}


@pytest.mark.parametrize("title", STACKS)
@pytest.mark.parametrize("kind", ["tar", "directory"])
def test_little_memory_changes_nothing(title: str, kind: str, tmp_path: Path) -> None:
    stack, again = STACKS[title]
    image = write_image(str(tmp_path / "image"), stack, compression=["none"] * len(stack))
    want = from_model(merge(stack))
    if kind == "tar":
        small = paralayer.convert_tar(image, tmp_path / "small.tar", jobs=1, memory=1)
        paralayer.convert_tar(image, tmp_path / "ample.tar", jobs=1)
        assert (tmp_path / "small.tar").read_bytes() == (tmp_path / "ample.tar").read_bytes()
        assert diff(snapshot_tar(str(tmp_path / "small.tar")), want) == []
    else:
        small = paralayer.convert_dir(image, tmp_path / "small", jobs=1, memory=1)
        assert diff(snapshot_directory(bytes(tmp_path / "small")), want, ignore=NOT_ON_DISK) == []
        again = 0 if title == UNEXPECTED_ROOT else again
    assert small.second_readings == again


@pytest.mark.parametrize(("held", "again"), [(0, 0), (1 << 40, 1)])
def test_what_a_sink_holds_is_of_the_budget(
    held: int, again: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, _ = STACKS["an implied parent ends the flow"]
    image = write_image(str(tmp_path / "image"), stack, compression=["none"] * len(stack))
    monkeypatch.setattr(TarSink, "held", held)
    result = paralayer.convert_tar(image, tmp_path / "out.tar", jobs=1, memory=64 * MIB)
    assert result.second_readings == again
    assert diff(snapshot_tar(str(tmp_path / "out.tar")), from_model(merge(stack))) == []


@pytest.mark.parametrize(("stack", "again"), STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("kind", ["tar", "squashfs"])
def test_no_layer_is_read_a_third_time(
    stack: list[list[Entry]], again: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paralayer.engine.plan.SMALL_IMAGE", 0)
    image = write_image(str(tmp_path / "image"), stack, compression=["none"] * len(stack))
    spec = getattr(paralayer.ImageSpec, kind)
    small = paralayer.convert(image, spec(tmp_path / "small"), jobs=2, memory=1)
    paralayer.convert(image, spec(tmp_path / "ample"), jobs=1)
    assert (tmp_path / "small").read_bytes() == (tmp_path / "ample").read_bytes()
    assert small.second_readings <= max(again, len(stack))


def test_a_pipe_with_ample_memory_needs_no_second_reading(tmp_path: Path) -> None:
    image = write_image(str(tmp_path / "image"), [MORE, MANY, [file(b"d")]])
    command = [sys.executable, "-m", "paralayer", "convert", "--memory", "1G", image, "-"]
    done = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert "7 paths of 20 entries" in done.stderr
    assert "read twice" not in done.stderr
