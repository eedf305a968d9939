"""Manifests, indexes and configs, wherever they are stored: which image is meant, and what it consists of.

Source: OCI image specification 1.1, image-index.md, manifest.md; Docker's schema 2 and manifest lists have the same
fields. Every document is checked against its descriptor before it is parsed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from paralayer.errors import ImageError, MediaTypeError
from paralayer.image.descriptor import Descriptor, Digest, Platform, shown
from paralayer.image.document import parse_document
from paralayer.image.image import Config, Image, Layer
from paralayer.image.media_type import (
    CONFIG_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    check_config_type,
    check_layer_type,
    is_layer_type,
    not_a_manifest,
)
from paralayer.image.select import listed, match_platform

if TYPE_CHECKING:
    from paralayer.image.document import Document, Value
    from paralayer.image.source import Blob
    from paralayer.registry.client import RemoteBlob

_DEPTH_LIMIT = 8

_Identity = tuple[Digest, Platform | None]


class Store(Protocol):
    """Where documents and layers are."""

    @property
    def where(self) -> str:
        """The store's name for messages."""

    def read(self, descriptor: Descriptor, where: str) -> Document:
        """Return the document that a descriptor names; its bytes are those of the digest."""

    def layer(self, descriptor: Descriptor, where: str) -> Blob | RemoteBlob:
        """Return the blob of a layer, whose media type was checked; it has to be there."""


@dataclass(frozen=True, slots=True)
class _Manifest:
    """A manifest whose config is not read."""

    layers: tuple[Descriptor, ...]
    config: Descriptor
    where: str
    document: Document


@dataclass(frozen=True, slots=True)
class Candidate:
    """A manifest that could be meant."""

    descriptor: Descriptor
    platform: Platform


_Offered = list[tuple[Descriptor, list[Candidate]]]


class Manifests:
    """The documents of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._refused: list[MediaTypeError] = []
        self._candidates: dict[_Identity, list[Candidate]] = {}
        self._expanding: set[_Identity] = set()
        self._artifacts: dict[Digest, bool] = {}
        self._last: tuple[Descriptor, _Manifest] | None = None  # so that the chosen one is read once

    def choose(self, roots: list[Descriptor], platform: Platform | None) -> tuple[Candidate, tuple[str, ...]]:
        """Return the one image among `roots` that fits the platform best, and warnings.

        A descriptor with a platform is believed to name an image, and its manifest is not read, unless it is
        chosen or that leaves a choice.
        """
        offered = [(root, candidates) for root in roots if (candidates := self._expand(root, 0))]
        if _have_several_names(offered):
            offered = self._without_artifacts(offered)
        best, warning = self._match(offered, platform)
        if any(self._is_artifact(c.descriptor) for c in best):
            offered = self._without_artifacts(offered)
            best, warning = self._match(offered, platform)
        # Of several that fit, the specification takes the first of an index. Across roots they are different images.
        chosen = set(best)
        holders = {root.digest: root for root, found in offered if not chosen.isdisjoint(found)}
        if len(best) > 1 and len(holders) > 1:
            raise _several(self._store.where, list(holders.values()))
        return best[0], (warning,) if warning else ()

    def holds(self, root: Descriptor, candidate: Candidate) -> bool:
        """Say whether an image is what a root names, or below it."""
        return candidate in self._expand(root, 0)

    def _match(self, offered: _Offered, platform: Platform | None) -> tuple[list[Candidate], str | None]:
        """Return the candidates that fit best, and a warning or None; refuse where no platform could choose."""
        where = self._store.where
        if not offered:
            if len(self._refused) == 1:
                raise self._refused[0]
            raise ImageError(where, "no image, only artifacts", listed(str(e.got) for e in self._refused))
        if _have_several_names(offered):
            raise _several(where, [root for root, _ in offered])
        unique = dict.fromkeys(c for _, candidates in offered for c in candidates)
        return match_platform(where, [(c, c.platform) for c in unique], platform)

    def _without_artifacts(self, offered: _Offered) -> _Offered:
        return [
            (root, images)
            for root, candidates in offered
            if (images := [c for c in candidates if not self._is_artifact(c.descriptor)])
        ]

    def _expand(self, descriptor: Descriptor, depth: int) -> list[Candidate]:
        """Return the images below a descriptor in order, without attestations and artifacts.

        Each index is read once however often it is named, so that indexes of indexes cannot multiply.
        """
        identity = _identity(descriptor)
        if identity in self._expanding:
            raise ImageError(self._where("index", descriptor.digest), "index contains itself")
        if depth > _DEPTH_LIMIT:
            raise ImageError(
                self._store.where, "indexes are nested too deeply", want=f"at most {_DEPTH_LIMIT} levels"
            )
        if identity not in self._candidates:
            self._expanding.add(identity)
            self._candidates[identity] = self._candidates_of(descriptor, depth)
            self._expanding.remove(identity)
        return self._candidates[identity]

    def _candidates_of(self, descriptor: Descriptor, depth: int) -> list[Candidate]:
        if descriptor.media_type not in INDEX_TYPES:
            candidate = self._candidate(descriptor)
            return [] if candidate is None else [candidate]
        inner = self.read_index(descriptor)
        unique = {_identity(nested): nested for nested in inner}
        return list(dict.fromkeys(c for nested in unique.values() for c in self._expand(nested, depth + 1)))

    def _candidate(self, descriptor: Descriptor) -> Candidate | None:
        """Return the image that a descriptor names; None for what is no image, which is noted.

        Where the descriptor tells the platform, nothing is read: layouts without the other platforms' blobs
        are common.
        """
        where = self._where("manifest", descriptor.digest)
        if descriptor.media_type not in MANIFEST_TYPES:
            self._refused.append(not_a_manifest(descriptor.media_type, where))
            return None
        if descriptor.attestation:
            self._refused.append(MediaTypeError(where, "is no image", "an attestation"))
            return None
        if descriptor.artifact_type is not None and descriptor.artifact_type not in CONFIG_TYPES:
            got = shown(descriptor.artifact_type)
            self._refused.append(MediaTypeError(where, "is an artifact, no image: its type", got))
            return None
        if descriptor.platform is not None:
            return Candidate(descriptor, descriptor.platform)
        if self._is_artifact(descriptor):
            return None
        _, config = self._config(self._manifest(descriptor))
        return Candidate(descriptor, config.platform)

    def _is_artifact(self, descriptor: Descriptor) -> bool:
        """Say whether a manifest turns out to name no image, which is noted.

        One that cannot be read counts as an image: if it is chosen, that is the error to tell.
        """
        found = self._artifacts.get(descriptor.digest)
        if found is None:
            try:
                _check_image(self._manifest(descriptor))
                found = False
            except MediaTypeError as error:
                self._refused.append(error)
                found = True
            except ImageError:
                found = False
            self._artifacts[descriptor.digest] = found
        return found

    def image(self, candidate: Candidate, reference: str, warnings: tuple[str, ...]) -> Image:
        """Describe the image, whose layers have to be there."""
        manifest = self._manifest(candidate.descriptor)
        document, config = self._config(manifest)
        config.check_count(len(manifest.layers), manifest.where)
        return Image(
            reference=reference,
            platform=candidate.platform,
            layers=tuple(
                Layer(
                    index=index,
                    media_type=layer.media_type,
                    blob=self._layer(layer, f"{manifest.where}: layer {index}"),
                    digest=layer.digest,
                    diff_id=diff_id,
                )
                for index, (layer, diff_id) in enumerate(zip(manifest.layers, config.diff_ids, strict=True))
            ),
            created=config.created,
            warnings=warnings,
            documents=(manifest.document, document),
        )

    def _manifest(self, descriptor: Descriptor) -> _Manifest:
        if self._last is None or self._last[0] != descriptor:
            self._last = descriptor, self._read_manifest(descriptor)
        return self._last[1]

    def _read_manifest(self, descriptor: Descriptor) -> _Manifest:
        where = self._where("manifest", descriptor.digest)
        document = self._read(descriptor, "manifest")
        value = parse_document(document.data, where)
        _check_envelope(value, frozenset({descriptor.media_type}), other="manifests")
        config = Descriptor.read(value["config"])
        check_config_type(config.media_type, where)
        layers = tuple(map(Descriptor.read, value.elements_of("layers")))
        return _Manifest(layers, config, where, document)

    def _config(self, manifest: _Manifest) -> tuple[Document, Config]:
        document = self._read(manifest.config, "config")
        where = self._where("config", manifest.config.digest)
        return document, Config.read(parse_document(document.data, where))

    def _layer(self, layer: Descriptor, where: str) -> Blob | RemoteBlob:
        check_layer_type(layer.media_type, where)
        return self._store.layer(layer, where)

    def read_index(self, descriptor: Descriptor) -> list[Descriptor]:
        """Return what an index lists."""
        data = self._read(descriptor, "index").data
        return read_index(
            parse_document(data, self._where("index", descriptor.digest)), descriptor.media_type
        )

    def _read(self, descriptor: Descriptor, role: str) -> Document:
        return self._store.read(descriptor, self._where(role, descriptor.digest))

    def _where(self, role: str, digest: Digest) -> str:
        return f"{self._store.where}: {role} {digest}"


def _check_image(manifest: _Manifest) -> None:
    """Refuse signatures and the like that borrow an image's config type."""
    if manifest.layers and not any(is_layer_type(layer.media_type) for layer in manifest.layers):
        got = listed(layer.media_type for layer in manifest.layers)
        raise MediaTypeError(manifest.where, "is an artifact, no image: its layers", got)


def read_index(value: Value, media_type: str | None) -> list[Descriptor]:
    """Return the descriptors of an index; `media_type` is what its own descriptor says, if it has one."""
    _check_envelope(value, frozenset({media_type}) if media_type else INDEX_TYPES, other="layers")
    return [Descriptor.read(element) for element in value.elements_of("manifests")]


def _check_envelope(value: Value, media_types: frozenset[str], other: str) -> None:
    """Check what index and manifest have in common; neither may have what is the other's, under `other`."""
    if (version := value["schemaVersion"]).integer() != 2:
        raise version.error(version.raw, 2)
    own = value.get("mediaType")
    if own is not None and own.text() not in media_types:
        raise own.error(shown(own.text()), " or ".join(sorted(media_types)))
    if value.has(other):
        raise ImageError(value.document, "an index and a manifest in one", f"field {other} as well")


def _identity(descriptor: Descriptor) -> _Identity:
    """Return what tells descriptors in indexes apart: one manifest may be listed for several platforms."""
    is_index = descriptor.media_type in INDEX_TYPES
    return descriptor.digest, None if is_index else descriptor.platform


def display_name(root: Descriptor) -> str | None:
    """Return the name that tells this image from others: containerd's is a whole reference, OCI's often a tag."""
    return root.containerd_name or root.ref_name


def selector(root: Descriptor) -> str:
    """Return what selects this image when it stands behind the source's path."""
    return display_name(root) or f"@{root.digest}"


def _have_several_names(offered: _Offered) -> bool:
    return len({display_name(root) for root, _ in offered}) > 1


def _several(where: str, roots: list[Descriptor]) -> ImageError:
    return ImageError(
        where, "several images", listed(map(selector, roots)), "one of them named, as in PATH:NAME"
    )
