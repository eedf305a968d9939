"""Real registries on loopback: Debian's docker-registry, with each way of authentication, filled by skopeo.

    with serve_registry(directory) as registry:
        push(layout, registry, "some/name:tag")

The servers are context managers that leave no process and no thread; what they write lies in the given directory.
Registries that have the same `storage` have the same images, so that one without authentication can be filled for
the others.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import re
import subprocess
import threading
import time
import urllib.parse
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pytest

USER, PASSWORD = "user", "pass-word"
HTPASSWD = (
    "user:$2y$04$aRUlMbuSuY5Ufj.Yb5wzZecHPZKiwLvCsCIIEkVk8D/V2a14/7SuS\n"  # what registries know of them
)
IDENTITY_TOKEN = "identity-of-user"
LEEWAY_SECONDS = 60  # for so long the registry takes tokens after their end


@dataclass(frozen=True, slots=True)
class RegistryServer:
    """A registry that is running."""

    address: str
    """``127.0.0.1:PORT``"""
    storage: Path
    ca_file: Path | None
    process: subprocess.Popen[str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority, and a server certificate for ``127.0.0.1`` and ``localhost`` that it signed."""

    ca_file: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What a token server was asked."""

    method: str
    fields: Mapping[str, list[str]]
    """Of the query or of the form."""
    headers: Mapping[str, str]
    """By lower-case names."""


def make_authority(directory: Path) -> Authority:
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    certificate, key = directory / "server.pem", directory / "server.key"
    elliptic = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    _make_certificate("/CN=authority", ca_key, ca, elliptic)
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    signed = ["-CA", str(ca), "-CAkey", str(ca_key), "-addext", "basicConstraints=critical,CA:FALSE"]
    _make_certificate("/CN=server", key, certificate, [*elliptic, *names, *signed])
    return Authority(ca, certificate, key)


def _make_certificate(subject: str, key: Path, certificate: Path, options: list[str]) -> None:
    make = [
        "openssl",
        "req",
        "-x509",
        "-nodes",
        "-subj",
        subject,
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run([*make, "-newkey", *options], check=True, capture_output=True)


class TokenServer:
    """Gives the tokens that docker-registry wants: JSON web tokens, signed with RS256.

    `USER` with `PASSWORD`, or with `IDENTITY_TOKEN`, may pull; without either, only repositories whose names start
    with ``public/``. What else is asked gets a token that allows nothing, as usual. `requests` is all that was asked.

    A registry takes a token of `lifetime_seconds` for as long; clients are told `told_seconds`.
    """

    def __init__(
        self, directory: Path, *, lifetime_seconds: int = 600, told_seconds: int | None = None
    ) -> None:
        self.lifetime_seconds, self.told_seconds = lifetime_seconds, told_seconds
        self.requests: list[TokenRequest] = []
        self.tokens: list[str] = []
        self.bundle = directory / "token.pem"
        self._key = directory / "token.key"
        _make_certificate("/CN=tokens", self._key, self.bundle, ["rsa:2048"])
        lines = self.bundle.read_text().splitlines()
        self._certificate = "".join(line for line in lines if not line.startswith("-----"))
        self._numbers = itertools.count()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(urllib.parse.urlsplit(self.path).query)

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

            def log_message(self, *_: object) -> None:
                pass

            def _answer(self, text: str) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = TokenRequest(self.command, urllib.parse.parse_qs(text), headers)
                status, answer = server._answer(request)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), name="token server")
        self._thread.start()

    @property
    def realm(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/token"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def _answer(self, request: TokenRequest) -> tuple[int, dict[str, Any]]:
        self.requests.append(request)
        known = False
        if request.method == "POST":
            form = {name: values[0] for name, values in request.fields.items()}
            known = form.get("grant_type") == "refresh_token" and form.get("refresh_token") == IDENTITY_TOKEN
            if not known:
                return 401, {"errors": [{"code": "UNAUTHORIZED", "message": "unknown identity token"}]}
        elif authorization := request.headers.get("authorization"):
            pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            known = authorization == f"Basic {pair}"
            if not known:
                return 401, {
                    "errors": [{"code": "UNAUTHORIZED", "message": "incorrect username or password"}]
                }
        token = self.sign([_access(scope, known=known) for scope in request.fields.get("scope", [])])
        self.tokens.append(token)
        answer: dict[str, Any] = {"access_token" if request.method == "POST" else "token": token}
        if self.told_seconds is not None:
            answer["expires_in"] = self.told_seconds
        return 200, answer

    def sign(self, access: list[dict[str, Any]]) -> str:
        """Return a token for this."""
        now = int(time.time())
        claims = {
            "iss": "tests",
            "sub": USER,
            "aud": "registry",
            "nbf": now - LEEWAY_SECONDS,
            "iat": now,
            "exp": now - LEEWAY_SECONDS + self.lifetime_seconds,
            "jti": str(next(self._numbers)),
            "access": access,
        }
        header = {"typ": "JWT", "alg": "RS256", "x5c": [self._certificate]}
        signed = f"{_encode(json.dumps(header).encode())}.{_encode(json.dumps(claims).encode())}"
        command = ["openssl", "dgst", "-sha256", "-sign", str(self._key)]
        signature = subprocess.run(command, input=signed.encode(), capture_output=True, check=True).stdout
        return f"{signed}.{_encode(signature)}"


def _access(scope: str, *, known: bool) -> dict[str, Any]:
    kind, name, actions = scope.split(":")
    allowed = ["pull"] if (known or name.startswith("public/")) and "pull" in actions.split(",") else []
    return {"type": kind, "name": name, "actions": allowed}


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@contextmanager
def serve_registry(
    directory: Path,
    *,
    storage: Path | None = None,
    users: bool = False,
    tokens: TokenServer | None = None,
    authority: Authority | None = None,
) -> Iterator[RegistryServer]:
    """Run docker-registry on a free port: open to all, for `USER` only, or for those with a token; HTTPS or HTTP."""
    directory.mkdir(exist_ok=True)
    storage = storage or directory / "storage"
    auth: dict[str, Any] = {}
    if users:
        (directory / "htpasswd").write_text(HTPASSWD)
        auth["htpasswd"] = {"realm": "tests", "path": str(directory / "htpasswd")}
    if tokens:
        auth["token"] = {"realm": tokens.realm, "service": "registry", "issuer": "tests"}
        auth["token"]["rootcertbundle"] = str(tokens.bundle)
    http: dict[str, Any] = {"addr": "127.0.0.1:0", "secret": "tests"}
    if authority:
        http["tls"] = {"certificate": str(authority.certificate), "key": str(authority.key)}
    configuration = {
        "version": 0.1,
        "log": {"level": "info", "formatter": "text", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "http": http,
        **({"auth": auth} if auth else {}),
    }
    path = directory / "config.yml"
    path.write_text(json.dumps(configuration))  # JSON is YAML
    # dies with the tests, however they end
    command = ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        said = process.stderr
        drain = threading.Thread(target=lambda: [None for _ in said], name="what the registry says")
        try:
            address, heard = None, []
            while address is None:
                heard.append(line := said.readline())
                assert line, "".join(heard)
                address = re.search(r"listening on (127\.0\.0\.1:\d+)", line)
            drain.start()
            yield RegistryServer(address[1], storage, authority.ca_file if authority else None, process)
        finally:
            process.kill()
            if drain.is_alive():
                drain.join()


def push(layout: Path | str, registry: RegistryServer, name: str, *, tag_in_layout: str = "") -> None:
    """Let skopeo store an OCI layout's image, or its whole index, under ``NAME:TAG``, byte for byte as it is.

    The registry must be one that takes it from anybody.
    """
    source = f"oci:{layout}:{tag_in_layout}" if tag_in_layout else f"oci:{layout}"
    command = ["skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", "--quiet"]
    target = f"docker://{registry.address}/{name}"
    command += ["--dest-tls-verify=false", source, target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


def upload(layout: Path | str, registry: RegistryServer, name: str) -> None:
    """Store what the only entry of a layout's index names under ``NAME:TAG``; also what skopeo knows nothing of."""
    repository, _, tag = name.rpartition(":")
    with closing(http.client.HTTPConnection(registry.address)) as connection:

        def ask(method: str, target: str, data: bytes = b"", media_type: str = "") -> str:
            connection.request(method, target, data, {"Content-Type": media_type})
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status < 300, said
            return answer.headers.get("Location", "")

        def store(descriptor: dict[str, Any], reference: str | None) -> None:
            digest = descriptor["digest"]
            data = Path(layout, "blobs", *digest.split(":")).read_bytes()
            if reference is None:
                place = urllib.parse.urlsplit(ask("POST", f"/v2/{repository}/blobs/uploads/"))
                ask("PUT", f"{place.path}?{place.query}&digest={digest}", data)
                return
            document = json.loads(data)
            for below in document.get("manifests", []):
                store(below, below["digest"])
            for below in [document["config"], *document["layers"]] if "config" in document else []:
                store(below, None)
            ask("PUT", f"/v2/{repository}/manifests/{reference}", data, descriptor["mediaType"])

        [root] = json.loads(Path(layout, "index.json").read_bytes())["manifests"]
        store(root, tag)


def forget_logins(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Let nobody be logged in anywhere, and no proxy or mirror be configured, for one test."""
    proxies = (f"{scheme}_proxy" for scheme in ("http", "https", "all", "no"))
    for name in (
        "REGISTRY_AUTH_FILE",
        "DOCKER_CONFIG",
        "XDG_CONFIG_HOME",
        "PARALAYER_REGISTRY_MIRROR",
        *proxies,
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))


def write_auths(path: Path, auths: Mapping[str, object], **others: object) -> Path:
    """Write a file of credentials: of each registry a pair of user and password, or an entry as it is."""
    entries = {
        key: {"auth": base64.b64encode(":".join(entry).encode()).decode()}
        if isinstance(entry, tuple)
        else entry
        for key, entry in auths.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": entries, **others}))
    return path
