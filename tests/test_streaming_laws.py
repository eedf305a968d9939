"""However layers arrive, the output is what `convert` makes of the image."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import paralayer
from images import write_image
from model import directory
from paralayer import ImageSpec
from strategies import valid_stacks
from streams import Arriving, Events, content, ended

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from images import Compression
    from model import Entry
    from paralayer import LayerWriter, StreamingPacker

KIB, MIB = 1 << 10, 1 << 20
NOISE = random.Random(11).randbytes(7 * MIB)
SMALL = [0, 1, 511, 512, 3000]
LARGE = [0, 1, 512, 100 * KIB, MIB, MIB + 1, 3 * MIB, 5 * MIB]
"""Around the limits of what decoders look ahead, are granted and announce."""
MEMORIES = [1, MIB, 3 * MIB, 8 * MIB, 1 << 30]
PIECES = [1, 511, 4096, 70_001, MIB, 1 << 30]
COMPRESSIONS: list[Compression] = ["none", "gzip", "zstd"]

Law = settings(suppress_health_check=[HealthCheck.too_slow])


def filled(
    stack: Sequence[Sequence[Entry]], sizes: Sequence[int], chance: random.Random
) -> list[list[Entry]]:
    """Return the stack with other data in its files, and sometimes with an entry for the root before the others."""
    result = []
    for serial, layer in enumerate(stack):
        entries = [
            replace(entry, data=NOISE[(at := chance.randrange(1000)) : at + chance.choice(sizes)])
            if entry.kind == "file"
            else entry
            for entry in layer
        ]
        if chance.random() < 0.2:
            entries.insert(0, directory(b"./", 0o711, mtime=serial))
        result.append(entries)
    return result


def arrive(packer: StreamingPacker, image: Arriving, chance: random.Random) -> None:
    """Give all layers in some order, as files and in pieces, of which those of several layers alternate."""
    order = list(range(len(image.metas)))
    chance.shuffle(order)
    size = chance.choice(PIECES)
    open_layers: list[tuple[LayerWriter, Iterator[bytes]]] = []
    while order or open_layers:
        if order and chance.random() < 0.5:
            index = order.pop()
            if chance.random() < 0.4:
                image.give(packer, index)
            else:
                open_layers.append((packer.open_layer(index), pieces(image.data(index), size)))
        elif open_layers:
            writer, rest = chance.choice(open_layers)
            piece = next(rest, None)
            if piece is not None:
                assert writer.write(piece) == len(piece)
            else:
                writer.close()
                open_layers.remove((writer, rest))


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Yield at most 300 pieces."""
    size = max(size, len(data) // 300 + 1)
    return (data[at : at + size] for at in range(0, len(data), size))


def check(
    stack: Sequence[Sequence[Entry]], form: str, sizes: Sequence[int], chance: random.Random, *, jobs: int
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as top:
        kinds = [chance.choice(COMPRESSIONS) for _ in stack]
        layout = write_image(f"{top}/layout", filled(stack, sizes, chance), compression=kinds)
        mtime = chance.choice([None, 1002])
        spec, want = (ImageSpec(form, f"{top}/{name}", mtime=mtime) for name in ("out", "want"))  # type: ignore[arg-type]
        paralayer.convert(layout, want, jobs=1)
        image, events = Arriving(layout, known=chance.random() < 0.7), Events()
        memory = chance.choice(MEMORIES)
        with image.packer(spec, jobs=jobs, memory=memory, progress=events) as packer:
            arrive(packer, image, chance)
            result = ended(packer)
        assert content(f"{top}/out") == content(f"{top}/want")
        assert sorted(os.listdir(top)) == ["layout", "out", "want"]
        events.check(len(stack))
        assert result.bytes_read == sum(os.stat(path).st_size for path in image.paths)
        if form == "directory":
            shutil.rmtree(f"{top}/out")


CASES: dict[str, tuple[Literal["tar", "directory", "squashfs"], Sequence[int], int, int]] = {
    "tar": ("tar", SMALL, 1, 100),
    "directory": ("directory", SMALL, 1, 100),
    "squashfs": ("squashfs", SMALL, 1, 100),
    "tar, large": ("tar", LARGE, 1, 25),
    "directory, large": ("directory", LARGE, 1, 10),
    "squashfs, large": ("squashfs", LARGE, 1, 12),
    "tar, workers": ("tar", LARGE, 2, 8),
    "directory, workers": ("directory", LARGE, 2, 4),
    "squashfs, workers": ("squashfs", LARGE, 2, 8),
}
"""Title to (format, sizes of files, jobs, examples)."""


@pytest.mark.requires("root")
@pytest.mark.parametrize(("form", "sizes", "jobs", "examples"), CASES.values(), ids=CASES)
def test_any_arrival_gives_what_convert_gives(
    monkeypatch: pytest.MonkeyPatch, form: str, sizes: Sequence[int], jobs: int, examples: int
) -> None:
    monkeypatch.setattr("paralayer.engine.plan.SMALL_IMAGE", 0)

    @settings(Law, max_examples=examples)
    @given(valid_stacks(), st.integers(0, 1 << 32))
    def law(stack: Sequence[Sequence[Entry]], seed: int) -> None:
        check(stack, form, sizes, random.Random(seed), jobs=jobs)

    law()
