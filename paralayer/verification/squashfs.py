"""The tree in a squashfs file, and the hashing of its contents."""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PySquashfsImage.const import SQUASHFS_INVALID_XATTR, Type
from PySquashfsImage.file import filetype

from paralayer.engine.jobs import Finished, Run
from paralayer.errors import ImageError, quote
from paralayer.verification.hashing import JOB_BYTES, JOB_PARTS, Targets, Task, spans_of
from paralayer.verification.squashfs_reader import STORED, CorruptError, SquashfsReader
from paralayer.verification.tree import (
    PART,
    WHAT_SQUASHFS_HOLDS,
    Node,
    Tree,
    check_size,
    digest_of_zeros,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from paralayer.verification.tree import Kind

_KINDS: dict[int, Kind] = {
    Type.FILE: "file",
    Type.DIR: "directory",
    Type.SYMLINK: "symlink",
    Type.CHRDEV: "character device",
    Type.BLKDEV: "block device",
    Type.FIFO: "fifo",
    Type.SOCKET: "socket",
}
_EXTENDED = Type.LDIR - Type.DIR  # between the number of an inode type and that of its extended form
_FRAGMENTS_KEPT = 8
_NOT_NAMES = (b"", b".", b"..")


class _Content(NamedTuple):
    """Where a file's content is."""

    start: int  # of the data blocks, or of the fragment block if there are none
    fragment_start: int
    fragment_size: int  # with the bit for stored ones; 0 if there is no fragment
    fragment_offset: int
    size: int
    list_block: int  # of the list of block sizes
    list_offset: int


_SPAN = struct.Struct("<9q")  # a _Content, the first part and the one behind the last


@dataclass(frozen=True, slots=True)
class HashBlocks:
    """Job: hash parts of files. Descriptor: of the squashfs file, which `where` names."""

    where: str
    spans: bytes

    def run(self, fds: Sequence[int]) -> Run:
        """See `Job`."""
        digests: list[bytes] = []
        with _one_error(self.where):
            image = SquashfsReader(fds[0])
            fragment = lru_cache(_FRAGMENTS_KEPT)(image.read_data_block)
            for *fields, first, last in _SPAN.iter_unpack(self.spans):
                digests += _hash(image, fragment, _Content(*fields), first, last)
        yield Finished(b"".join(digests))


def _hash(
    image: SquashfsReader,
    fragment: Callable[[int, int, int], bytes],
    content: _Content,
    first: int,
    last: int,
) -> Iterator[bytes]:
    """Yield the digests of parts."""
    block_size = image.sblk.block_size
    blocks = content.size // block_size if content.fragment_size else -(-content.size // block_size)
    per_part = PART // block_size
    sizes = image.read_block_sizes(content.list_block, content.list_offset, min(blocks, last * per_part))
    at = content.start
    for _ in range(min(blocks, first * per_part)):
        at += next(sizes) & ~STORED
    for number in range(first, last):
        digest = None
        holes = 0  # bytes of the part, before anything else
        end = min((number + 1) * PART, content.size)
        for offset in range(number * PART, end, block_size):
            length = min(block_size, content.size - offset)
            if offset // block_size == blocks:
                tail = fragment(content.fragment_start, content.fragment_size, block_size)
                data = tail[content.fragment_offset : content.fragment_offset + length]
            elif size := next(sizes):
                data = image.read_data_block(at, size, length)
                at += size & ~STORED
            elif digest is None:
                holes += length
                continue
            else:
                data = bytes(length)
            if len(data) != length:
                raise CorruptError(f"{len(data)} bytes of a file's data, where {length} belong")
            if digest is None:
                digest = hashlib.sha256(bytes(holes))
            digest.update(data)
        yield digest.digest() if digest is not None else digest_of_zeros(holes)


class SquashfsTree:
    """Reads the squashfs file at `path`, which `where` names. It keeps the file open until `close`."""

    def __init__(self, path: str, where: str) -> None:
        self._where = where
        self.tree = Tree(WHAT_SQUASHFS_HOLDS)
        self._contents = array("q")  # a _Content for each file that is not empty
        self._files: list[Node] = []
        self.size = 0
        """Bytes of all files; complete after `read`."""
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ImageError(where, error.strerror or "cannot be opened") from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def read(self) -> None:
        """Read everything but contents."""
        with _one_error(self._where):
            image = SquashfsReader(self._fd)
            if image.sblk.bytes_used > os.fstat(self._fd).st_size:
                raise CorruptError(f"cut off: it should have {image.sblk.bytes_used} bytes")
            image.read_tables()
            self._walk(image)

    def _walk(self, image: SquashfsReader) -> None:
        seen: set[int] = set()  # numbers of inodes
        linked: dict[int, tuple[int, Node]] = {}  # of those with several names: the reference, and what it is
        root = image.sblk.root_inode
        pending = [(b"", root >> 16, root & 0xFFFF)]
        while pending:
            parent, block, offset = pending.pop()
            directory = image.read_directory(block, offset)
            number = directory.inode.inode_number
            if number in seen:
                raise CorruptError(f"directory {quote(parent)} is in two places")
            seen.add(number)
            self.tree.nodes[parent] = _node(image, directory.inode, Type.DIR)
            names = set()
            for entry in directory.entries:
                name, type_ = entry["name"], entry["type"]
                if name in names or name in _NOT_NAMES or b"/" in name or b"\0" in name:
                    raise CorruptError(f"name {quote(name)} in {quote(parent) or 'the root'}")
                names.add(name)
                path = parent + b"/" + name if parent else name
                block, offset = entry["start_block"], entry["offset"]
                if type_ == Type.DIR:
                    pending.append((path, block, offset))
                    continue
                inode = image.read_inode(block, offset)
                number, reference = inode.inode_number, block << 16 | offset
                if number in seen:
                    known, node = linked.get(number, (None, None))
                    if node is None or known != reference:
                        raise CorruptError(
                            f"inode number {number} twice, or with a link count that is too small"
                        )
                    node.names += 1
                else:
                    seen.add(number)
                    node = _node(image, inode, type_)
                    if getattr(inode, "nlink", 1) > 1:  # the basic inode of a file has no such field
                        linked[number] = reference, node
                    if node.kind == "file":
                        self._add_content(image, inode, node, path)
                self.tree.nodes[path] = node

    def _add_content(self, image: SquashfsReader, inode: Any, node: Node, path: bytes) -> None:
        size = node.size = inode.data
        if not size:
            return
        check_size(size, self._where, path)
        tail_at, tail_size, tail_offset = 0, 0, 0
        if inode.frag_bytes:
            tail_at, tail_size = image.fragment(inode)
            tail_offset = inode.offset
        start = inode.start if inode.blocks else tail_at
        self._contents.extend(
            (start, tail_at, tail_size, tail_offset, size, inode.block_start, inode.block_offset)
        )
        self._files.append(node)
        self.size += size

    def tasks(self) -> Iterator[Task]:
        """Yield what is to be done to hash the contents, after `read`; in the order in which they are stored."""
        contents = np.frombuffer(self._contents, np.int64).reshape(-1, len(_Content._fields))
        spans: list[bytes] = []
        targets: list[tuple[Node, int, int]] = []
        size = count = 0
        for index in np.argsort(contents[:, 0], kind="stable").tolist():
            node = self._files[index]
            for first, last in spans_of(node.size):
                span = min(last * PART, node.size) - first * PART
                if spans and (size + span > JOB_BYTES or count + last - first > JOB_PARTS):
                    yield Task(HashBlocks(self._where, b"".join(spans)), [self._fd], Targets(targets), size)
                    spans, targets, size, count = [], [], 0, 0
                spans.append(_SPAN.pack(*contents[index].tolist(), first, last))
                targets.append((node, first, last - first))
                size += span
                count += last - first
        if spans:
            yield Task(HashBlocks(self._where, b"".join(spans)), [self._fd], Targets(targets), size)


def _node(image: SquashfsReader, inode: Any, type_: int) -> Node:
    header = inode.header
    if header.inode_type not in (type_, type_ + _EXTENDED):
        raise CorruptError(f"inode of type {header.inode_type} in an entry of type {type_}")
    kind = _KINDS[type_]
    node = Node(kind, header.mode & 0o7777, inode.uid, inode.gid, header.mtime * 10**9)
    if inode.xattr != SQUASHFS_INVALID_XATTR:
        node.xattrs = image.xattrs(inode.xattr)
    if kind == "symlink":
        node.target = inode._symlink  # noqa: SLF001 - what is public decodes it as UTF-8
    elif kind in ("character device", "block device"):
        device = filetype[type_](image, inode, b"", None)
        node.device = device.major, device.minor
    return node


@contextmanager
def _one_error(where: str) -> Iterator[None]:
    """Turn whatever the library makes of a file that is corrupt, or not what it can read, into one error."""
    try:
        yield
    except ImageError:
        raise
    except ModuleNotFoundError as error:
        raise ImageError(where, f"its compression needs the Python package {error.name}") from None
    except OSError as error:
        raise ImageError(where, error.strerror or str(error)) from None
    except CorruptError as error:
        raise ImageError(where, f"squashfs file is corrupt: {error}") from None
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise ImageError(where, f"squashfs file is corrupt, or not understood: {text}") from error
