"""A tree as it is compared: what each path is, and what the kind of its source can hold."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from paralayer.errors import ImageError, quote

if TYPE_CHECKING:
    from collections.abc import Mapping

    Xattrs = Mapping[bytes, bytes]

Kind = Literal["file", "directory", "symlink", "character device", "block device", "fifo", "socket"]

PART = 1 << 20
"""Bytes of a file that one digest is of: so the parts of a large file are hashed by all workers, holes cost nothing,
and a part fits into the smallest window that a layer is decoded through."""
DIGEST = 32
_SIZE_MAX = 16 << 40

NO_XATTRS: Xattrs = {}
NAMESPACES = (b"user.", b"trusted.", b"security.", b"system.posix_acl_")
"""Of extended attributes; others are made by file systems, and no source brings them."""


@dataclass(slots=True, eq=False)
class Node:
    """One inode. All its paths in a tree share the object."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime: int
    """Nanoseconds since the epoch."""
    size: int = 0
    """Of a file; 0 for everything else."""
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Xattrs = field(default_factory=lambda: NO_XATTRS)
    names: int = 1
    """How many paths of the tree it has."""
    content: bytes | bytearray = b""
    """The SHA-256 digests of the file's parts, one after the other."""

    def put(self, first: int, digests: bytes) -> None:
        """Take the digests of some parts, from number `first` on."""
        total = count_parts(self.size) * DIGEST
        if len(digests) == total:
            self.content = digests
            return
        if not self.content:
            self.content = bytearray(total)
        assert isinstance(self.content, bytearray)
        self.content[first * DIGEST : first * DIGEST + len(digests)] = digests


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a kind of source can hold, or be asked for. What one side cannot is not compared."""

    fine_times: bool = True
    """Times of any second, and nanoseconds; else whole seconds that fit in 32 bits, without a sign."""
    acls: bool = True
    trusted_xattrs: bool = True

    def __and__(self, other: Abilities) -> Abilities:
        return Abilities(
            self.fine_times and other.fine_times,
            self.acls and other.acls,
            self.trusted_xattrs and other.trusted_xattrs,
        )


WHAT_SQUASHFS_HOLDS = Abilities(fine_times=False, acls=False)


@dataclass(slots=True)
class Tree:
    """Path to node; the root is b"" and always there when the tree is complete."""

    abilities: Abilities = field(default_factory=Abilities)
    nodes: dict[bytes, Node] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def implied_directory() -> Node:
    """Return a directory without an entry, as the sinks write it: mode 0755, owner 0:0, the epoch."""
    return Node("directory", 0o755, 0, 0, 0)


def count_parts(size: int) -> int:
    """Return how many parts a content of `size` bytes has."""
    return -(-size // PART)


def check_size(size: int, where: str, path: bytes) -> None:
    """Refuse a file for whose digests there is no room; no file system holds larger ones that are not all holes."""
    if not 0 <= size <= _SIZE_MAX:
        where = f"{where}: {quote(path)}"
        raise ImageError(where, "size of a file", f"{size} bytes", f"at most {_SIZE_MAX}")


@lru_cache(maxsize=16)
def digest_of_zeros(length: int) -> bytes:
    """Return the digest of a part of a hole."""
    return hashlib.sha256(bytes(length)).digest()
