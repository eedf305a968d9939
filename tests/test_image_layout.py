"""OCI layouts, as directories and archives: what is found, chosen, refused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layouts import (
    CONFIG,
    CONTAINERD_NAME,
    INDEX,
    LAYER,
    MANIFEST,
    OCI,
    Layout,
    archive_of,
    blob_of,
    digest_of,
    for_platform,
    named,
    platform_of,
)
from paralayer.errors import DigestError, ImageError, MediaTypeError
from paralayer.image import Blob, Platform, open_image
from paralayer.image.source import open_file, read_document

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOST = str(Platform.host())
FOREIGN = "linux/s390x" if Platform.host().architecture != "s390x" else "linux/amd64"
DOCKER = "application/vnd.docker."


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def content(blob: Blob) -> bytes:
    with open(blob.path, "rb") as f:
        f.seek(blob.offset)
        return f.read(blob.size)


def layers_of(source: str, platform: str | None = None) -> list[bytes]:
    image = open_image(source, platform=Platform.parse(platform) if platform else None)
    return [content(blob_of(layer)) for layer in image.layers]


@pytest.mark.parametrize("form", ["directory", "archive"])
def test_layers_are_described_oldest_first(layout: Layout, form: str) -> None:
    layers = [b"oldest", b"middle" * 1000, b"oldest", b""]
    config = layout.config(layers, HOST, created="2024-02-30T00:00:00Z")
    path = layout.finish(named(layout.image(layers, config=config), "v1"))
    if form == "archive":
        path = archive_of(path)
    image = open_image(path)
    assert [layer.index for layer in image.layers] == [0, 1, 2, 3]
    assert [content(blob_of(layer)) for layer in image.layers] == layers
    assert [str(layer.digest) for layer in image.layers] == [digest_of(layer) for layer in layers]
    assert [str(layer.diff_id) for layer in image.layers] == [digest_of(layer) for layer in layers]
    assert {layer.media_type for layer in image.layers} == {LAYER}
    assert all(os.path.isabs(blob_of(layer).path) for layer in image.layers)
    assert (image.reference, image.platform, image.created, image.warnings) == (
        f"{path}:v1",
        Platform.host(),
        "2024-02-30T00:00:00Z",
        (),
    )


@pytest.mark.parametrize("count", [0, 1, 300])
def test_any_number_of_layers_is_fine(layout: Layout, count: int) -> None:
    layers = [b"%d" % i for i in range(count)]
    assert layers_of(layout.finish(layout.image(layers, HOST))) == layers


def test_null_stands_for_no_layers(layout: Layout) -> None:
    config = layout.config([], HOST, rootfs={"type": "layers"})
    assert layers_of(layout.finish(layout.image([], HOST, config=config, layers=None))) == []


def test_sha512_names_blobs_as_well(layout: Layout) -> None:
    layer = layout.blob(b"layer", LAYER, "sha512")
    config = {**platform_of(HOST), "rootfs": {"type": "layers", "diff_ids": [digest_of(b"layer", "sha512")]}}
    image = layout.image([], HOST, config=layout.blob(config, CONFIG, "sha512"), layers=[layer])
    [found] = open_image(layout.finish(image)).layers
    assert str(found.digest) == str(found.diff_id) == digest_of(b"layer", "sha512")


def test_blobs_of_a_directory_may_be_links_to_elsewhere(layout: Layout, tmp_path: Path) -> None:
    path = layout.finish(layout.image([b"shared"], HOST))
    os.rename(f"{path}/blobs", tmp_path / "store")
    os.symlink(tmp_path / "store", f"{path}/blobs")
    assert layers_of(path) == [b"shared"]


# ---------------------------------------------------------------- names

NAMES: dict[str, tuple[list[tuple[str, str]], str | None, str | None]] = {
    # title: ([(ref name, containerd name)], tag, the chosen one's content or None)
    "the only one, tagged": ([("a", "")], None, "0"),
    "the only one, untagged": ([("", "")], None, "0"),
    "an empty tag is none": ([("a", "")], "", "0"),
    "exact": ([("a", ""), ("b", "")], "b", "1"),
    "several, none named": ([("a", ""), ("b", "")], None, None),
    "tagged beside untagged, none named": ([("a", ""), ("", "")], None, None),
    "absent": ([("a", ""), ("b", "")], "c", None),
    "no prefix matching": ([("ab", "")], "a", None),
    "case matters": ([("a", "")], "A", None),
    "whole reference as ref name": ([("docker.io/library/x:1", ""), ("b", "")], "docker.io/library/x:1", "0"),
    "short reference": ([("docker.io/library/x:latest", ""), ("b", "")], "x", "0"),
    "short reference with a tag": (
        [("1", "docker.io/library/x:1"), ("1", "docker.io/me/x:1")],
        "me/x:1",
        "1",
    ),
    "tag of the only reference": ([("registry:5000/x:1", "")], "1", "0"),
    "port is no tag": ([("registry:5000/x", ""), ("b", "")], "5000/x", None),
    "tag of two references": ([("1", "docker.io/library/x:1"), ("1", "docker.io/library/y:1")], "1", None),
    "exact goes before tag of a reference": ([("x:1", ""), ("1", "")], "1", "1"),
    "index": ([("a", ""), ("a", "")], "@1", "1"),
    "index out of range": ([("a", "")], "@1", None),
    "one name on two images": ([("a", ""), ("a", "")], "a", None),
}


@pytest.mark.parametrize("case", NAMES.values(), ids=NAMES)
def test_name_chooses_the_image(
    layout: Layout, case: tuple[list[tuple[str, str]], str | None, str | None]
) -> None:
    names, tag, want = case
    descriptors = []
    for i, (ref_name, containerd_name) in enumerate(names):
        descriptor = layout.image([b"%d" % i], HOST)
        descriptor = named(descriptor, ref_name) if ref_name else descriptor
        descriptors.append(
            named(descriptor, containerd_name, CONTAINERD_NAME) if containerd_name else descriptor
        )
    source = f"oci:{layout.finish(*descriptors)}" + (f":{tag}" if tag is not None else "")
    if want is None:
        with pytest.raises(ImageError, match="image"):
            open_image(source)
    else:
        assert layers_of(source) == [want.encode()]


def test_error_lists_the_names_there_are(layout: Layout) -> None:
    path = layout.finish(
        *(named(layout.image([name.encode()], HOST), name) for name in ("one", "two\n\x1b[1m"))
    )
    with pytest.raises(ImageError, match=r"several images: got one, two\\n\\x1b\[1m, want"):
        open_image(path)
    with pytest.raises(ImageError, match=r"no image three: got one, two"):
        open_image(f"{path}:three")


def test_one_tag_of_two_repositories_wants_a_choice(layout: Layout) -> None:
    names = {"docker.io/library/x:1": HOST, "docker.io/library/y:1": FOREIGN}
    images = [named(layout.image([b"x"], platform), "1") for platform in names.values()]
    path = layout.finish(*(named(i, n, CONTAINERD_NAME) for i, n in zip(images, names, strict=True)))
    for source in (path, f"{path}:1"):
        with pytest.raises(ImageError, match=", ".join(names)):
            open_image(source)
    assert str(open_image(f"{path}:y:1").platform) == FOREIGN


def test_two_tags_of_one_image_want_a_choice_as_with_skopeo(layout: Layout) -> None:
    image = layout.image([b"x"], HOST)
    path = layout.finish(named(image, "a"), named(image, "b"))
    with pytest.raises(ImageError, match="several images: got a, b"):
        open_image(path)
    assert layers_of(f"{path}:b") == [b"x"]


def test_same_untagged_image_twice_is_one_image(layout: Layout) -> None:
    image = layout.image([b"x"], HOST)
    assert layers_of(layout.finish(image, image)) == [b"x"]


def test_digest_chooses_also_in_nested_indexes(layout: Layout) -> None:
    images = [layout.image([b"%d" % i], HOST) for i in range(3)]
    inner = layout.index(*images[1:])
    path = layout.finish(images[0], layout.index(inner))
    assert layers_of(f"{path}:@{images[2]['digest']}") == [b"2"]
    assert layers_of(f"{path}:@{inner['digest']}") == [b"1"]
    for wrong in (digest_of(b""), "sha256:12", "sha1:" + "0" * 40):
        with pytest.raises(ImageError):
            open_image(f"{path}:@{wrong}")


@pytest.mark.parametrize("prefix", ["", "oci:"])
def test_path_may_contain_colons(tmp_path: Path, prefix: str) -> None:
    for name in ("img", "img:v1", "other:1/sub"):
        layout = Layout(tmp_path / name)
        layout.finish(named(layout.image([name.encode()], HOST), "v1"))
    assert layers_of(f"{prefix}{tmp_path}/img:v1") == [b"img:v1"]
    assert layers_of(f"{prefix}{tmp_path}/img:v1:v1") == [b"img:v1"]
    assert layers_of(f"{prefix}{tmp_path}/img:@0") == [b"img"]
    assert layers_of(f"{prefix}{tmp_path}/other:1/sub:v1") == [b"other:1/sub"]
    with pytest.raises(ImageError, match="no image v2"):
        open_image(f"{prefix}{tmp_path}/img:v2")


def test_relative_path_is_made_absolute(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    path = layout.finish(layout.image([b"x"], HOST))
    monkeypatch.chdir(path)
    assert blob_of(open_image(".").layers[0]).path.startswith("/")
    assert layers_of(f"../{os.path.basename(path)}") == [b"x"]


def test_image_in_a_removed_directory_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ImageError, match="No such file"):
        open_image("x")


NO_SOURCES = {
    "nothing": ("", "no file can have this name"),
    "prefix alone": ("oci:", "no file can have this name"),
    "NUL": ("a\0b", "no file can have this name"),
    "no such text": ("\ud800", "no file can have this name"),
    "absent": ("/absent/image:tag", "/absent/image: No such file"),
    "registry": (
        "docker:busybox:latest",
        "cannot read from docker:.*want docker://, oci:, oci-archive:, docker-archive: or",
    ),
    "storage": ("containers-storage:busybox", "cannot read from containers-storage:"),
    "device": ("/dev/null", "got a character device, want a regular file"),
    "long": ("x" * 5000, "File name too long"),
}


@pytest.mark.parametrize("case", NO_SOURCES.values(), ids=NO_SOURCES)
def test_what_is_no_source_is_refused(case: tuple[str, str]) -> None:
    source, message = case
    with pytest.raises(ImageError, match=message):
        open_image(source)


def test_directory_that_is_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="neither an OCI layout nor what docker save writes"):
        open_image(str(tmp_path))
    with pytest.raises(ImageError, match="oci-layout: missing, so this is no OCI layout"):
        open_image(f"oci:{tmp_path}")


# ---------------------------------------------------------------- platforms

PLATFORMS: dict[str, tuple[str, str, str | None]] = {
    # title: (what there is, what is wanted, what is chosen)
    "the one": ("linux/amd64 linux/arm64", "linux/arm64", "linux/arm64"),
    "none": ("linux/amd64 linux/arm64", "linux/s390x", None),
    "other system": ("linux/amd64 windows/amd64", "windows/amd64", "windows/amd64"),
    "plain before variant": ("linux/amd64/v3 linux/amd64", "linux/amd64", "linux/amd64"),
    "plain before the default variant": ("linux/arm64/v8 linux/arm64", "linux/arm64", "linux/arm64"),
    "variant if there is no plain one": ("linux/arm64/v8 linux/amd64", "linux/arm64", "linux/arm64/v8"),
    "usual variant": ("linux/arm/v6 linux/arm/v7", "linux/arm", "linux/arm/v7"),
    "lowest variant": ("linux/amd64/v3 linux/amd64/v2", "linux/amd64", "linux/amd64/v2"),
    "exact variant": ("linux/arm/v6 linux/arm/v7", "linux/arm/v6", "linux/arm/v6"),
    "lower variant": ("linux/arm/v5 linux/arm/v6", "linux/arm/v7", "linux/arm/v6"),
    "plain is the default variant": ("linux/arm64 linux/amd64", "linux/arm64/v8", "linux/arm64"),
    "no higher variant": ("linux/arm/v7 linux/amd64", "linux/arm/v6", None),
    "aliases": ("linux/x86_64 linux/aarch64", "linux/arm64", "linux/aarch64"),
    "unknown variant": ("linux/ppc64le/power9 linux/ppc64le", "linux/ppc64le/power9", "linux/ppc64le/power9"),
    "unknown variant, absent": ("linux/ppc64le/power8", "linux/ppc64le/power9", None),
    "single and wanted, but foreign": ("linux/arm64", "linux/amd64", None),
    "first of equals": ("linux/amd64 linux/amd64", "linux/amd64", "linux/amd64"),
}


@pytest.mark.parametrize("stated", [True, False], ids=["in the descriptor", "in the config"])
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
@pytest.mark.parametrize("case", PLATFORMS.values(), ids=PLATFORMS)
def test_platform_chooses_the_manifest(
    layout: Layout, case: tuple[str, str, str | None], nested: bool, stated: bool
) -> None:
    have, wanted, chosen = case
    images = []
    for i, platform in enumerate(have.split()):
        image = layout.image([b"%d %s" % (i, platform.encode())], platform)
        images.append(for_platform(image, platform) if stated else image)
    index = layout.index(layout.index(images[0]), *images[1:]) if nested else layout.index(*images)
    path = layout.finish(named(index, "multi"))
    if chosen is None:
        with pytest.raises(
            ImageError, match=f"no image for platform {wanted}: got images for {have.split()[0]}"
        ):
            open_image(path, platform=Platform.parse(wanted))
    else:
        image_found = open_image(path, platform=Platform.parse(wanted))
        assert [content(blob_of(image_found.layers[0]))] == [
            b"%d %s" % (have.split().index(chosen), chosen.encode())
        ]
        assert str(image_found.platform) == chosen
        assert not image_found.warnings


def test_one_manifest_may_be_for_several_platforms(layout: Layout) -> None:
    image = layout.image([b"x"], HOST)
    path = layout.finish(
        layout.index(*(for_platform(image, p) for p in ("linux/386", "linux/arm/v6", "linux/s390x")))
    )
    for platform in ("linux/386", "linux/arm/v6", "linux/s390x"):
        assert str(open_image(path, platform=Platform.parse(platform)).platform) == platform


def test_host_is_the_default_platform(layout: Layout) -> None:
    images = [for_platform(layout.image([p.encode()], p), p) for p in (FOREIGN, HOST)]
    assert layers_of(layout.finish(*images)) == [HOST.encode()]


def test_platforms_that_were_not_copied_are_not_missed(layout: Layout) -> None:
    images = [for_platform(layout.image([p.encode()], p), p) for p in (FOREIGN, HOST)]
    os.unlink(layout.blob_path(images[0]))
    path = layout.finish(layout.index(*images))
    assert layers_of(path) == [HOST.encode()]
    with pytest.raises(ImageError, match=f"blob {images[0]['digest']} is missing"):
        open_image(path, platform=Platform.parse(FOREIGN))


def test_single_foreign_image_is_taken_with_a_warning(layout: Layout) -> None:
    attestation = layout.image([b"a"], "unknown/unknown")
    path = layout.finish(
        layout.index(layout.image([b"x"], FOREIGN), for_platform(attestation, "unknown/unknown"))
    )
    image = open_image(path)
    assert image.platform == Platform.parse(FOREIGN)
    assert image.warnings == (
        f"image is for {FOREIGN}, not for this machine's {HOST}; taken since it is the only one",
    )
    with pytest.raises(ImageError, match=f"no image for platform {HOST}: got images for {FOREIGN}"):
        open_image(path, platform=Platform.host())


def test_untagged_images_of_one_platform_want_a_choice(layout: Layout) -> None:
    images = [layout.image([b"%d" % i], HOST) for i in range(2)]
    path = layout.finish(*images)
    with pytest.raises(
        ImageError, match=f"several images: got @{images[0]['digest']}, @{images[1]['digest']}"
    ):
        open_image(path)
    assert layers_of(f"{path}:@{images[1]['digest']}") == [b"1"]


# ---------------------------------------------------------------- what is no image


def artifact(layout: Layout) -> dict[str, Any]:
    return layout.image([], HOST, config=layout.blob({}, f"{OCI.removesuffix('image.')}empty.v1+json"))


def signature(layout: Layout) -> dict[str, Any]:
    payload = layout.blob({}, "application/vnd.dev.cosign.simplesigning.v1+json")
    return layout.image([b"payload"], HOST, layers=[payload])


def attestation(layout: Layout) -> dict[str, Any]:
    annotations = {"vnd.docker.reference.type": "attestation-manifest"}
    return {**layout.image([b"x"], HOST), "annotations": annotations}


def schema_1(layout: Layout) -> dict[str, Any]:
    return layout.blob({"schemaVersion": 1}, f"{DOCKER}distribution.manifest.v1+prettyjws")


def withdrawn(layout: Layout) -> dict[str, Any]:
    return layout.blob({}, f"{OCI.removesuffix('image.')}artifact.manifest.v1+json")


NO_IMAGES: dict[Callable[[Layout], dict[str, Any]], str] = {
    artifact: "is an artifact, no image: .*got application/vnd.oci.empty.v1.json",
    signature: "is an artifact, no image: .*got application/vnd.dev.cosign.simplesigning.v1.json",
    attestation: "is no image: got an attestation",
    schema_1: "schema 1 manifest: got application/vnd.docker.distribution.manifest.v1.prettyjws",
    withdrawn: "media type: got application/vnd.oci.artifact.manifest.v1.json",
}


@pytest.mark.parametrize("make", NO_IMAGES)
def test_what_is_no_image_is_refused_by_name_and_never_chosen(
    layout: Layout, make: Callable[[Layout], dict[str, Any]]
) -> None:
    other = make(layout)
    path = layout.finish(named(other, "other"))
    with pytest.raises(MediaTypeError, match=NO_IMAGES[make]):
        open_image(path)
    layout.finish(named(other, "other"), layout.index(other, layout.image([b"image"], HOST)))
    assert layers_of(path) == [b"image"]
    with pytest.raises(MediaTypeError, match=NO_IMAGES[make]):
        open_image(f"{path}:other")


def chart(layout: Layout) -> dict[str, Any]:
    return layout.image(
        [], HOST, config=layout.blob({"name": "x"}, "application/vnd.cncf.helm.config.v1+json")
    )


ARTIFACTS: dict[str, Callable[[Layout], dict[str, Any]]] = {
    "chart": chart,
    "signature": signature,
    "named chart": lambda layout: named(chart(layout), "chart"),
    "what calls itself one": lambda layout: {**layout.image([b"x"], HOST), "artifactType": "application/x"},
}


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("title", ARTIFACTS)
def test_artifact_for_a_platform_is_not_chosen_beside_an_image(
    layout: Layout, title: str, first: bool, nested: bool
) -> None:
    found = [for_platform(ARTIFACTS[title](layout), HOST), for_platform(layout.image([b"image"], HOST), HOST)]
    found = found if first else found[::-1]
    path = layout.finish(*([layout.index(*found)] if nested else found))
    assert layers_of(path) == layers_of(path, HOST) == [b"image"]


def test_image_is_not_called_by_the_name_of_an_artifact(layout: Layout) -> None:
    path = layout.finish(named(chart(layout), "chart"), named(layout.image([b"x"], HOST), "v1"))
    assert open_image(path).reference == f"{path}:v1"


def test_artifact_for_this_machine_does_not_stand_for_an_image(layout: Layout) -> None:
    path = layout.finish(
        layout.index(for_platform(chart(layout), HOST), for_platform(layout.image([b"x"], FOREIGN), FOREIGN))
    )
    assert layers_of(path) == [b"x"]
    with pytest.raises(ImageError, match=f"no image for platform {HOST}: got images for {FOREIGN}"):
        open_image(path, platform=Platform.host())


@pytest.mark.parametrize("count", [1, 2])
def test_artifacts_for_a_platform_alone_are_refused(layout: Layout, count: int) -> None:
    others = [for_platform(make(layout), HOST) for make in (chart, signature)[:count]]
    message = ("is an artifact, no image: media type of the config", "no image, only artifacts")[count - 1]
    with pytest.raises(ImageError, match=f"{message}: got application/vnd.cncf.helm.config.v1.json"):
        open_image(layout.finish(layout.index(*others)))


def test_artifact_type_of_an_image_is_that_of_its_config(layout: Layout) -> None:
    assert layers_of(layout.finish({**layout.image([b"x"], HOST), "artifactType": CONFIG})) == [b"x"]


def test_images_of_one_platform_that_were_not_copied_want_a_choice(layout: Layout) -> None:
    images = [for_platform(layout.image([b"%d" % i], HOST), HOST) for i in range(2)]
    path = layout.finish(*images)
    os.unlink(layout.blob_path(images[0]))
    with pytest.raises(ImageError, match="several images"):
        open_image(path)


def test_no_manifest_is_read_but_the_chosen_one(layout: Layout) -> None:
    images = {p: for_platform(layout.image([p.encode()], p), p) for p in (HOST, FOREIGN, "windows/amd64")}
    path = layout.finish(layout.index(*images.values()))
    for platform in (FOREIGN, "windows/amd64"):
        layout.file(f"blobs/{images[platform]['digest'].replace(':', '/')}", b"damaged")
    assert layers_of(path) == [HOST.encode()]


def test_image_of_encrypted_layers_alone_is_no_artifact(layout: Layout) -> None:
    path = layout.finish(layout.image([b"0"], HOST, layers=[layout.blob(b"0", f"{LAYER}+encrypted")]))
    with pytest.raises(MediaTypeError, match="layer 0: encrypted layer"):
        open_image(path)


def test_artifacts_alone_are_listed(layout: Layout) -> None:
    with pytest.raises(ImageError, match="no image, only artifacts: got an attestation, application/vnd"):
        open_image(layout.finish(attestation(layout), artifact(layout)))


ACCEPTED_LAYERS = [
    f"{OCI}layer.v1.tar",
    f"{OCI}layer.v1.tar+gzip",
    f"{OCI}layer.v1.tar+zstd",
    f"{OCI}layer.nondistributable.v1.tar",
    f"{OCI}layer.nondistributable.v1.tar+gzip",
    f"{OCI}layer.nondistributable.v1.tar+zstd",
    f"{DOCKER}image.rootfs.diff.tar",
    f"{DOCKER}image.rootfs.diff.tar.gzip",
    f"{DOCKER}image.rootfs.diff.tar.zstd",
    f"{DOCKER}image.rootfs.foreign.diff.tar",
    f"{DOCKER}image.rootfs.foreign.diff.tar.gzip",
]


def test_all_layer_types_are_accepted_in_any_mixture(layout: Layout) -> None:
    layers = [layout.blob(media_type.encode(), media_type) for media_type in ACCEPTED_LAYERS]
    config = layout.config([media_type.encode() for media_type in ACCEPTED_LAYERS], HOST)
    image = open_image(layout.finish(layout.image([], HOST, config=config, layers=layers)))
    assert [layer.media_type for layer in image.layers] == ACCEPTED_LAYERS


REFUSED_LAYERS = {
    f"{OCI}layer.v1.tar+gzip+encrypted": "layer 1: encrypted layer: got .*encrypted",
    f"{OCI}layer.v1.tar+encrypted": "layer 1: encrypted layer",
    f"{OCI}layer.v1.squashfs": "layer 1: media type of the layer is unknown: got .*squashfs",
    f"{OCI}layer.v1.tar+GZIP": "unknown",
    "": "unknown",
}


@pytest.mark.parametrize("media_type", REFUSED_LAYERS)
def test_other_layer_types_are_refused_by_name(layout: Layout, media_type: str) -> None:
    layers = [layout.blob(b"0", LAYER), layout.blob(b"1", media_type)]
    path = layout.finish(layout.image([b"0", b"1"], HOST, layers=layers))
    with pytest.raises(MediaTypeError, match=REFUSED_LAYERS[media_type]):
        open_image(path, check=False)


def test_missing_non_distributable_layer_is_called_that(layout: Layout) -> None:
    foreign = layout.blob(b"0", f"{DOCKER}image.rootfs.foreign.diff.tar.gzip")
    path = layout.finish(layout.image([b"0"], HOST, layers=[foreign]))
    os.unlink(layout.blob_path(foreign))
    with pytest.raises(ImageError, match=f"layer 0: blob {foreign['digest']} is non-distributable"):
        open_image(path)


# ---------------------------------------------------------------- nesting


@pytest.mark.parametrize(("levels", "fine"), [(8, True), (9, False), (2000, False)])
def test_indexes_nest_to_a_limit(layout: Layout, levels: int, fine: bool) -> None:
    image = top = layout.image([b"deep"], HOST)
    for _ in range(levels):
        top = layout.index(top)
    path = layout.finish(top)
    if fine:
        assert layers_of(path) == [b"deep"]
    else:
        with pytest.raises(ImageError, match="indexes are nested too deeply: want at most 8 levels"):
            open_image(path)
    assert layers_of(f"{path}:@{image['digest']}") == [b"deep"]


def test_index_that_contains_itself_is_refused(layout: Layout) -> None:
    own = layout.index()
    layout.file(f"blobs/{own['digest'].replace(':', '/')}", {"schemaVersion": 2, "manifests": [own]})
    path = layout.finish(own)
    with pytest.raises(DigestError):
        open_image(path)
    with pytest.raises(ImageError, match="index contains itself"):
        open_image(path, check=False)
    with pytest.raises(ImageError, match="no image @sha256:000"):
        open_image(f"{path}:@sha256:{'0' * 64}", check=False)


def test_indexes_do_not_multiply(layout: Layout) -> None:
    top = layout.image([b"x"], HOST)
    for _ in range(8):
        top = layout.index(*[top] * 100)  # 10^16 ways down
    assert layers_of(layout.finish(top)) == [b"x"]


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("role", ["manifest", "config", "index"])
def test_document_that_was_changed_is_refused(layout: Layout, role: str) -> None:
    config = layout.config([b"x"], HOST)
    manifest = layout.image([b"x"], HOST, config=config)
    index = layout.index(manifest)
    path = layout.finish(index)
    changed = layout.blob_path({"manifest": manifest, "config": config, "index": index}[role])
    with open(changed, "r+b") as f:
        data = f.read().replace(b": ", b":\t", 1)
        f.seek(0)
        f.write(data)
    with pytest.raises(
        DigestError, match=f"{role} sha256:.*digest of the stored bytes: got sha256:.*, want sha256:"
    ):
        open_image(path)
    with open(changed, "ab") as f:
        f.write(b"\n")
    with pytest.raises(
        DigestError, match=f"{role} sha256:.*: size of blob sha256:.*got {len(data) + 1}, want"
    ):
        open_image(path)
    assert len(open_image(path, check=False).layers) == 1


def test_layer_of_another_size_is_refused(layout: Layout) -> None:
    layer = layout.blob(b"layer", LAYER)
    path = layout.finish(layout.image([b"layer"], HOST))
    layout.file(f"blobs/{layer['digest'].replace(':', '/')}", b"cut")
    with pytest.raises(DigestError, match=f"layer 0: size of blob {layer['digest']}: got 3, want 5"):
        open_image(path)
    assert open_image(path, check=False).layers[0].blob.size == 3


@pytest.mark.parametrize("count", [0, 1, 3])
def test_number_of_diff_ids_is_that_of_layers(layout: Layout, count: int) -> None:
    config = layout.config([b"x"] * count, HOST)
    path = layout.finish(layout.image([b"x", b"x"], HOST, config=config))
    with pytest.raises(ImageError, match=f"number of diff_ids in the config: got {count}, want 2"):
        open_image(path)


def test_embedded_data_does_not_stand_for_a_blob(layout: Layout) -> None:
    config = layout.config([b"x"], HOST)
    with open(layout.blob_path(config), encoding="utf-8") as f:
        data = f.read()
    path = layout.finish(layout.image([b"x"], HOST, config={**config, "data": data}))
    os.unlink(layout.blob_path(config))
    with pytest.raises(ImageError, match=f"blob {config['digest']} is missing"):
        open_image(path)


NO_FILES: dict[str, Callable[[str], None]] = {
    "a directory": os.mkdir,
    "a FIFO": os.mkfifo,
    "a character device": lambda path: os.symlink("/dev/zero", path),
    "Too many levels": lambda path: os.symlink(path, path),
    "missing": lambda path: os.symlink("absent", path),
}


@pytest.mark.parametrize("name", ["oci-layout", "index.json", "manifest", "config", "layer"])
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_refused_and_blocks_nobody(layout: Layout, name: str, kind: str) -> None:
    config = layout.config([b"x"], HOST)
    manifest = layout.image([b"x"], HOST, config=config)
    path = layout.finish(manifest)
    blobs = {"manifest": manifest, "config": config, "layer": layout.blob(b"x", LAYER)}
    target = layout.blob_path(blobs[name]) if name in blobs else os.path.join(path, name)
    os.unlink(target)
    NO_FILES[kind](target)
    with pytest.raises(ImageError, match=kind):
        open_image(path)


def test_file_that_turned_into_a_fifo_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError, match="got a FIFO, want a regular file"):
        open_file(str(tmp_path / "fifo"))


def test_file_that_shrank_is_refused(layout: Layout) -> None:
    path = layout.file("document", b"{}")
    with pytest.raises(ImageError, match="document: file shrank while it was read: got 2 bytes, want 3"):
        read_document(Blob(path, 0, 3), "document")


def test_huge_document_is_refused_unread(layout: Layout) -> None:
    manifest = layout.image([b"x"], HOST)
    path = layout.finish({**manifest, "size": 1 << 40})
    os.truncate(layout.blob_path(manifest), 1 << 40)
    with pytest.raises(
        ImageError, match=f"document is too large: got {1 << 40} bytes, want at most {8 << 20}"
    ):
        open_image(path)


# ---------------------------------------------------------------- malformed documents

DIGEST = digest_of(b"")
NESTED = b'{"schemaVersion": 2, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
MALFORMED: dict[str, tuple[str, object, str]] = {
    # title: (document, its bytes or the members to replace, message)
    "empty": ("manifest", b"", "manifest sha256:.*: empty document"),
    "no JSON": ("manifest", b"{", "manifest sha256:.*: not JSON"),
    "two values": ("manifest", b"{}{}", "not JSON"),
    "not UTF-8": ("config", b'{"os": "\xff"}', "config sha256:.*: not UTF-8 at byte 8"),
    "UTF-16": ("config", '{"os": ""}'.encode("utf-16"), "not UTF-8"),
    "byte order mark": ("index", b"\xef\xbb\xbf{}", "not JSON"),
    "NaN": ("index", b'{"schemaVersion": NaN}', "not JSON: got NaN is no JSON"),
    "deeply nested": ("index", NESTED, "nested too deeply"),
    "number of 5000 digits": ("index", b'{"schemaVersion": ' + b"1" * 5000 + b"}", "not JSON"),
    "array on top": ("manifest", b"[]", "document: got an array, want an object"),
    "null on top": ("config", b"null", "document: got null, want an object"),
    "string on top": ("index.json", b'"x"', "index.json: document: got a string"),
    "schema 1": ("manifest", {"schemaVersion": 1}, "field schemaVersion: got 1, want 2"),
    "no schemaVersion": ("manifest", {"schemaVersion": None}, "required field schemaVersion is missing"),
    "schemaVersion as text": (
        "index.json",
        {"schemaVersion": "2"},
        "schemaVersion: got a string, want an integer",
    ),
    "schemaVersion with fraction": ("index", {"schemaVersion": 2.0}, "got a number with a fraction"),
    "schemaVersion true": ("index", {"schemaVersion": True}, "got a boolean"),
    "index as manifest": (
        "manifest",
        {"mediaType": INDEX},
        f"mediaType: got {INDEX}, want {MANIFEST}".replace("+", "."),
    ),
    "Docker in OCI": (
        "manifest",
        {"mediaType": f"{DOCKER}distribution.manifest.v2+json"},
        "field mediaType: got",
    ),
    "manifest as index": ("index", {"mediaType": MANIFEST}, "field mediaType: got"),
    "index.json as manifest": ("index.json", {"mediaType": MANIFEST}, "field mediaType: got"),
    "mediaType as number": ("index.json", {"mediaType": 1}, "field mediaType: got an integer, want a string"),
    "both, in manifest": ("manifest", {"manifests": []}, "an index and a manifest in one"),
    "both, in index": ("index", {"layers": None}, "an index and a manifest in one"),
    "layers missing": ("manifest", b'{"schemaVersion": 2, "config": {}}', "required field"),
    "layers an object": ("manifest", {"layers": {}}, "field layers: got an object, want an array"),
    "layer null": ("manifest", {"layers": [None]}, r"field layers\[0\]: got null, want an object"),
    "layer a string": ("manifest", {"layers": [DIGEST]}, r"field layers\[0\]: got a string"),
    "layer without type": (
        "manifest",
        {"layers": [{"size": 0, "digest": DIGEST}]},
        r"layers\[0\].mediaType is missing",
    ),
    "config missing": ("manifest", {"config": None}, "required field config is missing"),
    "config an array": ("manifest", {"config": []}, "field config: got an array"),
    "size missing": ("manifest", {"config": {"digest": DIGEST}}, "field config.size is missing"),
    "size negative": ("manifest", {"config": {"size": -1}}, "field config.size: got -1"),
    "size of 64 bits": (
        "manifest",
        {"config": {"size": 1 << 63}},
        "field config.size: got 9223372036854775808",
    ),
    "digest a number": (
        "manifest",
        {"config": {"size": 1, "mediaType": CONFIG, "digest": 1}},
        "config.digest: got an int",
    ),
    "digest with a path": (
        "manifest",
        {"config": {"size": 1, "mediaType": CONFIG, "digest": "sha256:../../../../../etc/passwd"}},
        "config.digest: digest: got sha256:../../../../../etc/passwd, want 64 lower-case hex digits",
    ),
    "annotations an array": (
        "index.json",
        {"manifests": [{"annotations": [], "size": 0}]},
        r"annotations: got an array",
    ),
    "platform without os": (
        "index",
        {"manifests": [{"size": 0, "platform": {"architecture": "amd64"}}]},
        r"required field manifests\[0\].platform.os is missing",
    ),
    "manifests missing": ("index.json", b'{"schemaVersion": 2}', "required field manifests is missing"),
    "manifests a number": ("index", {"manifests": 3}, "field manifests: got an integer"),
    "rootfs missing": ("config", {"rootfs": None}, "config sha256:.*: required field rootfs is missing"),
    "rootfs without type": ("config", {"rootfs": {}}, "required field rootfs.type is missing"),
    "rootfs of another type": (
        "config",
        {"rootfs": {"type": "base"}},
        "field rootfs.type: got base, want layers",
    ),
    "diff_ids an object": (
        "config",
        {"rootfs": {"type": "layers", "diff_ids": {}}},
        "diff_ids: got an object",
    ),
    "diff_id malformed": (
        "config",
        {"rootfs": {"type": "layers", "diff_ids": ["x"]}},
        r"rootfs.diff_ids\[0\]: digest",
    ),
    "no architecture": ("config", {"architecture": None}, "required field architecture is missing"),
    "os a number": ("config", {"os": 0}, "field os: got an integer"),
    "os no text": ("config", {"os": "\ud800"}, "field os: got .*, want Unicode text"),
    "created a number": ("config", {"created": 1}, "field created: got an integer, want a string"),
    "layout version": (
        "oci-layout",
        {"imageLayoutVersion": "2.0.0"},
        "imageLayoutVersion: got 2.0.0, want 1.0.0",
    ),
    "layout version missing": ("oci-layout", b"{}", "required field imageLayoutVersion is missing"),
    "no image": ("index.json", {"manifests": None}, "no image: got an empty index"),
    "no image in index": ("index", {"manifests": []}, "no image"),
}


LONG = "x" * 100_000
LONG_TEXTS: dict[str, tuple[str, object]] = {
    # title: (document, the members to replace)
    "mediaType": ("manifest", {"mediaType": LONG}),
    "mediaType of the config": ("manifest", {"config": {"mediaType": LONG, "size": 1, "digest": DIGEST}}),
    "mediaType of a layer": ("manifest", {"layers": [{"mediaType": LONG, "size": 1, "digest": DIGEST}]}),
    "artifactType": (
        "index",
        {"manifests": [{"artifactType": LONG, "mediaType": MANIFEST, "size": 1, "digest": DIGEST}]},
    ),
    "digest": ("manifest", {"config": {"mediaType": CONFIG, "size": 1, "digest": LONG}}),
    "size": ("manifest", {"config": {"mediaType": CONFIG, "size": int("1" * 4200), "digest": DIGEST}}),
    "schemaVersion": ("index", {"schemaVersion": -int("1" * 4200)}),
    "rootfs": ("config", {"rootfs": {"type": LONG}}),
    "diff_id": ("config", {"rootfs": {"type": "layers", "diff_ids": [LONG]}}),
    "layout version": ("oci-layout", {"imageLayoutVersion": LONG}),
}


@pytest.mark.parametrize("title", LONG_TEXTS)
def test_message_is_not_as_long_as_the_document(layout: Layout, title: str) -> None:
    path = replace_document(layout, *LONG_TEXTS[title])
    with pytest.raises(ImageError, match=r"got .*[x1]\.\.\.") as caught:
        open_image(path)
    assert len(str(caught.value)) < 5000


def test_type_of_the_rootfs_is_shown_in_printable_form(layout: Layout) -> None:
    path = replace_document(layout, "config", {"rootfs": {"type": "\x1b[1m"}})
    with pytest.raises(ImageError, match=r"field rootfs.type: got \\x1b\[1m, want layers"):
        open_image(path)


def replace_document(layout: Layout, role: str, change: object) -> str:
    """Write an image in an index, one of whose documents is changed, with digests that fit."""

    def changed(name: str, document: object) -> object:
        if name != role:
            return document
        return {**document, **change} if isinstance(change, dict) and isinstance(document, dict) else change

    rootfs = {"type": "layers", "diff_ids": [digest_of(b"x")]}
    config = layout.blob(changed("config", {**platform_of(HOST), "rootfs": rootfs}), CONFIG)
    manifest = {"schemaVersion": 2, "config": config, "layers": [layout.blob(b"x", LAYER)]}
    manifests = [layout.blob(changed("manifest", manifest), MANIFEST)]
    index = layout.blob(changed("index", {"schemaVersion": 2, "manifests": manifests}), INDEX)
    layout.file("index.json", changed("index.json", {"schemaVersion": 2, "manifests": [index]}))
    layout.file("oci-layout", changed("oci-layout", {"imageLayoutVersion": "1.0.0"}))
    return layout.path


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("case", MALFORMED.values(), ids=MALFORMED)
def test_malformed_document_is_refused_with_its_name(
    layout: Layout, case: tuple[str, object, str], check: bool
) -> None:
    role, change, message = case
    path = replace_document(layout, role, change)
    with pytest.raises(ImageError, match=message) as caught:
        open_image(path, check=check)
    assert path in str(caught.value)


def test_unknown_and_doubled_members_are_fine(layout: Layout) -> None:
    assert layers_of(replace_document(layout, "manifest", {"x": [1.5, None], "annotations": {"": ""}})) == [
        b"x"
    ]
    assert layers_of(
        replace_document(layout, "oci-layout", b'{"imageLayoutVersion":"","imageLayoutVersion":"1.0.0"}')
    )


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just(DIGEST),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    role=st.sampled_from(["oci-layout", "index.json", "index", "manifest", "config"]),
    member=st.sampled_from(
        [
            "schemaVersion",
            "mediaType",
            "config",
            "layers",
            "manifests",
            "os",
            "architecture",
            "variant",
            "rootfs",
            "created",
            "imageLayoutVersion",
            "annotations",
            "platform",
        ]
    ),
    value=JSON_VALUES,
    inside=st.booleans(),
)
def test_no_document_makes_anything_but_an_image_error(
    layout: Layout, role: str, member: str, value: object, inside: bool
) -> None:
    change = {
        member: [{"mediaType": LAYER, "digest": DIGEST, "size": 0, "platform": value}] if inside else value
    }
    path = replace_document(layout, role, change)
    try:
        image = open_image(path)
    except ImageError as error:
        assert str(error).isprintable()  # noqa: PT017 - either outcome is fine
    else:
        assert len(image.layers) < 2
