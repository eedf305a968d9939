"""Rows to canonical tar headers.

POSIX pax: a ustar header where it can hold everything, else with an extended header that has only what ustar cannot
hold. Source: POSIX.1-2017, pax; extended attributes as SCHILY.xattr, as star and GNU tar write them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from paralayer.table import BLOCK as BLOCK_DEVICE
from paralayer.table import CHAR, DIRECTORY, HARDLINK, SYMLINK
from paralayer.tar import header, pax
from paralayer.tar.header import BLOCK, padding

if TYPE_CHECKING:
    from paralayer.survivors import Batch
    from paralayer.table import Rows

_MAX_SIZE = 8**11 - 1
_MAX_SMALL = 8**7 - 1
_PAX_NAME = b"././@PaxHeader"
END = bytes(2 * BLOCK)

Offsets = np.ndarray[Any, np.dtype[np.int64]]


def pack_headers(batch: Batch) -> tuple[bytes, Offsets]:
    """Return the headers of a batch and where they begin: n+1 offsets, the last is the length."""
    rows, paths = batch.rows, batch.paths
    names = list(paths)
    for index in np.flatnonzero(rows["kind"] == DIRECTORY).tolist():
        names[index] = paths[index] + b"/" if paths[index] else b"./"
    links: dict[int, bytes] = {}
    extended: dict[int, list[tuple[bytes, bytes]]] = {}
    for index in np.flatnonzero(rows["kind"] == SYMLINK).tolist():
        links[index] = batch.linkname(index)
    for index in np.flatnonzero(rows["xattrs"] > 0).tolist():
        records = [(b"SCHILY.xattr." + name, value) for name, value in batch.xattrs(index)]
        if records:
            extended[index] = records
    return _pack(rows, names, links, extended)


def pack_links(rows: Rows, links: list[tuple[bytes, bytes]]) -> tuple[bytes, Offsets]:
    """Return the headers of hard links, (path, path of the file); `rows` are their files', as kind HARDLINK of size 0."""
    return _pack(rows, [path for path, _ in links], {i: target for i, (_, target) in enumerate(links)}, {})


def _pack(
    rows: Rows, names: list[bytes], links: dict[int, bytes], extended: dict[int, list[tuple[bytes, bytes]]]
) -> tuple[bytes, Offsets]:
    count = len(rows)
    blocks = np.zeros((count, BLOCK), np.uint8)
    kinds = rows["kind"]
    blocks[:, :100] = np.array(names, "S100").view(np.uint8).reshape(count, 100)
    blocks[:, header.TYPEFLAG] = kinds + ord("0")
    blocks[:, 257:265] = np.frombuffer(header.POSIX_MAGIC + b"00", np.uint8)
    sizes = rows["size"].copy()
    seconds = rows["mtime"].copy()
    is_device = (kinds == CHAR) | (kinds == BLOCK_DEVICE)
    is_link = kinds == HARDLINK
    for index, target in links.items():
        start, width = header.LINKNAME
        if len(target) > width:
            extended.setdefault(index, []).append((b"linkpath", target))
        blocks[index, start : start + min(width, len(target))] = np.frombuffer(target[:width], np.uint8)
    for index, name in enumerate(names):
        if len(name) > 100:
            prefix, rest = _split(name)
            blocks[index, :100] = np.frombuffer(rest[:100].ljust(100, b"\0"), np.uint8)
            blocks[index, 345:500] = np.frombuffer(prefix.ljust(155, b"\0"), np.uint8)
            if len(rest) > 100:
                extended.setdefault(index, []).append((b"path", name))
    odd_times = (rows["nsec"] > 0) | (seconds < 0) | (seconds > _MAX_SIZE)
    for index in np.flatnonzero(odd_times & ~is_link).tolist():
        value = pax.pack_time(int(seconds[index]), int(rows["nsec"][index]))
        extended.setdefault(index, []).append((b"mtime", value))
    np.clip(seconds, 0, _MAX_SIZE, out=seconds)
    for key in ("uid", "gid"):
        values = rows[key].astype(np.int64)
        for index in np.flatnonzero((values > _MAX_SMALL) & ~is_link).tolist():
            extended.setdefault(index, []).append((key.encode(), b"%d" % values[index]))
        values[values > _MAX_SMALL] = 0
        header.put_octal(blocks, header.UID if key == "uid" else header.GID, values)
    for index in np.flatnonzero(sizes > _MAX_SIZE).tolist():
        extended.setdefault(index, []).append((b"size", b"%d" % sizes[index]))
        sizes[index] = 0
    header.put_octal(blocks, header.MODE, rows["mode"].astype(np.int64))
    header.put_octal(blocks, header.SIZE, sizes)
    header.put_octal(blocks, header.MTIME, seconds)
    for key, where in (("major", header.MAJOR), ("minor", header.MINOR)):
        values = np.where(is_device, rows[key].astype(np.int64), 0)
        header.put_octal(blocks, where, values)
        for index in np.flatnonzero(values > _MAX_SMALL).tolist():
            raw = b"\x80" + int(values[index]).to_bytes(7, "big")  # base-256: PAX has no record for it
            blocks[index, where[0] : where[0] + 8] = np.frombuffer(raw, np.uint8)
    header.put_checksums(blocks)
    offsets: Offsets = np.arange(count + 1, dtype=np.int64) * BLOCK
    if not extended:
        return blocks.tobytes(), offsets
    parts = []
    done = 0
    for index in sorted(extended):
        before = _pack_extended(sorted(extended[index]))
        parts += [blocks[done:index].tobytes(), before]
        offsets[index + 1 :] += len(before)
        done = index
    parts.append(blocks[done:].tobytes())
    return b"".join(parts), offsets


def _pack_extended(records: list[tuple[bytes, bytes]]) -> bytes:
    if any(not _is_utf8(value) for key, value in records if key in (b"path", b"linkpath")):
        records = [(b"hdrcharset", b"BINARY"), *records]
    payload = b"".join(pax.pack_record(key, value) for key, value in records)
    block = np.zeros((1, BLOCK), np.uint8)
    block[0, : len(_PAX_NAME)] = np.frombuffer(_PAX_NAME, np.uint8)
    block[0, header.TYPEFLAG] = ord("x")
    block[0, 257:265] = np.frombuffer(header.POSIX_MAGIC + b"00", np.uint8)
    for where, value in (
        (header.MODE, 0o644),
        (header.UID, 0),
        (header.GID, 0),
        (header.SIZE, len(payload)),
        (header.MTIME, 0),
        (header.MAJOR, 0),
        (header.MINOR, 0),
    ):
        header.put_octal(block, where, np.array([value]))
    header.put_checksums(block)
    return block.tobytes() + payload + bytes(padding(len(payload)))


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Split a name for the prefix and name fields; what cannot be split has no prefix."""
    at = name.find(b"/", len(name) - 101)
    if 0 < at <= 155 and at + 1 < len(name):
        return name[:at], name[at + 1 :]
    return b"", name


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
