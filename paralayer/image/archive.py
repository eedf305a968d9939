"""A tar archive as a source: an index of its members, whose data stays where it is.

The headers are read once, one `pread` each; a blob is a byte range of the archive. The standard library's
tarfile is not used: it takes an invalid header for the end of the archive, recurses once per extended header,
and walks backwards, forever, on a negative size. Names, numbers and extended headers are read as in layers;
what matters for files in a tree only (owners, times, attributes) is not read at all.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paralayer.errors import ImageError
from paralayer.image.descriptor import shown
from paralayer.image.source import Blob, open_file, read_at

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 512
_EXTENDED_LIMIT = 1 << 20
_LINK_LIMIT = 40
_MEMBER_LIMIT = 1 << 20
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x04\x22\x4d\x18": "lz4",
}
_NAME_KEYS = (b"path", b"linkpath", b"GNU.sparse.name")
_REGULAR = b"0\x007"
_NO_DATA = b"123456"  # links, devices, directories, FIFOs: whatever their size field says


@dataclass(frozen=True, slots=True)
class _Member:
    kind: str
    """``file``, ``hard link``, ``symbolic link``, or another kind, which can only be refused."""
    offset: int
    size: int
    linkname: str


class Archive:
    """The members of the tar archive at `path`, which is absolute; of equal names the last one.

    Names are normalised: no leading ``./`` or ``/``. Links are followed among the members, never outside.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._members: dict[str, _Member] = {}
        fd = open_file(path)
        try:
            for name, member in _members(fd, shown(path)):
                self._members[name] = member
                if len(self._members) > _MEMBER_LIMIT:
                    raise ImageError(
                        shown(path), "too many members for an archive of images", want=_MEMBER_LIMIT
                    )
        finally:
            os.close(fd)

    @property
    def where(self) -> str:
        """The archive's name for messages."""
        return shown(self._path)

    def has(self, name: str) -> bool:
        """Say whether there is a member of this name, whatever it is."""
        return _normalise(name) in self._members

    def blob(self, name: str) -> Blob | None:
        """Return the member of this name as a byte range of the archive, None if there is none."""
        at = _normalise(name)
        for _ in range(_LINK_LIMIT):
            member = self._members.get(at)
            if member is None:
                return None
            if member.kind == "file":
                return Blob(self._path, member.offset, member.size)
            if member.kind == "hard link":
                at = _normalise(member.linkname)
            elif member.kind == "symbolic link":
                at = posixpath.normpath(posixpath.join(posixpath.dirname(at), member.linkname))
            else:
                raise ImageError(f"{self.where}: {shown(at)}", "member", f"a {member.kind}", "a regular file")
            if at == ".." or at.startswith(("/", "../")):
                raise ImageError(self.where, f"{shown(name)} is a link out of the archive", shown(at))
        raise ImageError(self.where, f"{shown(name)} is a loop of links")


def _members(fd: int, where: str) -> Iterator[tuple[str, _Member]]:
    """Yield the archive's members with their names, in order.

    The archive ends with two zero blocks or at the end of the file; every member's data must be there.
    """
    end = os.fstat(fd).st_size
    _check_start(read_at(fd, _BLOCK, 0, where), where)
    offset = 0
    pax: dict[str, str] = {}
    gnu: dict[str, str] = {}
    while offset < end:
        block = read_at(fd, _BLOCK, offset, where)
        at = f"{where}: tar header at offset {offset}"
        if len(block) < _BLOCK:
            raise ImageError(at, "archive is truncated")
        if not any(block):
            following = read_at(fd, _BLOCK, offset + _BLOCK, where)
            if any(following):
                raise ImageError(at, "a single zero block within the archive")
            break
        _check_checksum(block, at)
        typeflag = block[156:157]
        offset += _BLOCK
        size = _size(block[124:136], at)
        if typeflag in b"xLKg":
            if offset + size > end:
                raise ImageError(at, "archive is truncated")
            if typeflag != b"g":  # a global header's records change no member
                if size > _EXTENDED_LIMIT:
                    raise ImageError(at, "extended header is too large", size, f"at most {_EXTENDED_LIMIT}")
                data = read_at(fd, size, offset, where)
                if typeflag == b"x":
                    pax = _pax_records(data, at)
                else:
                    gnu["path" if typeflag == b"L" else "linkpath"] = _decode(data)
            offset += -size // _BLOCK * -_BLOCK
            continue
        if pax.get("size"):
            size = _decimal(pax["size"], at)
        if typeflag == b"S":
            offset = _skip_sparse_map(fd, block, offset, where)
        if typeflag in _NO_DATA:
            size = 0
        if offset + size > end:
            raise ImageError(at, "archive is truncated", f"{end - offset} bytes of data", size)
        name = gnu.get("path") or pax.get("GNU.sparse.name") or pax.get("path") or _header_name(block)
        linkname = gnu.get("linkpath") or pax.get("linkpath") or _decode(block[157:257])
        if typeflag == b"S" or any(key.startswith("GNU.sparse.") for key in pax):
            kind = "sparse file"
        elif typeflag in _REGULAR:
            kind = "directory" if typeflag == b"\0" and name.endswith("/") else "file"
        else:
            kind = {b"1": "hard link", b"2": "symbolic link", b"5": "directory"}.get(typeflag, "special file")
        yield _normalise(name), _Member(kind, offset, size, linkname)
        offset += -size // _BLOCK * -_BLOCK
        pax, gnu = {}, {}


def _check_start(block: bytes, where: str) -> None:
    """Refuse what is no tar archive, a compressed one by the name of its compression."""
    for magic, compression in _COMPRESSIONS.items():
        if block.startswith(magic):
            raise ImageError(where, f"archive is compressed with {compression}: decompress it first")
    if not block:
        raise ImageError(where, "file is empty", want="a tar archive")
    if any(block) and (len(block) < _BLOCK or not _checksum_matches(block)):
        raise ImageError(where, "not a tar archive")


def _checksum_matches(block: bytes) -> bool:
    """Say whether the checksum holds, counted with unsigned or, as old programs do, with signed bytes."""
    summed = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(summed)
    return _number(block[148:156]) in (unsigned, unsigned - 256 * sum(byte > 127 for byte in summed))


def _check_checksum(block: bytes, at: str) -> None:
    if not _checksum_matches(block):
        raise ImageError(at, "checksum does not match")


def _number(field: bytes) -> int | None:
    """Return a number as `tar.header.parse_number` does; None for what is none. That module would load numpy."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & (1 << 8 * len(field) - 1) - 1
        return value - (1 << 8 * len(field) - 1) if field[0] & 0x40 else value
    digits = field.lstrip(b" \0").split(b"\0")[0].split(b" ")[0]
    return None if digits.strip(b"01234567") else int(digits or b"0", 8)


def _size(field: bytes, at: str) -> int:
    """Return the size in a header, which is never negative."""
    size = _number(field)
    if size is None:
        raise ImageError(at, "size", shown(_decode(field)), "an octal number")
    if size < 0:
        raise ImageError(at, "size is negative")
    return size


def _decimal(text: str, at: str) -> int:
    """Return the size that a PAX record spells."""
    if not text or text.strip("0123456789") or len(text) > 20:
        raise ImageError(at, "PAX size", shown(text), "a decimal number")
    return int(text)


def _pax_records(data: bytes, at: str) -> dict[str, str]:
    """Return the records of a PAX header, ``length SP key=value LF`` each, which fill it exactly."""
    records = {}
    start = 0
    while start < len(data):
        digits, space, _ = data[start : start + 20].partition(b" ")
        length = int(digits) if digits.isdigit() and space else 0
        record = data[start : start + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if len(record) != length or not key or not equals or record[-1:] != b"\n" or b"\0" in key:
            raise ImageError(at, "malformed PAX record")
        if key in _NAME_KEYS and b"\0" in value:
            raise ImageError(at, f"PAX {key.decode()} contains NUL")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        start += length
    return records


def _skip_sparse_map(fd: int, block: bytes, offset: int, where: str) -> int:
    """Return where the data of an old GNU sparse member begins: its header may be continued."""
    continued = block[482]
    while continued:
        block = read_at(fd, _BLOCK, offset, where)
        if len(block) < _BLOCK:
            raise ImageError(where, "archive is truncated")
        continued = block[504]
        offset += _BLOCK
    return offset


def _header_name(block: bytes) -> str:
    name = _decode(block[:100])
    prefix = _decode(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _decode(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _normalise(name: str) -> str:
    return posixpath.normpath(name.lstrip("/"))
