"""What extension records before an entry say of it. Source: POSIX.1-2017, pax; GNU tar manual; star(5) for xattrs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from paralayer.tar import pax
from paralayer.tar.header import HeaderError

if TYPE_CHECKING:
    from paralayer.tar import sparse

_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."
_NAME_KEYS = (b"path", b"linkpath")


@dataclass(slots=True)
class Special:
    """What extension records say of one entry; None where they say nothing."""

    path: bytes | None = None
    linkname: bytes | None = None
    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime: tuple[int, int] | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse_records: dict[bytes, bytes] = field(default_factory=dict)
    sparse_pairs: list[bytes] = field(default_factory=list)  # format 0.0, in order
    long_path: bytes | None = None
    long_linkname: bytes | None = None
    kind: int | None = None
    real_size: int | None = None
    extents: sparse.Extents | None = None
    data: int | None = None  # where the data begins, behind a sparse map
    error: HeaderError | None = None  # the first in the records, to be told with the entry's name


def apply_record(special: Special, key: bytes, value: bytes) -> None:
    """Take one PAX record."""
    if key in _NAME_KEYS:
        if b"\0" in value:
            raise HeaderError(f"PAX {key.decode()} contains NUL")
        if key == b"path":
            special.path = value or None
        else:
            special.linkname = value or None
    elif key.startswith(_XATTR):
        name = key[len(_XATTR) :]
        if not name:
            raise HeaderError("xattr without a name")
        special.xattrs[name] = value
    elif key == b"mtime":
        special.mtime = pax.parse_time("mtime", value) if value else None
    elif key in (b"size", b"uid", b"gid"):
        attribute = key.decode()
        number = pax.parse_integer(attribute, value) if value else None
        if number is not None and number < 0:
            raise HeaderError(f"PAX {attribute}", number, "0 or more")
        setattr(special, attribute, number)
    elif key.startswith(_SPARSE):
        name = key[len(_SPARSE) :]
        if name in (b"offset", b"numbytes"):
            if (name == b"offset") == bool(len(special.sparse_pairs) % 2):
                raise HeaderError("sparse map: offset and numbytes do not alternate")
            special.sparse_pairs.append(value)
        elif name == b"name" and b"\0" in value:
            raise HeaderError("PAX GNU.sparse.name contains NUL")
        elif value:
            special.sparse_records[name] = value
        else:
            special.sparse_records.pop(name, None)
