"""Squashfs images of what umoci and buildah wrote, as every other reader sees them."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

import paralayer
from images import build_with_buildah, build_with_umoci
from paralayer.spec import ImageSpec
from squashfs_data import read_image
from squashfs_judges import JUDGES, held
from trees import diff, umoci_unpack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from images import RealImage
    from model import Node
    from squashfs_judges import Judge

pytestmark = pytest.mark.requires("umoci", "root")


@pytest.fixture(scope="module", params=["umoci", "buildah"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealImage]:
    top = tmp_path_factory.mktemp(request.param)
    if request.param == "umoci":
        yield build_with_umoci(f"{top}/layout", f"{top}/scratch")
        return
    if not shutil.which("buildah"):
        pytest.skip("missing: buildah")
    yield build_with_buildah(f"{top}/layout", f"{top}/scratch")


@pytest.fixture(scope="module")
def unpacked(image: RealImage, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, Node]:
    """Return the tree as umoci unpacks it, as far as a squashfs holds it."""
    tree = held(umoci_unpack(image.layout, f"{tmp_path_factory.mktemp('unpacked')}/bundle", image.tag))
    assert len(tree) > 100
    return tree


@pytest.fixture(scope="module")
def usual(image: RealImage, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the image that comes without any options."""
    path = f"{tmp_path_factory.mktemp('usual')}/out.squashfs"
    assert paralayer.convert_squashfs(image.layout, path, jobs=2).warnings == ()
    return path


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_every_reader_sees_what_umoci_unpacks(
    judge: Judge, usual: str, unpacked: dict[bytes, Node], tmp_path: Path
) -> None:
    judge.require()
    assert judge.differences(usual, unpacked, f"{tmp_path}/scratch") == []


def test_every_byte_is_accounted_for(usual: str, unpacked: dict[bytes, Node]) -> None:
    assert diff(read_image(usual).tree(), unpacked) == []


OPTIONS: dict[str, dict[str, Any]] = {
    "small blocks": {"block_size": 4096},
    "large blocks": {"block_size": 1 << 20},
    "no fragments": {"fragments": False},
    "no duplicate check": {"dedup": False},
    "no exports": {"exports": False},
    "nothing at all": {"compression": "none", "fragments": False, "dedup": False, "exports": False},
    "the least": {"compression": "gzip:1", "block_size": 4096},
    "the most": {"compression": "zstd:22", "block_size": 1 << 20},
    "xz": {"compression": "xz", "block_size": 1 << 19},
    "lz4": {"compression": "lz4", "block_size": 8192},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_keeps_the_tree(
    image: RealImage, unpacked: dict[bytes, Node], tmp_path: Path, options: dict[str, Any]
) -> None:
    output = tmp_path / "out.squashfs"
    result = paralayer.convert(image.layout, ImageSpec.squashfs(output, **options), jobs=2)
    assert result.bytes_written == output.stat().st_size
    assert diff(read_image(str(output)).tree(), unpacked) == []
    for judge in (JUDGES["kernel"], JUDGES["unsquashfs"]):
        judge.require()
        assert judge.differences(str(output), unpacked, f"{tmp_path}/scratch") == []


@pytest.mark.parametrize(("jobs", "memory"), [(1, None), (3, None), (1, 1), (2, 1), (3, 3 << 20)])
def test_jobs_and_memory_do_not_change_it(
    image: RealImage, usual: str, tmp_path: Path, jobs: int, memory: int | None
) -> None:
    output = tmp_path / "out.squashfs"
    paralayer.convert(image.layout, ImageSpec.squashfs(output), jobs=jobs, memory=memory)
    with open(usual, "rb") as want:
        assert output.read_bytes() == want.read()
    assert os.listdir(tmp_path) == ["out.squashfs"]
