"""Downloads from a real registry, through a proxy that counts and misbehaves."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from paralayer.errors import ImageError, RegistryError
from paralayer.growing import Growing
from paralayer.registry.cache import BlobCache
from paralayer.registry.download import BlobRequest, Downloads
from paralayer.registry.segments import CHUNK, SEGMENT
from processes import PATIENCE, running, wait_for
from registries import serve_registry
from registry_blobs import connect, digest_of, push_blob, random_blob
from registry_proxy import Exchange, Fault, Proxy, Stall

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from paralayer.registry.client import Registry

pytestmark = pytest.mark.requires("docker-registry")

LARGE = random_blob(SEGMENT + 5_000_000, 1)
MEDIUM = random_blob(3_000_001, 2)
SMALL = random_blob(1, 3)
EMPTY = b""
BLOBS = [LARGE, SMALL, EMPTY, MEDIUM]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve_registry(tmp_path_factory.mktemp("registry")) as server:
        for data in BLOBS:
            push_blob(server.address, data)
        yield server.address


@pytest.fixture
def proxy(upstream: str) -> Iterator[Proxy]:
    with Proxy(upstream) as made:
        yield made


class Outcome:
    """What Downloads tells, and what it stores."""

    def __init__(self, blobs: Sequence[bytes], growing: Sequence[Growing]) -> None:
        self.blobs, self.growing = blobs, growing
        self.completed: list[int] = []
        self.errors: list[BaseException] = []

    def check(self) -> None:
        """Everything is there, and was told once."""
        assert not self.errors
        assert sorted(self.completed) == list(range(len(self.blobs)))
        for data, growing in zip(self.blobs, self.growing, strict=True):
            assert growing.complete
            assert growing.published == growing.size == len(data)
            assert os.pread(growing.fd, len(data), 0) == data


def in_memory(size: int, *, freed: bool = False) -> Growing:
    fd = os.memfd_create("blob")
    again: Callable[[], Growing] | None = (lambda: in_memory(size)) if freed else None
    return Growing(fd, size=size, wake=lambda: None, again=again)


@contextmanager
def downloading(
    registry: Registry,
    blobs: Sequence[bytes],
    *,
    cache: BlobCache | None = None,
    freed: bool = False,
    **options: Any,
) -> Iterator[tuple[Downloads, Outcome]]:
    """Fetch blobs, into memory or the cache, until the block ends; what is complete there is accepted."""
    with ExitStack() as stack:
        growing, requests = [], []
        for data in blobs:
            digest = digest_of(data)
            cached = stack.enter_context(cache.open(digest, len(data))) if cache else None
            if cached:
                growing.append(Growing(cached.open(), size=len(data), wake=lambda: None))
            else:
                growing.append(in_memory(len(data), freed=freed))
            stack.callback(growing[-1].release)
            requests.append(BlobRequest(digest, len(data), growing[-1], cached))
        outcome = Outcome(blobs, growing)

        def complete(index: int) -> None:
            if index < len(requests) and (cached := requests[index].cached):
                assert os.pread(growing[index].fd, len(blobs[index]), 0) == blobs[index]
                cached.accept()
            outcome.completed.append(index)

        options = {"connections": 4, "lead": None, **options}
        options |= {"on_complete": complete, "on_error": outcome.errors.append}
        with Downloads(registry, requests, **options) as downloads:
            yield downloads, outcome
        assert not [thread for thread in threading.enumerate() if thread.name == "download"]


def fetch(proxy: Proxy, blobs: Sequence[bytes], **options: Any) -> Outcome:
    """Fetch blobs to the end, and check what came."""
    with connect(proxy.address) as registry, downloading(registry, blobs, **options) as (downloads, outcome):
        downloads.wait()
        outcome.check()
    return outcome


def ranges(proxy: Proxy, data: bytes) -> list[tuple[int, int] | None]:
    """Return start and stop of each request for a blob, None for all of it."""
    found: list[tuple[int, int] | None] = []
    for exchange in proxy.of_blob(digest_of(data)):
        if exchange.range is None:
            found.append(None)
        else:
            start, _, last = exchange.range.removeprefix("bytes=").partition("-")
            found.append((int(start), int(last) + 1))
    return found


@pytest.mark.parametrize("connections", [1, 4])
def test_every_byte_is_fetched_once(proxy: Proxy, connections: int) -> None:
    fetch(proxy, BLOBS, connections=connections)
    assert proxy.bytes_of_blob() == sum(map(len, BLOBS))
    assert ranges(proxy, SMALL) == ranges(proxy, MEDIUM) == [None]
    assert ranges(proxy, EMPTY) == []
    parts = sorted(part for part in ranges(proxy, LARGE) if part)
    assert len(parts) > 2
    assert [0, *(stop for _, stop in parts)] == [*(start for start, _ in parts), len(LARGE)]


def test_one_connection_fetches_in_order(proxy: Proxy) -> None:
    blobs = [SMALL, LARGE, MEDIUM]
    fetch(proxy, blobs, connections=1)
    order = [exchange.blob for exchange in proxy.of_blob()]
    assert list(dict.fromkeys(order)) == [str(digest_of(data)) for data in blobs]
    starts = [part[0] for part in ranges(proxy, LARGE) if part]
    assert starts == sorted(starts)


def test_the_same_blob_may_be_wanted_several_times(proxy: Proxy, tmp_path: Path) -> None:
    fetch(proxy, [MEDIUM, SMALL, MEDIUM])
    proxy.forget()
    fetch(proxy, [MEDIUM, SMALL, MEDIUM], cache=BlobCache(str(tmp_path)))
    assert proxy.bytes_of_blob(digest_of(MEDIUM)) == len(MEDIUM)


def tail(exchange: Exchange) -> bool:
    return exchange.range is not None and not exchange.range.startswith("bytes=0-")


TRANSIENT: dict[str, dict[str, Any]] = {
    "an end in the middle": {"fault": Fault(stop=700_000), "times": 3},
    "a reset in the middle": {"fault": Fault(stop=700_000, reset=True), "times": 3},
    "an end before the body": {"fault": Fault(stop=0), "times": 2},
    "a reset in the middle of later parts": {"fault": Fault(stop=99, reset=True), "times": 4, "when": tail},
    "503": {"fault": Fault(status=503), "times": 2},
    "429": {"fault": Fault(status=429, headers={"Retry-After": "0"}), "times": 2},
}


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT.keys())
def test_what_breaks_goes_on_from_where_it_was(proxy: Proxy, fault: dict[str, Any]) -> None:
    proxy.fault(**fault)
    fetch(proxy, [LARGE, MEDIUM])
    # What was sent and not received yet when a connection was reset is fetched twice.
    assert proxy.bytes_of_blob() <= len(LARGE) + len(MEDIUM) + fault["times"] * 700_000
    if not fault["fault"].reset:
        assert proxy.bytes_of_blob() == len(LARGE) + len(MEDIUM)


def test_a_body_that_always_breaks_gets_done_as_long_as_bytes_come(proxy: Proxy) -> None:
    proxy.fault(Fault(stop=100_000), times=None)
    fetch(proxy, [MEDIUM], connections=1)
    assert proxy.bytes_of_blob() == len(MEDIUM)
    assert len(proxy.of_blob()) == 31


FINAL: dict[str, tuple[Fault, str]] = {
    "not found": (Fault(status=404), "404"),
    "longer": (Fault(headers={"Content-Length": "3000002"}, append=b"x"), "size"),
    "shorter": (Fault(truncate=1_000_000), "size"),
    "nothing but broken connections": (Fault(stop=0), "3 times in a row"),
    "nothing but 503": (Fault(status=503), "503"),
}


@pytest.mark.parametrize(("fault", "message"), FINAL.values(), ids=FINAL.keys())
def test_what_does_not_get_better_is_one_error(proxy: Proxy, fault: Fault, message: str) -> None:
    proxy.fault(fault, times=None, when=lambda e: e.blob == str(digest_of(MEDIUM)))
    with connect(proxy.address) as registry, downloading(registry, [SMALL, MEDIUM]) as (downloads, outcome):
        with pytest.raises(RegistryError, match=message) as caught:
            downloads.wait()
        wait_for(lambda: outcome.errors)
        assert outcome.errors == [caught.value]
        assert 1 not in outcome.completed
        assert "\n" not in str(caught.value)


def test_a_mirror_that_has_another_blob_is_passed_over(upstream: str, proxy: Proxy) -> None:
    proxy.fault(Fault(truncate=1_000_000), times=None)
    with (
        connect(upstream, mirrors=(f"http://{proxy.address}",)) as registry,
        downloading(registry, [MEDIUM, SMALL]) as (downloads, outcome),
    ):
        downloads.wait()
        outcome.check()
    assert len(proxy.of_blob()) == 2


def test_a_range_that_was_not_asked_for_is_an_error(proxy: Proxy) -> None:
    proxy.fault(Fault(headers={"Content-Range": f"bytes 1-{SEGMENT}/{len(LARGE)}"}), times=None)
    with (
        connect(proxy.address) as registry,
        downloading(registry, [LARGE]) as (downloads, _),
        pytest.raises(RegistryError),
    ):
        downloads.wait()


@pytest.mark.parametrize(("lead", "connections"), [(None, 1), (None, 4), (1 << 20, 4)])
def test_a_registry_without_ranges_sends_each_blob_once(
    proxy: Proxy, lead: int | None, connections: int
) -> None:
    blobs = [LARGE, SMALL, MEDIUM]
    proxy.fault(Fault(ignore_range=True), times=None)
    with (
        connect(proxy.address) as registry,
        reading(registry, blobs, lead=lead, connections=connections) as got,
    ):
        assert got == blobs
    assert sorted((e.blob, e.sent) for e in proxy.of_blob()) == sorted(
        (str(digest_of(data)), len(data)) for data in blobs
    )


def test_a_registry_without_ranges_sends_what_is_had_once_more(proxy: Proxy) -> None:
    proxy.fault(Fault(ignore_range=True, stop=5_000_000))
    proxy.fault(Fault(ignore_range=True), times=None)
    fetch(proxy, [LARGE], connections=1)
    assert proxy.bytes_of_blob() == len(LARGE) + 5_000_000


def test_a_range_that_is_not_known_any_more_does_not_spoil_what_is_had(proxy: Proxy) -> None:
    proxy.fault(Fault(ignore_range=True), when=tail, times=None)
    fetch(proxy, [LARGE])


def test_another_host_that_has_the_blobs_is_followed(upstream: str, proxy: Proxy) -> None:
    with Proxy(upstream, host="127.0.0.2") as other:
        proxy.fault(Fault(redirect=other.url), times=None)
        fetch(proxy, [LARGE, SMALL])
        assert other.bytes_of_blob() == len(LARGE) + len(SMALL)
        assert not [e for e in other.exchanges if "authorization" in e.headers]
    assert proxy.bytes_of_blob() == 0


# Readers


@contextmanager
def reading(
    registry: Registry, blobs: Sequence[bytes], *, jobs: int = 2, **options: Any
) -> Iterator[list[bytes]]:
    """Fetch blobs while as many threads as `jobs` read them, in order and to their ends."""
    with downloading(registry, blobs, freed=True, **options) as (downloads, outcome):
        got = [b""] * len(blobs)
        waiting = deque(range(len(blobs)))  # its pop is atomic

        def read() -> None:
            with suppress(IndexError):
                while True:
                    index = waiting.popleft()
                    got[index] = b"".join(parts_of(outcome.growing[index]))

        threads = [threading.Thread(target=read) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        downloads.wait()
        yield got


def parts_of(growing: Growing) -> Iterator[bytes]:
    """Read a blob as the engine does, in steps that are no multiple of anything."""
    step = 100_000
    growing.follow()
    at = 0
    while True:
        while not growing.want(at + step):
            with growing._changed:
                growing._changed.wait_for(lambda: growing.wanted is None, PATIENCE)
        size = min(step, growing.published - at)
        if not size:
            break
        yield os.pread(growing.fd, size, at)
        at += size
        growing.consume(at)
    growing.leave()


@pytest.mark.parametrize("lead", [0, 1 << 20, 64 << 20])
def test_readers_get_all_of_it_whatever_the_lead(proxy: Proxy, lead: int) -> None:
    blobs = [MEDIUM, SMALL, EMPTY, LARGE, MEDIUM]
    with connect(proxy.address) as registry, reading(registry, blobs, lead=lead) as got:
        assert got == blobs
    assert proxy.bytes_of_blob() == sum(map(len, blobs))


def test_nothing_is_fetched_beyond_the_lead_until_a_reader_begins(proxy: Proxy) -> None:
    lead = 2 << 20
    with connect(proxy.address) as registry:
        with downloading(registry, [LARGE, MEDIUM], lead=lead) as (_, outcome):
            growing, other = outcome.growing
            wait_for(lambda: growing.published + other.published == lead)
            before = other.published
            other.follow()
            assert not other.want(before + 1)
            wait_for(lambda: other.published > before)
            assert growing.published + before == lead
            growing.follow()
            growing.consume(1_000_000)
            wait_for(lambda: growing.published + before > lead)
        assert not outcome.errors
        assert not outcome.completed


def test_a_blob_can_be_fetched_again_while_others_are_on_their_way(proxy: Proxy) -> None:
    stall = Stall(after=0)
    proxy.fault(Fault(stall=stall), when=lambda e: e.blob == str(digest_of(MEDIUM)))
    with connect(proxy.address) as registry:
        with downloading(registry, [SMALL, MEDIUM, LARGE], connections=2) as (
            downloads,
            outcome,
        ):
            wait_for(lambda: 2 in outcome.completed)
            again = in_memory(len(SMALL))
            assert downloads.add(BlobRequest(digest_of(SMALL), len(SMALL), again), first=True) == 3
            wait_for(lambda: again.complete)
            assert os.pread(again.fd, 10, 0) == SMALL
            stall.go_on.set()
            wait_for(lambda: outcome.growing[1].complete)
        again.release()


# Ends


def test_closing_ends_what_stands_still(proxy: Proxy) -> None:
    stalls = [Stall(after=10), Stall(after=10)]
    for stall in stalls:
        proxy.fault(Fault(stall=stall))
    with connect(proxy.address) as registry:
        with downloading(registry, [MEDIUM, LARGE], connections=2) as (_, outcome):
            for stall in stalls:
                assert stall.reached.wait(PATIENCE)
        assert not outcome.errors
        assert not outcome.completed


def test_an_error_ends_what_stands_still(proxy: Proxy) -> None:
    stall = Stall(after=10)
    proxy.fault(Fault(stall=stall), when=lambda e: e.blob == str(digest_of(LARGE)))

    proxy.fault(Fault(status=404), when=lambda e: e.blob == str(digest_of(MEDIUM)))
    with connect(proxy.address) as registry, downloading(registry, [LARGE, MEDIUM]) as (downloads, outcome):
        with pytest.raises(RegistryError):
            downloads.wait()
        wait_for(lambda: not [t for t in threading.enumerate() if t.name == "download"])
        assert len(outcome.errors) == 1


def test_what_cannot_be_stored_is_an_error(proxy: Proxy) -> None:
    read_only = os.open("/dev/null", os.O_RDONLY)
    growing = Growing(read_only, size=len(MEDIUM), wake=lambda: None)
    errors: list[BaseException] = []
    with connect(proxy.address) as registry:
        request = BlobRequest(digest_of(MEDIUM), len(MEDIUM), growing)
        with (
            Downloads(
                registry, [request], connections=1, lead=None, on_complete=print, on_error=errors.append
            ) as downloads,
            pytest.raises(ImageError, match="Bad file descriptor"),
        ):
            downloads.wait()
    growing.release()


# The cache, and other processes

FETCHER = """
import sys, test_registry_download as this
from pathlib import Path
from paralayer.registry.cache import BlobCache
from registry_blobs import connect
blobs = [getattr(this, name) for name in sys.argv[3:]]
with connect(sys.argv[1]) as registry:
    with this.downloading(registry, blobs, cache=BlobCache(sys.argv[2])) as (downloads, outcome):
        downloads.wait()
        outcome.check()
print("done", flush=True)
"""


@contextmanager
def fetcher(proxy: Proxy, cache: Path, *names: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start another process that fetches blobs into the cache."""
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    command = [sys.executable, "-c", FETCHER, proxy.address, str(cache), *names]
    with running(command, env={**os.environ, "PYTHONPATH": path}) as process:
        yield process


def cached_bytes(cache: Path, data: bytes) -> int:
    with BlobCache(str(cache)).open(digest_of(data), len(data)) as cached:
        return sum(stop - start for start, stop in cached.present)


def names_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_a_cache_keeps_what_was_complete_and_what_was_not_when_its_process_is_killed(
    proxy: Proxy, tmp_path: Path
) -> None:
    stall = Stall(after=1_000_000)
    proxy.fault(Fault(stall=stall), when=tail, skip=1)
    with fetcher(proxy, tmp_path, "MEDIUM", "SMALL", "LARGE") as process:
        assert stall.reached.wait(PATIENCE)
        # Everything but what stands still has come, and lies in the cache.
        held = [e for e in proxy.of_blob(digest_of(LARGE)) if not e.ended.is_set()]
        wait_for(lambda: [e for e in proxy.of_blob() if not e.ended.is_set()] == held or process.poll())
        wait_for(lambda: digest_of(MEDIUM).encoded in names_in(tmp_path))
        process.kill()
        process.wait()
    proxy.heal()
    stall.go_on.set()
    before = cached_bytes(tmp_path, LARGE)
    assert 1_000_000 <= before < len(LARGE)
    proxy.forget()
    fetch(proxy, [MEDIUM, SMALL, LARGE], cache=BlobCache(str(tmp_path)))
    assert not proxy.of_blob(digest_of(MEDIUM))
    assert not proxy.of_blob(digest_of(SMALL))
    assert proxy.bytes_of_blob(digest_of(LARGE)) == len(LARGE) - before
    proxy.forget()
    fetch(proxy, [MEDIUM, SMALL, LARGE], cache=BlobCache(str(tmp_path)))
    assert not proxy.exchanges
    assert names_in(tmp_path) == sorted(digest_of(data).encoded for data in (MEDIUM, SMALL, LARGE))


def test_a_blob_that_two_processes_want_is_fetched_once(proxy: Proxy, tmp_path: Path) -> None:
    stall = Stall(after=1_000_000)
    proxy.fault(Fault(stall=stall))
    cache = BlobCache(str(tmp_path))
    with fetcher(proxy, tmp_path, "MEDIUM") as process:
        assert stall.reached.wait(PATIENCE)
        with (
            connect(proxy.address) as registry,
            downloading(registry, [MEDIUM, SMALL], cache=cache) as (downloads, outcome),
        ):
            wait_for(lambda: outcome.growing[0].published >= 1_000_000 - CHUNK)
            stall.go_on.set()
            downloads.wait()
            outcome.check()
        assert process.wait(PATIENCE) == 0
    assert proxy.bytes_of_blob(digest_of(MEDIUM)) == len(MEDIUM)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_blob_is_fetched_here_when_the_process_that_had_it_is_no_use_any_more(
    proxy: Proxy, tmp_path: Path, how: signal.Signals
) -> None:
    stall = Stall(after=1_000_000)
    proxy.fault(Fault(stall=stall))
    cache = BlobCache(str(tmp_path))
    with fetcher(proxy, tmp_path, "MEDIUM") as process:
        assert stall.reached.wait(PATIENCE)
        wait_for(lambda: cached_bytes(tmp_path, MEDIUM) >= 1_000_000 - CHUNK)
        before = cached_bytes(tmp_path, MEDIUM)
        (first,) = proxy.of_blob()
        with (
            connect(proxy.address) as registry,
            downloading(registry, [MEDIUM], cache=cache, patience_seconds=0.2) as (downloads, outcome),
        ):
            process.send_signal(how)
            downloads.wait()
            outcome.check()
        assert proxy.bytes_of_blob() - first.sent == len(MEDIUM) - before
        stall.go_on.set()
        if how is signal.SIGSTOP:
            process.send_signal(signal.SIGCONT)
            assert process.wait(PATIENCE) == 0
    assert names_in(tmp_path) == [digest_of(MEDIUM).encoded]
