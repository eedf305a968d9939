"""An image of a registry as an OCI layout."""

from __future__ import annotations

import json
import os
import shutil
import threading
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from paralayer.errors import DigestError, ImageError, SinkError
from paralayer.growing import Growing
from paralayer.image import Digest, Platform
from paralayer.image.layout import INDEX, MARKER
from paralayer.image.media_type import as_oci
from paralayer.image.source import io_errors
from paralayer.registry.cache import BlobCache
from paralayer.registry.client import RemoteBlob
from paralayer.registry.download import BlobRequest, Downloads
from paralayer.registry.reference import Reference
from paralayer.registry.source import open_remote
from paralayer.sinks.output import Output

if TYPE_CHECKING:
    from collections.abc import Callable

    from paralayer.image import Image
    from paralayer.image.document import Document
    from paralayer.registry.access import Access
    from paralayer.registry.cache import CachedBlob

_LOOK_SECONDS = 0.1  # between two reports of progress
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class PullResult:
    """What was stored. `digest` is of the manifest, `size` the bytes of all blobs."""

    image: str
    output: str
    platform: str
    digest: str
    layers: int
    size: int
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        return asdict(self)


def pull(
    reference: str,
    directory: str | os.PathLike[str],
    *,
    platform: str | Platform | None = None,
    access: Access | None = None,
    cache: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PullResult:
    """Store the image of ``docker://...`` as an OCI layout, under its tag.

    `platform`, `access` and `cache` are those of `convert`. A manifest with Docker's media types gets OCI's (as with
    skopeo; its digest changes then); blobs are stored as they are. `progress` gets the bytes that are there and those
    of all blobs, in this thread.

    The layout appears when it is complete and every digest was checked; `force` replaces what is there. Raises
    `RegistryError` and other `ImageError`, or `SinkError`.
    """
    if isinstance(platform, str):
        platform = Platform.parse(platform)
    parsed = Reference.parse(reference)
    path = os.fspath(directory)
    output = Output(path, replace=force, directory=True)
    image = open_remote(parsed, platform, access)
    registries = [blob.registry for layer in image.layers if isinstance(blob := layer.blob, RemoteBlob)]
    with ExitStack() as stack:
        stack.callback(output.abort)
        for registry in registries[:1]:
            stack.enter_context(registry)
        blobs = os.path.join(output.temporary, "blobs")
        try:
            os.makedirs(blobs)
            store = BlobCache(output.temporary if cache is None else os.fspath(cache))
            _fetch(image, store, blobs, progress or (lambda _done, _total: None))
            manifest, config = map(_as_oci, image.documents)
            for document in (manifest, config):
                _write(_blob_path(blobs, document.digest), document.data)
            annotations = {"org.opencontainers.image.ref.name": parsed.tag} if parsed.tag else {}
            _write(os.path.join(output.temporary, INDEX), _index(manifest, annotations))
            _write(os.path.join(output.temporary, MARKER), b'{"imageLayoutVersion": "1.0.0"}')
        except OSError as error:
            raise SinkError(path, error.strerror or "cannot be written") from None
        output.commit()
    size = sum(layer.blob.size for layer in image.layers)
    return PullResult(
        image.reference,
        path,
        str(image.platform),
        str(manifest.digest),
        len(image.layers),
        size + len(manifest.data) + len(config.data),
        image.warnings,
    )


def _fetch(image: Image, store: BlobCache, blobs: str, progress: Callable[[int, int], None]) -> None:
    """Bring all layers' blobs below the directory `blobs`, each checked."""
    remote = {blob.digest: blob for layer in image.layers if isinstance(blob := layer.blob, RemoteBlob)}
    if not remote:
        return
    changed, errors = threading.Event(), list[BaseException]()
    total = sum(blob.size for blob in remote.values())
    done: set[int] = set()

    def complete(index: int) -> None:
        request = requests[index]
        assert request.cached is not None
        _check(request.cached, request.digest)
        request.cached.accept()
        _place(request.cached, _blob_path(blobs, request.digest))
        done.add(index)
        changed.set()

    def fail(error: BaseException) -> None:
        errors.append(error)
        changed.set()

    requests: list[BlobRequest] = []
    with ExitStack() as stack:
        for blob in remote.values():
            cached = stack.enter_context(store.open(blob.digest, blob.size))
            growing = Growing(cached.open(), size=blob.size, wake=lambda: None)
            requests.append(BlobRequest(blob.digest, blob.size, growing, cached))
        registry = next(iter(remote.values())).registry
        downloads = Downloads(
            registry,
            requests,
            connections=registry.access.connections,
            lead=None,
            on_complete=complete,
            on_error=fail,
        )
        stack.enter_context(downloads)
        while len(done) < len(requests) and not errors:
            progress(sum(request.growing.published for request in requests), total)
            changed.wait(_LOOK_SECONDS)
            changed.clear()
        if errors:
            raise errors[0]
    progress(total, total)


def _check(cached: CachedBlob, digest: Digest) -> None:
    """Compare a blob that is all there with its digest."""
    hasher = digest.hasher()
    fd = cached.open()
    try:
        position = 0
        while position < cached.size:
            data = os.pread(fd, min(_PIECE, cached.size - position), position)
            if not data:
                raise ImageError(cached.path, "was cut while it was read", position, cached.size)
            hasher.update(data)
            position += len(data)
    finally:
        os.close(fd)
    if hasher.hexdigest() != digest.encoded:
        cached.refuse()
        got = f"{digest.algorithm}:{hasher.hexdigest()}"
        raise DigestError(f"blob {digest}", "digest of the bytes that came", got, digest)


def _place(cached: CachedBlob, path: str) -> None:
    """Give a blob its name in the layout: a second one, or that of a copy."""
    if cached.path == path:
        return
    with io_errors(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if cached.complete:
            with suppress(OSError):  # it may be on another file system, or deleted
                os.link(cached.path, path)
                return
        with open(cached.open(), "rb") as source, open(path, "wb") as target:
            shutil.copyfileobj(source, target, _PIECE)
            target.truncate(cached.size)  # a blob that another process still fetches has more behind its end


def _as_oci(document: Document) -> Document:
    """Return a manifest or config with OCI's media types."""
    data = document.data
    value = json.loads(data)
    media_type = as_oci(document.media_type)
    if "config" in value and "layers" in value and media_type != document.media_type:
        value["mediaType"] = media_type
        for descriptor in [value["config"], *value["layers"]]:
            descriptor["mediaType"] = as_oci(descriptor["mediaType"])
        data = json.dumps(value).encode()
    hasher = document.digest.hasher()
    hasher.update(data)
    return type(document)(media_type, Digest(document.digest.algorithm, hasher.hexdigest()), data)


def _index(manifest: Document, annotations: dict[str, str]) -> bytes:
    descriptor: dict[str, Any] = {
        "mediaType": manifest.media_type,
        "digest": str(manifest.digest),
        "size": len(manifest.data),
    }
    if annotations:
        descriptor["annotations"] = annotations
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor],
    }
    return json.dumps(index).encode()


def _blob_path(blobs: str, digest: Digest) -> str:
    return os.path.join(blobs, digest.algorithm, digest.encoded)


def _write(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
