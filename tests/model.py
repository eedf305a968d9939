"""What an image's tree must be: the layers applied oldest first, entry by entry, onto a tree in memory.

This is the judge of the engine, so it shares no code with it and is written to be checked by eye, not to be
fast. The rules are those of the OCI image specification (layer.md), and where that is silent, what applying
the layers one after the other onto one directory gives. Where appliers differ:

- symlinks in parent components are followed, with the image's root as `/`; missing directories are created;
- whiteouts concern older layers only, wherever they stand in their layer, but what they remove is gone from
  the tree for the entries behind them (parents, hard link targets);
- a directory that a layer removes and only implies again (no entry of its own) loses its older metadata;
- a whiteout below a file of its own layer, also behind symlinks, has no effect: there is nothing older left to hide;
- a hard link's own header is ignored, and its target is looked up before the link's parents are created.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["file", "dir", "symlink", "hardlink", "char", "block", "fifo"]

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
BOOKKEEPING = b".wh..wh."
LINK_STORE = b".wh..wh.plnk"
"""AUFS's directory in the root: hard links may point into it, and it is not in the result."""

MAX_NAME = 255
MAX_SYMLINKS = 40


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of a layer tar, names as they are written there."""

    path: bytes
    kind: Kind = "file"
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 1_000_000_000
    mtime_ns: int = 0
    """The part of the mtime below a second, 0 to 999,999,999."""
    data: bytes = b""
    linkname: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    major: int = 0
    minor: int = 0


def file(path: bytes, data: bytes = b"", **fields: Any) -> Entry:
    return Entry(path, data=data, **fields)


def directory(path: bytes, mode: int = 0o755, **fields: Any) -> Entry:
    return Entry(path, "dir", mode, **fields)


def symlink(path: bytes, target: bytes, **fields: Any) -> Entry:
    return Entry(path, "symlink", 0o777, linkname=target, **fields)


def hardlink(path: bytes, target: bytes, **fields: Any) -> Entry:
    return Entry(path, "hardlink", linkname=target, **fields)


def char(path: bytes, major: int, minor: int, **fields: Any) -> Entry:
    return Entry(path, "char", major=major, minor=minor, **fields)


def block(path: bytes, major: int, minor: int, **fields: Any) -> Entry:
    return Entry(path, "block", major=major, minor=minor, **fields)


def fifo(path: bytes, **fields: Any) -> Entry:
    return Entry(path, "fifo", **fields)


def whiteout(path: bytes) -> Entry:
    """Return the entry that removes `path` of the older layers."""
    parent, slash, name = path.rpartition(b"/")
    return Entry(parent + slash + WHITEOUT + name, mode=0)


def opaque(path: bytes) -> Entry:
    """Return the entry that removes all older children of the directory `path`; b"" is the root."""
    return Entry(path + b"/" + OPAQUE if path else OPAQUE, mode=0)


@dataclass(frozen=True, slots=True)
class Node:
    """What a path is in a finished tree."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int
    data: bytes
    linkname: bytes
    xattrs: dict[bytes, bytes]
    major: int
    minor: int
    group: tuple[bytes, ...]
    """All paths of this inode, sorted; one path if there are no hard links."""


class Tree(dict[bytes, Node]):
    """Path to node; the root is b"" and always there."""

    has_root_entry: bool = False


class Refused(Exception):  # noqa: N818 - the model's verdict on an image, not a fault of the model
    """The image is to be refused because of one entry."""

    def __init__(self, layer: int, index: int, path: bytes, why: str) -> None:
        super().__init__(layer, index, path, why)
        self.layer = layer
        self.index = index
        self.path = path
        self.why = why


class BelowOwnFile(Refused):
    """A component of an entry's name is a file that the entry's layer has put there."""


IMPLIED = directory(b"", mtime=0)
"""The attributes of a directory that no layer has an entry for."""
NO_LAYER = -1


@dataclass(slots=True, eq=False)
class Inode:
    """A file of any kind, apart from its names."""

    entry: Entry
    """Whose attributes it has."""
    entry_layer: int
    """For directories: the newest layer with an entry for it."""
    children: dict[bytes, Name] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Name:
    """A name in a directory."""

    inode: Inode
    layer: int
    """The newest layer that put this name here or, for a directory, had it as a parent."""


def merge(layers: Sequence[Sequence[Entry]]) -> Tree:
    """Apply `layers`, the oldest first, or raise `Refused`."""
    applier = Applier()
    for number, layer in enumerate(layers):
        for index, entry in enumerate(layer):
            applier.apply(number, index, entry)
    return applier.tree()


def normalised(path: bytes) -> list[bytes] | None:
    """Return the components of `path` without `.` and `..`, or None if it climbs above the root."""
    names: list[bytes] = []
    for component in path.split(b"/"):
        if component in (b"", b"."):
            continue
        if component != b"..":
            names.append(component)
        elif names:
            names.pop()
        else:
            return None
    return names


class Applier:
    """The tree so far and the entry that is being applied to it."""

    def __init__(self) -> None:
        self.root = Inode(IMPLIED, NO_LAYER)
        self.layer = 0
        self.index = 0
        self.entry = IMPLIED

    def refuse(self, why: str) -> NoReturn:
        raise Refused(self.layer, self.index, self.entry.path, why)

    def apply(self, layer: int, index: int, entry: Entry) -> None:
        self.layer, self.index, self.entry = layer, index, entry
        names = normalised(entry.path)
        if names is None:
            self.refuse("the name climbs above the root")
        if not names:
            self.set_root()
            return
        *parents, last = names
        if last == OPAQUE:
            if self.is_below_own_file(parents):
                return
            parent = self.make_directories(parents)
            for child in list(parent.children):
                self.hide(parent, child)
        elif last.startswith(BOOKKEEPING):
            pass
        elif last.startswith(WHITEOUT):
            hidden = last.removeprefix(WHITEOUT)
            if hidden in (b"", b".", b".."):
                self.refuse("the whiteout names nothing")
            if self.is_below_own_file(parents):
                return
            self.hide(self.make_directories(parents), hidden)
        elif len(last) > MAX_NAME:
            self.refuse("the name is too long")
        elif entry.kind == "hardlink":
            self.put_link(parents, last)
        elif entry.kind == "dir":
            self.put_directory(self.make_directories(parents), last)
        else:
            self.make_directories(parents).children[last] = Name(Inode(entry, layer), layer)

    def is_below_own_file(self, names: list[bytes]) -> bool:
        """Say whether this layer has put a file in the way, as umoci does where a directory becomes one."""
        try:
            self.resolve(names)
        except BelowOwnFile:
            return True
        return False

    def set_root(self) -> None:
        if self.entry.kind != "dir":
            self.refuse("the root is not a directory")
        self.root.entry = self.entry
        self.root.entry_layer = self.layer

    def put_directory(self, parent: Inode, last: bytes) -> None:
        name = parent.children.get(last)
        if name is not None and name.inode.entry.kind == "dir":
            name.inode.entry = self.entry
            name.inode.entry_layer = self.layer
            name.layer = self.layer
        else:
            parent.children[last] = Name(Inode(self.entry, self.layer), self.layer)

    def put_link(self, parents: list[bytes], last: bytes) -> None:
        target = normalised(self.entry.linkname)
        if not target:
            self.refuse("the hard link's target is the root or above it")
        *target_parents, target_last = target
        holder = self.find(self.resolve(target_parents))
        name = holder.children.get(target_last) if holder else None
        if name is None:
            self.refuse("the hard link's target does not exist")
        if name.inode.entry.kind == "dir":
            self.refuse("the hard link's target is a directory")
        parent = self.make_directories(parents)
        if parent is holder and last == target_last:
            self.refuse("the hard link is its own target")
        parent.children[last] = Name(name.inode, self.layer)

    def hide(self, parent: Inode, child: bytes) -> None:
        """Remove `child` with everything below, except what this layer has put there.

        What remains is directories that this layer has an entry for or needs as parents. The latter are
        directories anew.
        """
        name = parent.children.get(child)
        if name is None:
            return
        if name.layer < self.layer:
            del parent.children[child]
            return
        if name.inode.entry.kind == "dir":
            if name.inode.entry_layer < self.layer:
                name.inode.entry = IMPLIED
                name.inode.entry_layer = NO_LAYER
            for grandchild in list(name.inode.children):
                self.hide(name.inode, grandchild)

    def make_directories(self, names: list[bytes]) -> Inode:
        """Return the directory `names`, made with all its parents where there is none yet."""
        inode = self.root
        for component in self.resolve(names):
            name = inode.children.get(component)
            if name is None or name.inode.entry.kind != "dir":
                name = inode.children[component] = Name(Inode(IMPLIED, NO_LAYER), self.layer)
            name.layer = self.layer
            inode = name.inode
        return inode

    def resolve(self, names: list[bytes]) -> list[bytes]:
        """Follow the symlinks in `names`, all of them to be directories; the result need not exist.

        An older layer's file at one of `names` may stay in the way (it will be replaced), but neither this
        layer's nor any at a component of a symlink's target.
        """
        place: list[bytes] = []
        pending = deque((name, "the entry's name") for name in names)
        symlinks = 0
        while pending:
            component, source = pending.popleft()
            if component in (b"", b"."):
                continue
            if component == b"..":
                del place[-1:]
                continue
            if len(component) > MAX_NAME:
                self.refuse("a component is too long")
            parent = self.find(place)
            name = parent.children.get(component) if parent else None
            kind = name.inode.entry.kind if name else "dir"
            if name and kind == "symlink":
                symlinks += 1
                if symlinks > MAX_SYMLINKS:
                    self.refuse("too many symlinks")
                target = name.inode.entry.linkname
                if target.startswith(b"/"):
                    place = []
                pending.extendleft((part, "a symlink") for part in reversed(target.split(b"/")))
                continue
            if name and kind != "dir":
                if source == "a symlink":
                    self.refuse("a parent is not a directory")
                if name.layer == self.layer:
                    raise BelowOwnFile(self.layer, self.index, self.entry.path, "a parent is a file")
            place.append(component)
        return place

    def find(self, place: list[bytes]) -> Inode | None:
        inode = self.root
        for component in place:
            name = inode.children.get(component)
            if name is None:
                return None
            inode = name.inode
        return inode

    def tree(self) -> Tree:
        inodes = {b"": self.root}
        pending = [(b"", self.root)]
        while pending:
            path, parent = pending.pop()
            for component, name in parent.children.items():
                if parent is self.root and component == LINK_STORE:
                    continue
                child = path + b"/" + component if path else component
                inodes[child] = name.inode
                pending.append((child, name.inode))
        groups: dict[Inode, list[bytes]] = {}
        for path in sorted(inodes):
            groups.setdefault(inodes[path], []).append(path)
        tree = Tree({path: node(inode.entry, tuple(groups[inode])) for path, inode in inodes.items()})
        tree.has_root_entry = self.root.entry_layer != NO_LAYER
        return tree


def node(entry: Entry, group: tuple[bytes, ...]) -> Node:
    """Return `entry` as the paths `group` show it: without what its kind does not have."""
    is_device = entry.kind in ("char", "block")
    return Node(
        kind=entry.kind,
        mode=entry.mode & 0o7777,
        uid=entry.uid,
        gid=entry.gid,
        mtime=entry.mtime,
        mtime_ns=entry.mtime_ns,
        data=entry.data if entry.kind == "file" else b"",
        linkname=entry.linkname if entry.kind == "symlink" else b"",
        xattrs=entry.xattrs,
        major=entry.major if is_device else 0,
        minor=entry.minor if is_device else 0,
        group=group,
    )
