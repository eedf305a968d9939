"""The tree in a directory or a tar as comparable data, and judges from outside that make such trees.

`snapshot_tar` reads with a parser of its own, which accepts nothing but a well-formed output: it is a judge, too.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tarfile
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Literal

from model import OPAQUE, WHITEOUT, Entry, Node, node, normalised

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from model import Kind, Tree

BLOCK = 512
KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "char",
    b"4": "block",
    b"5": "dir",
    b"6": "fifo",
}
XATTR = b"SCHILY.xattr."

NOT_ON_DISK = frozenset({"symlink.mode"})
"""What a directory cannot hold: Linux has no mode for symlinks."""


def from_model(tree: Tree) -> dict[bytes, Node]:
    """Return what a snapshot of `tree` would be."""
    return dict(tree)


def diff(got: Mapping[bytes, Node], want: Mapping[bytes, Node], *, ignore: Collection[str] = ()) -> list[str]:
    """Return a line for each difference, none if the trees are equal.

    `ignore` has field names of `Node`, for all kinds (``"mtime_ns"``) or for one (``"dir.mtime"``).
    """
    lines = [f"{path!r}: missing, want {want[path]}" for path in sorted(want.keys() - got.keys())]
    lines += [f"{path!r}: unwanted {got[path]}" for path in sorted(got.keys() - want.keys())]
    for path in sorted(got.keys() & want.keys()):
        kind = want[path].kind
        for name in (each.name for each in fields(Node)):
            got_value, want_value = getattr(got[path], name), getattr(want[path], name)
            if got_value != want_value and name not in ignore and f"{kind}.{name}" not in ignore:
                lines.append(f"{path!r}: {name}: got {shortened(got_value)}, want {shortened(want_value)}")
    return lines


def shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


def snapshot_directory(top: bytes) -> dict[bytes, Node]:
    """Return the tree at `top` with all extended attributes; as root, that includes trusted.*."""
    tree = {b"": read_node(top)}
    inodes: dict[tuple[int, int], list[bytes]] = {}
    pending = [b""]
    while pending:
        parent = pending.pop()
        with os.scandir(os.path.join(top, parent)) as children:
            for child in children:
                path = os.path.join(parent, child.name)
                tree[path] = read_node(child.path)
                status = child.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    pending.append(path)
                else:
                    inodes.setdefault((status.st_dev, status.st_ino), []).append(path)
    groups = {path: tuple(sorted(paths)) for paths in inodes.values() for path in paths}
    return {path: replace(found, group=groups.get(path, (path,))) for path, found in tree.items()}


def read_node(path: bytes) -> Node:
    status = os.lstat(path)
    kind = kind_of(status.st_mode)
    is_device = kind in ("char", "block")
    data = b""
    if kind == "file":
        with open(path, "rb") as stream:
            data = stream.read()
    names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]
    return Node(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime=status.st_mtime_ns // 10**9,
        mtime_ns=status.st_mtime_ns % 10**9,
        data=data,
        linkname=os.readlink(path) if kind == "symlink" else b"",
        xattrs={name: os.getxattr(path, name, follow_symlinks=False) for name in names},
        major=os.major(status.st_rdev) if is_device else 0,
        minor=os.minor(status.st_rdev) if is_device else 0,
        group=(),
    )


def kind_of(mode: int) -> Kind:
    kinds: dict[int, Kind] = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "dir",
        stat.S_IFLNK: "symlink",
        stat.S_IFCHR: "char",
        stat.S_IFBLK: "block",
        stat.S_IFIFO: "fifo",
    }
    return kinds[stat.S_IFMT(mode)]


def snapshot_tar(path: str) -> dict[bytes, Node]:
    """Return the tree in a flat tar; `AssertionError` unless any tar tool would extract it as it stands.

    That is: normalised names, parents before children, each path once, links after their targets, no whiteouts.
    A tar without an entry for the root has the implied one.
    """
    with open(path, "rb") as stream:
        entries = parse_layer(stream.read())
    targets: dict[bytes, Entry] = {}
    groups: dict[bytes, list[bytes]] = {}
    leader: dict[bytes, bytes] = {}
    for entry in entries:
        names = normalised(entry.path)
        assert names is not None, f"{entry.path!r} climbs above the root"
        name = b"/".join(names)
        written = entry.path.removeprefix(b"./").removesuffix(b"/")
        assert written in (name, b".") if not name else written == name, f"{entry.path!r} is not normalised"
        assert name not in targets, f"{name!r} is there twice"
        if name:
            parent = b"/".join(names[:-1])
            assert not parent or targets[parent].kind == "dir", f"{parent!r} is no directory"
            assert not names[-1].startswith(WHITEOUT), f"{name!r} is a whiteout"
        leader[name] = name
        if entry.kind == "hardlink":
            target = entry.linkname.removeprefix(b"./")
            assert targets[target].kind != "dir", f"{name!r} is a link to a directory"
            leader[name] = leader[target]
            targets[name] = targets[target]
        else:
            targets[name] = entry
        groups.setdefault(leader[name], []).append(name)
    tree = {name: node(entry, tuple(sorted(groups[leader[name]]))) for name, entry in targets.items()}
    tree.setdefault(b"", node(Entry(b"", "dir", 0o755, mtime=0), (b"",)))
    return tree


def parse_layer(tar: bytes) -> list[Entry]:
    """Return the entries of a tar of the POSIX or GNU format; `AssertionError` where it is not well-formed.

    Sparse files are not understood, and global headers are passed over.
    """
    assert len(tar) % BLOCK == 0, f"{len(tar)} bytes are no whole blocks"
    entries = []
    extended: dict[bytes, bytes] = {}
    at = 0
    while tar[at : at + BLOCK] != bytes(BLOCK):
        header = tar[at : at + BLOCK]
        assert len(header) == BLOCK, "the end of the archive is missing"
        checksum = sum(header[:148]) + 8 * 0x20 + sum(header[156:])
        assert parse_number(header[148:156]) == checksum, f"checksum of the header at {at}"
        flag = header[156:157]
        records = {} if flag in b"xgLK" else extended
        size = int(records.get(b"size", b"%d" % parse_number(header[124:136])))
        if flag in (b"1", b"2", b"3", b"4", b"5", b"6"):
            size = 0
        data = tar[at + BLOCK : at + BLOCK + size]
        assert len(data) == size, f"data of the entry at {at} is cut off"
        at += BLOCK + size + -size % BLOCK
        if flag == b"x":
            extended = parse_records(data) | {
                key: extended[key] for key in extended if key in (b"path", b"linkpath")
            }
        elif flag in (b"L", b"K"):
            extended[b"path" if flag == b"L" else b"linkpath"] = data.partition(b"\0")[0]
        elif flag != b"g":
            entries.append(parse_entry(header, extended, data))
            extended = {}
    assert tar[at : at + 2 * BLOCK] == bytes(2 * BLOCK), "the archive ends with a single zero block"
    assert not tar[at:].strip(b"\0"), "something follows the end of the archive"
    assert not extended, "an extended header without an entry"
    return entries


def parse_entry(header: bytes, extended: Mapping[bytes, bytes], data: bytes) -> Entry:
    name = text(header[:100])
    prefix = text(header[345:500])
    if header[257:263] == b"ustar\0" and prefix:
        name = prefix + b"/" + name
    kind = KINDS[header[156:157]]
    seconds, _, fraction = extended.get(b"mtime", b"%d" % parse_number(header[136:148])).partition(b".")
    mtime, mtime_ns = int(seconds), int(fraction[:9].ljust(9, b"0"))
    if seconds.startswith(b"-") and mtime_ns:
        mtime, mtime_ns = mtime - 1, 10**9 - mtime_ns
    return Entry(
        path=extended.get(b"path", name),
        kind=kind,
        mode=parse_number(header[100:108]),
        uid=int(extended.get(b"uid", b"%d" % parse_number(header[108:116]))),
        gid=int(extended.get(b"gid", b"%d" % parse_number(header[116:124]))),
        mtime=mtime,
        mtime_ns=mtime_ns,
        data=data,
        linkname=extended.get(b"linkpath", text(header[157:257])),
        xattrs={key.removeprefix(XATTR): value for key, value in extended.items() if key.startswith(XATTR)},
        major=parse_number(header[329:337]) if kind in ("char", "block") else 0,
        minor=parse_number(header[337:345]) if kind in ("char", "block") else 0,
    )


def text(value: bytes) -> bytes:
    return value.partition(b"\0")[0]


def parse_number(value: bytes) -> int:
    if value[0] & 0x80:  # base-256; the next bit is the sign
        if value[0] & 0x40:
            return int.from_bytes(value, "big", signed=True)
        return int.from_bytes(bytes([value[0] & 0x7F]) + value[1:], "big")
    return int(text(value).strip() or b"0", 8)


def parse_records(data: bytes) -> dict[bytes, bytes]:
    """Return the records of a PAX header; an empty value stands for the header's."""
    records = {}
    while data:
        length = int(data.partition(b" ")[0])
        record, data = data[:length], data[length:]
        assert record.endswith(b"\n"), f"PAX record {record!r}"
        key, equals, value = record[:-1].partition(b" ")[2].partition(b"=")
        assert key, f"PAX record {record!r}"
        assert equals, f"PAX record {record!r}"
        if value or key.startswith(XATTR):
            records[key] = value
    return records


def extract_tar(
    file: str, target: str, tool: Literal["tar", "bsdtar", "tarfile"] = "tar"
) -> dict[bytes, Node]:
    """Extract `file` into the new directory `target` and return the tree there.

    `tarfile` knows no extended attributes; bsdtar cannot extract PAX names that are not UTF-8.
    """
    os.mkdir(target)
    if tool == "tarfile":
        with tarfile.open(file) as archive:
            # Debian 12's Python does not know filters yet; newer ones want to be told that none is wanted.
            known = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
            archive.extractall(target, numeric_owner=True, **known)  # type: ignore[arg-type]
    else:
        xattrs = ["--xattrs", "--xattrs-include=*"] if tool == "tar" else ["--xattrs"]
        run(tool, *xattrs, "--numeric-owner", "-xpf", file, "-C", target)
    with open(file, "rb") as stream:
        settle_root(target, stream.read())
    return snapshot_directory(os.fsencode(target))


def settle_root(extracted: str, tar: bytes) -> None:
    """Give the directory the implied mtime if `tar`, which was extracted into it, has no entry for the root."""
    if all(normalised(entry.path) for entry in parse_layer(tar)):
        os.utime(extracted, (0, 0))


def umoci_unpack(layout: str, bundle: str, tag: str = "latest") -> dict[bytes, Node]:
    """Unpack the image with umoci into the new directory `bundle` and return the tree of its rootfs."""
    run("umoci", "unpack", "--image", f"{layout}:{tag}", bundle)
    return snapshot_directory(os.path.join(os.fsencode(bundle), b"rootfs"))


def overlay_tree(layers: Sequence[bytes], scratch: str) -> dict[bytes, Node]:
    """Return the tree that the kernel's overlayfs makes of the layer tars, the oldest first.

    Each is extracted alone below the new directory `scratch`. So the image must not be one that overlayfs merges
    otherwise: an entry below an older layer's symlink, a link to an older layer's file, an implied directory over
    an older entry.
    """
    os.mkdir(scratch)
    lowers = [os.path.join(scratch, "empty")]
    os.mkdir(lowers[0])
    for number, layer in enumerate(layers):
        lower = os.path.join(scratch, str(number))
        with open(lower + ".tar", "wb") as stream:
            stream.write(layer)
        os.mkdir(lower)
        run("tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", lower + ".tar", "-C", lower)
        convert_whiteouts(os.fsencode(lower))
        settle_root(lower, layer)
        lowers.append(lower)
    with overlay_mount(lowers, os.path.join(scratch, "merged")) as merged:
        tree = snapshot_directory(os.fsencode(merged))
    shutil.rmtree(scratch)
    return tree


def convert_whiteouts(top: bytes) -> None:
    """Replace the whiteouts of a layer by those of overlayfs (Documentation/filesystems/overlayfs.rst)."""
    for parent, _, names in os.walk(top):
        before = os.lstat(parent)
        for name in names:
            if name.startswith(WHITEOUT):
                os.remove(os.path.join(parent, name))
                if name == OPAQUE:
                    os.setxattr(parent, b"trusted.overlay.opaque", b"y")
                else:
                    os.mknod(
                        os.path.join(parent, name.removeprefix(WHITEOUT)), stat.S_IFCHR, os.makedev(0, 0)
                    )
        os.utime(parent, ns=(before.st_atime_ns, before.st_mtime_ns))


@contextmanager
def overlay_mount(lowers: Sequence[str], point: str) -> Iterator[str]:
    """Mount the directories, the lowest first, read-only at the new directory `point`."""
    os.mkdir(point)
    run("mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={':'.join(reversed(lowers))}", point)
    try:
        yield point
    finally:
        run("umount", point)


def run(*command: str) -> None:
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}"
