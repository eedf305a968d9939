"""The media types of images, by OCI's and Docker's names, and the refusal of all others.

A layer's type is checked here and then means little: the decoder goes by the blob's first bytes.
"""

from __future__ import annotations

from paralayer.errors import MediaTypeError
from paralayer.image.descriptor import shown

INDEX_TYPES = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
MANIFEST_TYPES = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
SCHEMA_1_TYPES = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
CONFIG_TYPES = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
NON_DISTRIBUTABLE_TYPES = frozenset(
    f"{name}{mark}{compression}"
    for name, mark in (
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", "+"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar", "."),
    )
    for compression in ("gzip", "zstd")
) | {
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
}
LAYER_TYPES = NON_DISTRIBUTABLE_TYPES | {
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    DOCKER_LAYER,
    f"{DOCKER_LAYER}.gzip",
    f"{DOCKER_LAYER}.zstd",
}
_ENCRYPTED = "+encrypted"

_OCI_TYPES = {
    "application/vnd.docker.distribution.manifest.v2+json": "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.container.image.v1+json": "application/vnd.oci.image.config.v1+json",
} | {
    f"{docker}{'.' * bool(compression)}{compression}": f"{oci}{'+' * bool(compression)}{compression}"
    for docker, oci in (
        (DOCKER_LAYER, "application/vnd.oci.image.layer.v1.tar"),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
        ),
    )
    for compression in ("", "gzip", "zstd")
}


def as_oci(media_type: str) -> str:
    """Return OCI's name of what Docker has its own for, any other type as it is."""
    return _OCI_TYPES.get(media_type, media_type)


def is_layer_type(media_type: str) -> bool:
    """Say whether this is a layer of an image, be it one that cannot be read."""
    return media_type in LAYER_TYPES or media_type.endswith(_ENCRYPTED)


def check_layer_type(media_type: str, where: str) -> None:
    """Refuse whatever is no layer that can be read."""
    if media_type in LAYER_TYPES:
        return
    if media_type.endswith(_ENCRYPTED):
        raise MediaTypeError(where, "encrypted layer", shown(media_type), "a layer that can be read")
    raise MediaTypeError(where, "media type of the layer is unknown", shown(media_type))


def check_config_type(media_type: str, where: str) -> None:
    """Refuse artifacts: manifests whose config is not an image's."""
    if media_type not in CONFIG_TYPES:
        raise MediaTypeError(
            where, "is an artifact, no image: media type of the config", shown(media_type), "an image config"
        )


def not_a_manifest(media_type: str, where: str) -> MediaTypeError:
    """Return the error for a descriptor in an index that names neither a manifest nor an index."""
    if media_type in SCHEMA_1_TYPES:
        return MediaTypeError(where, "Docker schema 1 manifest", shown(media_type), "schema 2 or OCI")
    return MediaTypeError(where, "media type", shown(media_type), "an image manifest or index")
