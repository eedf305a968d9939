"""From the text that names an image source to the image."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

from paralayer.errors import ImageError
from paralayer.image import layout
from paralayer.image.descriptor import shown
from paralayer.image.source import Directory, check_regular, io_errors

if TYPE_CHECKING:
    from paralayer.image.descriptor import Platform
    from paralayer.image.image import Image
    from paralayer.image.source import Source
    from paralayer.registry.access import Access

_REMOTE = "docker://"
_TRANSPORTS = ("oci", "oci-archive", "docker-archive")
_OTHER_TRANSPORT = re.compile("docker|docker-daemon|containers-storage|dir|ostree|sif|tarball|https?")


def open_image(
    source: str, *, platform: Platform | None = None, check: bool = True, access: Access | None = None
) -> Image:
    """Describe the image that `source` names, without reading its layers.

    `source` is ``oci:PATH[:NAME]``, ``oci-archive:PATH[:NAME]``, ``docker-archive:PATH[:NAME]`` or
    ``PATH[:NAME]``. PATH is a directory or an uncompressed tar archive of one, with each of the prefixes; without
    one, what has `oci-layout` or `index.json` is an OCI layout, also if `docker save` wrote it.

    PATH may contain colons: if all of ``PATH[:NAME]`` exists, it is the path; otherwise the longest part before a
    colon that exists is. NAME is a tag, a Docker reference, ``@N`` for the Nth image from 0, or, in OCI layouts,
    ``@sha256:<hex>`` of a manifest or index.

    ``docker://[HOST[:PORT]/]NAME[:TAG][@DIGEST]`` is an image in a registry, reached as `access` says; its layers are
    `RemoteBlob`, whose registry has no connection open. Its documents are checked in any case.

    A `platform` that no image is for is an error. Without one, this machine's is preferred, and a single image
    for another is taken with a warning. `check` verifies the digests of index, manifest and config and the
    sizes of all blobs; the digests of layers are left to whoever reads them.

    Everything that is wrong with the source is an `ImageError`.
    """
    if source.startswith(_REMOTE):
        from paralayer.registry.source import open_remote  # it loads an HTTP library

        return open_remote(source, platform, access)
    prefix, _, rest = source.partition(":")
    transport = prefix if prefix in _TRANSPORTS else None
    path, name = _split(rest if transport else source)
    opened, is_directory = _open_source(path, source)
    if transport is None:
        transport = _detect(opened)
    if transport == "docker-archive":
        from paralayer.image import docker_archive

        if is_directory:
            opened = Directory(path, confined=True)
        return docker_archive.open_docker_archive(opened, name, platform, check=check)
    return layout.open_layout(opened, name, platform, check=check)


def _split(text: str) -> tuple[str, str | None]:
    """Return the path, made absolute, and the name, if there is one."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ImageError(shown(text), "no file can have this name") from None
    if not text or "\0" in text:
        raise ImageError(shown(text), "no file can have this name")
    path, name = text, None
    if not os.path.lexists(text):
        colons = [i for i, c in enumerate(text) if c == ":" and i]
        at = next(
            (i for i in reversed(colons) if os.path.lexists(text[:i])), colons[0] if colons else len(text)
        )
        path, name = text[:at], text[at + 1 :] or None
    with io_errors(shown(path)):
        # not normalised: with symbolic links, "a/.." may be another directory than "."
        return path if path.startswith("/") else os.path.join(os.getcwd(), path), name


def _open_source(path: str, given: str) -> tuple[Source, bool]:
    """Return what is at `path`, and whether it is a directory."""
    transport = given.partition(":")[0]
    if _OTHER_TRANSPORT.fullmatch(transport) and not os.path.lexists(path):
        wanted = ", ".join([_REMOTE, *(f"{known}:" for known in _TRANSPORTS)])
        raise ImageError(shown(given), f"cannot read from {transport}:", want=f"{wanted} or a path")
    with io_errors(shown(path)):
        status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        return Directory(path, confined=False), True
    check_regular(status, shown(path))
    from paralayer.image.archive import Archive

    return Archive(path), False


def _detect(source: Source) -> str:
    """Return the transport that reads `source`: an OCI layout goes before a manifest.json beside it."""
    if source.has(layout.MARKER) or source.has(layout.INDEX):
        return "oci"
    from paralayer.image import docker_archive

    if source.has(docker_archive.MANIFEST):
        return "docker-archive"
    raise ImageError(
        source.where,
        "neither an OCI layout nor what docker save writes",
        want=f"{layout.MARKER} or {docker_archive.MANIFEST}",
    )
