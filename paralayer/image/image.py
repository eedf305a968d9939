"""An image as the engine sees it: a platform and a stack of layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from paralayer.errors import ImageError
from paralayer.image.descriptor import Digest, Platform, shown

if TYPE_CHECKING:
    from paralayer.growing import Growing
    from paralayer.image.document import Document, Value
    from paralayer.image.source import Blob
    from paralayer.registry.client import RemoteBlob


@dataclass(frozen=True, slots=True)
class Layer:
    """One changeset; nothing of its blob has been read but the size."""

    index: int
    """0 is the oldest layer."""
    media_type: str
    """One of `media_type.LAYER_TYPES`; the blob's first bytes may tell otherwise, and they are right."""
    blob: Blob | Growing | RemoteBlob
    digest: Digest | None
    """Of the blob as stored; None where the source names none: then `diff_id` is what can be checked."""
    diff_id: Digest | None
    """Of the uncompressed tar."""


@dataclass(frozen=True, slots=True)
class Image:
    """What `open_image` found."""

    reference: str
    """What was opened, with the tag, in printable form."""
    platform: Platform
    layers: tuple[Layer, ...]
    """Oldest first; the same blob may occur several times."""
    created: str | None
    """The config's text, unparsed."""
    warnings: tuple[str, ...]
    documents: tuple[Document, ...] = field(default=(), repr=False)
    """Manifest and config as they are stored; nothing where the source has no manifest of this kind."""


@dataclass(frozen=True, slots=True)
class Config:
    """What a conversion needs of an image's config."""

    platform: Platform
    created: str | None
    diff_ids: tuple[Digest, ...]

    @classmethod
    def read(cls, value: Value) -> Config:
        """Return the config in a document; an image without layers may leave out `diff_ids`, as Docker does."""
        rootfs = value["rootfs"]
        if (kind := rootfs["type"]).text() != "layers":
            raise kind.error(shown(kind.text()), "layers")
        created = value.get("created")
        return cls(
            platform=Platform.read(value),
            created=None if created is None else created.text(),
            diff_ids=tuple(
                Digest.parse(d.text(), d.where) for d in rootfs.elements_of("diff_ids", required=False)
            ),
        )

    def check_count(self, layers: int, where: str) -> None:
        """Refuse a config that is not one of `layers` layers."""
        if len(self.diff_ids) != layers:
            raise ImageError(
                where, "number of diff_ids in the config", len(self.diff_ids), f"{layers}, as layers"
            )
