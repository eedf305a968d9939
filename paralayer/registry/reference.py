"""Names of images in registries: ``docker://[HOST[:PORT]/]NAME[:TAG][@DIGEST]``.

Source: the reference grammar of the distribution project, which Docker, containerd and skopeo share. The first
component is a host if it has a dot, a colon or an upper-case letter, or is ``localhost``; otherwise the registry is
Docker Hub, whose images without a namespace are in ``library/``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from paralayer.errors import ImageError
from paralayer.image.descriptor import Digest, shown

TRANSPORT = "docker"
DOCKER_HUB = "docker.io"

_DOCKER_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
_LABEL = "(?:[a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9])"
_HOST = re.compile(
    rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::([0-9]{{1,5}}))?", re.ASCII | re.IGNORECASE
)
_REPOSITORY = re.compile("[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST_LIKE = re.compile("[a-z0-9]+:[0-9a-f]{32,}")
_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry. What `parse` returned is well-formed, so it can be part of a URL."""

    registry: str
    """``HOST[:PORT]`` in lower case; `DOCKER_HUB` under all its names."""
    repository: str
    tag: str | None
    """``latest`` where neither tag nor digest was given."""
    digest: Digest | None
    """Decides, where there is a tag as well."""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return the reference that `text` spells, with ``docker://`` before it."""
        prefix = f"{TRANSPORT}://"
        if not text.startswith(prefix):
            raise ImageError(shown(text), "reference to an image in a registry", want=f"{prefix}NAME")
        named, at, digest_text = text.removeprefix(prefix).partition("@")
        if at and not _DIGEST_LIKE.fullmatch(digest_text):
            # nothing is shown: it may be a password, before a host
            raise ImageError(
                prefix, "no digest behind the @", want="sha256:<hex>; users and passwords are for a login"
            )
        path, slash, last = named.rpartition("/")
        last, colon, tag = last.partition(":")
        registry, repository = _split(f"{path}{slash}{last}", shown(text))
        if registry == DOCKER_HUB and "/" not in repository:
            repository = f"library/{repository}"
        if not _REPOSITORY.fullmatch(repository):
            raise ImageError(
                shown(text),
                "name of the image",
                shown(repository),
                "lower-case letters, digits, and . _ - / inside",
            )
        if len(registry) + 1 + len(repository) > _LONGEST_NAME:
            raise ImageError(shown(text), "name of the image is too long", want=f"at most {_LONGEST_NAME}")
        if colon and not _TAG.fullmatch(tag):
            raise ImageError(shown(text), "tag", shown(tag), "at most 128 letters, digits, and _ . - inside")
        digest = Digest.parse(digest_text, shown(text)) if at else None
        return cls(registry, repository, tag or (None if digest else "latest"), digest)

    @property
    def name(self) -> str:
        """``HOST[:PORT]/NAME``, in full."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{TRANSPORT}://{self.name}{tag}{digest}"


def parse_host(text: str, where: str) -> str:
    """Return the ``HOST[:PORT]`` of a registry as references have it; `where` is for messages."""
    host = _HOST.fullmatch(text)
    if not host or int(host[1] or "1") not in range(1, 1 << 16):
        got = shown(text) if "@" not in text else "something with an @"  # what is before it may be a password
        raise ImageError(where, "host of the registry", got, "HOST or HOST:PORT")
    return DOCKER_HUB if text.lower() in _DOCKER_HUB_NAMES else text.lower()


def _split(name: str, where: str) -> tuple[str, str]:
    """Return the registry and the repository."""
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first):
        return parse_host(first, where), rest
    return DOCKER_HUB, name
