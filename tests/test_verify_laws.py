"""A tree is the same as itself, a mutated copy differs in the mutation and nothing else, and outputs are their image."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import paralayer
from images import write_file, write_image, write_layer
from model import Entry, merge
from paralayer.engine.serial import Serial
from paralayer.verification import verify
from paralayer.verification.compare import compare
from paralayer.verification.hashing import gather, plan
from paralayer.verification.tree import PART, Node, Tree
from paralayer.verification.work import work
from strategies import valid_stacks
from trees import from_model
from verify_trees import entries_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer.verification.tree import Kind

NAMES = ("a side", "b side")
SOME = settings(max_examples=100)
FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])

paths = st.lists(st.sampled_from([b"a", b"b", b"\xff"]), min_size=1, max_size=3).map(b"/".join)
kinds: st.SearchStrategy[Kind] = st.sampled_from(
    ["file", "directory", "symlink", "character device", "fifo", "socket"]
)


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    node = Node(
        draw(kinds),
        draw(st.integers(0, 0o7777)),
        draw(st.integers(0, 3)),
        0,
        draw(st.integers(-5, 5)) * 10**9,
    )
    if node.kind == "file":
        node.size = draw(st.integers(0, 3))
        node.content = bytes([draw(st.integers(0, 2))]) * 32 if node.size else b""
    elif node.kind == "symlink":
        node.target = draw(st.sampled_from([b"x", b"y"]))
    elif node.kind == "character device":
        node.device = draw(st.integers(0, 2)), 1
    node.xattrs = draw(
        st.dictionaries(st.sampled_from([b"user.a", b"trusted.b"]), st.sampled_from([b"", b"1"]))
    )
    return node


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    tree = Tree()
    tree.nodes = {b"": Node("directory", 0o755, 0, 0, 0)} | draw(st.dictionaries(paths, nodes(), max_size=8))
    found = sorted(tree.nodes)
    for first, second in draw(
        st.lists(st.tuples(st.sampled_from(found), st.sampled_from(found)), max_size=4)
    ):
        if first != second and tree.nodes[first] is not tree.nodes[second] and b"" not in (first, second):
            tree.nodes[second].names -= 1
            tree.nodes[second] = tree.nodes[first]
            tree.nodes[first].names += 1
    return tree


def copy(tree: Tree) -> Tree:
    copies = {id(node): replace(node) for node in tree.nodes.values()}
    return Tree(tree.abilities, {path: copies[id(node)] for path, node in tree.nodes.items()})


def groups(tree: Tree, among: Sequence[bytes]) -> set[frozenset[bytes]]:
    found: dict[int, set[bytes]] = {}
    for path in among:
        found.setdefault(id(tree.nodes[path]), set()).add(path)
    return {frozenset(group) for group in found.values()}


@SOME
@given(trees())
def test_a_tree_is_the_same_as_its_copy(tree: Tree) -> None:
    report = compare(tree, copy(tree), names=NAMES)
    assert report.same
    assert report.paths_a == report.paths_b == len(tree.nodes)


CHANGES: dict[str, tuple[str, Any]] = {
    "mode": ("mode", lambda node: node.mode ^ 0o100),
    "owner": ("uid", lambda node: node.uid + 1),
    "time": ("mtime", lambda node: node.mtime + 1),
    "xattr user.new": ("xattrs", lambda node: {**node.xattrs, b"user.new": b""}),
}


@pytest.mark.parametrize("field", CHANGES)
@SOME
@given(tree=trees(), data=st.data())
def test_a_changed_inode_is_found_at_each_of_its_paths(field: str, tree: Tree, data: st.DataObject) -> None:
    changed = copy(tree)
    node = changed.nodes[data.draw(st.sampled_from(sorted(tree.nodes)))]
    name, change = CHANGES[field]
    setattr(node, name, change(node))
    report = compare(tree, changed, names=NAMES)
    told = field != "mode" or node.kind != "symlink"
    hit = sorted(path for path, each in changed.nodes.items() if each is node and told)
    assert [(each.path, each.field) for each in report.differences] == [(path, field) for path in hit]
    assert not report.only_in_a
    assert not report.only_in_b


@SOME
@given(tree=trees(), data=st.data())
def test_a_missing_path_changes_nothing_about_the_others(tree: Tree, data: st.DataObject) -> None:
    less = copy(tree)
    path = data.draw(st.sampled_from(sorted(tree.nodes)))
    less.nodes.pop(path).names -= 1
    report = compare(tree, less, names=NAMES)
    assert report.only_in_a == (path,)
    assert report.difference_count == 0
    assert compare(less, tree, names=NAMES).only_in_b == (path,)


@SOME
@given(trees(), trees())
def test_links_are_told_exactly_when_the_groups_of_common_paths_differ(a: Tree, b: Tree) -> None:
    report = compare(a, b, names=NAMES)
    common = sorted(a.nodes.keys() & b.nodes.keys())
    told = [each for each in report.differences if each.field == "link"]
    assert bool(told) == (groups(a, common) != groups(b, common))
    back = compare(b, a, names=NAMES)
    assert [(each.path, each.field, each.b, each.a) for each in back.differences] == [
        (each.path, each.field, each.a, each.b) for each in report.differences
    ]


EDGES = [0, 1, 2, 511, PART - 1, PART, PART + 1, 2 * PART - 1, 2 * PART, 2 * PART + 1]


@FEW
@given(size=st.sampled_from(EDGES), marks=st.lists(st.sampled_from(EDGES), max_size=8, unique=True))
def test_a_sparse_file_is_hashed_as_if_its_holes_were_stored(size: int, marks: list[int]) -> None:
    """Every second pair of `marks` encloses an extent."""
    bounds = sorted(min(mark, size) for mark in marks)
    extents = [
        (begin, end - begin) for begin, end in zip(bounds[::2], bounds[1::2], strict=False) if end > begin
    ]
    stored, whole = bytearray(b"before"), bytearray(size)
    for begin, length in extents:
        data = os.urandom(length)
        whole[begin : begin + length] = data
        stored += data
    node = Node("file", 0, 0, 0, 0, size=size)
    fd = os.memfd_create("stored")
    try:
        os.write(fd, stored)
        with Serial() as executor:
            work(gather(plan(node, len(b"before"), extents), "there", fd), executor, lambda _: None)
    finally:
        os.close(fd)
    want = [hashlib.sha256(whole[at : at + PART]).digest() for at in range(0, size, PART)]
    assert bytes(node.content) == b"".join(want)


@pytest.mark.requires("root")
@FEW
@given(valid_stacks())
def test_every_output_is_its_image_and_the_model(stack: list[list[Entry]]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        image = write_image(os.path.join(scratch, "image"), stack)
        want = os.path.join(scratch, "want.tar")
        write_file(want, write_layer(entries_of(from_model(merge(stack)))))
        outputs = {form: os.path.join(scratch, form) for form in ("tar", "squashfs", "directory")}
        paralayer.convert_tar(image, outputs["tar"])
        paralayer.convert_squashfs(image, outputs["squashfs"])
        paralayer.convert_dir(image, outputs["directory"])
        for source in (*outputs.values(), f"tar:{want}"):
            report = verify(image, source, jobs=1)
            assert report.same, (source, report.as_dict())


@FEW
@given(valid_stacks(), st.data())
def test_an_entry_more_is_one_path_more(stack: list[list[Entry]], data: st.DataObject) -> None:
    tree = merge(stack)
    directories = sorted(path for path, node in tree.items() if node.kind == "dir")
    parent = data.draw(st.sampled_from(directories))
    path = (parent + b"/" if parent else b"") + b"one more"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        one = write_image(os.path.join(scratch, "one"), stack)
        two = write_image(os.path.join(scratch, "two"), [*stack, [Entry(path, data=b"new")]])
        report = verify(one, two, jobs=1)
    assert report.only_in_b == (path,)
    assert (report.only_in_a_count, report.difference_count) == (0, 0)
