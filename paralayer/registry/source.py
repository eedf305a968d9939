"""Images in registries, described by their manifests and configs; no layer is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paralayer.errors import DigestError
from paralayer.image.descriptor import Descriptor
from paralayer.image.document import Document
from paralayer.image.manifests import Manifests
from paralayer.image.media_type import INDEX_TYPES, MANIFEST_TYPES
from paralayer.registry.access import Access
from paralayer.registry.client import Registry, RemoteBlob
from paralayer.registry.reference import Reference

if TYPE_CHECKING:
    from paralayer.image.descriptor import Digest, Platform
    from paralayer.image.image import Image


def open_remote(reference: Reference | str, platform: Platform | None, access: Access | None = None) -> Image:
    """Describe the image of a reference, for `platform` if its index has several; see `open_image`.

    The layers' `Registry` is open, and has no connection: whoever gets blobs from it closes it.
    """
    if isinstance(reference, str):
        reference = Reference.parse(reference)
    registry = Registry(reference, access or Access())
    try:
        return _describe(registry, reference, platform)
    except BaseException:
        registry.close()
        raise
    finally:
        registry.disconnect()


def _describe(registry: Registry, reference: Reference, platform: Platform | None) -> Image:
    root = registry.manifest(reference.digest or reference.tag or "latest")
    store = _Repository(registry, str(reference), root)
    manifests = Manifests(store)
    candidate, warnings = manifests.choose([store.root], platform)
    return manifests.image(candidate, str(reference), warnings)


class _Repository:
    """What a registry has under one name. Each document is asked for once."""

    def __init__(self, registry: Registry, where: str, root: Document) -> None:
        self.where = where
        self.root = Descriptor(
            root.media_type, root.digest, len(root.data), None, None, None, attestation=False
        )
        self._registry = registry
        self._documents: dict[Digest, Document] = {root.digest: root}

    def read(self, descriptor: Descriptor, where: str) -> Document:
        found = self._documents.get(descriptor.digest)
        if found is None:
            found = Document(descriptor.media_type, descriptor.digest, self._fetch(descriptor))
            self._documents[descriptor.digest] = found
        if len(found.data) != descriptor.size:
            raise DigestError(where, "size of the document", len(found.data), descriptor.size)
        return found

    def layer(self, descriptor: Descriptor, where: str) -> RemoteBlob:  # noqa: ARG002 - whoever gets it finds out
        return RemoteBlob(self._registry, descriptor.digest, descriptor.size)

    def _fetch(self, descriptor: Descriptor) -> bytes:
        if descriptor.media_type in MANIFEST_TYPES | INDEX_TYPES:
            return self._registry.manifest(descriptor.digest).data
        return self._registry.document(descriptor)
