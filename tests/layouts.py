"""Image sources written document by document, right or wrong, and as a directory or a tar."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from typing import TYPE_CHECKING, Any, Literal

from paralayer.image import Blob

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from paralayer.image import Layer

OCI = "application/vnd.oci.image."
MANIFEST, INDEX, CONFIG = f"{OCI}manifest.v1+json", f"{OCI}index.v1+json", f"{OCI}config.v1+json"
LAYER = f"{OCI}layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"

Json = dict[str, Any]
TarFormat = Literal[0, 1, 2]


def blob_of(layer: Layer) -> Blob:
    """Return where the blob of a local image's layer is."""
    assert isinstance(layer.blob, Blob)
    return layer.blob


def encode(document: object) -> bytes:
    return document if isinstance(document, bytes) else json.dumps(document).encode()


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def platform_of(text: str) -> Json:
    return dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))


def named(descriptor: Mapping[str, Any], name: str, key: str = REF_NAME) -> Json:
    return {**descriptor, "annotations": {**descriptor.get("annotations", {}), key: name}}


def for_platform(descriptor: Mapping[str, Any], platform: str) -> Json:
    return {**descriptor, "platform": platform_of(platform)}


class Layout:
    """An OCI layout in the making: every method stores blobs and returns the descriptor of the last."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.makedirs(self.path, exist_ok=True)

    def file(self, name: str, content: object) -> str:
        path = os.path.join(self.path, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(encode(content))
        return path

    def blob_path(self, descriptor: Mapping[str, Any]) -> str:
        return os.path.join(self.path, "blobs", *descriptor["digest"].split(":"))

    def blob(self, content: object, media_type: str, algorithm: str = "sha256") -> Json:
        data = encode(content)
        digest = digest_of(data, algorithm)
        self.file("blobs/" + digest.replace(":", "/"), data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def config(self, layers: Sequence[bytes], platform: str, /, **fields: object) -> Json:
        rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
        return self.blob({**platform_of(platform), "rootfs": rootfs, **fields}, CONFIG)

    def image(
        self, layers: Sequence[bytes] = (b"layer",), platform: str = "linux/amd64", /, **fields: object
    ) -> Json:
        """Store an image; `fields` replace those of its manifest."""
        manifest = {
            "schemaVersion": 2,
            "config": self.config(layers, platform),
            "layers": [self.blob(layer, LAYER) for layer in layers],
            **fields,
        }
        return self.blob(manifest, MANIFEST)

    def index(self, *descriptors: Mapping[str, Any]) -> Json:
        return self.blob({"schemaVersion": 2, "manifests": descriptors}, INDEX)

    def finish(self, *descriptors: Mapping[str, Any]) -> str:
        """Write the two documents that make a layout, and return its path."""
        self.file("oci-layout", {"imageLayoutVersion": "1.0.0"})
        self.file("index.json", {"schemaVersion": 2, "manifests": descriptors})
        return self.path


def archive_of(directory: str, prefix: str = "", fmt: TarFormat = tarfile.PAX_FORMAT) -> str:
    """Write the directory as a tar beside it, names starting with `prefix`, and return the tar's path."""
    path = f"{directory}.tar"
    with tarfile.open(path, "w", format=fmt) as tar:
        for name in sorted(os.listdir(directory)):
            tar.add(os.path.join(directory, name), prefix + name)
    return path
