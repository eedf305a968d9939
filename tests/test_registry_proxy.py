"""The proxy of the tests: what it says of itself is what clients see."""

from __future__ import annotations

import http.client
import time
from typing import TYPE_CHECKING

import pytest

from processes import wait_for
from registries import serve_registry
from registry_blobs import REPOSITORY, push_blob, random_blob
from registry_proxy import Exchange, Fault, Proxy, Stall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from paralayer.image.descriptor import Digest

pytestmark = pytest.mark.requires("docker-registry")
BLOB = random_blob(1_000_000, 1)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server.address


@pytest.fixture
def proxy(upstream: str) -> Iterator[Proxy]:
    with Proxy(upstream) as made:
        yield made


@pytest.fixture(scope="module")
def digest(upstream: str) -> Digest:
    return push_blob(upstream, BLOB)


class Answer:
    def __init__(self, proxy: Proxy, digest: object, headers: dict[str, str] | None = None) -> None:
        connection = http.client.HTTPConnection(proxy.address)
        try:
            connection.request("GET", f"/v2/{REPOSITORY}/blobs/{digest}", headers=headers or {})
            answer = connection.getresponse()
            self.status, self.headers = answer.status, answer.headers
            self.length = answer.length
            self.error: type[Exception] | None = None
            parts = []
            try:
                while part := answer.read1(1 << 16):
                    parts.append(part)
            except OSError as error:
                self.error = type(error)
            self.body = b"".join(parts)
        finally:
            connection.close()


def test_what_passes_is_counted(proxy: Proxy, digest: Digest) -> None:
    assert Answer(proxy, digest).body == BLOB
    part = Answer(proxy, digest, {"Range": "bytes=10-19", "Authorization": "none"})
    assert (part.status, part.body) == (206, BLOB[10:20])
    other = Answer(proxy, "sha256:" + "0" * 64)
    assert other.status == 404
    assert proxy.bytes_of_blob(digest) == proxy.bytes_of_blob() == len(BLOB) + 10
    assert [(e.range, e.status, e.sent) for e in proxy.of_blob(digest)] == [
        (None, 200, len(BLOB)),
        ("bytes=10-19", 206, 10),
    ]
    assert proxy.exchanges[1].headers["authorization"] == "none"
    proxy.forget()
    assert proxy.bytes_of_blob() == 0


def flipped(at: int) -> bytes:
    return BLOB[:at] + bytes([BLOB[at] ^ 1]) + BLOB[at + 1 :]


FAULTS: dict[str, tuple[Fault, dict[str, str], Callable[[Answer], bool]]] = {
    "429": (
        Fault(status=429, headers={"Retry-After": "7"}, body=b"slowly"),
        {},
        lambda a: (a.status, a.headers["Retry-After"], a.body) == (429, "7", b"slowly"),
    ),
    "a body that ends early": (
        Fault(stop=500_000),
        {},
        lambda a: (a.length, a.body, a.error) == (len(BLOB), BLOB[:500_000], None),
    ),
    "a connection that is reset": (
        Fault(stop=500_000, reset=True),
        {},
        lambda a: a.error is ConnectionResetError and BLOB.startswith(a.body),
    ),
    "a shorter blob": (
        Fault(truncate=5),
        {},
        lambda a: (a.length, a.body) == (5, BLOB[:5]),
    ),
    "a wrong length": (
        Fault(headers={"Content-Length": "1000001"}),
        {},
        lambda a: (a.length, a.body) == (len(BLOB) + 1, BLOB),
    ),
    "more than was announced": (
        Fault(append=b"more", headers={"Content-Length": "1000004"}),
        {},
        lambda a: a.body == BLOB + b"more",
    ),
    "a flipped bit": (Fault(flip=123_456), {}, lambda a: a.body == flipped(123_456)),
    "a flipped bit in a part": (
        Fault(flip=123_456),
        {"Range": "bytes=123400-123499"},
        lambda a: a.body == flipped(123_456)[123_400:123_500],
    ),
    "a range that is ignored": (
        Fault(ignore_range=True),
        {"Range": "bytes=5-9"},
        lambda a: (a.status, a.body) == (200, BLOB),
    ),
    "a wrong Content-Range": (
        Fault(headers={"Content-Range": "bytes 6-10/1000000"}),
        {"Range": "bytes=5-9"},
        lambda a: (a.headers["Content-Range"], a.body) == ("bytes 6-10/1000000", BLOB[5:10]),
    ),
    "somewhere else": (
        Fault(redirect="http://other.test"),
        {},
        lambda a: (
            a.status == 307 and a.headers["Location"].startswith(f"http://other.test/v2/{REPOSITORY}/blobs/")
        ),
    ),
}


@pytest.mark.parametrize(("fault", "headers", "holds"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_seen_once_and_then_all_is_well(
    proxy: Proxy, digest: Digest, fault: Fault, headers: dict[str, str], holds: Callable[[Answer], bool]
) -> None:
    proxy.fault(fault)
    faulty = Answer(proxy, digest, headers)
    assert holds(faulty), (faulty.status, faulty.length, len(faulty.body), faulty.error)
    assert Answer(proxy, digest).body == BLOB


def test_a_stalled_body_goes_on_when_it_is_told(proxy: Proxy, digest: Digest) -> None:
    stall = Stall(after=1000)
    proxy.fault(Fault(stall=stall))
    connection = http.client.HTTPConnection(proxy.address)
    connection.request("GET", f"/v2/{REPOSITORY}/blobs/{digest}")
    answer = connection.getresponse()
    assert answer.read(1000) == BLOB[:1000]
    assert stall.reached.wait(10)
    assert proxy.bytes_of_blob(digest) == 1000
    stall.go_on.set()
    assert answer.read() == BLOB[1000:]
    connection.close()


def test_faults_are_used_up_in_order_by_the_requests_that_they_are_for(proxy: Proxy, digest: Digest) -> None:
    def ranged(exchange: Exchange) -> bool:
        return exchange.range is not None

    proxy.fault(Fault(status=503), when=ranged, times=2, skip=1)
    part = {"Range": "bytes=0-0"}
    got = [Answer(proxy, digest, headers).status for headers in (part, {}, part, {}, part, part)]
    assert got == [206, 200, 503, 200, 503, 206]


def test_a_rate_holds_for_all_connections_together(proxy: Proxy, digest: Digest) -> None:
    proxy.pace.rate = 10e6
    began = time.monotonic()
    first = Stall(after=0)  # two at the same time
    proxy.fault(Fault(stall=first))
    connection = http.client.HTTPConnection(proxy.address)
    connection.request("GET", f"/v2/{REPOSITORY}/blobs/{digest}")
    first.go_on.set()
    assert Answer(proxy, digest).body == BLOB
    assert connection.getresponse().read() == BLOB
    connection.close()
    seconds = time.monotonic() - began
    # never faster; the time of the last chunk is that of who comes next, and of some slack
    assert 2 * len(BLOB) / seconds < 10e6 * 1.2


def test_close_ends_what_is_on_its_way(upstream: str, digest: Digest) -> None:
    stall = Stall(after=10)
    with Proxy(upstream) as proxy:
        proxy.fault(Fault(stall=stall))
        connection = http.client.HTTPConnection(proxy.address)
        connection.request("GET", f"/v2/{REPOSITORY}/blobs/{digest}")
        wait_for(stall.reached.is_set)
    assert connection.getresponse().read1(100) == BLOB[:10]
    connection.close()
