"""From the text that names a side to what reads it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Protocol

from paralayer.errors import ImageError
from paralayer.image.descriptor import shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from paralayer.verification.hashing import Task
    from paralayer.verification.tree import Tree

_PREFIXES = ("dir", "tar", "squashfs")
_IMAGE_PREFIXES = ("oci", "oci-archive", "docker-archive")
_MAGIC = b"hsqs"
_IMAGE_MARKERS = ("oci-layout", "index.json", "manifest.json")


class Source(Protocol):
    """What reads a tree that is there, which takes all but the contents into `tree`; then they are hashed."""

    tree: Tree

    @property
    def size(self) -> int:
        """Bytes of all files; complete after `read`."""

    def read(self) -> None:
        """Read everything but contents."""

    def tasks(self) -> Iterator[Task]:
        """Yield what is to be done to hash the contents."""

    def close(self) -> None:
        """Give back what is open."""


def open_source(text: str, stack: ExitStack, *, mount: bool) -> Source | None:
    """Return what reads the tree that `text` names, its `read` done; None if that is an image.

    ``dir:``, ``tar:``, ``squashfs:`` and the prefixes of images say what it is. Without one, a directory with
    `oci-layout`, `index.json` or `manifest.json` is an image, any other a tree; a file is what its first bytes say,
    and a tar with one of these three names in its root is an image. A `mount` of squashfs files is read as a
    directory. What is open is closed with `stack`.
    """
    prefix, _, rest = text.partition(":")
    if prefix in _IMAGE_PREFIXES:
        return None
    kind, path = (prefix, rest) if prefix in _PREFIXES else (None, text)
    try:
        if kind is None and not os.path.lexists(path):
            return None  # an image's path with a name behind it, or nothing: it will be told
        status = os.stat(path)
        where = shown(path)
        is_directory = stat.S_ISDIR(status.st_mode)
        if (
            kind is None
            and is_directory
            and any(os.path.lexists(os.path.join(path, each)) for each in _IMAGE_MARKERS)
        ):
            return None
        if not is_directory and not stat.S_ISREG(status.st_mode):
            raise ImageError(where, "neither a file nor a directory")
        found = "dir" if is_directory else "squashfs" if _starts_with_magic(path) else "tar"
    except OSError as error:
        raise ImageError(shown(path), error.strerror or "cannot be read") from None
    except ValueError:
        raise ImageError(shown(path), "no file can have this name") from None
    if kind is not None and (kind == "dir") != is_directory:
        raise ImageError(where, "file type", "a directory" if is_directory else "a file", kind)
    return _open(kind or found, path, where, stack, mount=mount, may_be_image=kind is None)


def _open(
    kind: str, path: str, where: str, stack: ExitStack, *, mount: bool, may_be_image: bool
) -> Source | None:
    source: Source
    if kind == "tar":
        from paralayer.verification.tar import TarTree

        archive = source = TarTree(path, where)
        stack.callback(source.close)
        source.read()
        return None if may_be_image and archive.looks_like_an_image() else source
    if kind == "squashfs" and not mount:
        from paralayer.verification.squashfs import SquashfsTree

        source = SquashfsTree(path, where)
    elif kind == "squashfs":
        from paralayer.verification.directory import DirectoryTree
        from paralayer.verification.mount import mounted
        from paralayer.verification.tree import WHAT_SQUASHFS_HOLDS

        source = DirectoryTree(stack.enter_context(mounted(path, where)), where, WHAT_SQUASHFS_HOLDS)
    else:
        from paralayer.verification.directory import DirectoryTree

        source = DirectoryTree(path, where)
    stack.callback(source.close)
    source.read()
    return source


def _starts_with_magic(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC
