"""Images as other tools write them: umoci's layout, and what skopeo makes of it, is the same image in each form."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from layouts import Layout, archive_of, blob_of, digest_of, for_platform, named
from paralayer.image import Platform, open_image

if TYPE_CHECKING:
    from pathlib import Path

    from paralayer.image import Image, Layer

pytestmark = pytest.mark.requires("umoci", "skopeo")

SKOPEO = ("skopeo", "--insecure-policy", "copy", "--quiet")


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def umoci_layout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a layout with an image of two different layers and one that repeats the first, tagged v1."""
    top = tmp_path_factory.mktemp("umoci")
    layout = f"{top}/img"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:v1")
    for name in ("one", "two", "one"):
        path = top / f"{name}.tar"
        if not path.exists():
            (top / name).mkdir()
            (top / name / "file").write_text(name * 1000)
            archive_of(str(top / name))
        run("umoci", "raw", "add-layer", "--image", f"{layout}:v1", str(path))
    return layout


def stored(layer: Layer) -> bytes:
    with open(blob_of(layer).path, "rb") as f:
        f.seek(blob_of(layer).offset)
        return f.read(blob_of(layer).size)


def check(image: Image) -> None:
    """Every digest that is named is that of the bytes; without one, they are the plain tar."""
    for layer in image.layers:
        assert digest_of(stored(layer)) == str(layer.digest or layer.diff_id)


@pytest.mark.parametrize(
    "form",
    [
        "oci:{0}/copy:v1",
        "oci-archive:{0}/copy.tar:v1",
        "oci-archive:{0}/copy.tar:docker.io/library/x:v1",
        "oci-archive:{0}/copy.tar",
        "docker-archive:{0}/copy.tar:docker.io/library/x:v1",
        "docker-archive:{0}/copy.tar",
    ],
)
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_same_image_in_every_form(umoci_layout: str, tmp_path: Path, form: str, compression: str) -> None:
    original = open_image(umoci_layout)
    check(original)
    target = form.format(tmp_path)
    if not target.startswith("docker"):
        run(*SKOPEO, "--dest-compress-format", compression, f"oci:{umoci_layout}:v1", target)
    else:
        run(*SKOPEO, f"oci:{umoci_layout}:v1", target)
    bare = target.partition(":")[2]
    for source in (target, bare, bare.replace(":v1", "").replace(":docker.io/library/x", "")):
        copied = open_image(source)
        check(copied)
        assert [layer.diff_id for layer in copied.layers] == [layer.diff_id for layer in original.layers]
        assert (copied.platform, copied.created) == (original.platform, original.created)


def test_extracted_docker_archive_is_the_same(umoci_layout: str, tmp_path: Path) -> None:
    run(*SKOPEO, f"oci:{umoci_layout}:v1", f"docker-archive:{tmp_path}/x.tar:x:1")
    (tmp_path / "x").mkdir()
    run("tar", "-xf", f"{tmp_path}/x.tar", "-C", f"{tmp_path}/x")
    archive, directory = open_image(f"{tmp_path}/x.tar:x:1"), open_image(f"{tmp_path}/x:x:1")
    assert [stored(layer) for layer in directory.layers] == [stored(layer) for layer in archive.layers]
    check(directory)


def test_empty_image_has_no_layers(tmp_path: Path) -> None:
    run("umoci", "init", "--layout", f"{tmp_path}/img")
    run("umoci", "new", "--image", f"{tmp_path}/img:v1")
    assert open_image(f"{tmp_path}/img").layers == ()


def test_several_tags_as_skopeo_names_them(umoci_layout: str, tmp_path: Path) -> None:
    shutil.copytree(umoci_layout, tmp_path / "img")
    run("umoci", "tag", "--image", f"{tmp_path}/img:v1", "v2")
    run(*SKOPEO, f"oci:{tmp_path}/img:v2", f"oci:{tmp_path}/img:docker.io/me/x:v3")
    names = ("v1", "v2", "docker.io/me/x:v3", "me/x:v3", "v3")
    assert len({open_image(f"oci:{tmp_path}/img:{name}").layers for name in names}) == 1


def test_platform_is_chosen_as_skopeo_does(tmp_path: Path) -> None:
    platforms = ["linux/s390x", "linux/arm/v6", "linux/arm/v7", "linux/amd64", "linux/arm64/v8"]
    layout = Layout(tmp_path / "multi")
    images = [for_platform(layout.image([p.encode()], p), p) for p in platforms]
    path = layout.finish(named(layout.index(*images), "all"))
    for i, platform in enumerate(["amd64", "s390x", "arm64", "arm"]):
        target = f"{tmp_path}/{i}"
        run("skopeo", "--insecure-policy", "--override-os", "linux", "--override-arch", platform, "copy", "--quiet",
            f"oci:{path}:all", f"dir:{target}")  # fmt: skip
        with open(f"{target}/manifest.json", encoding="utf-8") as f:
            want = [layer["digest"] for layer in json.load(f)["layers"]]
        found = open_image(path, platform=Platform.parse(f"linux/{platform}"))
        assert [str(layer.digest) for layer in found.layers] == want


@pytest.mark.requires("buildah", "root")
def test_image_of_buildah(tmp_path: Path) -> None:
    storage = ("--root", f"{tmp_path}/root", "--runroot", f"{tmp_path}/runroot", "--storage-driver", "vfs")
    os.mkdir(tmp_path / "context")
    (tmp_path / "context/Containerfile").write_text("FROM scratch\nCOPY Containerfile /\n")
    run("buildah", *storage, "build", "--quiet", "--layers", "--tag", "x", f"{tmp_path}/context")
    for target in (
        f"oci:{tmp_path}/oci:v1",
        f"oci-archive:{tmp_path}/x.tar:v1",
        f"docker-archive:{tmp_path}/d.tar:y:v1",
    ):
        run("buildah", *storage, "push", "--quiet", "x", target)
        image = open_image(target)
        assert len(image.layers) == 1
        check(image)
