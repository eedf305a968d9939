"""Entry tables to merge, without data: layers that overlap with their neighbours, orderly or not."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.layouts import ROOT
from paralayer.changeset import Entries
from paralayer.overlay import Overlay
from paralayer.survivors import Rules, gather
from paralayer.table import Length, Table, TableWriter
from paralayer.tar.scanner import Scanner

if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))
from images import END_OF_ARCHIVE, pack_headers
from model import directory, file, whiteout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model import Entry

LAYERS = 10
ENTRIES = 400_000
_DIRECTORY = 100  # entries a directory, with its own


@dataclass(frozen=True, slots=True)
class Stack:
    """The tables of all layers, oldest first, and the paths that survive."""

    tables: tuple[tuple[int, Length, bool], ...]  # descriptor, length, orderly
    entries: int
    want: frozenset[bytes]


@contextmanager
def stack_of(entries: int, *, orderly: bool) -> Iterator[Stack]:
    """Make a stack of about that many entries.

    Half of the directories of a layer are again in the next one: every second layer removes one file of each, the
    others replace all. Where layers are not orderly, only the oldest that has a directory says so.
    """
    tables = []
    total = 0
    want: set[bytes] = set()
    seen: set[bytes] = set()
    try:
        for number in range(LAYERS):
            layer = [
                entry
                for entry in _entries(number, entries // LAYERS)
                if orderly or entry.kind != "dir" or entry.path not in seen
            ]
            seen.update(entry.path for entry in layer if entry.kind == "dir")
            want -= {entry.path.replace(b".wh.", b"") for entry in layer if b".wh." in entry.path}
            want |= {entry.path.rstrip(b"/") for entry in layer if b".wh." not in entry.path}
            fd = os.memfd_create(f"table-{number}", os.MFD_CLOEXEC)
            scanner = Scanner(TableWriter(fd), number, "")
            tables.append((fd, scanner))
            scanner.feed(b"".join(pack_headers(entry, 0) for entry in layer) + END_OF_ARCHIVE)
            scanner.finish()
            total += len(layer)
        lengths = [(fd, scanner.rows.table.length, scanner.rows.orderly) for fd, scanner in tables]
        yield Stack(tuple(lengths), total, frozenset(want))
    finally:
        for fd, _ in tables:
            os.close(fd)


def _entries(number: int, count: int) -> Iterator[Entry]:
    yield directory(b"usr/")
    yield directory(b"usr/share/")
    for index in range(count):
        parent = b"usr/share/package-%05d" % (index // _DIRECTORY + number * count // (2 * _DIRECTORY))
        place = index % _DIRECTORY
        if place == 0:
            yield directory(parent + b"/")
        elif place == 1 and number % 2:
            yield whiteout(parent + b"/file-01")
        else:
            yield file(parent + b"/file-%02d" % place)


def merge(stack: Stack) -> list[bytes]:
    """Read all tables, merge them, gather the survivors' rows; return their paths."""
    tables: list[Table | None] = [Table(fd, length) for fd, length, _ in stack.tables]
    overlay = Overlay(len(tables))
    rules = Rules()
    paths = []
    for number in reversed(range(len(tables))):
        overlay.add(_read(number, tables, orderly=stack.tables[number][2]))
        for survivors in overlay.resolve():
            paths += gather(survivors, tables, rules).paths
    assert overlay.done
    return paths


def _read(number: int, tables: list[Table | None], *, orderly: bool) -> Entries:
    table = tables[number]
    assert table is not None
    rows = table.rows
    return Entries(
        number,
        f"layer {number}",
        orderly,
        table.paths(),
        rows["kind"].tolist(),
        rows["parent"].tolist(),
        rows["target"].tolist(),
        lambda row: table.linkname(rows[row]),
    )
