"""Images in a registry, as they are described."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from layouts import CONFIG, INDEX, LAYER, MANIFEST, Layout, digest_of, for_platform, platform_of
from paralayer import ImageError
from paralayer.errors import DigestError, MediaTypeError, RegistryError
from paralayer.image import Digest, Image, Platform, open_image
from paralayer.image.media_type import SCHEMA_1_TYPES
from paralayer.registry.access import Access
from paralayer.registry.client import RemoteBlob
from processes import wait_for
from registries import RegistryServer, TokenServer, forget_logins, push, serve_registry, upload
from registry_proxy import Exchange, Fault, Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.requires("docker-registry", "skopeo", "openssl")

HOST = str(Platform.host())
DOCKER = "application/vnd.docker."
DOCKER_TYPES = {
    MANIFEST: f"{DOCKER}distribution.manifest.v2+json",
    CONFIG: f"{DOCKER}container.image.v1+json",
    LAYER: f"{DOCKER}image.rootfs.diff.tar.gzip",
}


def docker_image(layout: Layout) -> dict[str, Any]:
    """Store an image with Docker's media types."""
    config = {
        **layout.config([b"d"], HOST, created="2020-01-01T00:00:00Z"),
        "mediaType": DOCKER_TYPES[CONFIG],
    }
    layers = [{**layout.blob(b"d", LAYER), "mediaType": DOCKER_TYPES[LAYER]}]
    media_type = DOCKER_TYPES[MANIFEST]
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers}
    return layout.blob(manifest, media_type)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Layout]:
    directory = tmp_path_factory.mktemp("layouts")
    found = {name: Layout(directory / name) for name in ("one", "several", "nested", "docker", "foreign")}
    one = found["one"]
    one.finish(one.image([b"old", b"new", b"old"], HOST))
    foreign = found["foreign"]
    foreign.finish(foreign.image([b"z"], "linux/s390x"))
    docker = found["docker"]
    docker.finish(docker_image(docker))
    for name in ("several", "nested"):
        layout = found[name]
        images = [
            for_platform(layout.image([p.encode()], p), p) for p in (HOST, "linux/arm/v6", "linux/arm/v7")
        ]
        attestation = for_platform(layout.image([b"a"], "unknown/unknown"), "unknown/unknown")
        index = layout.index(*images, attestation)
        layout.finish(index if name == "several" else layout.index(layout.index(*images[1:]), images[0]))
    return found


@pytest.fixture(scope="module")
def server(layouts: dict[str, Layout], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with serve_registry(tmp_path_factory.mktemp("registry")) as registry:
        for name, layout in layouts.items():
            (upload if name == "nested" else push)(layout.path, registry, f"some/{name}:tag")
        yield registry


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_logins(monkeypatch, tmp_path)


def is_manifest(exchange: Exchange) -> bool:
    return "/manifests/" in exchange.target


def described(image: Image) -> object:
    """Return what does not depend on the source."""
    layers = [
        (layer.index, layer.media_type, layer.blob.size, layer.digest, layer.diff_id)
        for layer in image.layers
    ]
    return image.platform, layers, image.created, image.warnings, image.documents


CASES: dict[str, tuple[str, str | None]] = {
    "one": ("one", None),
    "one for this platform": ("one", HOST),
    "several": ("several", None),
    "several, another one": ("several", "linux/arm/v7"),
    "several, one that fits": ("several", "linux/arm/v8"),
    "nested": ("nested", None),
    "nested, another one": ("nested", "linux/arm/v6"),
    "docker": ("docker", None),
    "foreign": ("foreign", None),
}


@pytest.mark.parametrize("title", CASES)
def test_image_is_described_as_its_layout_is(
    title: str, layouts: dict[str, Layout], server: RegistryServer
) -> None:
    name, text = CASES[title]
    platform = Platform.parse(text) if text else None
    local = open_image(layouts[name].path, platform=platform)
    remote = open_image(f"docker://{server.address}/some/{name}:tag", platform=platform)
    assert described(remote) == described(local)
    assert remote.reference == f"docker://{server.address}/some/{name}:tag"
    assert bool(remote.warnings) == (name == "foreign")
    manifest, config = remote.documents
    assert json.loads(manifest.data)["config"]["digest"] == str(config.digest) == digest_of(config.data)


def test_layers_can_be_had_after_the_image_was_described(server: RegistryServer) -> None:
    image = open_image(f"docker://{server.address}/some/one:tag")
    blobs = [layer.blob for layer in image.layers if isinstance(layer.blob, RemoteBlob)]
    assert blobs[0] == blobs[2]
    data = []
    with blobs[0].registry as registry:
        for blob in blobs:
            assert blob.registry is registry
            with registry.open_blob(blob.digest) as body:
                buffer = memoryview(bytearray(10))
                data.append(bytes(buffer[: body.readinto(buffer)]))
    assert data == [b"old", b"new", b"old"]
    assert "registry" not in repr(blobs)


@pytest.mark.parametrize("name", ["several", "docker"])
def test_digest_chooses_without_a_tag(name: str, layouts: dict[str, Layout], server: RegistryServer) -> None:
    want = open_image(layouts[name].path)
    with open(f"{layouts[name].path}/index.json", encoding="utf-8") as index:
        root = json.load(index)["manifests"][0]["digest"]
    for digest in (root, str(want.documents[0].digest)):
        for tag in ("", ":absent"):
            found = open_image(f"docker://{server.address}/some/{name}{tag}@{digest}")
            assert described(found) == described(want)


def test_image_has_no_connection(server: RegistryServer) -> None:
    with Proxy(server.address) as proxy:
        image = open_image(f"docker://{proxy.address}/some/one:tag")
        wait_for(lambda: not any(thread.name == "proxied" for thread in threading.enumerate()))
    assert len(image.layers) == 3


def test_each_document_is_asked_for_once(server: RegistryServer) -> None:
    with Proxy(server.address) as proxy:
        open_image(f"docker://{proxy.address}/some/nested:tag", platform=Platform.parse("linux/arm/v6"))
        asked = [exchange.target for exchange in proxy.exchanges]
        assert len(asked) == len(set(asked)) == 5
        assert [target.split("/")[4] for target in asked[1:]] == ["manifests"] * 3 + ["blobs"]


REFUSED: dict[str, tuple[str, str | None, type[ImageError], str]] = {
    "no such tag": ("some/one:absent", None, RegistryError, "manifest absent: got 404"),
    "no such name": ("none:tag", None, RegistryError, "manifest tag: got 404"),
    "no such digest": (
        f"some/one@sha256:{'0' * 64}",
        None,
        RegistryError,
        "got 404 Not Found: MANIFEST_UNKNOWN",
    ),
    "no such platform": (
        "some/several:tag",
        "linux/s390x",
        ImageError,
        "no image for platform linux/s390x: got images for",
    ),
    "other platform": ("some/one:tag", "linux/s390x", ImageError, "no image for platform linux/s390x"),
    "no reference": ("Some/one", None, ImageError, "host of the registry|name of the image"),
}


@pytest.mark.parametrize("title", REFUSED)
def test_image_that_is_not_there_is_refused(title: str, server: RegistryServer) -> None:
    name, platform, kind, message = REFUSED[title]
    with pytest.raises(kind, match=message):
        open_image(
            f"docker://{server.address}/{name}", platform=Platform.parse(platform) if platform else None
        )


def answered(document: object, media_type: str) -> Fault:
    return Fault(status=200, body=json.dumps(document).encode(), headers={"Content-Type": media_type})


IMAGE_CONFIG = {"mediaType": CONFIG, "digest": f"sha256:{'1' * 64}", "size": 2}
NO_IMAGES: dict[str, tuple[Fault, type[ImageError], str]] = {
    "schema 1": (
        answered({"schemaVersion": 1}, min(SCHEMA_1_TYPES)),
        MediaTypeError,
        "Docker schema 1 manifest",
    ),
    "signed schema 1": (
        answered({"schemaVersion": 1}, max(SCHEMA_1_TYPES)),
        MediaTypeError,
        "Docker schema 1 manifest",
    ),
    "unknown type": (
        answered({"mediaType": "a/b"}, "a/b"),
        MediaTypeError,
        "media type: got a/b, want an image manifest",
    ),
    "artifact": (
        answered(
            {"schemaVersion": 2, "config": {**IMAGE_CONFIG, "mediaType": "a/b"}, "layers": []}, MANIFEST
        ),
        MediaTypeError,
        "is an artifact, no image: media type of the config: got a/b",
    ),
    "own type is another": (
        answered({"schemaVersion": 2, "mediaType": DOCKER_TYPES[MANIFEST]}, MANIFEST),
        ImageError,
        "field mediaType: got application/vnd.docker.distribution.manifest",
    ),
    "no JSON": (Fault(status=200, body=b"{", headers={"Content-Type": MANIFEST}), ImageError, "not JSON"),
    "huge config": (
        answered({"schemaVersion": 2, "config": {**IMAGE_CONFIG, "size": 1 << 40}, "layers": []}, MANIFEST),
        ImageError,
        "document is too large: got 1099511627776 bytes",
    ),
    "config that is not there": (
        answered({"schemaVersion": 2, "config": IMAGE_CONFIG, "layers": []}, MANIFEST),
        RegistryError,
        "got 404 Not Found: BLOB_UNKNOWN",
    ),
}


@pytest.mark.parametrize("title", NO_IMAGES)
def test_what_is_no_image_is_refused(title: str, server: RegistryServer) -> None:
    fault, kind, message = NO_IMAGES[title]
    with Proxy(server.address) as proxy:
        proxy.fault(fault, when=is_manifest)
        with pytest.raises(kind, match=message) as caught:
            open_image(f"docker://{proxy.address}/some/one:tag")
        assert proxy.address in str(caught.value)
        assert "\n" not in str(caught.value)


def test_access_says_how_the_registry_is_reached(server: RegistryServer, tmp_path: Path) -> None:
    with TokenServer(tmp_path) as tokens:
        directory = tmp_path / "registry"
        with serve_registry(directory, storage=server.storage, tokens=tokens) as private:
            access = Access(mirrors=(server.address,))
            assert open_image(f"docker://{private.address}/some/one:tag", access=access).layers
            with pytest.raises(RegistryError, match="401"):
                open_image(f"docker://{private.address}/some/one:tag")


def test_platform_of_an_index_without_platforms_is_read_from_the_configs(
    server: RegistryServer, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "layout")
    images = [layout.image([b"x"], platform) for platform in (HOST, "linux/s390x")]
    layout.finish(layout.index(*images))
    with serve_registry(tmp_path / "registry") as registry:
        push(layout.path, registry, "x:t")
        image = open_image(f"docker://{registry.address}/x:t", platform=Platform.parse("linux/s390x"))
    assert str(image.documents[0].digest) == images[1]["digest"]
    assert platform_of("linux/s390x")["architecture"] == image.platform.architecture
    assert isinstance(image.layers[0].digest, Digest)


def test_document_of_another_size_than_told_is_refused(
    layouts: dict[str, Layout], server: RegistryServer
) -> None:
    manifest = open_image(layouts["one"].path).documents[0]
    entry = {"mediaType": MANIFEST, "digest": str(manifest.digest), "size": 5}
    with Proxy(server.address) as proxy:
        proxy.fault(answered({"schemaVersion": 2, "manifests": [entry]}, INDEX), when=is_manifest)
        with pytest.raises(DigestError, match=rf"size of the document: got {len(manifest.data)}, want 5"):
            open_image(f"docker://{proxy.address}/some/one:tag")
