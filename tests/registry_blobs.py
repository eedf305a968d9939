"""Blobs of random bytes in a real registry."""

from __future__ import annotations

import hashlib
import http.client
import random
from urllib.parse import urlsplit

from paralayer.image.descriptor import Digest
from paralayer.registry.access import Access
from paralayer.registry.client import Registry
from paralayer.registry.reference import Reference

REPOSITORY = "blobs"


def random_blob(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def digest_of(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


def push_blob(address: str, data: bytes) -> Digest:
    """Store a blob in the registry at HOST:PORT, which asks nobody who he is; return its digest."""
    digest = digest_of(data)
    connection = http.client.HTTPConnection(address)
    try:
        connection.request("POST", f"/v2/{REPOSITORY}/blobs/uploads/")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 202
        place = urlsplit(answer.headers["Location"])
        connection.request("PUT", f"{place.path}?{place.query}&digest={digest}", body=data)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 201
    finally:
        connection.close()
    return digest


class AtOnce(random.Random):
    """No chance at all: what failed is tried again without a pause."""

    def uniform(self, a: float, _: float) -> float:
        return a


def connect(address: str, *, retries: int = 2, mirrors: tuple[str, ...] = ()) -> Registry:
    """Return the client's view of the blobs that `push_blob` stored, there or behind a proxy."""
    reference = Reference.parse(f"docker://{address}/{REPOSITORY}")
    registry = Registry(reference, Access(retries=retries, mirrors=mirrors))
    registry._chance = AtOnce()
    return registry
