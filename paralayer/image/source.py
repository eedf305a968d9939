"""Where blobs lie: a directory, or a tar archive that is read in place (`archive`).

A source answers with byte ranges and reads no data. Nothing but regular files is ever opened, so that a FIFO
or a device in the place of a blob is an error and blocks nobody.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from paralayer.errors import DigestError, ImageError
from paralayer.image.descriptor import shown
from paralayer.image.document import DOCUMENT_LIMIT, Value, parse_document

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paralayer.image.descriptor import Digest

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


@dataclass(frozen=True, slots=True)
class Blob:
    """Stored bytes: `size` bytes from `offset` in the file at `path`, which is absolute."""

    path: str
    offset: int
    size: int


class Source(Protocol):
    """A set of named blobs. Names are relative, with ``/`` between components."""

    @property
    def where(self) -> str:
        """The source's name for messages."""

    def has(self, name: str) -> bool:
        """Say whether there is something of this name, whatever it is."""

    def blob(self, name: str) -> Blob | None:
        """Return the blob of this name, None if there is none.

        Links are followed. What is no regular file, and a link that leads to a place where the source may
        not look, is an `ImageError`.
        """


@dataclass(frozen=True, slots=True)
class Directory:
    """The files below `path`, which is absolute.

    Symbolic links may lead anywhere (shared blob stores are made so), unless the source is `confined`: for
    directories in which a document's text, not a digest, names the files.
    """

    path: str
    confined: bool

    @property
    def where(self) -> str:
        """The directory's name for messages."""
        return shown(self.path)

    def has(self, name: str) -> bool:
        """Say whether there is something of this name, be it a broken link."""
        return os.path.lexists(os.path.join(self.path, name))

    def blob(self, name: str) -> Blob | None:
        """Return the file of this name, None if there is none."""
        path = os.path.join(self.path, name)
        if self.confined:
            root = os.path.realpath(self.path)
            path = os.path.realpath(path)
            if os.path.commonpath([root, path]) != root:
                raise ImageError(self.where, f"{shown(name)} leads out of the directory", shown(path))
        with io_errors(shown(path)):
            try:
                status = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
        check_regular(status, shown(path))
        return Blob(path, 0, status.st_size)


def open_file(path: str) -> int:
    """Return a descriptor of the regular file at `path`, open for reading; the caller closes it.

    Anything else is an `ImageError`, also if it took the place of a file that was looked at before. Never blocks.
    """
    with io_errors(shown(path)):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            check_regular(os.fstat(fd), shown(path))
        except BaseException:
            os.close(fd)
            raise
    return fd


def read_at(fd: int, size: int, offset: int, where: str) -> bytes:
    """Return `size` bytes of a file from `offset`, fewer only at its end."""
    parts = []
    with io_errors(where):
        while size > 0 and (part := os.pread(fd, size, offset)):
            parts.append(part)
            size -= len(part)
            offset += len(part)
    return b"".join(parts)


def read_document(blob: Blob, name: str, digest: Digest | None = None) -> Value:
    """Return the JSON document in `blob`; its bytes are checked against `digest`, if there is one."""
    return parse_document(read_stored(blob, name, digest), name)


def read_stored(blob: Blob, name: str, digest: Digest | None) -> bytes:
    """Return the bytes of the document in `blob`; they are checked against `digest`, if there is one."""
    if blob.size > DOCUMENT_LIMIT:
        raise ImageError(name, "document is too large", f"{blob.size} bytes", f"at most {DOCUMENT_LIMIT}")
    fd = open_file(blob.path)
    try:
        data = read_at(fd, blob.size, blob.offset, name)
    finally:
        os.close(fd)
    if len(data) != blob.size:
        raise ImageError(name, "file shrank while it was read", f"{len(data)} bytes", blob.size)
    if digest is not None:
        hasher = digest.hasher()
        hasher.update(data)
        if hasher.hexdigest() != digest.encoded:
            raise DigestError(
                name, "digest of the stored bytes", f"{digest.algorithm}:{hasher.hexdigest()}", digest
            )
    return data


@contextmanager
def io_errors(where: str) -> Iterator[None]:
    """Turn what the system refuses into an `ImageError`."""
    try:
        yield
    except OSError as error:
        raise ImageError(where, os.strerror(error.errno) if error.errno else str(error)) from error


def check_regular(status: os.stat_result, where: str) -> None:
    """Refuse anything but a regular file; to be asked before opening, which can have effects on devices."""
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(where, "file type", _KINDS.get(stat.S_IFMT(status.st_mode)), "a regular file")
