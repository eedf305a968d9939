"""A repository in a registry, by the OCI distribution protocol.

Source: OCI distribution specification 1.1, sections "Pulling manifests" and "Pulling blobs"; ranges as in RFC 9110,
section 14.

Mirrors are asked first, each once: what one does not have, or answers wrongly, or when it is down, is asked of the next
one, and at last of the registry itself, with retries. Each of them gets the credentials that are stored for its own
host, never those of the registry. A blob that a mirror has in another size than its descriptor's is a wrong answer; one
of the right size with other bytes is not known as such before all of it has come, and the conversion fails.
"""

from __future__ import annotations

import os
import random
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeVar

from paralayer.errors import DigestError, ImageError, RegistryError
from paralayer.image.descriptor import Digest, shown
from paralayer.image.document import DOCUMENT_LIMIT, Document, parse_document
from paralayer.image.media_type import INDEX_TYPES, MANIFEST_TYPES, SCHEMA_1_TYPES
from paralayer.registry import credentials
from paralayer.registry.access import (
    MIRRORS_VARIABLE,
    Access,
    BrokenConnection,
    NoHttp,
    Unreachable,
)
from paralayer.registry.auth import Authorizer
from paralayer.registry.origin import Url, is_loopback
from paralayer.registry.reference import DOCKER_HUB, Reference, parse_host
from paralayer.registry.retry import PATIENCE_SECONDS, RETRIED_STATUS, Backoff, asked_seconds
from paralayer.registry.transport import Transport, closed_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from paralayer.image.descriptor import Descriptor
    from paralayer.registry.transport import Answer

__all__ = ["Access", "BlobResponse", "BrokenConnection", "Registry", "RemoteBlob", "check_login"]

T = TypeVar("T")

_ACCEPTED = ", ".join(sorted(MANIFEST_TYPES) + sorted(INDEX_TYPES))
_DOCKER_HUB_API = "registry-1.docker.io"
_FAULTS = 3  # of a mirror, until it is asked no more
_ATTEMPTS = 3  # without a token; with one that has run out; with a new one
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")
_MIRROR = re.compile(r"(?:([^=/]+)=)?(?:(https?)://)?([^/]+)((?:/[a-z0-9._-]+)*)/?")


@dataclass(frozen=True, slots=True)
class RemoteBlob:
    """Stored bytes in a registry."""

    registry: Registry = field(compare=False, repr=False)
    digest: Digest
    size: int


class Registry:
    """One repository, at its registry and its mirrors; used by several threads; a context manager.

    Every method raises `RegistryError` for what is final, and tries again what is not, as often as `access` says.
    """

    def __init__(self, reference: Reference, access: Access) -> None:
        self.reference = reference
        self.access = access
        self._transport = Transport(access)
        self._backoff = Backoff(access.retries)
        self._chance = random.Random()  # noqa: S311 - no secret
        try:
            mirrors = list(self._mirrors(access))
        except ImageError:
            self._transport.close()
            raise
        self._endpoints = [*mirrors, self._endpoint(reference.registry)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is under way, in all threads, with a `RegistryError` there. Nothing can be asked afterwards."""
        self._transport.close()

    def disconnect(self) -> None:
        """Close the connections that nobody uses at the moment."""
        self._transport.disconnect()

    def manifest(self, name: Digest | str) -> Document:
        """Return the manifest or index of this digest or tag; its bytes are those of the digest."""
        what = f"manifest {name}"

        def fetch(endpoint: _Endpoint) -> Document:
            answer = endpoint.ask(f"manifests/{name}", {"Accept": _ACCEPTED}, what, {200})
            headers = answer.response.headers
            media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
            told = headers.get("Docker-Content-Digest")
            data = self._transport.read(answer.response, DOCUMENT_LIMIT, endpoint.where)
            where = f"{endpoint.where}: {what}"
            digest = (
                name
                if isinstance(name, Digest)
                else Digest.parse(told, where)
                if told
                else Digest("sha256", "")
            )
            hasher = digest.hasher()
            hasher.update(data)
            found = Digest(digest.algorithm, hasher.hexdigest())
            if digest.encoded and found != digest:
                raise DigestError(where, "digest of the bytes that came", found, digest)
            return Document(_media_type(media_type, data, where), found, data)

        return self._from_any(what, fetch)

    def document(self, descriptor: Descriptor) -> bytes:
        """Return a small blob, after a check of size and digest."""
        what = f"blob {descriptor.digest}"
        if descriptor.size > DOCUMENT_LIMIT:
            raise ImageError(
                f"{self.reference.name}: {what}",
                "document is too large",
                f"{descriptor.size} bytes",
                f"at most {DOCUMENT_LIMIT}",
            )

        def fetch(endpoint: _Endpoint) -> bytes:
            answer = endpoint.ask(f"blobs/{descriptor.digest}", {}, what, {200})
            data = self._transport.read(answer.response, descriptor.size, endpoint.where)
            where = f"{endpoint.where}: {what}"
            if len(data) != descriptor.size:
                raise DigestError(where, "size of the bytes that came", len(data), descriptor.size)
            hasher = descriptor.digest.hasher()
            hasher.update(data)
            if hasher.hexdigest() != descriptor.digest.encoded:
                found = Digest(descriptor.digest.algorithm, hasher.hexdigest())
                raise DigestError(where, "digest of the bytes that came", found, descriptor.digest)
            return data

        return self._from_any(what, fetch)

    def open_blob(
        self, digest: Digest, start: int = 0, stop: int | None = None, *, size: int | None = None
    ) -> BlobResponse:
        """Return the bytes of a blob from `start` to before `stop`, or, where the registry has it so, all of them.

        `size` is the whole blob's, which the registry must not contradict; None if it is not known.
        """
        what = f"blob {digest}"
        ranged = start > 0 or stop is not None
        headers = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if ranged else {}

        def fetch(endpoint: _Endpoint) -> BlobResponse:
            answer = endpoint.ask(f"blobs/{digest}", headers, what, {200, 206} if ranged else {200})
            where = f"{endpoint.where}: {what}"
            try:
                body = BlobResponse(self._transport, endpoint, answer, where, start, stop)
            except BaseException:
                answer.response.close()
                raise
            if size is not None and body.size not in (None, size):
                answer.response.close()
                raise RegistryError(where, "size of the blob at the registry", body.size, size)
            return body

        return self._from_any(what, fetch)

    def delay(self, failures: int, asked_seconds: float | None = None) -> float | None:
        """Return the seconds to wait after so many failures in a row, None to give up; see `Backoff.delay`."""
        return self._backoff.delay(failures, asked_seconds, self._chance)

    def _from_any(self, what: str, fetch: Callable[[_Endpoint], T]) -> T:
        """Return what the first endpoint has that has it."""
        *mirrors, last = self._endpoints
        notes = []
        for mirror in mirrors:
            if mirror.faults >= _FAULTS:
                continue
            try:
                return fetch(mirror)
            except (BrokenConnection, ImageError) as error:
                if self._transport.closed:
                    raise closed_error(mirror.where) from None
                if isinstance(error, BrokenConnection):
                    mirror.faults += _FAULTS if isinstance(error, Unreachable) else 1
                    notes.append(f"{mirror.where}: {what}: {error}")
                else:
                    notes.append(str(error))
        try:
            return self._patiently(last, what, fetch)
        except ImageError as error:
            for note in notes:
                error.add_note(note)
            raise

    def _patiently(self, endpoint: _Endpoint, what: str, fetch: Callable[[_Endpoint], T]) -> T:
        failures = 0
        while True:
            try:
                return fetch(endpoint)
            except BrokenConnection as error:
                if isinstance(error, Unreachable) and not endpoint.answered:
                    raise RegistryError(endpoint.where, what, error.what) from None
                failures += 1
                asked = error.retry_after_seconds
                pause = self.delay(failures, asked)
                if asked is not None and asked > PATIENCE_SECONDS:
                    got = f"{error.what}, with a pause of {asked:g} s"
                    want = f"a pause of at most {PATIENCE_SECONDS:g} s"
                    raise RegistryError(endpoint.where, what, got, want) from None
                if pause is None:
                    got = f"{error.what}, {failures} times in a row" if failures > 1 else error.what
                    raise RegistryError(endpoint.where, what, got) from None
            self._transport.wait(pause, endpoint.where)

    def _mirrors(self, access: Access) -> Iterator[_Endpoint]:
        mirrors = access.mirrors
        if mirrors is None:
            mirrors = tuple(os.environ.get(MIRRORS_VARIABLE, "").replace(",", " ").split())
        for mirror in mirrors:
            where = f"mirror {shown(mirror.rpartition('@')[2])}"
            found = _MIRROR.fullmatch(mirror)
            if not found or "@" in mirror:
                raise ImageError(where, "not a mirror", want="[REGISTRY=][https://]HOST[:PORT][/PREFIX]")
            registry, scheme, host, prefix = found.groups()
            if registry is None or parse_host(registry, where) == self.reference.registry:
                yield self._endpoint(parse_host(host, where), scheme, prefix.removeprefix("/"), mirror=True)

    def _endpoint(
        self, host: str, scheme: str | None = None, prefix: str = "", *, mirror: bool = False
    ) -> _Endpoint:
        repository = "/".join(filter(None, [prefix, self.reference.repository]))
        where = f"mirror {host}/{repository}" if mirror else f"{host}/{repository}"
        authorizer = Authorizer(
            self._transport, where, repository, lambda: credentials.find(host, repository)
        )
        return _Endpoint(self._transport, host, scheme, repository, where, authorizer)


@dataclass(slots=True)
class _Endpoint:
    """One host that has the repository."""

    transport: Transport
    host: str
    scheme: str | None
    """None where it is to be found out."""
    repository: str
    where: str
    authorizer: Authorizer
    faults: int = 0
    answered: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    base: Url | None = None

    def ask(self, path: str, headers: dict[str, str], what: str, wanted: set[int]) -> Answer:
        """Return an answer of a wanted status; BrokenConnection or RegistryError for any other."""
        base = self._base()
        url = f"{base}{'/'.join(filter(None, [self.repository, path]))}"
        used = self.authorizer.header()
        for attempts_left in reversed(range(_ATTEMPTS)):
            own = {"Authorization": used} if used else {}
            answer = self.transport.request("GET", url, {**headers, **own}, where=f"{self.where}: {what}")
            self.answered = True
            status = answer.response.status
            if status in wanted:
                return answer
            if status != 401 or answer.origin != base.origin:
                break
            challenges = answer.response.headers.getlist("WWW-Authenticate")
            complaint = self._complaint(answer)
            used = self.authorizer.renew(challenges, used) if attempts_left else None
            if used is None:
                want = f"a login at {self.host}"
                if self.authorizer.has_credentials():
                    want = "credentials that are accepted"
                raise RegistryError(self.where, what, complaint, want)
        pause = asked_seconds(answer.response.headers.get("Retry-After"))
        complaint = self._complaint(answer)
        if answer.origin != base.origin:
            complaint += f" from {answer.origin}"
        if status in RETRIED_STATUS:
            raise BrokenConnection(complaint, pause)
        raise RegistryError(self.where, what, complaint)

    def _complaint(self, answer: Answer) -> str:
        return self.transport.complaint(answer, self.where, self.authorizer.redact)

    def _base(self) -> Url:
        """Return the URL that all of the API is below."""
        with self.lock:
            if self.base is None:
                self.base = self._find_base()
            return self.base

    def _find_base(self) -> Url:
        host = _DOCKER_HUB_API if self.host == DOCKER_HUB else self.host
        encrypted, plain = (Url.parse(f"{scheme}://{host}/v2/", self.where) for scheme in ("https", "http"))
        if self.scheme is not None:
            return encrypted if self.scheme == "https" else plain
        if self.transport.must_be_plain(plain.origin.host, plain.origin.port):
            return plain
        if not is_loopback(plain.origin.host):
            return encrypted
        # A server that wants HTTPS tells so at once when it gets HTTP. The other way round it may wait for more.
        try:
            if self._ping(plain) != 400:
                return plain
        except NoHttp as error:
            try:
                self._ping(encrypted)
            except Unreachable as other:
                raise NoHttp(f"{error}; {other}") from None
        except BrokenConnection as error:
            if isinstance(error, Unreachable) and plain.origin.port == encrypted.origin.port:
                raise
            try:
                self._ping(encrypted)
            except BrokenConnection:
                raise error from None
        return encrypted

    def _ping(self, url: Url) -> int:
        answer = self.transport.request("GET", str(url), {}, where=self.where, follow=False)
        answer.response.close()
        return answer.response.status


class BlobResponse:
    """The body with a blob, or with a range of it; used by one thread."""

    ranged: bool
    """The registry sends what was asked for, not all of it instead."""
    start: int
    """Offset of the first byte that comes: as asked for, or 0 where the registry sends all of it instead."""
    size: int | None
    """Bytes of the whole blob, if the registry tells."""

    def __init__(
        self,
        transport: Transport,
        endpoint: _Endpoint,
        answer: Answer,
        where: str,
        start: int,
        stop: int | None,
    ) -> None:
        self._transport = transport
        self._endpoint = endpoint
        self._response = answer.response
        self._where = where
        headers = self._response.headers
        length = headers.get("Content-Length", "")
        announced = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None
        if self._response.status == 200:
            self.ranged, self.start, self.size = False, 0, announced
            return
        text = headers.get("Content-Range", "")
        found = _RANGE.fullmatch(text)
        want = f"bytes {start}-{'' if stop is None else stop - 1}"
        if not found:
            raise RegistryError(where, "range of the answer", shown(text[:100]) or "none", want)
        first, last = int(found[1]), int(found[2])
        if first != start or last < first or (stop is not None and last >= stop):
            raise RegistryError(where, "range of the answer", text, want)
        if announced is not None and announced != last + 1 - first:
            raise RegistryError(where, "length of the answer", announced, last + 1 - first)
        self.ranged = True
        self.start = first
        self.size = None if found[3] == "*" else int(found[3])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def readinto(self, buffer: memoryview) -> int:
        """Store what has come into the buffer, and return how many bytes; 0 only at the true end.

        A body that ends early or not at all is a `BrokenConnection`.
        """
        try:
            data = self._transport.read_part(self._response, len(buffer), self._where)
        except BrokenConnection:
            self._endpoint.faults += 1
            raise
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Give the connection back if the body was read to its end; end it otherwise."""
        if self._response.length_remaining == 0:
            self._endpoint.faults = 0
        self._response.close()


def check_login(registry: str, found: credentials.Credentials, access: Access) -> None:
    """Return if a registry accepts these credentials, or asks nobody for any; `RegistryError` if it refuses them."""
    transport = Transport(access)
    try:
        authorizer = Authorizer(transport, registry, None, lambda: found)
        _Endpoint(transport, registry, None, "", registry, authorizer).ask("", {}, "login", {200})
    except BrokenConnection as error:
        raise RegistryError(registry, "login", error.what) from None
    finally:
        transport.close()


def _media_type(told: str, data: bytes, where: str) -> str:
    """Return the media type of a manifest: the header's, or, where that is of no kind of manifest, its own."""
    if told in MANIFEST_TYPES | INDEX_TYPES | SCHEMA_1_TYPES:
        return told
    own = parse_document(data, where).get("mediaType")
    if own is None:
        raise RegistryError(where, "media type", shown(told) or "none", "that of a manifest or index")
    return own.text()
