"""HTTP to registries, token servers and wherever they redirect to, over connections that are kept.

urllib3 speaks HTTP; redirects, retries and authorization are not left to it. Here is what holds for every request:

- plain HTTP only to loopback and to hosts that the user named; never by a redirect that comes from HTTPS;
- a time limit for each step, the resolution of names included;
- `Transport.close` ends whatever is under way in other threads;
- no error and no log has a URL's query or user-info, or a header.

A failure that may be gone the next time is a `BrokenConnection`, any other one a `RegistryError`.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import ssl
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import urllib3
from urllib3.util import make_headers

from paralayer.errors import ImageError, RegistryError
from paralayer.image.descriptor import shown
from paralayer.image.source import io_errors
from paralayer.registry.access import BrokenConnection, NoHttp, NoTls, Unreachable
from paralayer.registry.origin import Origin, Proxies, Url, is_loopback
from paralayer.registry.retry import RETRIED_STATUS
from paralayer.registry.sockets import Sockets, pool_classes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from urllib3.response import BaseHTTPResponse

    from paralayer.registry.access import Access
    from paralayer.registry.origin import Proxy

REDIRECT_STATUS = frozenset({301, 302, 303, 307, 308})

_REDIRECTS = 5
_DOCUMENT_SECONDS = 300.0  # for a whole document, which may come in drops
_TUNNEL = re.compile("Tunnel connection failed: ([0-9]{3})")  # http.client's words for it
_ERROR_LIMIT = 8 << 10
_SHOWN = 200
_CHUNK = 1 << 16

_speaking = threading.local()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a request; the body is still to be read, or to be closed."""

    response: BaseHTTPResponse
    origin: Origin
    """Who answered, after redirects."""

    @property
    def status(self) -> str:
        """The status for messages."""
        return _status_text(self.response.status)


class Transport:
    """Requests to any host; used by several threads."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._sockets = Sockets()
        self._insecure = {text.lower() for text in access.insecure_http}
        self._proxies = Proxies()
        self._managers: dict[tuple[Proxy | None, bool], urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        if access.ca_file is not None:
            self._context()
        self._timeout = urllib3.Timeout(
            connect=access.connect_timeout_seconds, read=access.read_timeout_seconds
        )

    def close(self) -> None:
        """End every request and every body that is under way, each with a `RegistryError` in its thread."""
        self._sockets.close()
        self.disconnect()

    def disconnect(self) -> None:
        """Close the connections that nobody uses at the moment."""
        with self._lock:
            managers = list(self._managers.values())
        for manager in managers:
            manager.clear()

    @property
    def closed(self) -> bool:
        """Say whether `close` was called."""
        return self._sockets.closed.is_set()

    def wait(self, seconds: float, where: str) -> None:
        """Sleep, unless `close` is called."""
        if self._sockets.closed.wait(seconds):
            raise closed_error(where)

    def may_be_plain(self, host: str, port: int) -> bool:
        """Say whether a host may be spoken to by plain HTTP."""
        return is_loopback(host) or self.must_be_plain(host, port)

    def must_be_plain(self, host: str, port: int) -> bool:
        """Say whether the user named this host as one without HTTPS."""
        return not self._insecure.isdisjoint({host, f"{host}:{port}", f"[{host}]", f"[{host}]:{port}"})

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        body: bytes | None = None,
        where: str,
        follow: bool = True,
    ) -> Answer:
        """Return the answer, whatever its status.

        Redirects are followed unless `follow` is false; to another origin, without the Authorization header.
        """
        headers = {"User-Agent": "paralayer", "Accept-Encoding": "identity", **headers}
        at = Url.parse(url, where)
        for _ in range(_REDIRECTS + 1):
            origin = at.origin
            if origin.scheme == "http" and not self.may_be_plain(origin.host, origin.port):
                raise RegistryError(
                    where, "plain HTTP", str(origin), "https, or this host allowed for plain HTTP"
                )
            response = self._exchange(method, at, headers, body, where)
            target = response.headers.get("Location")
            if not follow or response.status not in REDIRECT_STATUS or not target:
                return Answer(response, origin)
            self._discard(response, where)
            at = at.join(target, where)
            if origin.scheme == "https" and at.origin.scheme == "http":
                raise RegistryError(where, "redirect to plain HTTP", str(at.origin), "https")
            if at.origin != origin:
                headers = {name: text for name, text in headers.items() if name != "Authorization"}
        raise RegistryError(where, "too many redirects", want=f"at most {_REDIRECTS}")

    def read(self, response: BaseHTTPResponse, limit: int, where: str) -> bytes:
        """Return the whole body, of at most `limit` bytes; more is a `RegistryError`."""
        data = self.read_start(response, limit + 1, where)
        if len(data) > limit:
            raise RegistryError(where, "answer is too large", want=f"at most {limit} bytes")
        return data

    def read_start(self, response: BaseHTTPResponse, limit: int, where: str) -> bytes:
        """Return at most `limit` bytes of the body, and close it."""
        deadline = time.monotonic() + _DOCUMENT_SECONDS
        parts = []
        try:
            while limit > 0 and (part := self.read_part(response, min(limit, _CHUNK), where)):
                parts.append(part)
                limit -= len(part)
                if time.monotonic() > deadline:
                    raise BrokenConnection(f"answer is not complete after {_DOCUMENT_SECONDS:g} s")
        finally:
            response.close()
        return b"".join(parts)

    def read_part(self, response: BaseHTTPResponse, size: int, where: str) -> bytes:
        """Return what has come of the body, at most `size` bytes; nothing only at its true end."""
        _speaking.now = True
        try:
            return response.read1(size)
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            response.close()
            late = f"nothing came within {self._access.read_timeout_seconds:g} s"
            raise self._failure(error, where, late) from None
        finally:
            _speaking.now = False

    def complaint(self, answer: Answer, where: str, redact: Callable[[str], str]) -> str:
        """Return status and reason of an answer that is an error, and close it.

        The reason is the registry's own text, as far as it is one: without what `redact` takes out, on one line,
        printable, and cut where it gets long.
        """
        reason = _reason(self._discard(answer.response, where), redact)
        return f"{answer.status}: {reason}" if reason else answer.status

    def _discard(self, response: BaseHTTPResponse, where: str) -> bytes:
        """Return the body as far as it is short enough to be read for the sake of the connection alone."""
        try:
            return self.read_start(response, _ERROR_LIMIT, where)
        except BrokenConnection:
            return b""

    def _exchange(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        body: bytes | None,
        where: str,
    ) -> BaseHTTPResponse:
        if self.closed:
            raise closed_error(where)
        manager = self._manager(url.origin, where)
        _speaking.now = True
        try:
            return manager.urlopen(
                method,
                str(url),
                redirect=False,
                body=body,
                headers=headers,
                retries=False,
                timeout=self._timeout,
                preload_content=False,
                decode_content=False,
            )
        except Unreachable:
            if self.closed:
                raise closed_error(where) from None
            raise
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            late = f"connection is not ready within {self._access.connect_timeout_seconds:g} s"
            raise self._failure(error, where, late) from None
        finally:
            _speaking.now = False

    def _failure(self, error: Exception, where: str, late: str) -> Exception:
        """Return what a failed request or body is raised as; `late` is what a time limit means there."""
        if self.closed:
            return closed_error(where)
        inner: BaseException = error
        for _ in range(4):  # urllib3 has the reason as an argument
            causes = [arg for arg in inner.args if isinstance(arg, BaseException)]
            if not causes:
                break
            inner = causes[-1]
        if isinstance(inner, ssl.SSLCertVerificationError):
            return RegistryError(
                where, "certificate", shown(inner.verify_message), "one of a trusted authority"
            )
        if isinstance(error, urllib3.exceptions.LocationParseError | urllib3.exceptions.InvalidHeader):
            return RegistryError(where, "a URL or header that cannot be sent")
        if isinstance(inner, TimeoutError | urllib3.exceptions.TimeoutError):
            return Unreachable(late)
        if isinstance(inner, http.client.InvalidURL):
            return RegistryError(where, "a URL that cannot be sent")
        if isinstance(inner, ssl.SSLError) and not isinstance(
            inner, ssl.SSLEOFError | ssl.SSLZeroReturnError
        ):
            return NoTls(f"TLS: {shown(inner.reason or 'connection broken')}")
        proxy = "proxy: " if isinstance(error, urllib3.exceptions.ProxyError) else ""
        if isinstance(inner, OSError) and inner.errno:
            return BrokenConnection(f"{proxy}{os.strerror(inner.errno).lower()}")
        if refused := _TUNNEL.match(str(inner)):
            what = f"proxy: no tunnel: {_status_text(int(refused[1]))}"
            return BrokenConnection(what) if int(refused[1]) in RETRIED_STATUS else RegistryError(where, what)
        if isinstance(inner, http.client.BadStatusLine) and not isinstance(inner, ConnectionError):
            return NoHttp("answer is no HTTP")
        return BrokenConnection(f"{proxy}connection broken")

    def _manager(self, origin: Origin, where: str) -> urllib3.PoolManager:
        proxy = self._proxies.of(origin)
        encrypted = "https" in (origin.scheme, proxy and proxy.origin.scheme)
        with self._lock:
            if self.closed:
                raise closed_error(where)
            if (proxy, encrypted) not in self._managers:
                self._managers[proxy, encrypted] = self._make_manager(proxy, encrypted=encrypted)
            return self._managers[proxy, encrypted]

    def _make_manager(self, proxy: Proxy | None, *, encrypted: bool) -> urllib3.PoolManager:
        context = self._context() if encrypted else None
        settings: dict[str, Any] = {"maxsize": self._access.connections, "ssl_context": context}
        manager: urllib3.PoolManager
        if proxy is None:
            manager = urllib3.PoolManager(**settings)
        else:
            headers = make_headers(proxy_basic_auth=proxy.user_info) if proxy.user_info else None
            manager = urllib3.ProxyManager(
                str(proxy.origin), proxy_headers=headers, proxy_ssl_context=context, **settings
            )
        manager.pool_classes_by_scheme = pool_classes(self._sockets, self._access.head_timeout_seconds)
        return manager

    def _context(self) -> ssl.SSLContext:
        """Return what all TLS is spoken with; made when it is needed: the system's certificates take 40 ms."""
        if self._tls is not None:
            return self._tls
        context = ssl.create_default_context()
        if path := self._access.ca_file:
            with io_errors(shown(path)):
                try:
                    context.load_verify_locations(path)
                except ssl.SSLError:
                    raise ImageError(shown(path), "no certificates", want="PEM") from None
        sockets, seconds = self._sockets, self._access.connect_timeout_seconds

        class Socket(ssl.SSLSocket):
            def do_handshake(self, block: bool = False) -> None:
                sockets.add(self)
                try:
                    super().do_handshake(block)
                except TimeoutError:
                    self.close()
                    raise Unreachable(f"TLS: no handshake within {seconds:g} s") from None

        context.sslsocket_class = Socket
        self._tls = context
        return context


def _status_text(status: int) -> str:
    return f"{status} {http.client.responses.get(status, '')}".rstrip()


def _reason(data: bytes, redact: Callable[[str], str]) -> str:
    """Return what an error's body tells: ``errors``, as the distribution specification has it, or OAuth's fields."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    errors = document.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else document
    if not isinstance(first, dict):
        return ""
    names = ("code", "message", "error", "error_description", "details")
    texts = [text for name in names if isinstance(text := first.get(name), str) and text]
    shortened = shown(" ".join(redact(": ".join(texts)).split()))
    return shortened if len(shortened) <= _SHOWN else f"{shortened[:_SHOWN]}..."


def closed_error(where: str) -> RegistryError:
    """Return the error for what was under way when it was closed."""
    return RegistryError(where, "closed")


class _NoUrls(logging.Filter):
    """Drops what urllib3 logs of requests from here: queries of URLs may be secret."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002
        return not getattr(_speaking, "now", False)


for _logger in ("urllib3.connection", "urllib3.connectionpool"):
    logging.getLogger(_logger).addFilter(_NoUrls())
