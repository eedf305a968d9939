"""Hosts, as the parts of a URL that decide who gets credentials and which way leads there."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from paralayer.errors import RegistryError
from paralayer.image.descriptor import shown

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile("[a-z0-9_][a-z0-9_.-]{0,252}")
_SAFE = "%/:?@!$&'()*+,;=~[]"  # what a URL has besides letters and digits; quoted already, where it had to be


class Origin(NamedTuple):
    """What credentials are bound to."""

    scheme: str
    host: str
    """In lower case, without the brackets of IPv6."""
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


class Url(NamedTuple):
    """An absolute URL without user-info and fragment. What `parse` returned has but one reading."""

    origin: Origin
    target: str
    """Path and query; the query may be secret."""

    @classmethod
    def parse(cls, text: str, where: str) -> Url:
        """Return the URL that `text` spells; what is none for HTTP is a `RegistryError`, which does not show it."""
        try:
            parts = urllib.parse.urlsplit(text)
            scheme, host, port = parts.scheme, parts.hostname or "", parts.port
        except ValueError:
            raise RegistryError(where, "a URL that is none", want="http or https") from None
        if scheme not in _PORTS:
            raise RegistryError(where, "scheme of a URL", shown(scheme) or "none", "http or https")
        if not _HOST.fullmatch(host) and not _is_ipv6(host):
            raise RegistryError(where, "host of a URL", shown(host) or "none")
        target = urllib.parse.quote(parts.path or "/", safe=_SAFE)
        if parts.query:
            target += f"?{urllib.parse.quote(parts.query, safe=_SAFE)}"
        return cls(Origin(scheme, host, port or _PORTS[scheme]), target)

    def join(self, target: str, where: str) -> Url:
        """Return where a redirect from here leads."""
        try:
            joined = urllib.parse.urljoin(str(self), target)
        except ValueError:
            raise RegistryError(where, "redirect to a URL that is none") from None
        return Url.parse(joined, where)

    def __str__(self) -> str:
        return f"{self.origin}{self.target}"


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return "%" not in host


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine by its name alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that is spoken to by HTTP or HTTPS."""

    origin: Origin
    user_info: str | None = field(repr=False)
    """``USER:PASSWORD``"""


class Proxies:
    """The proxies of the environment, as they were when this object was made.

    ``http_proxy``, ``https_proxy``, ``all_proxy`` and ``no_proxy``, in either case; as in Go, loopback is never reached
    through a proxy, and ``no_proxy`` has names with all below them, addresses, networks and ``*``, each but the last
    with a port or without.
    """

    def __init__(self) -> None:
        self._proxies = urllib.request.getproxies_environment()
        self._direct = self._proxies.pop("no", "").replace(",", " ").lower().split()

    def of(self, origin: Origin) -> Proxy | None:
        """Return the proxy that is on the way to a host; None where none is used."""
        proxy = self._proxies.get(origin.scheme) or self._proxies.get("all")
        if not proxy or is_loopback(origin.host) or any(_is_in(origin, entry) for entry in self._direct):
            return None
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        found = Url.parse(proxy, "proxy of the environment").origin
        user_info, at, _ = urllib.parse.urlsplit(proxy).netloc.rpartition("@")
        return Proxy(found, urllib.parse.unquote(user_info) if at else None)


def _is_in(origin: Origin, entry: str) -> bool:
    """Say whether an entry of ``no_proxy`` means this host."""
    if entry == "*":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(origin.host) in ipaddress.ip_network(entry, strict=False)
    host, colon, port = entry.rpartition(":")
    if colon and port.isdigit() and not host.endswith(":"):
        if int(port) != origin.port:
            return False
        entry = host
    entry = entry.strip("[]").removeprefix("*").removeprefix(".")
    return bool(entry) and (origin.host == entry or origin.host.endswith(f".{entry}"))
