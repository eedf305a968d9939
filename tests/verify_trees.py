"""Trees to verify: one on disk with everything in it, and the same tree in each kind of source."""

from __future__ import annotations

import os
import random
import socket
import stat
import struct
from typing import TYPE_CHECKING

import paralayer
from images import run, write_image
from model import Entry
from trees import snapshot_directory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model import Node

MIB = 1 << 20
NOISE = random.Random(3).randbytes(3 * MIB + 7)
TEXT = b"".join(b"line %d of a text that compresses\n" % n for n in range(60_000))
# vfs_cap_data, revision 2, effective: CAP_NET_RAW (linux/capability.h)
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)


def make_tree(top: str, *, sockets: bool = False, linked_symlinks: bool = True) -> None:
    """Make the new directory `top` with every kind of entry; needs root.

    Tar archives know no sockets, and mksquashfs 4.5 makes two of a symbolic link that has two names.
    """
    root = os.fsencode(top)
    os.mkdir(root, 0o750)

    def at(path: bytes) -> bytes:
        return os.path.join(root, path)

    def write(path: bytes, data: bytes) -> None:
        with open(at(path), "wb") as stream:
            stream.write(data)

    for path in (b"bin", b"data", b"data/empty directory", b"dev", b"tmp", b"names"):
        os.mkdir(at(path))
    write(b"bin/su", b"#!/bin/sh\n")
    os.chmod(at(b"bin/su"), 0o4755)
    write(b"bin/ping", b"#!/bin/sh\nping\n")
    os.setxattr(at(b"bin/ping"), b"security.capability", CAPABILITY)
    write(b"data/empty", b"")
    write(b"data/small", b"small")
    write(b"data/part", NOISE[:MIB])
    write(b"data/large", NOISE)
    write(b"data/text", TEXT)
    write(b"data/shared", b"of three names")
    os.link(at(b"data/shared"), at(b"bin/shared"))
    os.link(at(b"data/shared"), at(b"a first name"))
    with open(at(b"data/sparse"), "wb") as stream:
        stream.truncate(5 * MIB + 3)
        stream.seek(2 * MIB + 100_000)  # data that does not begin with a part
        stream.write(b"an island")
    with open(at(b"data/hole"), "wb") as stream:
        stream.truncate(2 * MIB + 1)
    os.symlink(b"../data/small", at(b"bin/link"))
    os.symlink(b"missing \xff target " + b"t" * 300, at(b"bin/broken"))
    if linked_symlinks:
        os.link(at(b"bin/link"), at(b"bin/other name of link"), follow_symlinks=False)
    os.mknod(at(b"dev/null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(at(b"dev/large"), stat.S_IFBLK | 0o660, os.makedev(0xABC, 0x9ABCD))
    os.mkfifo(at(b"dev/fifo"), 0o600)
    if sockets:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(at(b"dev/socket"))
    os.chmod(at(b"tmp"), 0o1777)
    for name in (
        b"not utf-8 \xff\xfe",
        b"new\nline",
        b"back\\slash",
        b"n" * 255,
        b".hidden",
        b"*",
        " ü".encode(),
    ):
        write(b"names/" + name, name)
    deep = b"deep" + b"/d" * 120
    os.makedirs(at(deep))
    write(deep + b"/bottom", b"bottom")
    os.setxattr(at(b"data/small"), b"user.binary", b"\x00=\n\xff")
    os.setxattr(at(b"data/small"), b"user.empty", b"")
    os.setxattr(at(b"data"), b"trusted.on a directory", b"1")
    os.setxattr(at(b"data/text"), b"user.long", b"v" * 3000)
    os.setxattr(at(b"data/part"), b"user.long", b"v" * 3000)
    os.setxattr(at(b"dev/fifo"), b"trusted.fifo", b"on a fifo")
    os.setxattr(at(b"bin/broken"), b"trusted.link", b"on a link", follow_symlinks=False)
    os.setxattr(root, b"user.root", b"of the root")
    os.chown(at(b"data/part"), 12345, 4_294_967_293)
    os.chown(at(b"bin/link"), 7, 8, follow_symlinks=False)
    os.utime(at(b"data/small"), ns=(0, 1_234_567_890_123_456_789))
    os.utime(at(b"data/empty"), ns=(0, (1 << 31) * 10**9))  # after 2038
    os.utime(at(b"tmp"), ns=(0, 987_654_321_000_000_001))


def entries_of(tree: Mapping[bytes, Node]) -> list[Entry]:
    """Return the entries that make a tree: each directory before what is in it, links behind their files."""
    entries = []
    for path in sorted(tree):
        node = tree[path]
        first = node.group[0] if node.group else path
        kind = node.kind if path == first else "hardlink"
        entries.append(
            Entry(
                path or b"./",
                kind,
                mode=node.mode,
                uid=node.uid,
                gid=node.gid,
                mtime=node.mtime,
                mtime_ns=node.mtime_ns,
                data=node.data,
                linkname=node.linkname if path == first else first,
                xattrs=node.xattrs,
                major=node.major,
                minor=node.minor,
            )
        )
    return entries


def image_of(top: str, layout: str, *, layers: int = 1) -> str:
    """Write the tree at `top` as an image of some layers, each with a part of it."""
    entries = entries_of(snapshot_directory(os.fsencode(top)))
    size = -(-len(entries) // layers)
    return write_image(
        layout, [entries[at : at + size] for at in range(0, len(entries), size)], compression="zstd"
    )


def gnu_tar_of(top: str, path: str, *options: str) -> str:
    run(
        *("tar", "--format=pax", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sparse", *options),
        *("-C", top, "-cf", path, "."),
    )
    return path


def squashfs_of(top: str, path: str, *options: str) -> str:
    run("mksquashfs", top, path, "-noappend", "-quiet", "-no-progress", "-processors", "1", *options)
    return path


def source_of(kind: str, top: str, scratch: str) -> str:
    """Return the tree at `top` as a source of this kind, in the new directory `scratch`."""
    os.mkdir(scratch)
    out = os.path.join(scratch, "out")
    match kind:
        case "directory":
            return f"dir:{top}"
        case "image":
            return image_of(top, out, layers=3)
        case "tar":
            return gnu_tar_of(top, out)
        case "squashfs":
            return squashfs_of(top, out)
    image = image_of(top, os.path.join(scratch, "image"), layers=2)
    if kind == "our tar":
        paralayer.convert_tar(image, out)
    else:
        assert kind == "our directory"
        paralayer.convert_dir(image, out)
    return out


def times_of(top: str) -> dict[str, int]:
    """Return the modification times of everything at `top`, in nanoseconds."""
    paths = [top]
    for parent, directories, files in os.walk(top):
        paths += [os.path.join(parent, name) for name in directories + files]
    return {os.path.relpath(path, top): os.lstat(path).st_mtime_ns for path in paths}


def restore_times(top: str, times: Mapping[str, int]) -> None:
    """Give back its time to whatever is there still."""
    for path in times_of(top):
        if path in times:
            os.utime(os.path.join(top, path), ns=(times[path], times[path]), follow_symlinks=False)


def copy_tree(top: str, copy: str) -> str:
    run("cp", "-a", "--sparse=auto", top, copy)
    return copy
