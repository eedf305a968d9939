"""What is asked of a registry, and what becomes of the answers, good and bad."""

from __future__ import annotations

import json
import logging
import random
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest

from layouts import MANIFEST, Layout, digest_of
from paralayer.errors import DigestError, ImageError, RegistryError, UsageError
from paralayer.image.descriptor import Descriptor, Digest
from paralayer.image.document import DOCUMENT_LIMIT
from paralayer.registry.access import MIRRORS_VARIABLE
from paralayer.registry.client import Access, BrokenConnection, Registry
from paralayer.registry.reference import Reference
from processes import PATIENCE, wait_for
from registries import (
    PASSWORD,
    USER,
    Authority,
    RegistryServer,
    forget_logins,
    make_authority,
    push,
    serve_registry,
    write_auths,
)
from registry_blobs import AtOnce
from registry_proxy import Exchange, Fault, Proxy, Stall, any_blob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from paralayer.registry.client import BlobResponse

pytestmark = pytest.mark.requires("docker-registry", "skopeo", "openssl")

BLOB = random.Random(1).randbytes(300_000)
DIGEST = Digest.parse(digest_of(BLOB), "")
ABSENT = Digest("sha256", "0" * 64)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    directory = tmp_path_factory.mktemp("registry")
    layout = Layout(directory / "layout")
    layout.finish(layout.image([b"old", BLOB]))
    with serve_registry(directory) as registry:
        push(layout.path, registry, "some/image:tag")
        yield registry


@pytest.fixture(scope="module")
def with_users(server: RegistryServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with serve_registry(tmp_path_factory.mktemp("users"), storage=server.storage, users=True) as registry:
        yield registry


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_logins(monkeypatch, tmp_path)


@pytest.fixture
def proxy(server: RegistryServer) -> Iterator[Proxy]:
    with Proxy(server.address) as proxy:
        yield proxy


def connect(address: str, repository: str = "some/image", **options: Any) -> Registry:
    access = Access(**{"retries": 2, "connect_timeout_seconds": 5, "read_timeout_seconds": 5, **options})
    registry = Registry(Reference.parse(f"docker://{address}/{repository}"), access)
    registry._chance = AtOnce()
    return registry


def read(body: BlobResponse, size: int = 70_000) -> bytes:
    buffer = memoryview(bytearray(size))
    data = b""
    with body:
        while count := body.readinto(buffer):
            data += buffer[:count]
        assert body.readinto(buffer) == 0
    return data


def read_until_broken(body: BlobResponse, buffer: memoryview) -> bytes:
    data = b""
    try:
        while count := body.readinto(buffer):
            data += buffer[:count]
    except BrokenConnection:
        return data
    raise AssertionError("the body did not break")


def is_manifest(exchange: Exchange) -> bool:
    return "/manifests/" in exchange.target


def any_request(_: Exchange) -> bool:
    return True


def tls(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate, authority.key)
    return context


# --- manifests and documents


def test_manifest_is_the_same_by_tag_and_by_digest(server: RegistryServer) -> None:
    with connect(server.address) as registry:
        by_tag = registry.manifest("tag")
        by_digest = registry.manifest(by_tag.digest)
    assert by_tag == by_digest
    assert by_tag.media_type == MANIFEST
    assert str(by_tag.digest) == digest_of(by_tag.data)
    assert len(json.loads(by_tag.data)["layers"]) == 2


def test_document_is_had_by_its_descriptor(server: RegistryServer) -> None:
    with connect(server.address) as registry:
        config = json.loads(registry.manifest("tag").data)["config"]
        descriptor = described(Digest.parse(config["digest"], ""), config["size"])
        assert json.loads(registry.document(descriptor))["rootfs"]["type"] == "layers"


def described(digest: Digest, size: int) -> Descriptor:
    return Descriptor("", digest, size, None, None, None, attestation=False)


def test_what_is_absent_is_named(server: RegistryServer) -> None:
    with connect(server.address) as registry:
        for ask, message in (
            (
                lambda: registry.manifest("absent"),
                "manifest absent: got 404 Not Found: MANIFEST_UNKNOWN: manifest unknown",
            ),
            (lambda: registry.open_blob(ABSENT), f"blob {ABSENT}: got 404 Not Found: BLOB_UNKNOWN"),
            (
                lambda: registry.document(described(ABSENT, 5)),
                f"blob {ABSENT}: got 404 Not Found: BLOB_UNKNOWN",
            ),
        ):
            with pytest.raises(RegistryError, match=message) as caught:
                ask()
            assert caught.value.where == f"{server.address}/some/image"


def test_manifest_with_a_flipped_bit_is_refused(proxy: Proxy) -> None:
    with connect(proxy.address) as registry:
        digest = registry.manifest("tag").digest
        for name in ("tag", digest):
            proxy.fault(Fault(flip=20), when=is_manifest)
            with pytest.raises(
                DigestError, match=f"manifest {name}: digest of the bytes that came: .*want {digest}"
            ):
                registry.manifest(name)


WRONG_MANIFESTS: dict[str, tuple[Fault, str]] = {
    "too large": (
        Fault(status=200, body=b" " * (DOCUMENT_LIMIT + 1)),
        "answer is too large: want at most 8388608",
    ),
    "no type": (Fault(status=200, body=b"{}"), "media type: got none, want that of a manifest"),
    "web page": (Fault(status=200, body=b"<html>", headers={"Content-Type": "text/html"}), "not JSON"),
    "malformed digest": (Fault(headers={"Docker-Content-Digest": "md5:12"}), "digest: got md5:12"),
    "other digest": (Fault(headers={"Docker-Content-Digest": str(ABSENT)}), "digest of the bytes that came"),
}


@pytest.mark.parametrize("title", WRONG_MANIFESTS)
def test_manifest_that_is_none_is_refused(title: str, proxy: Proxy) -> None:
    fault, message = WRONG_MANIFESTS[title]
    proxy.fault(fault, when=is_manifest, times=None)
    with connect(proxy.address) as registry, pytest.raises(ImageError, match=message) as caught:
        registry.manifest("tag")
    assert str(caught.value).startswith(f"{proxy.address}/some/image")


def test_manifest_tells_its_type_where_the_header_does_not(proxy: Proxy) -> None:
    body = json.dumps({"mediaType": MANIFEST}).encode()
    proxy.fault(
        Fault(status=200, body=body, headers={"Content-Type": "text/plain; charset=utf-8"}), when=is_manifest
    )
    proxy.fault(Fault(status=200, body=body, headers={"Content-Type": f"{MANIFEST}; x=y"}), when=is_manifest)
    with connect(proxy.address) as registry:
        assert [registry.manifest("tag").media_type for _ in range(2)] == [MANIFEST] * 2


WRONG_DOCUMENTS: dict[str, tuple[Fault, type[ImageError], str]] = {
    "flipped bit": (Fault(flip=1), DigestError, "digest of the bytes that came"),
    "shorter": (Fault(truncate=2), DigestError, "size of the bytes that came: got 2, want 3"),
    "longer": (Fault(status=200, body=b"older"), RegistryError, "answer is too large: want at most 3 bytes"),
    "endless": (
        Fault(headers={"Content-Length": None}, append=b"x" * 1000),
        RegistryError,
        "answer is too large",
    ),
}


@pytest.mark.parametrize("title", WRONG_DOCUMENTS)
def test_document_that_is_another_one_is_refused(title: str, proxy: Proxy) -> None:
    fault, kind, message = WRONG_DOCUMENTS[title]
    proxy.fault(fault, times=None)
    with connect(proxy.address) as registry, pytest.raises(kind, match=message):
        registry.document(described(Digest.parse(digest_of(b"old"), ""), 3))


def test_document_beyond_all_limits_is_not_asked_for(proxy: Proxy) -> None:
    with connect(proxy.address) as registry, pytest.raises(ImageError, match="document is too large"):
        registry.document(described(DIGEST, DOCUMENT_LIMIT + 1))
    assert proxy.exchanges == []


# --- blobs


def test_blob_comes_whole(server: RegistryServer) -> None:
    with connect(server.address) as registry:
        body = registry.open_blob(DIGEST)
        assert (body.ranged, body.start, body.size) == (False, 0, len(BLOB))
        assert read(body) == BLOB


RANGES: dict[str, tuple[int, int | None]] = {
    "middle": (1000, 200_000),
    "first byte": (0, 1),
    "to the end": (299_990, None),
    "all": (0, 300_000),
    "beyond the end": (299_990, 400_000),
}


@pytest.mark.parametrize("title", RANGES)
def test_range_of_a_blob_comes(title: str, server: RegistryServer) -> None:
    start, stop = RANGES[title]
    with connect(server.address) as registry:
        body = registry.open_blob(DIGEST, start, stop)
        assert (body.ranged, body.start, body.size) == (True, start, len(BLOB))
        assert read(body) == BLOB[start:stop]


def test_range_behind_the_end_is_refused(server: RegistryServer) -> None:
    with (
        connect(server.address) as registry,
        pytest.raises(RegistryError, match="416 Requested Range Not Satisfiable"),
    ):
        registry.open_blob(DIGEST, 300_000)


def test_registry_without_ranges_sends_everything(proxy: Proxy) -> None:
    proxy.fault(Fault(ignore_range=True))
    with connect(proxy.address) as registry:
        body = registry.open_blob(DIGEST, 1000, 2000)
        assert (body.ranged, body.start, body.size) == (False, 0, len(BLOB))
        assert read(body) == BLOB


CONTENT_RANGES: dict[str, tuple[dict[str, str | None], str]] = {
    "other start": (
        {"Content-Range": "bytes 999-1999/300000"},
        "got bytes 999-1999/300000, want bytes 1000-1999",
    ),
    "beyond": (
        {"Content-Range": "bytes 1000-2000/300000"},
        "got bytes 1000-2000/300000, want bytes 1000-1999",
    ),
    "backwards": ({"Content-Range": "bytes 1000-999/300000"}, "got bytes 1000-999/300000"),
    "length of another": (
        {"Content-Range": "bytes 1000-1998/300000"},
        "length of the answer: got 1000, want 999",
    ),
    "none": ({"Content-Range": None}, "range of the answer: got none, want bytes 1000-1999"),
    "several": (
        {"Content-Range": None, "Content-Type": "multipart/byteranges"},
        "range of the answer: got none",
    ),
    "no number": ({"Content-Range": "bytes x-y/z"}, "range of the answer: got bytes x-y/z"),
    "other digits": ({"Content-Range": "bytes \xb2-3/4"}, "range of the answer"),
    "long": ({"Content-Range": "b" * 5000}, "range of the answer: got b{100}, want"),
}


@pytest.mark.parametrize("title", CONTENT_RANGES)
def test_range_that_was_not_asked_for_is_refused(title: str, proxy: Proxy) -> None:
    headers, message = CONTENT_RANGES[title]
    proxy.fault(Fault(headers=headers))
    with connect(proxy.address) as registry, pytest.raises(RegistryError, match=message):
        registry.open_blob(DIGEST, 1000, 2000)


def test_part_of_a_blob_for_all_of_it_is_refused(proxy: Proxy) -> None:
    proxy.fault(Fault(status=206, headers={"Content-Range": "bytes 0-0/300000"}, body=b"x"))
    with connect(proxy.address) as registry, pytest.raises(RegistryError, match="206 Partial Content"):
        registry.open_blob(DIGEST)


def test_range_without_a_total_leaves_the_size_open(proxy: Proxy) -> None:
    proxy.fault(Fault(headers={"Content-Range": "bytes 1000-1999/*"}))
    with connect(proxy.address) as registry:
        body = registry.open_blob(DIGEST, 1000, 2000)
        assert body.size is None
        assert read(body) == BLOB[1000:2000]


BREAKS: dict[str, Fault] = {
    "end": Fault(stop=100_000),
    "reset": Fault(stop=100_000, reset=True),
    "end before the first byte": Fault(stop=0),
}


@pytest.mark.parametrize("title", BREAKS)
def test_body_that_breaks_is_worth_another_try(title: str, proxy: Proxy) -> None:
    proxy.fault(BREAKS[title])
    buffer = memoryview(bytearray(70_000))
    with connect(proxy.address) as registry:
        with registry.open_blob(DIGEST) as body:
            data = read_until_broken(body, buffer)
        assert BLOB.startswith(data)
        assert len(data) < len(BLOB)
        assert data + read(registry.open_blob(DIGEST, len(data))) == BLOB


def test_body_that_stands_still_is_given_up(proxy: Proxy) -> None:
    proxy.fault(Fault(stall=Stall(after=1000)))
    with connect(proxy.address, read_timeout_seconds=0.1) as registry, registry.open_blob(DIGEST) as body:
        buffer = memoryview(bytearray(1 << 20))
        assert body.readinto(buffer) == 1000
        with pytest.raises(BrokenConnection, match=r"nothing came within 0.1 s"):
            body.readinto(buffer)


def test_connections_are_kept(proxy: Proxy) -> None:
    with connect(proxy.address) as registry:
        registry.manifest("tag")
        for _ in range(3):
            read(registry.open_blob(DIGEST))
        threads = len({thread for thread in threading.enumerate() if thread.name == "proxied"})
    assert threads == 1
    assert len(proxy.exchanges) == 5


# --- what is tried again

AGAIN: dict[str, Fault] = {
    "500": Fault(status=500),
    "502": Fault(status=502),
    "503": Fault(status=503),
    "504": Fault(status=504),
    "408": Fault(status=408),
    "429": Fault(status=429),
    "429 with seconds": Fault(status=429, headers={"Retry-After": "0"}),
    "503 with a date": Fault(
        status=503, headers={"Retry-After": format_datetime(datetime(2020, 1, 1, tzinfo=UTC), usegmt=True)}
    ),
    "503 with nonsense": Fault(status=503, headers={"Retry-After": "soon"}),
    "end": Fault(stop=0),
    "reset": Fault(stop=0, reset=True),
    "end in the middle": Fault(stop=20),
}


@pytest.mark.parametrize("title", AGAIN)
def test_failure_that_may_pass_is_tried_again(title: str, proxy: Proxy) -> None:
    proxy.fault(AGAIN[title], when=is_manifest, times=2)
    with connect(proxy.address, retries=2) as registry:
        assert registry.manifest("tag").media_type == MANIFEST
    assert sum(map(is_manifest, proxy.exchanges)) == 3


@pytest.mark.parametrize("title", AGAIN)
def test_failure_that_does_not_pass_is_named(title: str, proxy: Proxy) -> None:
    proxy.fault(AGAIN[title], when=is_manifest, times=None)
    with connect(proxy.address, retries=2) as registry, pytest.raises(RegistryError) as caught:
        registry.manifest("tag")
    assert sum(map(is_manifest, proxy.exchanges)) == 3
    assert str(caught.value).startswith(f"{proxy.address}/some/image: manifest tag: got ")
    assert str(caught.value).endswith(", 3 times in a row")


def test_blob_is_asked_for_again(proxy: Proxy) -> None:
    proxy.fault(Fault(status=503), times=2)
    with connect(proxy.address) as registry:
        assert read(registry.open_blob(DIGEST)) == BLOB


@pytest.mark.parametrize("status", [400, 403, 404, 405, 410, 451, 501, 304, 418, 999])
def test_other_status_is_final(status: int, proxy: Proxy) -> None:
    proxy.fault(Fault(status=status), when=is_manifest, times=None)
    with (
        connect(proxy.address) as registry,
        pytest.raises(RegistryError, match=f"manifest tag: got {status}"),
    ):
        registry.manifest("tag")
    assert sum(map(is_manifest, proxy.exchanges)) == 1


def test_pause_that_is_asked_for_is_made(proxy: Proxy) -> None:
    """The pause itself is told by `delay`; here it ends with `close`."""
    proxy.fault(Fault(status=429, headers={"Retry-After": "100"}), when=is_manifest, times=None)
    with connect(proxy.address) as registry:
        assert registry.delay(1, 100.0) == 100.0
        with running(lambda: registry.manifest("tag")) as errors:
            wait_for(
                lambda: any(exchange.ended.is_set() for exchange in proxy.exchanges if is_manifest(exchange))
            )
            registry.close()
    assert [str(error) for error in errors] == [f"{proxy.address}/some/image: closed"]
    assert sum(map(is_manifest, proxy.exchanges)) == 1


def test_endless_pause_is_not_made(proxy: Proxy) -> None:
    far = format_datetime(datetime.now(UTC) + timedelta(days=9000), usegmt=True)
    for text in ("99999999", far):
        proxy.fault(Fault(status=429, headers={"Retry-After": text}), when=is_manifest)
        with (
            connect(proxy.address) as registry,
            pytest.raises(RegistryError, match=r"429 .*want a pause of at most 120 s"),
        ):
            registry.manifest("tag")


COMPLAINTS: dict[str, tuple[bytes, str]] = {
    "errors": (
        b'{"errors": [{"code": "DENIED", "message": "go away"}, {"code": "X"}]}',
        "403 Forbidden: DENIED: go away",
    ),
    "line breaks": (
        b'{"errors": [{"code": "A\\nB", "message": "\\u001b[31m\\r\\n"}]}',
        "403 Forbidden: A B: \\\\x1b[31m",
    ),
    "no JSON": (b"<html>", "403 Forbidden"),
    "other JSON": (b"[1]", "403 Forbidden"),
    "other errors": (b'{"errors": [5]}', "403 Forbidden"),
    "no text": (b'{"errors": [{"code": 5, "message": ["x"]}]}', "403 Forbidden"),
    "nested": (b"[" * 8000, "403 Forbidden"),
    "huge": (b'{"errors": [{"message": "' + b"x" * 5_000_000, "403 Forbidden"),
    "long": (b'{"errors": [{"message": "' + b"x" * 5000 + b'"}]}', f"403 Forbidden: {'x' * 200}..."),
    "half of a character": (b'{"message": "\\ud800"}', "403 Forbidden: \\\\xed\\\\xa0\\\\x80"),
}


@pytest.mark.parametrize("title", COMPLAINTS)
def test_reason_of_a_refusal_is_on_one_line(title: str, proxy: Proxy) -> None:
    body, want = COMPLAINTS[title]
    proxy.fault(Fault(status=403, body=body), when=is_manifest)
    with connect(proxy.address) as registry, pytest.raises(RegistryError) as caught:
        registry.manifest("tag")
    assert str(caught.value) == f"{proxy.address}/some/image: manifest tag: got {want}".replace("\\\\", "\\")


# --- redirects


@contextmanager
def redirecting(proxy: Proxy, target: str, when: Callable[[Exchange], bool] = any_blob) -> Iterator[None]:
    proxy.fault(Fault(status=307, headers={"Location": target}), when=when, times=None)
    yield
    proxy.heal()


def test_blob_may_lie_at_another_host(
    with_users: RegistryServer, server: RegistryServer, tmp_path: Path
) -> None:
    with Proxy(with_users.address) as proxy, Proxy(server.address) as storage:
        write_auths(
            tmp_path / ".docker/config.json", {proxy.address: (USER, PASSWORD), storage.address: ("x", "y")}
        )
        proxy.fault(Fault(redirect=storage.url), times=None)
        with connect(proxy.address) as registry:
            registry.manifest("tag")
            assert read(registry.open_blob(DIGEST, 1000, 2000)) == BLOB[1000:2000]
        [asked] = proxy.of_blob()
        assert asked.headers["authorization"].startswith("Basic ")
        [asked] = storage.exchanges
        assert "authorization" not in asked.headers
        assert asked.range == "bytes=1000-1999"
        assert asked.headers["host"] == storage.address


def test_same_host_gets_its_credentials_again(with_users: RegistryServer, tmp_path: Path) -> None:
    with Proxy(with_users.address) as proxy:
        write_auths(tmp_path / ".docker/config.json", {proxy.address: (USER, PASSWORD)})
        with connect(proxy.address) as registry:
            registry.manifest("tag")
            proxy.fault(Fault(redirect=""))
            assert read(registry.open_blob(DIGEST)) == BLOB
        assert all(asked.headers["authorization"].startswith("Basic ") for asked in proxy.of_blob())


REDIRECTS: dict[str, tuple[str, str]] = {
    "plain HTTP elsewhere": (
        "http://storage.invalid/x?secret",
        "plain HTTP: got http://storage.invalid, want https",
    ),
    "file": ("file:///etc/passwd?secret", "scheme of a URL: got file, want http or https"),
    "no host": ("https:///x?secret", "host of a URL: got none"),
    "no port": ("http://127.0.0.1:x/?secret", "a URL that is none"),
    "port too high": ("http://127.0.0.1:99999/?secret", "a URL that is none"),
    "confusing host": (
        "http://127.0.0.1\\@storage.invalid/?secret",
        "host of a URL|plain HTTP: got http://storage",
    ),
    "brackets": ("http://[::1/?secret", "redirect to a URL that is none"),
    "not ASCII": ("https://st\xf6rage.invalid/?secret", "host of a URL"),
    "no such host": ("https://storage.invalid/?secret", "storage.invalid: name or service not known"),
    "nobody there": ("http://127.0.0.1:1/?secret", "127.0.0.1:1: connection refused"),
    "itself": ("?secret", "too many redirects: want at most 5"),
}


@pytest.mark.parametrize("title", REDIRECTS)
def test_redirect_that_leads_nowhere_is_refused(title: str, proxy: Proxy) -> None:
    target, message = REDIRECTS[title]
    with (
        connect(proxy.address, retries=0) as registry,
        redirecting(proxy, target),
        pytest.raises(RegistryError, match=message) as caught,
    ):
        registry.open_blob(DIGEST)
    assert "secret" not in f"{caught.value!r}"
    assert "\n" not in str(caught.value)
    assert len(proxy.exchanges) <= 7


def test_https_does_not_lead_to_plain_http(server: RegistryServer, authority: Authority) -> None:
    with Proxy(server.address, tls=tls(authority)) as proxy, Proxy(server.address) as storage:
        proxy.fault(Fault(redirect=storage.url))
        with (
            connect(proxy.address, ca_file=str(authority.ca_file)) as registry,
            pytest.raises(RegistryError, match=f"redirect to plain HTTP: got {storage.url}, want https"),
        ):
            registry.open_blob(DIGEST)
        assert storage.exchanges == []


def test_signature_of_a_url_is_not_shown(
    server: RegistryServer, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Proxy(server.address) as storage:
        target = f"http://user:secret@{storage.address}/v2/some/image/blobs/{DIGEST}?signature=secret"
        failing = Fault(status=403, headers={"X": "y", "Bad header": "z"}, body=b'{"message": "no"}')
        with connect(proxy.address) as registry, redirecting(proxy, target):
            assert read(registry.open_blob(DIGEST)) == BLOB
            storage.fault(failing)
            with pytest.raises(RegistryError, match=f"403 Forbidden: no from {storage.url}$") as caught:
                registry.open_blob(DIGEST)
            storage.fault(Fault(stop=5))
            with pytest.raises(BrokenConnection) as broken:
                read(registry.open_blob(DIGEST))
        assert all(exchange.target.endswith("?signature=secret") for exchange in storage.exchanges)
        assert not any("authorization" in exchange.headers for exchange in storage.exchanges)
    assert "secret" not in f"{caught.value!r}{broken.value!r}{caplog.text}"


# --- ways to a registry


def test_registry_with_tls_is_reached(server: RegistryServer, authority: Authority, tmp_path: Path) -> None:
    with serve_registry(tmp_path / "tls", storage=server.storage, authority=authority) as encrypted:
        for address in (encrypted.address, encrypted.address.replace("127.0.0.1", "localhost")):
            with connect(address, ca_file=str(authority.ca_file)) as registry:
                assert registry.manifest("tag").media_type == MANIFEST
                assert read(registry.open_blob(DIGEST, 5, 50)) == BLOB[5:50]


def test_unknown_authority_is_refused_at_once(
    server: RegistryServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(server.address, tls=tls(authority)) as proxy:
        with (
            connect(proxy.address) as registry,
            pytest.raises(RegistryError, match="certificate: got unable to get local issuer certificate"),
        ):
            registry.manifest("tag")
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
        with connect(proxy.address) as registry:
            registry.manifest("tag")


def test_certificate_for_another_host_is_refused(server: RegistryServer, authority: Authority) -> None:
    with (
        Proxy(server.address, tls=tls(authority), host="127.0.0.2") as proxy,
        connect(proxy.address, ca_file=str(authority.ca_file)) as registry,
        pytest.raises(RegistryError, match="certificate: got IP address mismatch"),
    ):
        registry.manifest("tag")


def test_file_of_authorities_must_be_one(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name, message in {
        "absent": "absent: No such file",
        "empty": "empty: no certificates: want PEM",
    }.items():
        with pytest.raises(ImageError, match=message):
            connect("h.x", ca_file=str(tmp_path / name))


def test_plain_http_is_for_loopback_and_named_hosts_only(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = proxy.address.partition(":")[2]
    resolve_to_loopback(monkeypatch, "registry.test")
    with (
        connect(f"registry.test:{port}", connect_timeout_seconds=0.2) as registry,
        pytest.raises(RegistryError, match=r"nothing came within|TLS|connection"),
    ):
        registry.manifest("tag")
    assert proxy.exchanges == []
    for name in ("registry.test", f"registry.test:{port}", f"REGISTRY.test:{port}"):
        with connect(f"registry.test:{port}", insecure_http=frozenset({name})) as registry:
            registry.manifest("tag")
    with connect(f"localhost:{port}") as registry:
        registry.manifest("tag")


@pytest.mark.parametrize(
    "host",
    ["", " ", "http://h.x", "h.x/", "h.x:", "h.x:0", "h.x:99999", "h x", "*", "user:secret@h.x", "::1"],
)
def test_host_of_plain_http_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match=r"insecure_http: .*want HOST or HOST:PORT") as caught:
        Access(insecure_http=frozenset({"h.x", host}))
    assert "secret" not in str(caught.value)


def test_host_of_plain_http_may_have_a_port() -> None:
    Access(insecure_http=frozenset({"h", "H.x", "h.x:5000", "10.0.0.1:80", "[fd00::1]", "[fd00::1]:5000"}))


def resolve_to_loopback(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Let the system know a name that it does not know."""
    known = socket.getaddrinfo

    def getaddrinfo(name: str, *arguments: Any, **options: Any) -> Any:
        resolved = "127.0.0.1" if name == host and "flags" not in options else name
        return known(resolved, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


UNREACHABLE: dict[str, tuple[str, str]] = {
    "refused": ("127.0.0.1:1", "127.0.0.1:1: connection refused"),
    "no such name": ("registry.invalid", "registry.invalid: name or service not known"),
    "name that is too long": (f"{'x' * 64}.x", "no name of a host|name or service not known"),
}


@pytest.mark.parametrize("title", UNREACHABLE)
def test_registry_that_is_not_there_is_not_asked_again(title: str) -> None:
    address, message = UNREACHABLE[title]
    with connect(address, retries=5) as registry:
        registry._chance = NoChance()
        with pytest.raises(RegistryError, match=message):
            registry.manifest("tag")


class NoChance(random.Random):
    def uniform(self, a: float, b: float) -> float:
        raise AssertionError("a pause is made")


def test_registry_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            connect(address, read_timeout_seconds=0.1, connect_timeout_seconds=0.1) as registry,
            pytest.raises(RegistryError, match=r"manifest tag: got nothing came within 0.1 s"),
        ):
            registry.manifest("tag")


SILENT: dict[str, tuple[str, str, str]] = {
    "registry": ("", "", "TLS: no handshake within 0.1 s"),
    "registry without TLS": ("registry.test", "", "nothing came within 0.2 s"),
    "proxy": ("", "http", "nothing came within 0.1 s"),
    "proxy with TLS": ("", "https", "TLS: no handshake within 0.1 s"),
}
"""Title to (host of plain HTTP, scheme of a proxy that is the silent one, what is told)."""


@pytest.mark.parametrize("title", SILENT)
def test_limit_that_was_reached_is_told(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, scheme, message = SILENT[title]
    resolve_to_loopback(monkeypatch, "registry.test")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if scheme:
            monkeypatch.setenv("https_proxy", f"{scheme}://127.0.0.1:{port}")
        with (
            connect(
                f"registry.test:{port}",
                insecure_http=frozenset(filter(None, [plain])),
                connect_timeout_seconds=0.1,
                read_timeout_seconds=0.2,
            ) as registry,
            pytest.raises(RegistryError, match=f"manifest tag: got {message}$"),
        ):
            registry.manifest("tag")


def test_answer_in_drops_is_given_up() -> None:
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as stack:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while not gone.wait(0.02):
                    connection.sendall(b"X: " + b"x" * 100)

        thread = threading.Thread(target=serve)
        thread.start()
        stack.callback(thread.join)
        stack.callback(gone.set)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            connect(address, insecure_http=frozenset({address}), head_timeout_seconds=0.3) as registry,
            pytest.raises(RegistryError, match=r"head of the answer is not complete after 0.3 s"),
        ):
            registry.manifest("tag")


def test_what_speaks_no_http_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, ExitStack() as stack:

        def serve() -> None:
            for _ in range(2):
                connection, _ = other.accept()
                connection.recv(10000)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        stack.callback(thread.join)
        with (
            connect(f"127.0.0.1:{other.getsockname()[1]}") as registry,
            pytest.raises(RegistryError, match="manifest tag: got answer is no HTTP; TLS: "),
        ):
            registry.manifest("tag")


def test_what_speaks_no_http_and_waits_under_tls_is_named() -> None:
    """Both that it speaks no HTTP and how it does not speak HTTPS are told."""
    with socket.create_server(("127.0.0.1", 0)) as other, ExitStack() as stack:

        def serve() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(10000)
                connection.sendall(b"-ERR unknown command\r\n")
            connection, _ = other.accept()
            with connection, suppress(OSError):
                while connection.recv(10000):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        stack.callback(thread.join)
        with (
            connect(f"127.0.0.1:{other.getsockname()[1]}", connect_timeout_seconds=0.2) as registry,
            pytest.raises(
                RegistryError,
                match=r"manifest tag: got answer is no HTTP; TLS: no handshake within 0.2 s",
            ),
        ):
            registry.manifest("tag")


# --- proxies

PROXIES: dict[str, tuple[dict[str, str], bool]] = {
    "http_proxy": ({"http_proxy": "URL"}, True),
    "HTTP_PROXY": ({"HTTP_PROXY": "URL"}, True),
    "all_proxy": ({"all_proxy": "URL"}, True),
    "without a scheme": ({"http_proxy": "ADDRESS"}, True),
    "for https": ({"https_proxy": "URL"}, False),
    "host excepted": ({"http_proxy": "URL", "no_proxy": "a.b, registry.test"}, False),
    "domain excepted": ({"http_proxy": "URL", "NO_PROXY": ".test"}, False),
    "end of a name": ({"http_proxy": "URL", "no_proxy": "stry.test"}, True),
    "everything excepted": ({"http_proxy": "URL", "no_proxy": "*"}, False),
    "port excepted": ({"http_proxy": "URL", "no_proxy": "registry.test:PORT"}, False),
    "other port": ({"http_proxy": "URL", "no_proxy": "registry.test:1"}, True),
    "network": ({"http_proxy": "URL", "no_proxy": "10.0.0.0/8,::1"}, True),
}


@pytest.mark.parametrize("title", PROXIES)
def test_proxy_of_the_environment_is_used(
    title: str, server: RegistryServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables, used = PROXIES[title]
    port = server.address.partition(":")[2]
    for name, text in variables.items():
        url = text.replace("URL", f"http://me:se%40cret@{proxy.address}").replace("ADDRESS", proxy.address)
        monkeypatch.setenv(name, url.replace("PORT", port))
    resolve_to_loopback(monkeypatch, "registry.test")
    with connect(f"registry.test:{port}", insecure_http=frozenset({"registry.test"})) as registry:
        registry.manifest("tag")
        assert "cret" not in f"{registry!r}{vars(registry)}"
    assert bool(proxy.exchanges) == used
    if used:
        [asked] = proxy.exchanges
        assert asked.target == f"http://registry.test:{port}/v2/some/image/manifests/tag"
        want = None if "ADDRESS" in variables.values() else "Basic bWU6c2VAY3JldA=="
        assert asked.headers.get("proxy-authorization") == want


def test_proxy_is_not_used_for_loopback(server: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with connect(server.address) as registry:
        registry.manifest("tag")


BAD_PROXIES: dict[str, tuple[str, str]] = {
    "down": ("http://me:secret@127.0.0.1:1", "127.0.0.1:1: connection refused"),
    "socks": ("socks5://me:secret@127.0.0.1:1", "proxy of the environment: scheme of a URL: got socks5"),
    "no URL": ("http://me:secret@[", "proxy of the environment: a URL that is none"),
}


@pytest.mark.parametrize("title", BAD_PROXIES)
def test_proxy_that_cannot_be_used_is_named(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url, message = BAD_PROXIES[title]
    monkeypatch.setenv("https_proxy", url)
    with connect("registry.test") as registry, pytest.raises(RegistryError, match=message) as caught:
        registry.manifest("tag")
    assert "secret" not in repr(caught.value)


def test_proxy_that_refuses_a_tunnel_is_named(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", f"http://me:secret@{proxy.address}")
    proxy.fault(Fault(status=407), when=any_request, times=None)
    with (
        connect("registry.test") as registry,
        pytest.raises(RegistryError, match="proxy: no tunnel: 407 Proxy Auth"),
    ):
        registry.manifest("tag")
    [asked] = proxy.exchanges
    assert (asked.method, asked.target) == ("CONNECT", "registry.test:443")


# --- mirrors


def test_mirror_is_asked_first(server: RegistryServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect("127.0.0.1:1", mirrors=(proxy.address,)) as registry:
        registry.manifest("tag")
        assert read(registry.open_blob(DIGEST)) == BLOB
    assert len(proxy.exchanges) == 3
    monkeypatch.setenv(MIRRORS_VARIABLE, f" h.x=127.0.0.1:1 , http://{proxy.address}/ ")
    with connect("127.0.0.1:1") as registry:
        registry.manifest("tag")
    with (
        connect("127.0.0.1:1", mirrors=()) as registry,
        pytest.raises(RegistryError, match="connection refused"),
    ):
        registry.manifest("tag")


def test_prefix_of_a_mirror_stands_before_the_name(proxy: Proxy) -> None:
    with connect("127.0.0.1:1", "image", mirrors=(f"http://{proxy.address}/some",)) as registry:
        registry.manifest("tag")


def test_mirror_of_one_registry_is_not_asked_for_others(proxy: Proxy, server: RegistryServer) -> None:
    for named, asked in {"docker.io": 0, server.address: 1}.items():
        with connect(server.address, mirrors=(f"{named}=http://{proxy.address}",)) as registry:
            registry.manifest("tag")
        assert len(proxy.exchanges) == asked


FALLBACKS: dict[str, Fault] = {
    "absent": Fault(status=404),
    "refused": Fault(status=403),
    "wants a login": Fault(status=401, headers={"WWW-Authenticate": "Basic"}),
    "down": Fault(status=503),
    "busy for years": Fault(status=429, headers={"Retry-After": "99999999"}),
    "reset": Fault(stop=0, reset=True),
    "wrong": Fault(flip=3),
    "web page": Fault(status=200, body=b"<html>"),
}


@pytest.mark.parametrize("title", FALLBACKS)
def test_mirror_that_fails_is_passed_over(title: str, proxy: Proxy, server: RegistryServer) -> None:
    proxy.fault(FALLBACKS[title], when=any_request, times=None)
    mirrors = ("127.0.0.1:1", "mirror.invalid", f"http://{proxy.address}", "127.0.0.1:1")
    with connect(server.address, mirrors=mirrors) as registry:
        manifest = registry.manifest("tag")
        assert registry.manifest(manifest.digest) == manifest
    assert 1 <= sum(map(is_manifest, proxy.exchanges)) <= 2


SIZES: dict[str, tuple[Fault, tuple[int, int | None]]] = {
    "all of a shorter one": (Fault(truncate=1000), (0, None)),
    "all of a longer one": (Fault(headers={"Content-Length": "300001"}, append=b"x"), (0, None)),
    "range of a shorter one": (
        Fault(headers={"Content-Range": "bytes 1000-1999/2000"}, flip=1500),
        (1000, 2000),
    ),
    "range of a longer one": (
        Fault(headers={"Content-Range": "bytes 1000-1999/300001"}, flip=1500),
        (1000, 2000),
    ),
    "all of a shorter one for a range": (Fault(ignore_range=True, truncate=1000), (1000, 2000)),
}


@pytest.mark.parametrize("title", SIZES)
def test_mirror_with_a_blob_of_another_size_is_passed_over(
    title: str, proxy: Proxy, server: RegistryServer
) -> None:
    fault, (start, stop) = SIZES[title]
    proxy.fault(fault, times=None)
    with connect(server.address, mirrors=(f"http://{proxy.address}",)) as registry:
        assert read(registry.open_blob(DIGEST, start, stop, size=len(BLOB))) == BLOB[start:stop]
    assert len(proxy.of_blob()) == 1


def test_failures_of_mirrors_are_told_when_the_registry_fails_as_well(proxy: Proxy) -> None:
    proxy.fault(Fault(status=404, body=b'{"message": "not here"}'), when=is_manifest)
    mirrors = (f"http://{proxy.address}", "mirror.invalid")
    with connect("127.0.0.1:1", mirrors=mirrors) as registry, pytest.raises(RegistryError) as caught:
        registry.manifest("tag")
    assert str(caught.value) == "127.0.0.1:1/some/image: manifest tag: got 127.0.0.1:1: connection refused"
    assert caught.value.__notes__ == [
        f"mirror {proxy.address}/some/image: manifest tag: got 404 Not Found: not here",
        "mirror mirror.invalid/some/image: manifest tag: mirror.invalid: name or service not known",
    ]


def test_mirror_whose_bodies_break_is_given_up(proxy: Proxy, server: RegistryServer) -> None:
    proxy.fault(Fault(stop=1000), times=None)
    with connect(server.address, mirrors=(f"http://{proxy.address}",)) as registry:
        data, tries = b"", 0
        while len(data) < len(BLOB):
            tries += 1
            with registry.open_blob(DIGEST, len(data)) as body:
                buffer = memoryview(bytearray(1 << 20))
                with suppress(BrokenConnection):
                    while count := body.readinto(buffer):
                        data += buffer[:count]
    assert data == BLOB
    assert tries == 4


def test_mirror_gets_no_credentials_but_its_own(
    with_users: RegistryServer, proxy: Proxy, tmp_path: Path
) -> None:
    challenge = Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
    write_auths(tmp_path / ".docker/config.json", {with_users.address: (USER, PASSWORD)})
    proxy.fault(challenge, when=is_manifest, times=2)
    with connect(with_users.address, mirrors=(f"http://{proxy.address}",)) as registry:
        registry.manifest("tag")
    assert not any("authorization" in exchange.headers for exchange in proxy.exchanges)
    write_auths(
        tmp_path / ".docker/config.json", {with_users.address: (USER, PASSWORD), proxy.address: ("m", "n")}
    )
    with connect(with_users.address, mirrors=(f"http://{proxy.address}",)) as registry:
        registry.manifest("tag")
    assert [e.headers["authorization"] for e in proxy.exchanges if "authorization" in e.headers] == [
        "Basic bTpu"
    ]


@pytest.mark.parametrize(
    "mirror",
    ["", "user:secret@h.x", "http://user:secret@h.x", "ftp://h.x", "h.x/A", "https://", "h.x=", "a b"],
)
def test_mirror_that_is_none_is_refused(mirror: str) -> None:
    with pytest.raises(ImageError, match="mirror") as caught:
        connect("i.x", mirrors=(mirror,))
    assert "secret" not in str(caught.value)


# --- the end


@contextmanager
def running(work: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Do something in a thread, whose error is told."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield errors
    finally:
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.mark.parametrize("encrypted", [False, True])
def test_body_ends_when_the_registry_is_closed(
    encrypted: bool, server: RegistryServer, authority: Authority
) -> None:
    stall = Stall(after=1000)
    with Proxy(server.address, tls=tls(authority) if encrypted else None) as proxy:
        proxy.fault(Fault(stall=stall))
        registry = connect(proxy.address, ca_file=str(authority.ca_file), read_timeout_seconds=100)
        with registry.open_blob(DIGEST) as body, running(lambda: read(body)) as errors:
            stall.reached.wait()
            registry.close()
    [error] = errors
    assert isinstance(error, RegistryError)
    assert str(error) == f"{proxy.address}/some/image: blob {DIGEST}: closed"


@pytest.mark.parametrize("secure", [False, True])
def test_request_ends_when_the_registry_is_closed(secure: bool) -> None:
    """The server says nothing: to an HTTP request, or to a TLS handshake."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        registry = connect(
            "h.x",
            mirrors=(f"{'https' if secure else 'http'}://{address}",),
            read_timeout_seconds=100,
            connect_timeout_seconds=100,
        )
        with running(lambda: registry.manifest("tag")) as errors:
            connection, _ = silent.accept()
            assert connection.recv(10)
            registry.close()
        connection.close()
    assert [str(error) for error in errors] == [f"mirror {address}/some/image: closed"]


def test_connection_under_way_ends_when_the_registry_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as stack:
        address = full.getsockname()
        while True:  # until the queue of the listener is full, so that it answers no more
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0.05)
            try:
                waiting.connect(address)
            except TimeoutError:
                break
        registry = connect(f"127.0.0.1:{address[1]}", connect_timeout_seconds=100)
        with running(lambda: registry.manifest("tag")) as errors:
            wait_for(lambda: len(registry._transport._sockets._open) > 0)
            registry.close()
    assert [str(error).rpartition(": ")[2] for error in errors] == ["closed"]


def test_name_look_up_ends_when_the_registry_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = threading.Event(), threading.Event()
    known = socket.getaddrinfo

    def getaddrinfo(name: str, *arguments: Any, **options: Any) -> Any:
        if "flags" not in options:
            asked.set()
            answer.wait()
        return known(name, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    registry = connect("registry.invalid", connect_timeout_seconds=100)
    with running(lambda: registry.manifest("tag")) as errors:
        asked.wait()
        registry.close()
    answer.set()
    assert [str(error).rpartition(": ")[2] for error in errors] == ["closed"]
    with connect("registry.invalid", connect_timeout_seconds=0.05) as slow:
        answer.clear()
        with pytest.raises(RegistryError, match=r"name is not resolved within 0.05 s"):
            slow.manifest("tag")
        answer.set()


def test_closed_registry_answers_nothing(proxy: Proxy) -> None:
    registry = connect(proxy.address)
    registry.manifest("tag")
    registry.close()
    registry.close()
    asked = len(proxy.exchanges)
    for ask in (lambda: registry.manifest("tag"), lambda: registry.open_blob(DIGEST)):
        with pytest.raises(RegistryError, match="closed"):
            ask()
    assert len(proxy.exchanges) == asked


def test_registry_that_is_disconnected_connects_again(proxy: Proxy) -> None:
    with connect(proxy.address) as registry:
        manifest = registry.manifest("tag")
        registry.disconnect()
        assert registry.manifest(manifest.digest) == manifest


def test_local_images_load_no_http_library() -> None:
    program = "import sys, paralayer, paralayer.cli; assert not {'urllib3', 'http.client'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
