"""How registries are reached: what users choose, and the two ways in which it fails."""

from __future__ import annotations

from dataclasses import dataclass

from paralayer.errors import ImageError, UsageError
from paralayer.registry.reference import parse_host

MIRRORS_VARIABLE = "PARALAYER_REGISTRY_MIRROR"


@dataclass(frozen=True, slots=True)
class Access:
    """How registries are reached."""

    connections: int = 4
    """Requests at the same time."""
    mirrors: tuple[str, ...] | None = None
    """Registries that are asked before the one that an image's reference names, in this order.

    ``[REGISTRY=]HOST[:PORT][/PREFIX]``, with ``https://`` or ``http://`` before the host where that matters. With
    REGISTRY, for images of that one only: otherwise the mirror must not have other images under the same names.
    PREFIX is put before the names of images. None stands for `MIRRORS_VARIABLE`, where several are separated by spaces
    or commas.
    """
    insecure_http: frozenset[str] = frozenset()
    """``HOST[:PORT]`` that are spoken to by plain HTTP, without an attempt at HTTPS; `UsageError` for what is none."""
    ca_file: str | None = None
    """Certificates in PEM form that are trusted beside the system's (``$SSL_CERT_FILE``, ``$SSL_CERT_DIR``)."""
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 30.0
    """Between two arrivals of bytes."""
    head_timeout_seconds: float = 60.0
    """From a request to the end of its answer's head, in however many bytes that comes."""
    retries: int = 5
    """In a row, without a byte that arrived between them."""

    def __post_init__(self) -> None:
        for host in self.insecure_http:
            try:
                parse_host(host, "insecure_http")
            except ImageError as error:
                raise UsageError(error.where, error.what, error.got or "nothing", error.want) from None


class BrokenConnection(Exception):  # noqa: N818 - what it is, is told by the text
    """A request or a body failed in a way that may be gone the next time."""

    def __init__(self, what: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(what, retry_after_seconds)
        self.what = what
        self.retry_after_seconds = retry_after_seconds
        """The pause that the server asked for."""

    def __str__(self) -> str:
        return self.what


class Unreachable(BrokenConnection):
    """No connection came about, or none of use: nothing came over it in time, or something else."""


class NoTls(Unreachable):
    """The other side does not speak TLS, or not as it must."""


class NoHttp(Unreachable):
    """The other side does not speak HTTP."""
