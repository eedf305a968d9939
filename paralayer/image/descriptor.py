"""What names stored bytes: digests, platforms and descriptors, as the OCI image specification writes them."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from paralayer.errors import ImageError, quote

if TYPE_CHECKING:
    from hashlib import _Hash

    from paralayer.image.document import Value

_HEX_DIGITS = {"sha256": 64, "sha512": 128}
_LOWER_HEX = re.compile("[0-9a-f]+")
_PLATFORM_PART = re.compile("[A-Za-z0-9_.-]+")
_SIZE_LIMIT = 1 << 63

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
REFERENCE_TYPE = "vnd.docker.reference.type"

# uname's machine, as Go (and so the specification) spells it
_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv8l": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "i386": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}


@dataclass(frozen=True, slots=True)
class Digest:
    """The hash of some bytes. What `parse` returned is well-formed, so it can be part of a path."""

    algorithm: Literal["sha256", "sha512"]
    encoded: str

    @classmethod
    def parse(cls, text: object, where: str) -> Digest:
        """Return the digest that `text` spells: a known algorithm and lower-case hex of its exact length."""
        if not isinstance(text, str):
            raise ImageError(where, "digest", type(text).__name__, "a string")
        algorithm, _, encoded = text.partition(":")
        if algorithm not in ("sha256", "sha512"):
            raise ImageError(where, "digest", shown(text), "sha256:<hex> or sha512:<hex>")
        digits = _HEX_DIGITS[algorithm]
        if len(encoded) != digits or not _LOWER_HEX.fullmatch(encoded):
            raise ImageError(where, "digest", shown(text), f"{digits} lower-case hex digits")
        return cls("sha256" if algorithm == "sha256" else "sha512", encoded)

    def hasher(self) -> _Hash:
        """Return a new `hashlib` object of the digest's algorithm."""
        return hashlib.sha256() if self.algorithm == "sha256" else hashlib.sha512()

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image is for, spelled as it was found; `rank` in `select` knows the aliases."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Return the platform that ``os/arch[/variant]`` names."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(_PLATFORM_PART.fullmatch(part) for part in parts):
            raise ImageError("platform", "name", shown(text), "os/arch or os/arch/variant")
        return cls(*parts)

    @classmethod
    def host(cls) -> Platform:
        """Return this machine's platform."""
        machine = os.uname().machine
        return cls("linux", *_MACHINES.get(machine, (machine, "")))

    @classmethod
    def read(cls, value: Value) -> Platform:
        """Return the platform of a descriptor or of an image's config: both have the same three fields."""
        variant = value.get("variant")
        return cls(value["os"].text(), value["architecture"].text(), variant.text() if variant else "")

    def __str__(self) -> str:
        parts = [self.os or "unknown", self.architecture or "unknown"]
        if self.variant:
            parts.append(self.variant)
        return shown("/".join(parts))


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Names stored bytes. An embedded `data` field is ignored: the blob itself must be there."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None
    ref_name: str | None
    containerd_name: str | None
    attestation: bool
    artifact_type: str | None = None
    """Media type of the config of what is stored as a manifest; an image's own type is as good as none."""

    @classmethod
    def read(cls, value: Value) -> Descriptor:
        """Return the descriptor at `value`, with media type, digest and size, which are required."""
        size = value["size"].integer()
        if not 0 <= size < _SIZE_LIMIT:
            raise value["size"].error(size, "a size of at most 63 bits")
        platform = value.get("platform")
        annotations = value.get("annotations")
        artifact_type = value.get("artifactType")
        marks = {
            key: note.text()
            for key in (REF_NAME, CONTAINERD_NAME, REFERENCE_TYPE)
            if annotations is not None and (note := annotations.get(key)) is not None
        }
        found = None if platform is None else Platform.read(platform)
        return cls(
            media_type=value["mediaType"].text(),
            digest=Digest.parse(value["digest"].text(), value["digest"].where),
            size=size,
            platform=found,
            ref_name=marks.get(REF_NAME) or None,
            containerd_name=marks.get(CONTAINERD_NAME) or None,
            attestation=marks.get(REFERENCE_TYPE) == "attestation-manifest"
            or (found is not None and found.os == found.architecture == "unknown"),
            artifact_type=None if artifact_type is None else artifact_type.text() or None,
        )


def shown(text: str) -> str:
    """Return a name, path or other text in printable form, whatever it holds, a long one cut."""
    try:
        return quote(os.fsencode(text))
    except UnicodeEncodeError:  # a surrogate that stands for no byte, as JSON can spell it
        return quote(text.encode("utf-8", "surrogatepass"))
