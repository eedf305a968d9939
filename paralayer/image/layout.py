"""OCI image layouts: ``oci-layout``, ``index.json`` and ``blobs/<algorithm>/<hex>``.

Source: OCI image specification 1.1, image-layout.md, image-index.md, manifest.md; Docker's schema 2 and manifest
lists have the same fields. Every document is checked against its descriptor before it is parsed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paralayer.errors import DigestError, ImageError, MediaTypeError
from paralayer.image.descriptor import Descriptor, Digest, Platform, shown
from paralayer.image.image import Config, Image, Layer
from paralayer.image.media_type import (
    INDEX_TYPES,
    LAYER_TYPES,
    MANIFEST_TYPES,
    NON_DISTRIBUTABLE_TYPES,
    check_config_type,
    check_layer_type,
    not_a_manifest,
)
from paralayer.image.select import listed, match_name, match_platform
from paralayer.image.source import read_document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer.image.document import Value
    from paralayer.image.source import Blob, Source

MARKER = "oci-layout"
INDEX = "index.json"

_DEPTH_LIMIT = 8

_Identity = tuple[Digest, Platform | None]


@dataclass(frozen=True, slots=True)
class _Manifest:
    """A manifest and its config."""

    layers: tuple[Descriptor, ...]
    config: Config
    where: str

    @property
    def is_image(self) -> bool:
        """False for signatures and the like that borrow an image's config type."""
        return not self.layers or any(layer.media_type in LAYER_TYPES for layer in self.layers)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A manifest that could be meant."""

    descriptor: Descriptor
    platform: Platform


def open_layout(source: Source, tag: str | None, platform: Platform | None, *, check: bool) -> Image:
    """Describe the image that `tag` (a name, ``@digest`` or ``@index``) and `platform` choose in a layout."""
    layout = _Layout(source, check=check)
    marker = layout.read_plain(MARKER)
    if (version := marker["imageLayoutVersion"]).text() != "1.0.0":
        raise version.error(shown(version.text()), "1.0.0")
    roots = _read_index(layout.read_plain(INDEX), None)
    found = layout.find(roots, tag)
    candidate, warnings = layout.choose(found, platform)
    name = tag or next((name for root in found if (name := _display(root))), None)
    return layout.image(candidate, f"{source.where}:{shown(name)}" if name else source.where, warnings)


class _Layout:
    """The documents of one layout."""

    def __init__(self, source: Source, *, check: bool) -> None:
        self._source = source
        self._check = check
        self._refused: list[MediaTypeError] = []
        self._candidates: dict[_Identity, list[_Candidate]] = {}
        self._expanding: set[_Identity] = set()

    def find(self, roots: list[Descriptor], tag: str | None) -> list[Descriptor]:
        """Return the descriptors that `tag` names, all of `roots` without one."""
        where = self._source.where
        if tag is None:
            found = roots
        elif tag.startswith("@sha"):
            digest = Digest.parse(tag[1:], where)
            found = self._find_digest(roots, digest)
        elif tag.startswith("@"):
            found = [root for i, root in enumerate(roots) if tag == f"@{i}"]
        else:
            found = match_name(tag, [(root, _names(root)) for root in roots])
        if not found:
            have = listed(_selector(root) for root in roots) or "an empty index"
            raise ImageError(where, f"no image {shown(tag)}" if tag else "no image", have)
        return found

    def _find_digest(self, roots: list[Descriptor], digest: Digest) -> list[Descriptor]:
        """Return the descriptor of `digest` that is nearest to the top, or nothing.

        Nested indexes that are not part of the source are passed over.
        """
        level = roots
        seen: set[Digest] = set()
        while level:
            if found := [descriptor for descriptor in level if descriptor.digest == digest]:
                return found[:1]
            indexes = {d.digest: d for d in level if d.media_type in INDEX_TYPES and d.digest not in seen}
            seen |= indexes.keys()
            level = [
                nested
                for index in indexes.values()
                if self._source.has(_blob_name(index.digest))
                for nested in _read_index(self._read(index, "index"), index.media_type)
            ]
        return []

    def choose(
        self, roots: list[Descriptor], platform: Platform | None
    ) -> tuple[_Candidate, tuple[str, ...]]:
        """Return the one image among `roots` that fits the platform best, and warnings."""
        where = self._source.where
        offered = [(root, candidates) for root in roots if (candidates := self._expand(root, 0))]
        if not offered:
            if len(self._refused) == 1:
                raise self._refused[0]
            raise ImageError(where, "no image, only artifacts", listed(str(e.got) for e in self._refused))
        if len({_display(root) for root, _ in offered}) > 1:
            raise _several(where, [root for root, _ in offered])
        unique = dict.fromkeys(c for _, candidates in offered for c in candidates)
        best, warning = match_platform(where, [(c, c.platform) for c in unique], platform)
        # Of several that fit, the specification takes the first of an index. Across roots they are different images.
        chosen = set(best)
        holders = {root.digest: root for root, found in offered if not chosen.isdisjoint(found)}
        if len(best) > 1 and len(holders) > 1:
            raise _several(where, list(holders.values()))
        return best[0], (warning,) if warning else ()

    def _expand(self, descriptor: Descriptor, depth: int) -> list[_Candidate]:
        """Return the images below a descriptor in order, without attestations and artifacts.

        Each index is read once however often it is named, so that indexes of indexes cannot multiply.
        """
        identity = _identity(descriptor)
        if identity in self._expanding:
            raise ImageError(self._where("index", descriptor.digest), "index contains itself")
        if depth > _DEPTH_LIMIT:
            raise ImageError(
                self._source.where, "indexes are nested too deeply", want=f"at most {_DEPTH_LIMIT} levels"
            )
        if identity not in self._candidates:
            self._expanding.add(identity)
            self._candidates[identity] = self._candidates_of(descriptor, depth)
            self._expanding.remove(identity)
        return self._candidates[identity]

    def _candidates_of(self, descriptor: Descriptor, depth: int) -> list[_Candidate]:
        if descriptor.media_type not in INDEX_TYPES:
            candidate = self._candidate(descriptor)
            return [] if candidate is None else [candidate]
        inner = _read_index(self._read(descriptor, "index"), descriptor.media_type)
        unique = {_identity(nested): nested for nested in inner}
        return list(dict.fromkeys(c for nested in unique.values() for c in self._expand(nested, depth + 1)))

    def _candidate(self, descriptor: Descriptor) -> _Candidate | None:
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
        if descriptor.platform is not None:
            return _Candidate(descriptor, descriptor.platform)
        try:
            manifest = self._manifest(descriptor)
        except MediaTypeError as error:
            self._refused.append(error)
            return None
        if not manifest.is_image:
            layer_types = listed(layer.media_type for layer in manifest.layers)
            self._refused.append(MediaTypeError(where, "is an artifact, no image: its layers", layer_types))
            return None
        return _Candidate(descriptor, manifest.config.platform)

    def image(self, candidate: _Candidate, reference: str, warnings: tuple[str, ...]) -> Image:
        """Describe the image, whose layers have to be there."""
        manifest = self._manifest(candidate.descriptor)
        manifest.config.check_count(len(manifest.layers), manifest.where)
        return Image(
            reference=reference,
            platform=candidate.platform,
            layers=tuple(
                Layer(
                    index=index,
                    media_type=layer.media_type,
                    blob=self._layer_blob(layer, f"{manifest.where}: layer {index}"),
                    digest=layer.digest,
                    diff_id=diff_id,
                )
                for index, (layer, diff_id) in enumerate(
                    zip(manifest.layers, manifest.config.diff_ids, strict=True)
                )
            ),
            created=manifest.config.created,
            warnings=warnings,
        )

    def _manifest(self, descriptor: Descriptor) -> _Manifest:
        where = self._where("manifest", descriptor.digest)
        value = self._read(descriptor, "manifest")
        _check_envelope(value, frozenset({descriptor.media_type}), other="manifests")
        config = Descriptor.read(value["config"])
        check_config_type(config.media_type, where)
        layers = tuple(map(Descriptor.read, value.elements_of("layers")))
        return _Manifest(layers, Config.read(self._read(config, "config")), where)

    def _layer_blob(self, layer: Descriptor, where: str) -> Blob:
        check_layer_type(layer.media_type, where)
        if layer.media_type in NON_DISTRIBUTABLE_TYPES and not self._source.has(_blob_name(layer.digest)):
            raise ImageError(where, f"blob {layer.digest} is non-distributable and not part of this source")
        return self._blob(layer, where)

    def _blob(self, descriptor: Descriptor, where: str) -> Blob:
        blob = self._source.blob(_blob_name(descriptor.digest))
        if blob is None:
            raise ImageError(where, f"blob {descriptor.digest} is missing")
        if self._check and blob.size != descriptor.size:
            raise DigestError(where, f"size of blob {descriptor.digest}", blob.size, descriptor.size)
        return blob

    def _read(self, descriptor: Descriptor, role: str) -> Value:
        """Return the document that a descriptor names, after a check of size and digest."""
        where = self._where(role, descriptor.digest)
        digest = descriptor.digest if self._check else None
        return read_document(self._blob(descriptor, where), where, digest)

    def read_plain(self, name: str) -> Value:
        """Return a document that no descriptor names."""
        where = f"{self._source.where}: {name}"
        blob = self._source.blob(name)
        if blob is None:
            raise ImageError(where, "missing, so this is no OCI layout")
        return read_document(blob, where)

    def _where(self, role: str, digest: Digest) -> str:
        return f"{self._source.where}: {role} {digest}"


def _read_index(value: Value, media_type: str | None) -> list[Descriptor]:
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


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def _names(root: Descriptor) -> Sequence[str]:
    return [name for name in (root.ref_name, root.containerd_name) if name]


def _display(root: Descriptor) -> str | None:
    """Return the name that tells this image from others: containerd's is a whole reference, OCI's often a tag."""
    return root.containerd_name or root.ref_name


def _selector(root: Descriptor) -> str:
    """Return what selects this image when it stands behind the source's path."""
    return _display(root) or f"@{root.digest}"


def _several(where: str, roots: list[Descriptor]) -> ImageError:
    return ImageError(
        where, "several images", listed(map(_selector, roots)), "one of them named, as in PATH:NAME"
    )
