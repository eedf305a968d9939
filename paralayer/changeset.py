"""What one layer does to the tree below it.

`Changeset` is a layer with every name resolved: each path once, symlinks in parents followed, whiteouts and
replacements told as what they hide of older layers. An orderly layer (see `paralayer.tar.scanner`) is one as it
stands. Any other is applied, entry by entry in tar order, onto what the older layers leave: `apply`.

Pure: neither processes nor files. The older layers are asked through `Older`, which may not know yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Protocol

from paralayer.errors import LayerError, quote
from paralayer.table import DIRECTORY, HARDLINK, OPAQUE, SYMLINK, WHITEOUT
from paralayer.tar.names import marker, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

IMPLIED = -1  # in place of a row: a directory without an entry
_IMPLIED_MAX = (
    256 << 20
)  # bytes of paths in a layer; a few entries thousands of levels deep could imply any number
MAX_SYMLINKS = 40  # on the way to one entry, as in Linux


class UnsettledError(Exception):
    """The answer depends on a layer that is not settled yet: `layer`."""

    def __init__(self, layer: int) -> None:
        super().__init__(layer)
        self.layer = layer


@dataclass(frozen=True, slots=True)
class Entries:
    """The rows of one layer's entry table that say where things are; lists of one length, in tar order."""

    layer: int
    where: str  # the layer, in messages
    orderly: bool
    paths: Sequence[bytes]
    kinds: Sequence[int]
    parents: Sequence[int]  # orderly layers: row of the directory, or table.ROOT
    targets: Sequence[int]  # orderly layers, hard links: row of the file
    linkname: Callable[[int], bytes]

    def refuse(self, path: bytes, what: str, got: object = None, want: object = None) -> NoReturn:
        """Raise the error that names the layer and the entry."""
        raise LayerError(f"{self.where}: {quote(path)}", what, got, want)


@dataclass(slots=True, eq=False)
class File:
    """What hard links are names of: a row of a layer or, while `row` is None, whatever older layers have at `path`."""

    layer: int
    row: int | None
    path: bytes
    entries: Entries  # of the layer and...
    link: bytes  # ...the entry to blame when there is no such file
    names: list[bytes] = field(default_factory=list)  # surviving hard links
    joined: File | None = None  # the file that it turned out to be

    def final(self) -> File:
        """Return the file that this one has become part of."""
        file = self
        while file.joined is not None:
            file = file.joined
        return file


class Older(Protocol):
    """The tree that the layers below one leave. Both methods raise UnsettledError."""

    def find(self, path: bytes, below: int) -> tuple[int, int] | None:
        """Return (layer, row) of what layers older than `below` have at `path`; row IMPLIED for a directory without an entry."""

    def follow(self, layer: int, row: int) -> tuple[int, bytes]:
        """Return the kind of a row and, of a symlink, its target; of a hard link, those of its file."""


class Changeset:
    """The effect of one layer.

    `paths` maps each path that the layer leaves to its row or IMPLIED, parents before children. Of the older
    layers' tree, each path in `wiped` is gone with everything below it, everything below each path in `opaque` is
    gone, and so is whatever a path of the layer itself replaces. `files` maps the rows of hard links to their files.
    """

    def __init__(
        self,
        entries: Entries,
        paths: dict[bytes, int] | None,
        wiped: set[bytes],
        opaque: set[bytes],
        files: dict[int, File],
    ) -> None:
        self.entries = entries
        self.wiped = wiped
        self.opaque = opaque
        self.files = files
        self._paths = paths
        self._hidden: dict[bytes, bool] = {}

    @property
    def paths(self) -> dict[bytes, int]:
        """See the class; of an orderly layer made when it is first asked for."""
        if self._paths is None:
            kinds = self.entries.kinds
            self._paths = {path: row for row, path in enumerate(self.entries.paths) if kinds[row] < WHITEOUT}
        return self._paths

    def is_directory(self, row: int) -> bool:
        """Say whether a value of `paths` is a directory."""
        return row == IMPLIED or self.entries.kinds[row] == DIRECTORY

    def hides(self, path: bytes) -> bool:
        """Say whether nothing that older layers have at `path`, which this layer does not have itself, remains."""
        return path in self.wiped or self._hides_below(split(path)[0])

    def _hides_below(self, directory: bytes) -> bool:
        unknown = []
        while (hidden := self._hidden.get(directory)) is None:
            row = self.paths.get(directory)
            if (
                directory in self.wiped
                or directory in self.opaque
                or (row is not None and not self.is_directory(row))
            ):
                hidden = True
            elif not directory:
                hidden = False
            if hidden is not None:
                self._hidden[directory] = hidden
                break
            unknown.append(directory)
            directory = split(directory)[0]
        for path in unknown:
            self._hidden[path] = hidden
        return hidden


def of_orderly(entries: Entries) -> Changeset:
    """Return the changeset of an orderly layer."""
    wiped, opaque = set(), set()
    for row, kind in enumerate(entries.kinds):
        if kind == WHITEOUT:
            wiped.add(entries.paths[row])
        elif kind == OPAQUE:
            opaque.add(entries.paths[row])
    return Changeset(entries, None, wiped, opaque, {})


def apply(entries: Entries, older: Older) -> Changeset:
    """Apply the entries of a layer, in tar order, onto what the older layers leave."""
    return _Application(entries, older).run()


class _Application:
    """The state of `apply`: what the layer has put and hidden so far."""

    def __init__(self, entries: Entries, older: Older) -> None:
        self._entries = entries
        self._older = older
        self._own: dict[bytes, int] = {}  # in the order of creation
        self._children: dict[bytes, list[bytes]] = {}
        self._wiped: set[bytes] = set()
        self._opaque: set[bytes] = set()
        self._implied = 0  # bytes of the paths of implied directories
        self._files: dict[int, File] = {}  # by the row of a hard link
        self._targets: dict[int, File] = {}  # by the row of the file
        self._directories: dict[bytes, bytes] = {b"": b""}  # name of a directory → its path
        self._passed: set[bytes] = set()  # on the way to those that lie behind symlinks

    def run(self) -> Changeset:
        kinds = self._entries.kinds
        for row, path in enumerate(self._entries.paths):
            kind = kinds[row]
            if kind >= WHITEOUT:
                self._apply_whiteout(path, kind)
                continue
            if not path:
                continue  # the root, which is always there
            target = self._target(path, row) if kind == HARDLINK else None
            parent, name = split(path)
            directory = self._directory(parent, path)
            resolved = path if directory == parent else _join(directory, name)
            if target == resolved:
                self._entries.refuse(path, "hard link to itself")
            if kind == DIRECTORY:
                self._put_directory(directory, resolved, row)
            else:
                self._put(directory, resolved, row)
        return Changeset(self._entries, self._own, self._wiped, self._opaque, self._files)

    def _apply_whiteout(self, path: bytes, kind: int) -> None:
        holder, name = (path, b"") if kind == OPAQUE else split(path)
        directory = self._directories.get(holder)
        if directory is None:
            directory = self._walk(holder, marker(path, kind), create=True, stop_at_own_file=True)
            if directory is None:
                # umoci writes such for the children of a directory that became a file; older layers have nothing there.
                return
            self._directories[holder] = directory
        if kind == OPAQUE:
            self._hide_below(directory)
        else:
            self._hide(_join(directory, name))

    # Older layers' content goes. Names of directories stay valid unless they came through an older symlink.

    def _hide(self, path: bytes) -> None:
        self._wiped.add(path)
        if self._passed:
            self._forget_names()

    def _hide_below(self, path: bytes) -> None:
        self._opaque.add(path)
        if self._passed:
            self._forget_names()

    def _forget_names(self) -> None:
        self._directories = {b"": b""}
        self._passed.clear()

    # This layer's content comes

    def _put_directory(self, parent: bytes, path: bytes, row: int) -> None:
        old = self._own.get(path)
        if old is not None and self._kind(old) != DIRECTORY:
            self._remove(path)
            self._wiped.add(path)
            old = None
        if path in self._passed:
            self._forget_names()
        if old is None:
            self._add(parent, path, row)
        else:
            self._own[path] = row

    def _put(self, parent: bytes, path: bytes, row: int) -> None:
        if path in self._own:
            if self._kind(self._own[path]) == DIRECTORY:
                self._forget_names()
            self._remove(path)
            self._wiped.add(path)
        if path in self._passed:
            self._forget_names()
        self._add(parent, path, row)

    def _add(self, parent: bytes, path: bytes, row: int) -> None:
        self._own[path] = row
        children = self._children.get(parent)
        if children is None:
            self._children[parent] = [path]
        else:
            children.append(path)

    def _remove(self, path: bytes) -> None:
        doomed = [path]
        while doomed:
            path = doomed.pop()
            if self._own.pop(path, None) is not None:
                doomed.extend(self._children.pop(path, ()))

    def _kind(self, row: int) -> int:
        return DIRECTORY if row == IMPLIED else self._entries.kinds[row]

    # Where a name leads

    def _has_hidden(self, path: bytes) -> bool:
        """Say whether this layer has hidden by now what older layers have at a path."""
        if not self._wiped and not self._opaque:
            return False
        return path in self._wiped or any(
            ancestor in self._wiped or ancestor in self._opaque for ancestor in _ancestors(path)
        )

    def _look(self, path: bytes) -> tuple[int, bytes] | None:
        """Return (kind, symlink target) of what is at a path now; a hard link is what it links to."""
        row = self._own.get(path)
        if row is None:
            found = None if self._has_hidden(path) else self._older.find(path, self._entries.layer)
            return found and self._older.follow(*found)
        kind = self._kind(row)
        if kind == HARDLINK:
            file = self._files[row]
            if file.row is None:
                found = self._older.find(file.path, self._entries.layer)
                if found is None:
                    self._entries.refuse(file.link, "hard link to nothing", quote(file.path))
                return self._older.follow(*found)
            row, kind = file.row, self._entries.kinds[file.row]
        return kind, self._entries.linkname(row) if kind == SYMLINK else b""

    def _directory(self, name: bytes, entry: bytes) -> bytes:
        """Return the path of the directory that `name` leads to; what is missing of it is implied."""
        path = self._directories.get(name)
        if path is None:
            path = self._walk(name, entry, create=True)
            assert path is not None
            self._directories[name] = path
        return path

    def _walk(
        self, name: bytes, entry: bytes, *, create: bool, stop_at_own_file: bool = False
    ) -> bytes | None:
        """Follow a directory's name from the root, symlinks included.

        None: it does not exist, and is not to, or it has to lie below a file that the layer itself has put there.
        """
        path = b""
        symlinks = 0
        passed, replaced = [], set()
        todo = [(component, False) for component in reversed(name.split(b"/"))] if name else []
        while todo:
            component, from_symlink = todo.pop()
            if component in (b"", b"."):
                continue
            if component == b"..":
                path = split(path)[0]
                continue
            below = _join(path, component)
            passed.append(below)
            found = self._look(below)
            if found is not None and found[0] == SYMLINK:
                symlinks += 1
                if symlinks > MAX_SYMLINKS:
                    self._entries.refuse(
                        entry, "too many symlinks on the way", want=f"at most {MAX_SYMLINKS}"
                    )
                if found[1].startswith(b"/"):
                    path = b""
                todo.extend((part, True) for part in reversed(found[1].split(b"/")))
                continue
            if found is None or found[0] != DIRECTORY:
                if not create:
                    return None
                if found is not None:
                    if from_symlink:
                        self._entries.refuse(entry, "symlink on the way leads to no directory", quote(below))
                    if below in self._own:
                        if stop_at_own_file:
                            return None
                        self._entries.refuse(entry, "parent is no directory in this layer", quote(below))
                    replaced.add(below)
            path = below
        if symlinks:
            self._passed.update(passed)
        if create:
            self._imply(path, replaced)
        return path

    def _imply(self, path: bytes, replaced: set[bytes]) -> None:
        """Make the layer have a directory and all above it."""
        missing = []
        while path and path not in self._own:
            missing.append(path)
            path = split(path)[0]
        for directory in reversed(missing):
            if directory in replaced:
                self._wiped.add(directory)
            self._implied += len(directory)
            if self._implied > _IMPLIED_MAX:
                self._entries.refuse(
                    path, "implied directories take too much memory", want=f"at most {_IMPLIED_MAX}"
                )
            self._add(split(directory)[0], directory, IMPLIED)

    def _target(self, path: bytes, row: int) -> bytes:
        """Find the file that the hard link `path` is another name of; return the path that names it now."""
        entries = self._entries
        name = entries.linkname(row)
        parent, base = split(name)
        directory = self._directories.get(parent)
        if directory is None:
            directory = self._walk(parent, path, create=False)
        if directory is None or not base:
            entries.refuse(path, "hard link to nothing", quote(name))
        target = _join(directory, base)
        at = self._own.get(target)
        if at is None:
            if self._has_hidden(target):
                entries.refuse(path, "hard link to nothing", quote(name))
            self._files[row] = File(entries.layer, None, target, entries, path)
            return target
        kind = self._kind(at)
        if kind == DIRECTORY:
            entries.refuse(path, "hard link to a directory", quote(name))
        if kind == HARDLINK:
            self._files[row] = self._files[at]
            return target
        if at not in self._targets:
            self._targets[at] = File(entries.layer, at, target, entries, path)
        self._files[row] = self._targets[at]
        return target


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _ancestors(path: bytes) -> Iterator[bytes]:
    """Yield the directories above a path, the root last."""
    while path:
        path = split(path)[0]
        yield path
