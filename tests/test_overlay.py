"""The merge, by itself, against the slow and obvious model."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images import write_layer
from model import Entry, Node, Refused, directory, file, merge, opaque, symlink, whiteout
from paralayer.changeset import IMPLIED, Entries
from paralayer.errors import LayerError
from paralayer.overlay import Overlay, OverturnedError
from paralayer.table import Table, TableWriter
from paralayer.tar.scanner import Scanner
from strategies import any_stacks, valid_stacks
from trees import diff, from_model

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS = ("file", "hardlink", "symlink", "char", "block", "dir", "fifo")


class Scanned:
    """A layer's tar bytes and its table."""

    def __init__(self, layer: int, entries: Sequence[Entry]) -> None:
        self.tar = write_layer(entries)
        fd = os.memfd_create("table")
        try:
            writer = TableWriter(fd)
            scanner = Scanner(writer, layer, f"layer {layer}")
            scanner.feed(self.tar)
            scanner.finish()
            self.table = Table(fd, writer.length)
        finally:
            os.close(fd)
        self.orderly_rows = scanner.rows.orderly_rows
        rows = self.table.rows
        self.entries = Entries(
            layer,
            f"layer {layer}",
            scanner.rows.orderly,
            self.table.paths(),
            rows["kind"].tolist(),
            rows["parent"].tolist(),
            rows["target"].tolist(),
            lambda row: self.table.linkname(rows[row]),
        )

    def node(self, row: int, group: tuple[bytes, ...]) -> Node:
        fields = self.table.rows[row]
        kind = KINDS[fields["kind"]]
        return Node(
            kind=kind,  # type: ignore[arg-type]
            mode=int(fields["mode"]),
            uid=int(fields["uid"]),
            gid=int(fields["gid"]),
            mtime=int(fields["mtime"]),
            mtime_ns=int(fields["nsec"]),
            data=self.tar[fields["data"] : fields["data"] + fields["stored"]],
            linkname=self.table.linkname(fields) if kind == "symlink" else b"",
            xattrs=self.table.xattrs(fields),
            major=int(fields["major"]),
            minor=int(fields["minor"]),
            group=group,
        )


IMPLIED_NODE = Node("dir", 0o755, 0, 0, 0, 0, b"", b"", {}, 0, 0, ())


def merged(
    stack: Sequence[Sequence[Entry]], order: Sequence[int] | None = None, pieces: Sequence[int] = ()
) -> dict[bytes, Node]:
    """Merge with the engine's overlay, layers indexed in `order`; check what every output relies on.

    Before a layer whose turn it is gets complete, as many of its orderly rows as `pieces` say are resolved.
    """
    layers = [Scanned(index, entries) for index, entries in enumerate(stack)]
    overlay = Overlay(len(layers))
    where: dict[bytes, tuple[int, int] | None] = {}
    for index in order if order is not None else range(len(layers)):
        early = []
        if index == overlay.turn:
            at, entries = 0, layers[index].entries
            for piece in pieces:
                stop = min(at + piece, layers[index].orderly_rows)
                early.append(
                    overlay.advance(entries.paths[at:stop], entries.kinds[at:stop], entries.parents[at:stop])
                )
                at = stop
        overlay.add(layers[index].entries)
        for survivors in [*early, *overlay.resolve()]:
            for position, (path, row) in enumerate(zip(survivors.paths, survivors.rows, strict=True)):
                assert path not in where, "each path once"
                parent = path.rpartition(b"/")[0]
                assert not parent or parent in where, "parents before children"
                place = survivors.directories[position] if row == IMPLIED else (survivors.layer, row)
                where[path] = place
    assert overlay.done
    links: dict[bytes, list[bytes]] = {}
    for path, target in overlay.links:
        assert path not in where, "each path once"
        assert target in where, "links after targets"
        links.setdefault(target, [target]).append(path)
    tree: dict[bytes, Node] = {}
    for path, place in [*where.items(), (b"", overlay.root)]:
        group = tuple(sorted(links.get(path, [path])))
        for name in group:
            tree[name] = (
                layers[place[0]].node(place[1], group) if place else replace(IMPLIED_NODE, group=group)
            )
    return tree


@pytest.mark.parametrize(
    ("marker", "want"),
    [
        (whiteout(b"l/x"), "l/.wh.x"),
        (whiteout(b"l/d/x"), "l/d/.wh.x"),
        (opaque(b"l"), "l/.wh..wh..opq"),
        (opaque(b"l/d"), "l/d/.wh..wh..opq"),
    ],
    ids=["whiteout", "whiteout further down", "opaque marker", "opaque marker further down"],
)
def test_refused_marker_is_named_and_not_what_it_hides(marker: Entry, want: str) -> None:
    with pytest.raises(LayerError, match=f"^layer 1: {re.escape(want)}: symlink on the way leads to no dir"):
        merged([[file(b"f"), symlink(b"l", b"f")], [marker]])


@pytest.mark.parametrize("parent", [b"p", b"l/p", b"l/l/p/d"])
def test_whiteout_below_its_own_layers_file_is_skipped_however_it_is_spelled(parent: bytes) -> None:
    stack = [[symlink(b"l", b"."), file(b"q")], [file(b"p"), whiteout(parent + b"/x"), opaque(parent)]]
    assert diff(merged(stack), from_model(merge(stack))) == []
    assert sorted(merged(stack)) == [b"", b"l", b"p", b"q"]


@settings(max_examples=1000)  # the law that all else stands on
@given(any_stacks(), st.randoms(use_true_random=False))
def test_merge_equals_applying_the_layers_oldest_first(stack: list[list[Entry]], random: object) -> None:
    order = list(range(len(stack)))
    random.shuffle(order)  # type: ignore[attr-defined]
    try:
        want = from_model(merge(stack))
    except Refused:
        with pytest.raises(LayerError):
            merged(stack, order)
        return
    assert diff(merged(stack, order), want) == []


@given(valid_stacks())
def test_survivors_do_not_depend_on_the_order_of_indexing(stack: list[list[Entry]]) -> None:
    results = [
        list(merged(stack, order).items())
        for order in itertools.islice(itertools.permutations(range(len(stack))), 6)
    ]
    assert all(result == results[0] for result in results)


@given(valid_stacks(), st.lists(st.integers(0, 4), max_size=5))
def test_survivors_known_early_are_how_the_survivors_begin(
    stack: list[list[Entry]], pieces: list[int]
) -> None:
    order = range(len(stack) - 1, -1, -1)
    want = list(merged(stack, order).items())
    try:
        got = list(merged(stack, order, pieces).items())
    except OverturnedError:
        assert any(paths_come_twice(layer) for layer in stack)
        return
    assert got == want


def paths_come_twice(layer: Sequence[Entry]) -> bool:
    scanned = Scanned(0, layer)
    return not scanned.entries.orderly


def test_a_path_that_comes_twice_overturns_what_was_given_out() -> None:
    layer = Scanned(0, [directory(b"d"), file(b"d/a", b"1"), file(b"b"), file(b"d/a", b"2")])
    assert layer.orderly_rows == 3
    overlay = Overlay(1)
    early = overlay.advance(*first_rows(layer, 3))
    assert early.paths == [b"d", b"d/a", b"b"]
    overlay.add(layer.entries)
    with pytest.raises(OverturnedError):
        list(overlay.resolve())


def test_a_hidden_path_that_comes_twice_overturns_nothing() -> None:
    newer = Scanned(1, [file(b"d")])
    layer = Scanned(0, [directory(b"d"), file(b"d/a", b"1"), file(b"b"), file(b"d/a", b"2")])
    overlay = Overlay(2)
    overlay.add(newer.entries)
    assert [survivors.paths for survivors in overlay.resolve()] == [[b"d"]]
    assert overlay.advance(*first_rows(layer, 3)).paths == [b"b"]
    overlay.add(layer.entries)
    assert [survivors.paths for survivors in overlay.resolve()] == [[]]


def first_rows(layer: Scanned, count: int) -> tuple[Sequence[bytes], Sequence[int], Sequence[int]]:
    entries = layer.entries
    return entries.paths[:count], entries.kinds[:count], entries.parents[:count]
