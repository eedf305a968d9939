"""A reverse proxy in front of a real registry: it counts what it passes on, and misbehaves on command.

It speaks HTTP/1.1 on loopback, a thread for each connection. A body is spliced from socket to socket, so that it costs
next to no CPU; `rate` limits the bytes of bodies per second over all connections together. What it does to an answer
is a `Fault`; one that matches several requests is used up in the order in which they come.

As a program of its own: ``python tests/registry_proxy.py HOST:PORT --rate 50`` (MB/s) prints its own address.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import signal
import socket
import ssl
import struct
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CHUNK = 128 << 10  # bytes that pass at once: 2.6 ms at 50 MB/s
SLACK_SECONDS = 0.02  # how much a sleep that lasted too long may be made up for
NO_BODY = (204, 304)
HEAD_LIMIT = 64 << 10


@dataclass(eq=False)
class Stall:
    """A body stops at this offset until somebody sets `go_on`; `reached` tells that it did."""

    after: int
    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is done to one answer. Offsets count from the start of its body, but for `flip`."""

    status: int | None = None
    """Answer this at once, with `body`, and do not ask the registry."""
    body: bytes = b""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    """Set in the answer, or left out of it where None; Content-Length and Content-Range may be lies."""
    redirect: str | None = None
    """Send the client to this URL, with the path of the request behind it."""
    ignore_range: bool = False
    """Ask the registry for all of it."""
    truncate: int | None = None
    """Leave out the body from there on, and announce the shorter one."""
    append: bytes = b""
    """Sent behind the body, and not announced."""
    flip: int | None = None
    """Change a bit of the byte at this offset of the blob, if it passes."""
    stop: int | None = None
    """End the connection there, by a FIN, or by an RST with `reset`."""
    reset: bool = False
    stall: Stall | None = None
    rate: float | None = None
    """Bytes per second of this answer alone."""


NONE = Fault()


@dataclass
class Exchange:
    """A request, and what became of it."""

    method: str
    target: str
    headers: dict[str, str]
    """With names in lower case."""
    status: int = 0
    sent: int = 0
    """Bytes of the body that were given to the client's socket."""
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def blob(self) -> str | None:
        """The digest that is asked for, None if it is no request for a blob."""
        _, found, digest = self.target.partition("?")[0].rpartition("/blobs/")
        return digest if found else None

    @property
    def range(self) -> str | None:
        """The Range header."""
        return self.headers.get("range")


def any_blob(exchange: Exchange) -> bool:
    """Match the bodies of blobs."""
    return exchange.blob is not None and exchange.method == "GET"


@dataclass
class _Rule:
    fault: Fault
    when: Callable[[Exchange], bool]
    times: int | None
    skip: int


class Pace:
    """A rate that all who pass share; who comes in time gets the next place in the queue."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        """Bytes per second, None for any."""
        self._free = 0.0
        self._lock = threading.Lock()

    def delay(self, count: int) -> float:
        """Return the seconds to wait before `count` bytes pass; their time is reserved."""
        if self.rate is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now - SLACK_SECONDS)
            begin = self._free
            self._free += count / self.rate
            return max(0.0, begin - now)


class Proxy:
    """The proxy, at work until `close`; a context manager.

    `upstream` is HOST:PORT of a registry that speaks plain HTTP. `upstream_headers` are set in what goes there, so that
    a host to which a client is redirected has credentials of its own. With `tls` the proxy itself speaks HTTPS.
    """

    def __init__(
        self,
        upstream: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        rate: float | None = None,
        tls: ssl.SSLContext | None = None,
        upstream_headers: Mapping[str, str] | None = None,
    ) -> None:
        self.pace = Pace(rate)
        self.exchanges: list[Exchange] = []
        """Everything that was asked, in the order in which it came."""
        self._upstream = (upstream.rpartition(":")[0], int(upstream.rpartition(":")[2]))
        self._upstream_headers = dict(upstream_headers or {})
        self._tls = tls
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((host, port), backlog=128)
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        """HOST:PORT"""
        self._accepting = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The root of the proxy, without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://{self.address}"

    def fault(
        self,
        fault: Fault,
        *,
        when: Callable[[Exchange], bool] = any_blob,
        times: int | None = 1,
        skip: int = 0,
    ) -> None:
        """Do this to the next `times` (None: all) requests that match, after the first `skip` of them."""
        with self._lock:
            self._rules.append(_Rule(fault, when, times, skip))

    def heal(self) -> None:
        """Forget the faults that were not used up."""
        with self._lock:
            self._rules.clear()

    def forget(self) -> None:
        """Start to count anew."""
        with self._lock:
            self.exchanges.clear()

    def of_blob(self, digest: object = None) -> list[Exchange]:
        """Return the GET requests for a blob, or for any."""
        with self._lock:
            return [e for e in self.exchanges if any_blob(e) and (digest is None or e.blob == str(digest))]

    def bytes_of_blob(self, digest: object = None) -> int:
        """Return how many bytes of a blob, or of all blobs, were sent."""
        return sum(e.sent for e in self.of_blob(digest) if e.status in (200, 206))

    def close(self) -> None:
        """End all connections, and wait for the threads."""
        self._closing.set()
        _shut(self._listener)
        self._accepting.join()
        self._listener.close()
        with self._lock:
            for rule in self._rules:
                if rule.fault.stall:
                    rule.fault.stall.go_on.set()
            for connection in self._sockets:
                _shut(connection)
            threads = self._threads[:]
        for thread in threads:
            thread.join()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            thread = threading.Thread(target=self._serve, args=(client,), name="proxied", daemon=True)
            with self._lock:
                self._sockets.add(client)
                self._threads = [t for t in self._threads if t.is_alive()]
                self._threads.append(thread)
            thread.start()

    def _serve(self, accepted: socket.socket) -> None:
        connection = accepted
        try:
            if self._tls:
                connection = self._tls.wrap_socket(accepted, server_side=True)
                with self._lock:
                    self._sockets.remove(accepted)
                    self._sockets.add(connection)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            rest = b""
            while not self._closing.is_set():
                head, rest = _read_head(connection, rest)
                if not head:
                    return
                line, headers = _parse_head(head)
                method, target, _ = line.split(" ", 2)
                exchange = Exchange(method, target, {name.lower(): text for name, text in headers})
                with self._lock:
                    self.exchanges.append(exchange)
                    fault = self._choose(exchange)
                try:
                    if not self._answer(connection, exchange, headers, fault):
                        return
                finally:
                    exchange.ended.set()
        except OSError:  # the client went away, or `close` came
            pass
        finally:
            with self._lock:
                self._sockets.discard(connection)
                self._sockets.discard(accepted)
            connection.close()

    def _choose(self, exchange: Exchange) -> Fault:
        for rule in self._rules:
            if rule.times == 0 or not rule.when(exchange):
                continue
            if rule.skip:
                rule.skip -= 1
                continue
            if rule.times is not None:
                rule.times -= 1
            return rule.fault
        return NONE

    def _answer(
        self, client: socket.socket, exchange: Exchange, headers: list[tuple[str, str]], fault: Fault
    ) -> bool:
        """Answer one request; say whether the connection can be used for another one."""
        if fault.redirect is not None or fault.status is not None:
            exchange.status = fault.status or 307
            answer = [("Content-Length", str(len(fault.body)))]
            if fault.redirect is not None:
                answer.append(("Location", fault.redirect + exchange.target))
            client.sendall(_head(exchange.status, _changed(answer, fault.headers)) + fault.body)
            exchange.sent = len(fault.body)
            return True
        with ExitStack() as stack:
            try:
                upstream = stack.enter_context(socket.create_connection(self._upstream))
            except OSError:
                exchange.status = 502
                client.sendall(_head(502, [("Content-Length", "0")]))
                return True
            with self._lock:
                self._sockets.add(upstream)
            stack.callback(self._forget_socket, upstream)
            changes: dict[str, str | None] = {"Connection": "close", **self._upstream_headers}
            if fault.ignore_range:
                changes["Range"] = None
            upstream.sendall(
                _head(f"{exchange.method} {exchange.target} HTTP/1.1", _changed(headers, changes))
            )
            return self._relay(client, upstream, exchange, fault)

    def _relay(
        self, client: socket.socket, upstream: socket.socket, exchange: Exchange, fault: Fault
    ) -> bool:
        head, rest = _read_head(upstream, b"")
        if not head:
            raise ConnectionError
        line, answer = _parse_head(head)
        exchange.status = int(line.split(" ")[1])
        fields = {name.lower(): text for name, text in answer}
        length = int(fields.get("content-length", "0"))
        if exchange.method == "HEAD" or exchange.status in NO_BODY:
            length = 0
        else:
            assert "content-length" in fields, f"an answer of unknown length to {exchange.target}"
        if fault.truncate is not None:
            length = min(length, fault.truncate)
            answer = _changed(answer, {"Content-Length": str(length)})
        answer = _changed(answer, {"Connection": None, **fault.headers})
        client.sendall(_head(exchange.status, answer))
        begin = re.match(r"bytes (\d+)-", fields.get("content-range", ""))
        flow = _Flow(
            client,
            upstream,
            exchange,
            (self.pace, Pace(fault.rate)),
            self._closing,
            start=int(begin[1]) if begin else 0,
        )
        with flow:
            end = length if fault.stop is None else min(length, fault.stop)
            if fault.stall is not None and fault.stall.after <= end:
                rest = flow.pass_on(rest, fault.stall.after, fault.flip)
                fault.stall.reached.set()
                fault.stall.go_on.wait()
                if self._closing.is_set():
                    raise ConnectionError
            flow.pass_on(rest, end, fault.flip)
        if fault.stop is not None:
            if fault.reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        client.sendall(fault.append)
        exchange.sent += len(fault.append)
        announced = {name.lower(): text for name, text in answer}.get("content-length", "0")
        return exchange.method == "HEAD" or int(announced) == exchange.sent

    def _forget_socket(self, upstream: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(upstream)


class _Flow:
    """A body on its way, through a pipe, so that its bytes never come here."""

    def __init__(
        self,
        client: socket.socket,
        upstream: socket.socket,
        exchange: Exchange,
        paces: tuple[Pace, Pace],
        closing: threading.Event,
        *,
        start: int,
    ) -> None:
        self._client, self._upstream, self._exchange = client, upstream, exchange
        self._paces, self._closing, self._start = paces, closing, start
        self._out, self._in = os.pipe()
        fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, 1 << 20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        os.close(self._in)

    def pass_on(self, rest: bytes, end: int, flip: int | None) -> bytes:
        """Send the body before the offset `end`, of which `rest` was received already; return what is left of that."""
        exchange = self._exchange
        wrong = -1 if flip is None else flip - self._start
        while exchange.sent < end:
            limit = min(CHUNK, end - exchange.sent)
            if exchange.sent < wrong:
                limit = min(limit, wrong - exchange.sent)
            elif exchange.sent == wrong:
                limit = 1
            if not rest and exchange.sent != wrong and not isinstance(self._client, ssl.SSLSocket):
                self._splice(limit)
                continue
            data, rest = (rest[:limit], rest[limit:]) if rest else (self._upstream.recv(limit), b"")
            if not data:
                raise ConnectionError
            if exchange.sent == wrong:
                data = bytes([data[0] ^ 1])
            self._wait(len(data))
            self._client.sendall(data)
            exchange.sent += len(data)
        return rest

    def _splice(self, limit: int) -> None:
        count = os.splice(self._upstream.fileno(), self._in, limit)
        if not count:
            raise ConnectionError
        self._wait(count)
        while count:
            passed = os.splice(self._out, self._client.fileno(), count)
            count -= passed
            self._exchange.sent += passed

    def _wait(self, count: int) -> None:
        delay = max(pace.delay(count) for pace in self._paces)
        if delay and self._closing.wait(delay):
            raise ConnectionError


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # not connected any more
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _read_head(connection: socket.socket, rest: bytes) -> tuple[bytes, bytes]:
    """Return a head, empty at the end of the connection, and what came behind it."""
    while b"\r\n\r\n" not in rest:
        data = connection.recv(HEAD_LIMIT)
        if not data or len(rest) > HEAD_LIMIT:
            return b"", b""
        rest += data
    head, _, rest = rest.partition(b"\r\n\r\n")
    return head, rest


def _parse_head(head: bytes) -> tuple[str, list[tuple[str, str]]]:
    line, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, text.strip()) for name, _, text in (field.partition(":") for field in lines)]
    return line, headers


def _changed(headers: list[tuple[str, str]], changes: Mapping[str, str | None]) -> list[tuple[str, str]]:
    names = {name.lower() for name in changes}
    kept = [(name, text) for name, text in headers if name.lower() not in names]
    return kept + [(name, text) for name, text in changes.items() if text is not None]


def _head(line: str | int, headers: list[tuple[str, str]]) -> bytes:
    """Return the head of a request, or of an answer of this status."""
    if isinstance(line, int):
        line = f"HTTP/1.1 {line} Proxied"
    return "\r\n".join([line, *(f"{name}: {text}" for name, text in headers), "", ""]).encode("latin-1")


def main() -> None:
    parser = argparse.ArgumentParser(description="A proxy of limited rate in front of a registry.")
    parser.add_argument("upstream", metavar="HOST:PORT")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--rate", type=float, metavar="MB/S")
    options = parser.parse_args()
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    rate = options.rate and options.rate * 1e6
    with Proxy(options.upstream, port=options.port, rate=rate) as proxy:
        print(proxy.address, flush=True)
        signal.sigwait(signals)


if __name__ == "__main__":
    main()
