"""What ``docker save`` and its relatives write: a `manifest.json` that names configs and layers as files.

Source: Docker image specification 1.2, "Combined Image JSON + Filesystem Changeset Format"; containers-image
docker/archive. Three shapes have the same manifest.json: ``<id>/layer.tar``, with links where a layer repeats
(Docker before 25); ``<hex>.tar`` (skopeo, podman); ``blobs/sha256/<hex>`` (Docker since 25). Only the last names
the digests of its layers; in the others the diff_ids are what can be checked. Layers may be compressed.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paralayer.errors import ImageError
from paralayer.image.descriptor import Digest, shown
from paralayer.image.image import Config, Image, Layer
from paralayer.image.media_type import DOCKER_LAYER
from paralayer.image.select import listed, match_name, match_platform
from paralayer.image.source import read_document

if TYPE_CHECKING:
    from paralayer.image.descriptor import Platform
    from paralayer.image.document import Value
    from paralayer.image.source import Blob, Source

MANIFEST = "manifest.json"

_BLOB_PATH = re.compile("blobs/sha256/([0-9a-f]{64})")
_CONFIG_PATH = re.compile(r"(?:blobs/sha256/|sha256:)?([0-9a-f]{64})(?:\.json)?")


@dataclass(frozen=True, slots=True)
class _Item:
    """One image of manifest.json; `config` and `layers` are names in the source."""

    index: int
    tags: tuple[str, ...]
    config: str
    layers: tuple[str, ...]

    @property
    def selectors(self) -> tuple[str, ...]:
        """What selects this image when it stands behind the source's path."""
        return self.tags or (f"@{self.index}",)


def open_docker_archive(source: Source, tag: str | None, platform: Platform | None, *, check: bool) -> Image:
    """Describe the image that `tag` (a reference or ``@index``) names in what ``docker save`` wrote."""
    document = f"{source.where}: {MANIFEST}"
    blob = source.blob(MANIFEST)
    if blob is None:
        raise ImageError(document, "missing, so this is not what docker save writes")
    elements = read_document(blob, document).elements()
    item = _choose([_read_item(i, element) for i, element in enumerate(elements)], tag, source.where)
    config = _read_config(source, item, check=check)
    config.check_count(len(item.layers), document)
    _, warning = match_platform(source.where, [(item, config.platform)], platform)
    name = tag or (item.tags[0] if item.tags else None)
    return Image(
        reference=f"{source.where}:{shown(name)}" if name else source.where,
        platform=config.platform,
        layers=tuple(
            Layer(index, DOCKER_LAYER, _find(source, layer), _digest_in(layer), diff_id)
            for index, (layer, diff_id) in enumerate(zip(item.layers, config.diff_ids, strict=True))
        ),
        created=config.created,
        warnings=(warning,) if warning else (),
    )


def _read_item(index: int, value: Value) -> _Item:
    return _Item(
        index=index,
        tags=tuple(tag.text() for tag in value.elements_of("RepoTags", required=False)),
        config=_inner_name(value["Config"]),
        layers=tuple(map(_inner_name, value.elements_of("Layers"))),
    )


def _inner_name(value: Value) -> str:
    """Return the normalised name of a file in the source."""
    text = value.text()
    name = posixpath.normpath(text)
    if not text or name == ".." or name.startswith(("/", "../")):
        raise value.error(shown(text), "a name within the archive")
    return name


def _choose(items: list[_Item], tag: str | None, where: str) -> _Item:
    """Return the one image that `tag` names, or the only one there is."""
    if tag is None:
        found = items
    elif tag.startswith("@"):
        found = [item for item in items if tag == f"@{item.index}"]
    else:
        found = match_name(tag, [(item, item.tags) for item in items])
    if not found:
        have = listed(name for item in items for name in item.selectors) or "an empty list"
        raise ImageError(where, f"no image {shown(tag)}" if tag else "no image", have)
    if len(found) > 1:
        tags = [name for item in found for name in item.selectors]
        if len(set(tags)) < len(tags):
            tags = [f"@{item.index}" for item in found]
        raise ImageError(where, "several images", listed(tags), "one of them named, as in PATH:NAME")
    return found[0]


def _read_config(source: Source, item: _Item, *, check: bool) -> Config:
    """Return the image's config; its digest is the image's id, after which its file is named."""
    digest = _CONFIG_PATH.fullmatch(item.config) if check else None
    where = f"{source.where}: config {shown(item.config)}"
    return Config.read(
        read_document(_find(source, item.config), where, Digest("sha256", digest[1]) if digest else None)
    )


def _find(source: Source, name: str) -> Blob:
    blob = source.blob(name)
    if blob is None:
        raise ImageError(source.where, f"{shown(name)} is missing")
    return blob


def _digest_in(name: str) -> Digest | None:
    """Return the digest of a blob that is named by it."""
    match = _BLOB_PATH.fullmatch(name)
    return Digest("sha256", match[1]) if match else None
