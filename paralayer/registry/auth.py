"""Authorization at a registry: the answer to its challenges.

Source: the distribution project's specifications of token authentication (auth/token.md, auth/oauth.md), RFC 9110
section 11 and RFC 6750. What credentials are looked up for is the registry; they go to the registry itself (Basic), or
to the token server that its challenge names (Bearer), as that protocol has it: over HTTPS, or to a host that may be
spoken to by plain HTTP. A token is only asked for what is needed, whatever the challenge proposes.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING

from paralayer.errors import RegistryError
from paralayer.registry.access import BrokenConnection
from paralayer.registry.origin import Url
from paralayer.registry.retry import RETRIED_STATUS, asked_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from paralayer.registry.credentials import Credentials
    from paralayer.registry.transport import Transport

_CLIENT = "paralayer"
_HEADER_LIMIT = 8 << 10
_ANSWER_LIMIT = 1 << 20
_TOKEN = re.compile(r"[\x21-\x7e]{1,32768}")
_DEFAULT_SECONDS = 60.0  # what a token is good for where the server does not tell
_LONGEST_SECONDS = 86400.0
_MARGIN_SECONDS = 10.0
_SCHEME = re.compile(r"[ \t,]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:[ \t]+|$|(?=,))")
_PARAMETER = re.compile(
    r"""[ \t,]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^ \t,"]*))[ \t]*(?=,|$)"""
)


def parse_challenges(headers: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield scheme and parameters of each challenge in WWW-Authenticate headers, names in lower case.

    What is malformed ends the header it is in.
    """
    for header in headers:
        at = 0
        while len(header) <= _HEADER_LIMIT and (scheme := _SCHEME.match(header, at)):
            at = scheme.end()
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(header, at):
                at = parameter.end()
                quoted, plain = parameter[2], parameter[3]
                value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                parameters.setdefault(parameter[1].lower(), value)
            yield scheme[1].lower(), parameters


class Authorizer:
    """The Authorization header for one repository of one registry, or for none of them; shared by threads.

    `find` is called at the first challenge, at most once.
    """

    def __init__(
        self, transport: Transport, where: str, repository: str | None, find: Callable[[], Credentials | None]
    ) -> None:
        self._transport = transport
        self._where = where
        self._scope = f"repository:{repository}:pull" if repository else None
        self._find = find
        self._found: list[Credentials | None] = []
        self._secrets: set[str] = set()
        self._lock = threading.Lock()
        self._header: str | None = None
        self._until = float("inf")
        self._challenges: dict[str, dict[str, str]] = {}

    def header(self) -> str | None:
        """Return what the registry accepts, None before it asked for anything. May ask the token server."""
        with self._lock:
            if self._header is not None and time.monotonic() >= self._until:
                self._answer(self._challenges)
            return self._header

    def renew(self, headers: Iterable[str], used: str | None) -> str | None:
        """Return another header than `used`, which was refused; None if there is none.

        `headers` are the WWW-Authenticate headers of the refusal. Threads that come while one of them gets a token
        wait, and have it then.
        """
        with self._lock:
            if self._header in (None, used):
                self._answer(dict(reversed(list(parse_challenges(headers)))))
            return None if self._header == used else self._header

    def _answer(self, challenges: dict[str, dict[str, str]]) -> None:
        """Set the header anew; it stays as it is where there is no answer to any of the challenges."""
        if "bearer" in challenges:
            self._header, seconds = self._bearer(challenges["bearer"])
            self._until = time.monotonic() + max(seconds - _MARGIN_SECONDS, seconds / 2)
            self._challenges = challenges
        elif "basic" in challenges and (header := self._basic()):
            self._header, self._until = header, float("inf")

    def has_credentials(self) -> bool:
        """Say whether any were found, as far as they were looked for."""
        return any(credentials is not None for credentials in self._found)

    def redact(self, text: str) -> str:
        """Return a text that came from outside without the secrets that were sent there."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def _credentials(self) -> Credentials | None:
        if not self._found:
            self._found.append(found := self._find())
            if found is not None:
                self._keep_secret(found.password, found.identity_token, found.registry_token)
        return self._found[0]

    def _keep_secret(self, *secrets: str) -> None:
        self._secrets = self._secrets | {secret for secret in secrets if secret}

    def _basic(self) -> str | None:
        found = self._credentials()
        if found is None or not found.username:
            return None
        pair = base64.b64encode(f"{found.username}:{found.password}".encode()).decode()
        self._keep_secret(pair)
        return f"Basic {pair}"

    def _bearer(self, challenge: dict[str, str]) -> tuple[str, float]:
        """Return a header with a token, and for how many seconds it is good."""
        found = self._credentials()
        if found is not None and found.registry_token:
            return f"Bearer {found.registry_token}", float("inf")
        realm = challenge.get("realm", "")
        server = Url.parse(realm, f"{self._where}: realm of the challenge")
        where = f"{self._where}: token server {server.origin}"
        fields = [("service", challenge["service"])] if challenge.get("service") else []
        if self._scope:
            fields.append(("scope", self._scope))
        if found is not None and found.identity_token:
            fields += [("grant_type", "refresh_token"), ("client_id", _CLIENT)]
            fields.append(("refresh_token", found.identity_token))
            data = self._fetch("POST", str(server), {}, urllib.parse.urlencode(fields).encode(), where)
        else:
            basic = self._basic()
            if basic and found is not None:
                fields.append(("account", found.username))
            url = f"{server}{'&' if '?' in server.target else '?'}{urllib.parse.urlencode(fields)}"
            data = self._fetch("GET", url, {"Authorization": basic} if basic else {}, None, where)
        token, seconds = _parse_token(data, where)
        self._keep_secret(token)
        return f"Bearer {token}", seconds

    def _fetch(self, method: str, url: str, headers: dict[str, str], body: bytes | None, where: str) -> bytes:
        if body is not None:
            headers = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
        # a form with a token in it follows no redirect
        answer = self._transport.request(method, url, headers, body=body, where=where, follow=body is None)
        status = answer.response.status
        if status == 200:
            return self._transport.read(answer.response, _ANSWER_LIMIT, where)
        pause = asked_seconds(answer.response.headers.get("Retry-After"))
        complaint = self._transport.complaint(answer, where, self.redact)
        if status in RETRIED_STATUS:
            raise BrokenConnection(f"token server: {complaint}", pause)
        want = None
        if status in (400, 401, 403):
            want = "a login that is still good" if self.has_credentials() else "a login"
        raise RegistryError(where, "no token", complaint, want)


def _parse_token(data: bytes, where: str) -> tuple[str, float]:
    """Return the token in the answer of a token server, and for how many seconds it is good."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise RegistryError(where, "answer is no JSON") from None
    if not isinstance(document, dict):
        raise RegistryError(where, "answer is no JSON object")
    token = document.get("token") or document.get("access_token")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise RegistryError(where, "answer without a usable token")
    seconds = document.get("expires_in")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        seconds = _DEFAULT_SECONDS
    return token, float(min(seconds, _LONGEST_SECONDS))
