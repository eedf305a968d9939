"""What other readers of squashfs see in an image: each one's tree, as in `trees`, and what it cannot show.

`JUDGES` has them by name. Where one is absent its tests are skipped, or fail where CI=true; root is needed by those
that mount or extract. The packages are, in Debian and Ubuntu, squashfs-tools, squashfuse, p7zip-full and
squashfs-tools-ng; from PyPI, PySquashfsImage.

What is extracted lies on a file system of its own, and ext4 takes no more than 4 KiB of extended attributes a file.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from model import Node
from trees import diff, kind_of, run, snapshot_directory, snapshot_tar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Tree = dict[bytes, Node]
    Read = Callable[[str, str], Tree]
    Show = Callable[[Tree], Tree]

TIME_MAX = (1 << 32) - 1
NAMESPACES = (b"user.", b"trusted.", b"security.")
EMPTY = Node("file", 0, 0, 0, 0, 0, b"", b"", {}, 0, 0, ())
EMPTY_DIRECTORY = replace(EMPTY, kind="dir")


@dataclass(frozen=True, slots=True)
class Judge:
    """A reader. `read` takes an image and a new directory that it may make, and leaves nothing there.

    `show` brings a tree to what the reader can tell, whether it comes from the reader or not. Paths that `show` leaves
    out of the wanted tree do not count.
    """

    name: str
    needs: tuple[str, ...]
    """Commands, "root", "squashfs" (the kernel's), "fuse", or a Python module as "python:NAME"."""
    read: Read
    show: Show = lambda tree: tree
    extracts: bool = False
    unknown: frozenset[str] = frozenset()
    """Compressors that it does not know."""

    def require(self) -> None:
        """Skip the test that asks for a judge who is absent."""
        missing = [each for each in self.needs if not is_there(each)]
        if missing:
            reason = f"missing for the judge {self.name}: {', '.join(missing)}"
            if os.environ.get("CI") == "true":
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)

    def differences(self, image: str, want: Mapping[bytes, Node], scratch: str) -> list[str]:
        """Return a line for each difference between what the reader sees and `want`, a squashfs's tree (`held`)."""
        wanted = self.show(dict(want))
        left_out = want.keys() - wanted.keys()
        got = {path: node for path, node in self.read(image, scratch).items() if path not in left_out}
        return diff(self.show(got), wanted)


def held(tree: Mapping[bytes, Node]) -> Tree:
    """Return what a squashfs holds of a tree: whole seconds of 32 bits, and xattrs of three namespaces."""
    return {
        path: replace(
            node,
            mtime=min(max(node.mtime, 0), TIME_MAX),
            mtime_ns=0,
            xattrs={name: value for name, value in node.xattrs.items() if name.startswith(NAMESPACES)},
        )
        for path, node in tree.items()
    }


def is_there(need: str) -> bool:
    if need == "root":
        return os.geteuid() == 0
    if need == "squashfs":
        with open("/proc/filesystems", encoding="ascii") as filesystems:
            return any(line.split()[-1] == "squashfs" for line in filesystems)
    if need == "fuse":
        return os.path.exists("/dev/fuse")
    if need.startswith("python:"):
        return importlib.util.find_spec(need.removeprefix("python:")) is not None
    return shutil.which(need) is not None


def read_by_kernel(image: str, scratch: str) -> Tree:
    """Return all there is."""
    os.mkdir(scratch)
    run("mount", "-t", "squashfs", "-o", "loop,ro", image, scratch)
    return taken_from_mount(scratch)


def read_by_squashfuse(image: str, scratch: str) -> Tree:
    """Let squashfuse_ll read: squashfuse itself numbers names, not inodes."""
    os.mkdir(scratch)
    run("squashfuse_ll", image, scratch)
    return taken_from_mount(scratch)


def show_squashfuse(tree: Tree) -> Tree:
    """Take trusted and security for the same, which squashfuse 0.1 mixes up; leave out empty values, which it cannot read."""

    def xattrs(node: Node) -> dict[bytes, bytes]:
        return {
            name.replace(b"security.", b"trusted.", 1) if name.startswith(b"security.") else name: value
            for name, value in node.xattrs.items()
            if value
        }

    return {path: replace(node, xattrs=xattrs(node)) for path, node in tree.items()}


def read_by_unsquashfs(image: str, scratch: str) -> Tree:
    run("unsquashfs", "-strict-errors", "-no-progress", "-quiet", "-processors", "2", "-dest", scratch, image)
    return taken(scratch)


def show_extracted(tree: Tree) -> Tree:
    """Leave out the modes of symlinks: Linux has none."""
    return {
        path: replace(node, mode=0o777) if node.kind == "symlink" else node for path, node in tree.items()
    }


def read_by_rdsquashfs(image: str, scratch: str) -> Tree:
    os.mkdir(scratch)
    restore = ("--set-xattr", "--set-times", "--chmod", "--chown")
    run("rdsquashfs", "--quiet", "--unpack-path", "/", "--unpack-root", scratch, *restore, image)
    return taken(scratch)


def show_rdsquashfs(tree: Tree) -> Tree:
    """Leave out what it does not restore: the root's own metadata, hard links, capabilities (it gives files away last)."""
    return {
        path: replace(
            node,
            group=(path,),
            xattrs={name: value for name, value in node.xattrs.items() if name != b"security.capability"},
        )
        for path, node in show_extracted(tree).items()
        if path
    }


def read_by_sqfs2tar(image: str, scratch: str) -> Tree:
    """Return all there is: names are below ./ so that the root has an entry."""
    archive = scratch + ".tar"
    with open(archive, "wb") as stream:
        done = subprocess.run(
            ["sqfs2tar", "--no-skip", "--root-becomes", ".", image],
            stdout=stream,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    tree = snapshot_tar(archive)
    os.remove(archive)
    return tree


def read_by_7z(image: str, scratch: str) -> Tree:
    """Return names, data and times; it refuses symlinks that lead out, says so by its status, and rewrites others.

    An image with nothing but a root it does not take for one.
    """
    os.mkdir(scratch)
    subprocess.run(["7z", "x", "-bd", "-y", f"-o{scratch}", image], check=False, stdout=subprocess.DEVNULL)
    return taken(scratch)


def show_7z(tree: Tree) -> Tree:
    """Leave out the root, symlinks, modes, owners, xattrs, device numbers and hard links; specials are empty files."""
    return {
        path: replace(EMPTY_DIRECTORY if node.kind == "dir" else EMPTY, data=node.data, mtime=node.mtime)
        for path, node in tree.items()
        if path and node.kind != "symlink"
    }


def read_by_pysquashfsimage(image: str, scratch: str) -> Tree:
    """Return all but xattrs, which it only writes to files.

    Its own walk is recursive and takes names for UTF-8, so this is another one over its inodes and listings.
    """
    del scratch
    library: Any = importlib.import_module("PySquashfsImage")
    types: Any = importlib.import_module("PySquashfsImage.file").filetype
    directory_type = importlib.import_module("PySquashfsImage.const").Type.DIR

    class Image(library.SquashFsImage):  # type: ignore[misc]
        def _dir_scan(self, start_block: int, offset: int) -> Any:
            return self._opendir(start_block, offset)

    nodes: Tree = {}
    inodes: dict[int, list[bytes]] = {}
    with Image.from_file(image) as opened:
        pending = [(b"", opened.root)]
        while pending:
            parent, directory = pending.pop()
            nodes[parent] = node_of(directory, (parent,))
            for entry in directory.entries:
                path = os.path.join(parent, entry["name"])
                place = entry["start_block"], entry["offset"]
                if entry["type"] == directory_type:
                    pending.append((path, opened._opendir(*place)))
                    continue
                found = types[entry["type"]](opened, opened._read_inode(*place), entry["name"], directory)
                nodes[path] = node_of(found, ())
                inodes.setdefault(found.inode.inode_number, []).append(path)
    groups = {path: tuple(sorted(paths)) for paths in inodes.values() for path in paths}
    return {path: replace(node, group=groups.get(path, (path,))) for path, node in nodes.items()}


def node_of(found: Any, group: tuple[bytes, ...]) -> Node:
    kind = kind_of(found.mode)
    is_device = kind in ("char", "block")
    return Node(
        kind=kind,
        mode=stat.S_IMODE(found.mode),
        uid=found.uid,
        gid=found.gid,
        mtime=found.time,
        mtime_ns=0,
        data=found.read_bytes() if kind == "file" else b"",
        linkname=found.inode._symlink if kind == "symlink" else b"",
        xattrs={},
        major=found.major if is_device else 0,
        minor=found.minor if is_device else 0,
        group=group,
    )


def show_no_xattrs(tree: Tree) -> Tree:
    return {path: replace(node, xattrs={}) for path, node in tree.items()}


def taken(directory: str) -> Tree:
    """Return the tree in a directory, and remove it."""
    try:
        return snapshot_directory(os.fsencode(directory))
    finally:
        shutil.rmtree(os.fsencode(directory))


def taken_from_mount(point: str) -> Tree:
    """Return the tree that GNU tar reads from a mount, and unmount it.

    Without xattrs squashfs does not answer questions about them, which GNU tar takes for an answer. It knows no hard
    links of devices; they are looked up here.
    """
    archive = point + ".tar"
    inodes: dict[int, list[bytes]] = {}
    options = ("--xattrs", "--xattrs-include=*", "--format=posix", "--numeric-owner")
    try:
        run("tar", "-C", point, *options, "-cf", archive, ".")
        top = os.fsencode(point)
        for parent, directories, names in os.walk(top):
            for name in directories + names:
                path = os.path.join(parent, name)
                inodes.setdefault(os.lstat(path).st_ino, []).append(os.path.relpath(path, top))
    finally:
        run("umount", point)
        os.rmdir(point)
    tree = snapshot_tar(archive)
    os.remove(archive)
    groups = {path: tuple(sorted(paths)) for paths in inodes.values() for path in paths}
    return {path: replace(node, group=groups.get(path, (path,))) for path, node in tree.items()}


JUDGES: dict[str, Judge] = {
    judge.name: judge
    for judge in (
        Judge("kernel", ("root", "squashfs", "mount"), read_by_kernel),
        Judge("squashfuse", ("root", "fuse", "squashfuse_ll", "tar"), read_by_squashfuse, show_squashfuse),
        Judge("unsquashfs", ("root", "unsquashfs"), read_by_unsquashfs, show_extracted, extracts=True),
        Judge("rdsquashfs", ("root", "rdsquashfs"), read_by_rdsquashfs, show_rdsquashfs, extracts=True),
        Judge("sqfs2tar", ("sqfs2tar",), read_by_sqfs2tar),
        Judge("7z", ("7z",), read_by_7z, show_7z, extracts=True, unknown=frozenset({"lz4"})),
        Judge(
            "PySquashfsImage",
            ("python:PySquashfsImage",),
            read_by_pysquashfsimage,
            show_no_xattrs,
            unknown=frozenset({"lz4"}),  # it takes the blocks for frames
        ),
    )
}
