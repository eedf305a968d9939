"""The tree in a flat tar archive, as extracting it would make it.

The headers are read by the standard library's tarfile, which shares nothing with the scanner and the writer of this
project. It believes what it reads, so it gets the archive through `_Headers`, and its end is checked here: an invalid
header would be the end to it.

The archive must be one tree: each path once, links behind their targets, nothing below what is no directory. A parent
without an entry is implied, as is the root. Times, modes, owners and sizes are those of the headers; extended
attributes are the `SCHILY.xattr.` records.
"""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING, cast

from paralayer.errors import ImageError, quote
from paralayer.verification.hashing import gather, plan
from paralayer.verification.tree import NO_XATTRS, Node, Tree, check_size, implied_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paralayer.verification.hashing import Part, Task
    from paralayer.verification.tree import Kind, Xattrs

_KINDS: dict[bytes, Kind] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "fifo",
}
_XATTR = "SCHILY.xattr."
_EXTENDED_LIMIT = 32 << 20  # bytes of an extended header; xattrs can be 64 KiB each
_END = bytes(1024)
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x04\x22\x4d\x18": "lz4",
}
IMAGE_MARKERS = (b"oci-layout", b"index.json", b"manifest.json")


class _Headers(io.FileIO):
    """The archive as tarfile gets it: it reads headers only, so one that says it is huge, or negative, is wrong."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _EXTENDED_LIMIT:
            raise tarfile.ReadError(f"an extended header of {size} bytes")
        return super().read(size) or b""


class TarTree:
    """Reads the archive at `path`, which `where` names. It keeps the file open until `close`."""

    def __init__(self, path: str, where: str) -> None:
        self._where = where
        self.tree = Tree()
        self._parts: list[tuple[Node, int, list[tuple[int, int]] | None]] = []
        self._implied: set[bytes] = set()
        self.size = 0
        """Bytes of all files; complete after `read`."""
        try:
            self._file = _Headers(path, "r")
        except OSError as error:
            raise ImageError(where, error.strerror or "cannot be opened") from None
        self._end = os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the archive."""
        self._file.close()

    def looks_like_an_image(self) -> bool:
        """Say whether the archive has what makes it one of an image; after `read`."""
        return any(name in self.tree.nodes for name in IMAGE_MARKERS)

    def read(self) -> None:
        """Read everything but contents."""
        start = os.pread(self._file.fileno(), 512, 0)
        for magic, compression in _COMPRESSIONS.items():
            if start.startswith(magic):
                raise ImageError(
                    self._where, f"archive is compressed with {compression}: decompress it first"
                )
        try:
            # format and encoding: what the archive does not tell is of no account, since names come back as bytes
            with tarfile.TarFile(
                fileobj=self._file, encoding="utf-8", errors="surrogateescape", errorlevel=2
            ) as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                    self._add(member)
                self._check_end(archive.offset)
        except tarfile.TarError as error:
            raise ImageError(self._where, f"not a tar archive that can be read: {error}") from None
        except (ValueError, RecursionError) as error:  # of malformed numbers, and of header after header
            raise ImageError(self._where, f"a malformed header: {error}") from None
        except OSError as error:
            raise ImageError(self._where, error.strerror or "cannot be read") from None
        self.tree.nodes.setdefault(b"", implied_directory())

    def _check_end(self, offset: int) -> None:
        """Make sure that what tarfile took for the end is it: two zero blocks, or the end of the file."""
        rest = os.pread(self._file.fileno(), len(_END), offset)
        if rest != _END[: len(rest)] or (offset == 0 and not rest):
            raise ImageError(self._where, f"no valid tar header at offset {offset}")

    def _add(self, member: tarfile.TarInfo) -> None:
        path = self._path(member.name)
        nodes = self.tree.nodes
        if path in self._implied and member.type == tarfile.DIRTYPE:
            self._implied.discard(path)
        elif path in nodes:
            raise self._error(path, "path occurs twice in the archive")
        self._add_parents(path)
        if member.type == tarfile.LNKTYPE:
            file = nodes.get(self._path(member.linkname))
            if file is None or file.kind == "directory":
                raise self._error(path, "hard link to nothing", quote(_bytes(member.linkname)))
            file.names += 1
            nodes[path] = file
            return
        kind = _KINDS.get(member.type)
        if kind is None:
            wanted = "a file, directory, link, device or FIFO"
            raise self._error(path, "type of the entry", quote(member.type), wanted)
        if not path and kind != "directory":
            raise self._error(path, "the root must be a directory")
        node = nodes[path] = Node(kind, member.mode & 0o7777, member.uid, member.gid, _time(member))
        node.xattrs = _xattrs(member)
        if kind == "symlink":
            node.target = _bytes(member.linkname)
        elif kind in ("character device", "block device"):
            node.device = member.devmajor, member.devminor
        elif kind == "file":
            self._add_content(node, member, path)

    def _add_content(self, node: Node, member: tarfile.TarInfo, path: bytes) -> None:
        extents = None
        stored = member.size
        if member.sparse is not None:
            sparse = cast("list[tuple[int, int]]", member.sparse)
            extents = [(offset, length) for offset, length in sparse if length]
            stored = sum(length for _, length in extents)
            starts = [*(offset for offset, _ in extents), member.size]
            ends = [0, *(offset + length for offset, length in extents)]
            if any(start < end for start, end in zip(starts, ends, strict=True)):
                raise self._error(path, "malformed map of a sparse file")
        if member.offset_data + stored > self._end:
            there = f"{self._end - member.offset_data} bytes of data"
            raise self._error(path, "archive is truncated", there, stored)
        check_size(member.size, self._where, path)
        node.size = member.size
        self.size += member.size
        self._parts.append((node, member.offset_data, extents))

    def _add_parents(self, path: bytes) -> None:
        nodes = self.tree.nodes
        missing = []
        above = path
        while above:
            above = above.rpartition(b"/")[0]
            parent = nodes.get(above)
            if parent is not None:
                if parent.kind != "directory":
                    raise self._error(path, "entry below what is no directory", quote(above))
                break
            if above:
                missing.append(above)
        for each in missing:
            nodes[each] = implied_directory()
        self._implied.update(missing)

    def _path(self, name: str) -> bytes:
        """Return the path that a name means."""
        raw = _bytes(name)
        components = [component for component in raw.split(b"/") if component not in (b"", b".")]
        if b".." in components:
            raise ImageError(f"{self._where}: {quote(raw)}", "path with .. in the archive")
        return b"/".join(components)

    def _error(self, path: bytes, what: str, got: str | None = None, want: object = None) -> ImageError:
        return ImageError(f"{self._where}: {quote(path)}", what, got, want)

    def tasks(self) -> Iterator[Task]:
        """Yield what is to be done to hash the contents, after `read`."""
        return gather(self._all_parts(), self._where, self._file.fileno())

    def _all_parts(self) -> Iterator[Part]:
        for node, offset, extents in self._parts:
            yield from plan(node, offset, extents)


def _time(member: tarfile.TarInfo) -> int:
    """Return the modification time in nanoseconds; the library's own number has lost them."""
    text = member.pax_headers.get("mtime")
    if text is None:
        return int(member.mtime) * 10**9
    seconds, _, fraction = text.partition(".")
    nanoseconds = int(fraction[:9].ljust(9, "0"))
    return int(seconds) * 10**9 + (-nanoseconds if seconds.startswith("-") else nanoseconds)


def _xattrs(member: tarfile.TarInfo) -> Xattrs:
    return {
        _bytes(key.removeprefix(_XATTR)): _bytes(value)
        for key, value in member.pax_headers.items()
        if key.startswith(_XATTR)
    } or NO_XATTRS


def _bytes(text: str) -> bytes:
    """Return what the archive has, of which tarfile made text."""
    return text.encode("utf-8", "surrogateescape")
