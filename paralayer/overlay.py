"""The merge: layers in, survivors out, newest layer first.

The result is the tree that applying the layers oldest-first gives. Walking newest-first gives the same, because what
newer layers do to a path of an older one is only ever one of three things, and they add up:

- *taken*: a newer layer has the path itself (or has whited it out), so an older entry of it is hidden;
- *wiped*: a newer layer hides what older layers have below the path: it made the directory opaque, whited it out, or
  put there (even if only for a while) something that is no directory.

The marks of all newer layers, one small dictionary, are the *shadow set*. An entry survives when its path is not
taken and no directory above it is wiped. Hidden entries still leave their marks: a file hidden by a newer directory
hides the directory's oldest children all the same.

Two things need older layers first. A directory that a layer implies has its metadata, and its very nature, from an
older layer: that is asked of the older changesets, and the layer's turn waits until they are settled. A hard link to
an older layer's file waits in the list of pending files until that layer's turn.

The order of the survivors suits tar readers: of each layer in tar order (a directory where it is first needed), then
files that survive only under the name of a hard link; at the very end all other hard links. So parents come before
children, each path once, links after their targets.

An orderly layer (see `paralayer.tar.scanner`) needs none of that, so its survivors are known row by row, while it is
still being indexed: `advance`. Should a later row break the order, the whole layer is applied once more, and what was
given out must be how its survivors begin; else the output has to start over: `OverturnedError`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from paralayer.changeset import IMPLIED, Changeset, Entries, File, UnsettledError, apply, of_orderly
from paralayer.errors import quote
from paralayer.table import DIRECTORY, HARDLINK, SYMLINK, WHITEOUT
from paralayer.tar.names import LINK_STORE, split

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TAKEN, _WIPED = 1, 2
_BOTH = _TAKEN | _WIPED


@dataclass(slots=True)
class Survivors:
    """Survivors in output order: `paths[i]` is row `rows[i]` of the entry table of `layer`.

    `directories` has the positions that are different: implied directories, whose metadata stand in (layer, row),
    or nowhere (None). `moved`: they are files whose own names do not survive.
    """

    layer: int
    paths: list[bytes] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    directories: dict[int, tuple[int, int] | None] = field(default_factory=dict)
    moved: bool = False

    def after(self, begin: Survivors) -> Survivors:
        """Return what follows on `begin`, which must be how these survivors begin."""
        given = len(begin.rows)
        if begin.rows != self.rows[:given] or begin.paths != self.paths[:given]:
            raise OverturnedError
        directories = {position - given: place for position, place in self.directories.items()}
        return Survivors(self.layer, self.paths[given:], self.rows[given:], directories)


class OverturnedError(Exception):
    """What `Overlay.advance` gave out of a layer turned out wrong: one of its paths came a second time."""


class _Walk:
    """The rows of an orderly layer, one after the other, and the survivors among them.

    The layer's own marks wait in `marks`: no other row of it is at or below a marked path, so none needs them.
    """

    def __init__(self, layer: int, shadow: dict[bytes, int]) -> None:
        self.survivors = Survivors(layer)  # so far, without hard links
        self.links: list[tuple[int, bytes]] = []  # (row, path) of the surviving hard links
        self.marks: dict[bytes, int] = {}
        self.root: int | None = None
        self.rows = 0
        self._shadow = shadow
        # Directories, by row + 1, below which all is hidden; the root is row -1.
        self._dead = bytearray([shadow.get(b"", 0) & _WIPED])

    def feed(self, paths: Sequence[bytes], kinds: Sequence[int], parents: Sequence[int]) -> Survivors:
        """Take the next rows; return the survivors among them."""
        mark = self._shadow.get
        marks, dead = self.marks, self._dead
        new = Survivors(self.survivors.layer)
        out_path, out_row = new.paths.append, new.rows.append
        dead.extend(bytes(len(paths)))
        for row, path, kind, parent in zip(count(self.rows), paths, kinds, parents, strict=False):
            if dead[parent + 1] and path:
                dead[row + 1] = 1
                continue
            known = mark(path, 0)
            if kind == DIRECTORY:
                if not path:
                    self.root = row
                    continue
                if known:
                    dead[row + 1] = known & _WIPED
                    if known & _TAKEN:
                        continue
                marks[path] = known | _TAKEN
            elif kind < WHITEOUT:
                marks[path] = _BOTH
                if known & _TAKEN:
                    continue
                if kind == HARDLINK:
                    self.links.append((row, path))
                    continue
            else:
                continue
            out_path(path)
            out_row(row)
        self.rows += len(paths)
        self.survivors.paths += new.paths
        self.survivors.rows += new.rows
        return new


class Overlay:
    """The merge of `layers` layers. Each is added once, in any order; LayerError where one cannot be applied."""

    def __init__(self, layers: int) -> None:
        self.root: tuple[int, int] | None = None  # (layer, row) of the root's newest entry so far
        self.links: list[tuple[bytes, bytes]] = []  # (path, path of the file), final after the last survivors
        self._changesets: list[Changeset | None] = [None] * layers
        self._added: list[Entries | None] = [None] * layers
        self._waits_for: dict[int, int] = {}
        self._turn = layers - 1
        self._walk: _Walk | None = None  # of the layer whose turn it is
        self._shadow: dict[bytes, int] = {}
        self._pending: dict[tuple[int, bytes], File] = {}
        self._files: dict[tuple[int, int], File] = {}

    @property
    def turn(self) -> int:
        """The layer whose survivors come next; -1 when all have come."""
        return self._turn

    @property
    def done(self) -> bool:
        """Whether all layers are resolved."""
        return self._turn < 0

    def add(self, entries: Entries) -> None:
        """Take the complete entries of a layer."""
        self._added[entries.layer] = entries
        self._settle()

    def advance(self, paths: Sequence[bytes], kinds: Sequence[int], parents: Sequence[int]) -> Survivors:
        """Take the next rows of the layer whose turn it is and which is orderly so far; return their survivors."""
        if self._walk is None:
            self._walk = _Walk(self._turn, self._shadow)
        return self._walk.feed(paths, kinds, parents)

    def resolve(self) -> Iterator[Survivors]:
        """Yield the survivors of all layers whose turn has come and that are resolvable by now.

        Of the layer that `advance` was called for, those that it did not return. Files that survive under another
        name than their own come by themselves.
        """
        while self._turn >= 0:
            changeset = self._changesets[self._turn]
            if changeset is None:
                return
            try:
                survivors = self._resolve(changeset)
            except UnsettledError:
                return
            self._changesets[self._turn] = self._added[self._turn] = None  # no older layer asks for it
            self._turn -= 1
            self._walk = None
            yield from survivors
        for file in self._pending.values():
            file.entries.refuse(file.link, "hard link to nothing", quote(file.path))

    # Settling: from entries to changesets, older layers first

    def _settle(self) -> None:
        for layer, entries in enumerate(self._added):
            if entries is None or self._changesets[layer] is not None:
                continue
            waits_for = self._waits_for.get(layer)
            if waits_for is not None and self._changesets[waits_for] is None:
                continue
            try:
                self._changesets[layer] = of_orderly(entries) if entries.orderly else apply(entries, self)
            except UnsettledError as unsettled:
                self._waits_for[layer] = unsettled.layer

    def find(self, path: bytes, below: int) -> tuple[int, int] | None:
        """See `paralayer.changeset.Older`."""
        implied: tuple[int, int] | None = None
        for layer in range(below - 1, -1, -1):
            changeset = self._changesets[layer]
            if changeset is None:
                raise UnsettledError(layer)
            row = changeset.paths.get(path)
            if row is not None:
                if row != IMPLIED:
                    if implied is not None and not changeset.is_directory(row):
                        return implied
                    return layer, row
                implied = layer, IMPLIED
            if changeset.hides(path):
                return implied
        return implied

    def follow(self, layer: int, row: int) -> tuple[int, bytes]:
        """See `paralayer.changeset.Older`."""
        while row != IMPLIED:
            changeset = self._changesets[layer]
            assert changeset is not None
            kind = changeset.entries.kinds[row]
            if kind == SYMLINK:
                return kind, changeset.entries.linkname(row)
            if kind != HARDLINK:
                return kind, b""
            if changeset.entries.orderly:
                row = changeset.entries.targets[row]
                continue
            file = changeset.files[row].final()
            if file.row is None:
                found = self.find(file.path, file.layer)
                if found is None:
                    file.entries.refuse(file.link, "hard link to nothing", quote(file.path))
                layer, row = found
            else:
                layer, row = file.layer, file.row
        return DIRECTORY, b""

    # Resolving: the turn of one layer

    def _resolve(self, changeset: Changeset) -> list[Survivors]:
        entries = changeset.entries
        shadow = self._shadow
        walk = self._walk
        if entries.orderly:
            self._find_pending(changeset)
            walk = walk or _Walk(entries.layer, shadow)
            new = walk.feed(
                entries.paths[walk.rows :], entries.kinds[walk.rows :], entries.parents[walk.rows :]
            )
            survivors = walk.survivors
            shadow.update(walk.marks)
            for row, path in walk.links:
                self._file(entries, entries.targets[row]).names.append(path)
            if walk.root is not None and self.root is None:
                self.root = entries.layer, walk.root
        else:
            implied = self._implied_directories(changeset)
            self._find_pending(changeset)
            new = survivors = self._survivors(changeset, implied)
            if walk is not None:
                new = survivors.after(walk.survivors)
        promoted = self._promote(survivors, entries.layer)
        for path in changeset.wiped:
            shadow[path] = _BOTH
        for path in changeset.opaque:
            shadow[path] = shadow.get(path, 0) | _WIPED
        return [new, promoted] if promoted.paths else [new]

    def _survivors(self, changeset: Changeset, implied: dict[bytes, tuple[int, int] | None]) -> Survivors:
        entries = changeset.entries
        shadow = self._shadow
        dead: dict[bytes, bool] = {b"": bool(shadow.get(b"", 0) & _WIPED)}
        survivors = Survivors(entries.layer)
        for path, row in changeset.paths.items():
            directory = row == IMPLIED or entries.kinds[row] == DIRECTORY
            marks = shadow.get(path, 0)
            hidden = dead[split(path)[0]]
            if directory:
                dead[path] = hidden or bool(marks & _WIPED)
            if hidden:
                continue
            shadow[path] = marks | (_TAKEN if directory else _BOTH)
            if marks & _TAKEN or path == LINK_STORE or path.startswith(LINK_STORE + b"/"):
                continue
            if not directory and entries.kinds[row] == HARDLINK:
                self._register(changeset.files[row]).names.append(path)
                continue
            if row == IMPLIED:
                survivors.directories[len(survivors.paths)] = implied[path]
            survivors.paths.append(path)
            survivors.rows.append(row)
        for file in changeset.files.values():
            self._register(file)  # also what nobody can see must be there
        if self.root is None:
            roots = [
                row for row, path in enumerate(entries.paths) if not path and entries.kinds[row] == DIRECTORY
            ]
            if roots:
                self.root = entries.layer, roots[-1]
        return survivors

    def _implied_directories(self, changeset: Changeset) -> dict[bytes, tuple[int, int] | None]:
        """Return where the metadata of the layer's implied directories stand."""
        implied: dict[bytes, tuple[int, int] | None] = {}
        for path, row in changeset.paths.items():
            if row == IMPLIED:
                found = None if changeset.hides(path) else self.find(path, changeset.entries.layer)
                implied[path] = found if found is not None and found[1] != IMPLIED else None
        return implied

    # Hard links

    def _file(self, entries: Entries, row: int) -> File:
        key = entries.layer, row
        file = self._files.get(key)
        if file is None:
            path = entries.paths[row]
            file = self._files[key] = File(entries.layer, row, path, entries, path)
        return file

    def _register(self, file: File) -> File:
        """Return the one object of a file; one that older layers have is pending from now on."""
        file = file.final()
        if file.row is not None:
            known = self._files.setdefault((file.layer, file.row), file)
        else:
            known = self._pending.setdefault((file.layer, file.path), file)
        if known is not file:
            file.joined = known
        return known

    def _find_pending(self, changeset: Changeset) -> None:
        """Find pending files in the layer whose turn it is."""
        pending, self._pending = self._pending, {}
        for key, file in pending.items():
            row = changeset.paths.get(file.path)
            if row is None:
                if changeset.hides(file.path):
                    file.entries.refuse(file.link, "hard link to nothing", quote(file.path))
                self._pending[key] = file
                continue
            if changeset.is_directory(row):
                file.entries.refuse(file.link, "hard link to a directory", quote(file.path))
            entries = changeset.entries
            if entries.kinds[row] != HARDLINK:
                found = self._file(entries, row)
            elif entries.orderly:
                found = self._file(entries, entries.targets[row])
            else:
                found = self._register(changeset.files[row])
            found.names.extend(file.names)
            file.joined = found

    def _promote(self, survivors: Survivors, layer: int) -> Survivors:
        """Give each file of the layer that has hard links one name under which it is stored.

        Return those whose own name does not survive.
        """
        promoted = Survivors(layer, moved=True)
        # In the order of the layer, in which their data come.
        files = sorted((file for file in self._files.values() if file.names), key=lambda file: file.row or 0)
        self._files = {}
        stored = dict(zip(survivors.rows, survivors.paths, strict=True)) if files else {}
        for file in files:
            assert file.row is not None
            path = stored.get(file.row)
            if path is None:
                path = file.names.pop(0)
                promoted.paths.append(path)
                promoted.rows.append(file.row)
            self.links.extend((name, path) for name in file.names)
        return promoted
