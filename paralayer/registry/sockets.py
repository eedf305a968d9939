"""Connections that another thread can end, whatever they are doing: resolving, connecting, shaking hands, reading.

urllib3's own connections leave no way to that before the head of the answer came, and know no limit for all of it.
"""

from __future__ import annotations

import http.client
import io
import os
import queue
import socket
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from paralayer.image.descriptor import shown
from paralayer.registry.access import Unreachable

if TYPE_CHECKING:
    from collections.abc import Iterable


class Sockets:
    """All sockets that are open, so that `close` reaches those that other threads wait for."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._asking: set[queue.SimpleQueue[_Answer]] = set()

    def add(self, connection: socket.socket) -> None:
        """Note a socket that is going to be connected or to be read."""
        with self._lock:
            if self.closed.is_set():
                raise Unreachable("closed")
            self._open.add(connection)

    def close(self) -> None:
        """End all of them; there will be no others."""
        with self._lock:
            self.closed.set()
            for answer in self._asking:
                answer.put(Unreachable("closed"))
            for connection in self._open:
                with suppress(OSError):  # not connected any more
                    # not SSLSocket's, which takes the TLS layer from under the thread that reads
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def connect(self, host: str, port: int, timeout_seconds: float, options: Iterable[Any]) -> socket.socket:
        """Return a connection to the first of the host's addresses that accepts it."""
        deadline = time.monotonic() + timeout_seconds
        name = f"{shown(host)}:{port}"
        addresses = self._resolve(host, port, timeout_seconds)
        failure = "no address"
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            connection = socket.socket(family, kind, protocol)
            try:
                self.add(connection)
                for option in options:
                    connection.setsockopt(*option)
                connection.settimeout(max(0.1, (deadline - time.monotonic()) / (len(addresses) - number)))
                connection.connect(address)
            except OSError as error:
                connection.close()
                failure = (
                    f"no connection within {timeout_seconds:g} s"
                    if isinstance(error, TimeoutError)
                    else (os.strerror(error.errno).lower() if error.errno else "no connection")
                )
            except BaseException:
                connection.close()
                raise
            else:
                connection.settimeout(timeout_seconds)
                return connection
        raise Unreachable(f"{name}: {failure}")

    def _resolve(self, host: str, port: int, timeout_seconds: float) -> list[Any]:
        """Return the host's addresses; asked for in a thread of its own, since the system's time limits are long."""
        with suppress(OSError, UnicodeError):
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        answer: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        with self._lock:
            if self.closed.is_set():
                raise Unreachable("closed")
            self._asking.add(answer)
        threading.Thread(target=_ask, args=(host, port, answer), name="name look-up", daemon=True).start()
        try:
            found = answer.get(timeout=timeout_seconds)
        except queue.Empty:
            found = Unreachable(f"{shown(host)}: name is not resolved within {timeout_seconds:g} s")
        finally:
            with self._lock:
                self._asking.remove(answer)
        if isinstance(found, Unreachable):
            raise found
        return found


_Answer = list[Any] | Unreachable


def _ask(host: str, port: int, answer: queue.SimpleQueue[_Answer]) -> None:
    try:
        answer.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        answer.put(Unreachable(f"{shown(host)}: {(reason or 'no name of a host').lower()}"))


class _Incoming(io.RawIOBase):
    """What is read of a connection: until the head of an answer is complete, up to a deadline."""

    def __init__(self, connection: socket.socket, timeout_seconds: float) -> None:
        self._connection = connection
        self._raw = connection.makefile("rb", buffering=0)
        self._timeout_seconds = timeout_seconds
        self.deadline: float | None = time.monotonic() + timeout_seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.deadline is None:
            return self._raw.readinto(buffer)
        usual = self._connection.gettimeout() or self._timeout_seconds
        left = self.deadline - time.monotonic()
        if left > 0:
            self._connection.settimeout(min(usual, left))
            try:
                return self._raw.readinto(buffer)
            except TimeoutError:
                if usual < left:
                    raise Unreachable(f"nothing came within {usual:g} s") from None
            finally:
                self._connection.settimeout(usual)
        raise Unreachable(f"head of the answer is not complete after {self._timeout_seconds:g} s")

    def close(self) -> None:
        self._raw.close()
        super().close()


def pool_classes(sockets: Sockets, head_timeout_seconds: float) -> dict[str, type[HTTPConnectionPool]]:
    """Return urllib3's pools with connections whose sockets are known to `sockets`."""

    class Response(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
            super().__init__(sock, *arguments, **options)
            self.fp.close()
            self._incoming = _Incoming(sock, head_timeout_seconds)
            self.fp = io.BufferedReader(self._incoming)

        def begin(self) -> None:
            super().begin()
            self._incoming.deadline = None

    def connect(connection: HTTPConnection) -> socket.socket:
        timeout = connection.timeout
        assert isinstance(timeout, int | float)
        return sockets.connect(
            connection._dns_host,  # noqa: SLF001 - without the dot at its end
            connection.port,
            timeout,
            connection.socket_options or (),
        )

    class Plain(HTTPConnection):
        response_class = Response

        def _new_conn(self) -> socket.socket:
            return connect(self)

    class Encrypted(HTTPSConnection):
        response_class = Response

        def _new_conn(self) -> socket.socket:
            return connect(self)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class EncryptedPool(HTTPSConnectionPool):
        ConnectionCls = Encrypted

    return {"http": PlainPool, "https": EncryptedPool}
