"""Survivors as sinks get them: rows of any layers in output order, with their names and extra bytes.

What no output should hold is left out here, once for all of them: times after the clamp, overlayfs's own extended
attributes (they would steer a later mount), and attributes that Linux would refuse on the kind of file.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from paralayer.table import DIRECTORY, FILE, ROW, SYMLINK, Length, Table, TableWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer.overlay import Survivors
    from paralayer.table import Rows

_NAMESPACES = (b"user.", b"trusted.", b"security.", b"system.posix_acl_")
_NAME_MAX = 255  # bytes of an extended attribute's name on Linux
_OVERLAYFS = (b"trusted.overlay.", b"user.overlay.")


@dataclass(slots=True)
class Rules:
    """What is changed on the way from the layers to the sink, and how often it was."""

    newest: int | None = None  # seconds since the epoch: later modification times become this
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Batch:
    """Survivors of one layer's turn: `rows[i]`, a structured array of dtype ROW, is at `paths[i]`.

    `layer` is the one that their data is in; a row of another layer or of none is a directory.
    """

    layer: int
    rows: Rows
    paths: list[bytes]
    tables: Sequence[Table | None]
    rules: Rules

    def ascending(self) -> list[Batch]:
        """Return parts, in each of which what is stored stands in the order of the stream: all, nearly always."""
        stored = np.flatnonzero((self.rows["kind"] == FILE) & (self.rows["stored"] > 0))
        data = self.rows["data"][stored]
        turns = stored[1:][data[1:] < data[:-1]].tolist()
        if not turns:
            return [self]
        return [
            Batch(self.layer, self.rows[begin:end], self.paths[begin:end], self.tables, self.rules)
            for begin, end in pairwise([0, *turns, len(self.paths)])
        ]

    def linkname(self, index: int) -> bytes:
        """Return the target of a symlink."""
        return self._table(index).linkname(self.rows[index])

    def extents(self, index: int) -> list[tuple[int, int]]:
        """Return (offset in the file, length) of the stored data of a file, in file order."""
        row = self.rows[index]
        if row["sparse"]:
            return self._table(index).extents(row)
        return [(0, int(row["size"]))] if row["size"] else []

    def xattrs(self, index: int) -> list[tuple[bytes, bytes]]:
        """Return the extended attributes that the output is to hold, by name."""
        row = self.rows[index]
        if not row["xattrs"]:
            return []
        kept = []
        for name, value in self._table(index).xattrs(row).items():
            if name.startswith(_OVERLAYFS):
                self.rules.dropped["xattrs of overlayfs"] += 1
            elif name in _NAMESPACES or len(name) > _NAME_MAX:
                self.rules.dropped["xattrs whose names Linux does not take"] += 1
            elif not name.startswith(_NAMESPACES):
                self.rules.dropped["xattrs without a known namespace"] += 1
            elif name.startswith(b"user.") and row["kind"] not in (FILE, DIRECTORY):
                self.rules.dropped["user xattrs on what is neither file nor directory"] += 1
            else:
                kept.append((name, value))
        return kept

    def _table(self, index: int) -> Table:
        table = self.tables[int(self.rows["layer"][index])]
        assert table is not None
        return table


def gather(survivors: Survivors, tables: Sequence[Table | None], rules: Rules) -> Batch:
    """Bring together the rows of survivors."""
    own = tables[survivors.layer]
    assert own is not None
    positions = np.array(survivors.rows, np.int64) - own.start.rows
    positions[list(survivors.directories)] = 0  # put in place below
    rows = own.rows[positions] if len(own.rows) else np.zeros(len(positions), ROW)
    for position, place in survivors.directories.items():
        rows[position] = implied_directory() if place is None else _row(tables, place)
    _clamp(rows, rules)
    # A copy: of the frontier, the next batch comes with a table of its own.
    return Batch(survivors.layer, rows, survivors.paths, list(tables), rules)


def gather_root(table: Table | None, row: int, rules: Rules) -> Batch:
    """Bring the root's row of a table into a batch of its own; None: the root has no entry."""
    rows = np.array([implied_directory()], ROW)
    if table is not None:
        rows[0] = table.rows[row - table.start.rows]
        rows["layer"] = 0
    _clamp(rows, rules)
    return Batch(0, rows, [b""], [table], rules)


def implied_directory() -> np.void:
    """Return the row of a directory without an entry: mode 0755, owner 0:0, the epoch."""
    row = np.zeros(1, ROW)
    row["kind"] = DIRECTORY
    row["mode"] = 0o755
    implied: np.void = row[0]
    return implied


def write_table(batch: Batch, fd: int, step: int) -> list[Length]:
    """Write a batch as a table of its own, for jobs that get parts of it.

    Return the table's lengths before row 0, `step`, 2 `step`, ..., and at the end.
    """
    rows = batch.rows.copy()
    extras = []
    at = 0
    for index in np.flatnonzero(
        (rows["kind"] == SYMLINK) | (rows["xattrs"] > 0) | (rows["sparse"] > 0)
    ).tolist():
        table = batch.tables[rows["layer"][index]]
        assert table is not None
        extra = table.extra_of(rows[index])
        rows["extra"][index] = at
        at += len(extra)
        extras.append(extra)
    lengths = np.fromiter(map(len, batch.paths), np.int64, len(batch.paths)) + 1
    rows["name"] = np.cumsum(lengths) - lengths
    extra_lengths = rows["link"].astype(np.int64) + rows["xattrs"] + rows["sparse"].astype(np.int64) * 16
    ends = np.cumsum(extra_lengths)
    writer = TableWriter(fd)
    writer.append(rows, b"".join(path + b"\0" for path in batch.paths), b"".join(extras))
    return [
        Length(row, int(rows["name"][row]), int(ends[row - 1]) if row else 0)
        for row in range(0, len(rows), step)
    ] + [writer.length]


def _clamp(rows: Rows, rules: Rules) -> None:
    if rules.newest is not None:
        late = rows["mtime"] >= rules.newest
        rows["mtime"][late] = rules.newest
        rows["nsec"][late] = 0


def _row(tables: Sequence[Table | None], place: tuple[int, int]) -> np.void:
    table = tables[place[0]]
    assert table is not None
    row: np.void = table.rows[place[1] - table.start.rows]
    return row
