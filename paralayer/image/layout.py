"""OCI image layouts: ``oci-layout``, ``index.json`` and ``blobs/<algorithm>/<hex>``.

Source: OCI image specification 1.1, image-layout.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paralayer.errors import DigestError, ImageError
from paralayer.image.descriptor import Digest, shown
from paralayer.image.document import Document
from paralayer.image.manifests import Manifests, display_name, read_index, selector
from paralayer.image.media_type import INDEX_TYPES, NON_DISTRIBUTABLE_TYPES
from paralayer.image.select import listed, match_name
from paralayer.image.source import read_document, read_stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer.image.descriptor import Descriptor, Platform
    from paralayer.image.document import Value
    from paralayer.image.image import Image
    from paralayer.image.source import Blob, Source

MARKER = "oci-layout"
INDEX = "index.json"


def open_layout(source: Source, tag: str | None, platform: Platform | None, *, check: bool) -> Image:
    """Describe the image that `tag` (a name, ``@digest`` or ``@index``) and `platform` choose in a layout."""
    marker = _read_plain(source, MARKER)
    if (version := marker["imageLayoutVersion"]).text() != "1.0.0":
        raise version.error(shown(version.text()), "1.0.0")
    roots = read_index(_read_plain(source, INDEX), None)
    manifests = Manifests(_Blobs(source, check=check))
    found = _find(source, manifests, roots, tag)
    candidate, warnings = manifests.choose(found, platform)
    roots_of_it = (root for root in found if manifests.holds(root, candidate))
    name = tag or next((name for root in roots_of_it if (name := display_name(root))), None)
    return manifests.image(candidate, f"{source.where}:{shown(name)}" if name else source.where, warnings)


@dataclass(frozen=True, slots=True)
class _Blobs:
    """The blobs of one layout."""

    source: Source
    check: bool

    @property
    def where(self) -> str:
        return self.source.where

    def read(self, descriptor: Descriptor, where: str) -> Document:
        blob = self._blob(descriptor, where)
        data = read_stored(blob, where, descriptor.digest if self.check else None)
        return Document(descriptor.media_type, descriptor.digest, data)

    def layer(self, descriptor: Descriptor, where: str) -> Blob:
        missing = not self.source.has(_blob_name(descriptor.digest))
        if missing and descriptor.media_type in NON_DISTRIBUTABLE_TYPES:
            raise ImageError(
                where, f"blob {descriptor.digest} is non-distributable and not part of this source"
            )
        return self._blob(descriptor, where)

    def _blob(self, descriptor: Descriptor, where: str) -> Blob:
        blob = self.source.blob(_blob_name(descriptor.digest))
        if blob is None:
            raise ImageError(where, f"blob {descriptor.digest} is missing")
        if self.check and blob.size != descriptor.size:
            raise DigestError(where, f"size of blob {descriptor.digest}", blob.size, descriptor.size)
        return blob


def _find(source: Source, manifests: Manifests, roots: list[Descriptor], tag: str | None) -> list[Descriptor]:
    """Return the descriptors that `tag` names, all of `roots` without one."""
    if tag is None:
        found = roots
    elif tag.startswith("@sha"):
        found = _find_digest(source, manifests, roots, Digest.parse(tag[1:], source.where))
    elif tag.startswith("@"):
        found = [root for i, root in enumerate(roots) if tag == f"@{i}"]
    else:
        found = match_name(tag, [(root, _names(root)) for root in roots])
    if not found:
        have = listed(selector(root) for root in roots) or "an empty index"
        raise ImageError(source.where, f"no image {shown(tag)}" if tag else "no image", have)
    return found


def _find_digest(
    source: Source, manifests: Manifests, roots: list[Descriptor], digest: Digest
) -> list[Descriptor]:
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
            if source.has(_blob_name(index.digest))
            for nested in manifests.read_index(index)
        ]
    return []


def _read_plain(source: Source, name: str) -> Value:
    """Return a document that no descriptor names."""
    where = f"{source.where}: {name}"
    blob = source.blob(name)
    if blob is None:
        raise ImageError(where, "missing, so this is no OCI layout")
    return read_document(blob, where)


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def _names(root: Descriptor) -> Sequence[str]:
    return [name for name in (root.ref_name, root.containerd_name) if name]
