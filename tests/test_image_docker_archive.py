"""What docker save and its relatives write: three shapes, as directories and as archives."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from layouts import Layout, archive_of, blob_of, digest_of, encode, named, platform_of
from paralayer.errors import DigestError, ImageError
from paralayer.image import Image, Platform, open_image

if TYPE_CHECKING:
    from pathlib import Path

HOST = str(Platform.host())
FOREIGN = "linux/s390x" if Platform.host().architecture != "s390x" else "linux/amd64"
LAYERS = [b"oldest" * 200, b"middle", b"oldest" * 200]


@pytest.fixture
def saved(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "saved")


def config_of(layers: list[bytes], platform: str = HOST) -> bytes:
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
    return encode({**platform_of(platform), "created": "now", "rootfs": rootfs})


def hex_of(data: bytes) -> str:
    return digest_of(data).partition(":")[2]


def old_item(
    saved: Layout, layers: list[bytes], tags: list[str] | None, platform: str = HOST
) -> dict[str, Any]:
    """Write an image as Docker did before version 25: a repeated layer is a link to the first."""
    config = config_of(layers, platform)
    saved.file(f"{hex_of(config)}.json", config)
    names: list[str] = []
    for i, layer in enumerate(layers):
        names.append(f"{hex_of(config + b'%d' % i)}/layer.tar")
        if layer in layers[:i]:
            os.mkdir(os.path.dirname(f"{saved.path}/{names[-1]}"))
            os.symlink(f"../{names[layers.index(layer)]}", f"{saved.path}/{names[-1]}")
        else:
            saved.file(names[-1], layer)
    return {"Config": f"{hex_of(config)}.json", "RepoTags": tags, "Layers": names}


def flat_item(
    saved: Layout, layers: list[bytes], tags: list[str] | None, platform: str = HOST
) -> dict[str, Any]:
    """Write an image as skopeo does."""
    config = config_of(layers, platform)
    saved.file(f"{hex_of(config)}.json", config)
    for layer in layers:
        saved.file(f"{hex_of(layer)}.tar", layer)
    return {
        "Config": f"{hex_of(config)}.json",
        "RepoTags": tags,
        "Layers": [f"{hex_of(x)}.tar" for x in layers],
    }


def new_item(
    saved: Layout, layers: list[bytes], tags: list[str] | None, platform: str = HOST
) -> dict[str, Any]:
    """Write an image as Docker does since version 25."""
    blobs = [saved.blob(data, "") for data in (config_of(layers, platform), *layers)]
    config, *names = [f"blobs/{blob['digest'].replace(':', '/')}" for blob in blobs]
    return {"Config": config, "RepoTags": tags, "Layers": names, "LayerSources": {}}


def contents(image: Image) -> list[bytes]:
    found = []
    for layer in image.layers:
        with open(blob_of(layer).path, "rb") as f:
            f.seek(blob_of(layer).offset)
            found.append(f.read(blob_of(layer).size))
    return found


WRITERS = {"old": old_item, "flat": flat_item, "new": new_item}


@pytest.mark.parametrize("form", ["directory", "archive"])
@pytest.mark.parametrize("shape", WRITERS)
def test_every_shape_is_read_in_place(saved: Layout, shape: str, form: str) -> None:
    saved.file("manifest.json", [WRITERS[shape](saved, LAYERS, ["x:1"])])
    path = archive_of(saved.path) if form == "archive" else saved.path
    for source in (path, f"docker-archive:{path}", f"docker-archive:{path}:x:1"):
        image = open_image(source)
        assert contents(image) == LAYERS
        assert [str(layer.diff_id) for layer in image.layers] == [digest_of(layer) for layer in LAYERS]
        assert [layer.digest for layer in image.layers] == (
            [layer.diff_id for layer in image.layers] if shape == "new" else [None] * 3
        )
        assert (image.reference, image.platform, image.created) == (f"{path}:x:1", Platform.host(), "now")


def test_repeated_layer_of_an_archive_may_be_a_hard_link(saved: Layout) -> None:
    item = old_item(saved, LAYERS, None)
    repeated = f"{saved.path}/{item['Layers'][2]}"
    os.unlink(repeated)
    os.link(f"{saved.path}/{item['Layers'][0]}", repeated)
    saved.file("manifest.json", [item])
    assert contents(open_image(archive_of(saved.path))) == LAYERS


def test_layout_goes_before_manifest_json_unless_asked_for(saved: Layout) -> None:
    saved.file("manifest.json", [new_item(saved, [b"docker"], ["x:docker"])])
    saved.finish(named(saved.image([b"oci"], HOST), "oci"))
    for path in (saved.path, archive_of(saved.path)):
        assert contents(open_image(path)) == [b"oci"]
        assert contents(open_image(f"docker-archive:{path}")) == [b"docker"]


NAMES: dict[str, tuple[list[list[str] | None], str | None, str | None]] = {
    # title: (the images' tags, the tag, the chosen image or the error)
    "the only one": ([["a:1", "b:1"]], None, "0"),
    "the only one, untagged": ([None], None, "0"),
    "several, none named": ([["a:1"], ["b:1", "c:1"], None], None, None),
    "exact": ([["a:1"], ["b:1", "c:1"]], "c:1", "1"),
    "implied tag": ([["a:latest"], ["b:latest"]], "b", "1"),
    "implied registry": ([["docker.io/library/a:1"], ["quay.io/a:1"]], "a:1", "0"),
    "tag alone": ([["a:1"], ["a:2"]], "2", "1"),
    "tag of two": ([["a:1"], ["b:1"]], "1", None),
    "index": ([None, None], "@1", "1"),
    "index out of range": ([None, None], "@2", None),
    "absent": ([["a:1"]], "b:1", None),
    "one tag on two images": ([["a:1"], ["a:1"]], "a:1", None),
    "no images": ([], None, None),
}


@pytest.mark.parametrize("case", NAMES.values(), ids=NAMES)
def test_name_chooses_the_image(
    saved: Layout, case: tuple[list[list[str] | None], str | None, str | None]
) -> None:
    images, tag, want = case
    saved.file("manifest.json", [flat_item(saved, [b"%d" % i], tags) for i, tags in enumerate(images)])
    source = f"docker-archive:{saved.path}" + (f":{tag}" if tag else "")
    if want is None:
        with pytest.raises(ImageError, match="image"):
            open_image(source)
    else:
        assert contents(open_image(source)) == [want.encode()]


def test_error_lists_the_images_there_are(saved: Layout) -> None:
    items = [flat_item(saved, [b"%d" % i], tags) for i, tags in enumerate([["a:1", "b:1"], None])]
    saved.file("manifest.json", items)
    with pytest.raises(ImageError, match="several images: got a:1, b:1, @1, want one of them named"):
        open_image(saved.path)
    with pytest.raises(ImageError, match="no image c: got a:1, b:1, @1"):
        open_image(f"{saved.path}:c")
    saved.file("manifest.json", [{**item, "RepoTags": ["a:1"]} for item in items])
    with pytest.raises(ImageError, match="several images: got @0, @1, want one of them named"):
        open_image(f"{saved.path}:a:1")


def test_foreign_image_is_taken_with_a_warning_unless_a_platform_is_asked_for(saved: Layout) -> None:
    saved.file("manifest.json", [flat_item(saved, [b"x"], None, FOREIGN)])
    image = open_image(saved.path)
    assert str(image.platform) == FOREIGN
    assert [f"image is for {FOREIGN}" in warning for warning in image.warnings] == [True]
    assert not open_image(saved.path, platform=Platform.parse(FOREIGN)).warnings
    with pytest.raises(ImageError, match=f"no image for platform {HOST}"):
        open_image(saved.path, platform=Platform.host())


@pytest.mark.parametrize("shape", WRITERS)
def test_config_is_checked_against_its_name(saved: Layout, shape: str) -> None:
    item = WRITERS[shape](saved, [b"x"], None)
    saved.file("manifest.json", [item])
    saved.file(item["Config"], config_of([b"x"]) + b" ")
    with pytest.raises(DigestError, match=r"config .*: digest of the stored bytes"):
        open_image(f"docker-archive:{saved.path}")
    assert contents(open_image(f"docker-archive:{saved.path}", check=False)) == [b"x"]


@pytest.mark.parametrize("target", ["/etc/hostname", "../../outside", "../../saved-too/layer.tar"])
@pytest.mark.parametrize("form", ["directory", "archive"])
def test_links_out_of_the_source_are_not_followed(
    saved: Layout, tmp_path: Path, target: str, form: str
) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "saved-too").mkdir()
    (tmp_path / "saved-too/layer.tar").write_bytes(b"secret")
    item = old_item(saved, [b"x"], None)
    os.unlink(f"{saved.path}/{item['Layers'][0]}")
    os.symlink(target, f"{saved.path}/{item['Layers'][0]}")
    saved.file("manifest.json", [item])
    with pytest.raises(ImageError, match=r"leads out of the directory|is a link out of the archive"):
        open_image(archive_of(saved.path) if form == "archive" else saved.path)


def test_source_may_be_reached_through_a_link(saved: Layout, tmp_path: Path) -> None:
    saved.file("manifest.json", [old_item(saved, LAYERS, None)])
    os.symlink("saved", tmp_path / "link")
    assert contents(open_image(f"{tmp_path}/link")) == LAYERS


MALFORMED: dict[str, tuple[object, str]] = {
    "an object, as skopeo's dir: has": ({"schemaVersion": 2}, "document: got an object, want an array"),
    "null": (None, "document: got null, want an array"),
    "item a string": (["x"], r"field \[0\]: got a string, want an object"),
    "no config": ([{"Layers": []}], r"required field \[0\].Config is missing"),
    "config a number": ([{"Layers": [], "Config": 1}], r"\[0\].Config: got an integer"),
    "no layers": ([{"Config": "c.json"}], r"required field \[0\].Layers is missing"),
    "tags a string": (
        [{"Config": "c.json", "Layers": [], "RepoTags": "x"}],
        "RepoTags: got a string, want an array",
    ),
    "absolute layer": (
        [{"Config": "c.json", "Layers": ["/etc/passwd"]}],
        r"Layers\[0\]: got /etc/passwd, want a name",
    ),
    "layer climbs": (
        [{"Config": "c.json", "Layers": ["a/../../x"]}],
        r"Layers\[0\]: got a/../../x, want a name within",
    ),
    "config climbs": ([{"Config": "..", "Layers": []}], "Config: got .., want a name within"),
    "empty name": ([{"Config": "", "Layers": []}], "Config: got , want a name within"),
    "name with NUL": ([{"Config": "a\0b", "Layers": []}], r"Config: got a\\x00b, want text without NUL"),
    "name no text": ([{"Config": "\udc80\ud800", "Layers": []}], "Config: got .*, want Unicode text"),
    "config is the directory": ([{"Config": ".", "Layers": []}], "directory"),
    "config missing": ([{"Config": "absent.json", "Layers": []}], "absent.json is missing"),
    "layer missing": ([{"Config": "c.json", "Layers": ["absent.tar"]}], "absent.tar is missing"),
    "layer below a file": ([{"Config": "c.json", "Layers": ["c.json/x"]}], "c.json/x is missing"),
    "too many layers": (
        [{"Config": "c.json", "Layers": ["x", "x"]}],
        "number of diff_ids in the config: got 1, want 2",
    ),
}


@pytest.mark.parametrize("form", ["directory", "archive"])
@pytest.mark.parametrize("case", MALFORMED.values(), ids=MALFORMED)
def test_malformed_manifest_json_is_refused(saved: Layout, case: tuple[object, str], form: str) -> None:
    document, message = case
    saved.file("c.json", config_of([b"x"]))
    saved.file("manifest.json", document)
    if form == "archive" and document != [{"Config": ".", "Layers": []}]:
        path = archive_of(saved.path)
    else:
        path = saved.path
    with pytest.raises(ImageError, match=message) as caught:
        open_image(path, check=False)
    assert path in str(caught.value)


@pytest.mark.parametrize("kind", ["directory", "FIFO"])
def test_layer_that_is_no_file_is_refused(saved: Layout, kind: str) -> None:
    item = flat_item(saved, [b"x"], None)
    saved.file("manifest.json", [item])
    path = f"{saved.path}/{item['Layers'][0]}"
    os.unlink(path)
    (os.mkdir if kind == "directory" else os.mkfifo)(path)
    with pytest.raises(ImageError, match=f"got a {kind}, want a regular file"):
        open_image(saved.path)
