"""Small nasty layer stacks.

Few names and small depths, so that entries of different layers meet; every kind of entry; names that are
whiteouts or nearly so; symlinks and hard links that point at such names; odd spellings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from model import Entry, Refused, merge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model import Kind

Layer = list[Entry]
Stack = list[Layer]

NAMES = [b"a", b"b", b"c"]
MARKERS = [b".wh.a", b".wh.b", b".wh.c", b".wh..wh..opq"]
NEARLY_MARKERS = [b".wh.", b".wh..", b".wh...", b".wh..wh.aufs", b".wh", b".whx", b"a.wh.b", b".wh..wh.plnk"]

KINDS: list[Kind] = [
    *("file",) * 5,
    *("dir",) * 6,
    *("symlink",) * 3,
    *("hardlink",) * 5,
    *("fifo", "char", "block"),
]
LOOKS = [
    Entry(b""),
    Entry(b"", mode=0o755, uid=1000, gid=1000),
    Entry(b"", mode=0o4711, xattrs={b"user.x": b"1"}),
    Entry(b"", mode=0o1777, mtime_ns=1),
    Entry(b"", mode=0o2750, gid=65534, xattrs={b"user.y": b"\0=\n", b"user.empty": b""}),
    Entry(b"", mode=0, mtime_ns=999_999_999),
]
MAX_LAYERS = 5
MAX_ENTRIES = 8


def weighted(*choices: tuple[int, st.SearchStrategy[bytes]]) -> st.SearchStrategy[bytes]:
    """Draw from one of `choices`, each taken as often as its weight says."""
    return st.sampled_from([choice for weight, choice in choices for _ in range(weight)]).flatmap(lambda s: s)


plain_paths = st.sampled_from(
    NAMES
    + [b"/".join((a, b)) for a in NAMES for b in NAMES]
    + [b"/".join((a, b, c)) for a in NAMES for b in NAMES for c in NAMES]
)
directories = st.sampled_from([b"", b"", b"a/", b"b/", b"c/", b"a/b/", b"a/c/", b"b/a/"])
marker_paths = st.builds(bytes.__add__, directories, st.sampled_from(MARKERS))


@st.composite
def nearly_marker_paths(draw: st.DrawFn) -> bytes:
    """Draw names that only look like whiteouts, also as directories, and AUFS's store of links."""
    odd = draw(st.sampled_from(NEARLY_MARKERS + MARKERS))
    return draw(directories) + odd + draw(st.sampled_from([b"", b"/a"]))


@st.composite
def odd_spellings(draw: st.DrawFn) -> bytes:
    """Draw a path in one of its other spellings, sometimes of the root, sometimes above it."""
    path = draw(st.one_of(plain_paths, marker_paths, st.just(b"")))
    spellings = [
        b"./" + path,
        b"/" + path,
        path + b"/",
        path.replace(b"/", b"//"),
        path.replace(b"/", b"/./"),
        b"missing/../" + path,
        b"a/../" + path,
        b"../" + path,
    ]
    return draw(st.sampled_from(spellings))


paths = weighted((12, plain_paths), (4, marker_paths), (1, nearly_marker_paths()), (2, odd_spellings()))
symlink_targets = st.builds(
    bytes.__add__, st.sampled_from([b"", b"", b"/", b"../", b"../../", b"./", b"a/../", b"//"]), plain_paths
)


@st.composite
def raw_stacks(draw: st.DrawFn) -> Stack:
    """Draw stacks as they come; most of them are refused.

    Every entry has an mtime and data of its own, so that any mistake in the merge shows.
    """
    stack: Stack = []
    linkable: list[bytes] = []
    for _ in range(draw(st.integers(1, MAX_LAYERS))):
        layer: Layer = []
        for _ in range(draw(st.integers(0, MAX_ENTRIES))):
            kind = draw(st.sampled_from(KINDS))
            path = draw(paths)
            serial = 1000 * len(stack) + len(layer) + 1
            entry = replace(draw(st.sampled_from(LOOKS)), path=path, kind=kind, mtime=serial)
            match kind:
                case "file":
                    entry = replace(entry, data=b"%d" % serial)
                case "symlink":
                    entry = replace(entry, linkname=draw(symlink_targets), xattrs={})
                case "hardlink":
                    near = st.sampled_from(linkable) if linkable else paths
                    entry = replace(entry, linkname=draw(weighted((5, near), (1, paths))))
                case "char" | "block":
                    device = draw(st.integers(0, 2))
                    entry = replace(entry, major=device, minor=device, xattrs={})
                case "fifo":
                    entry = replace(entry, xattrs={})
            if kind != "dir":
                linkable.append(path)
            layer.append(entry)
        stack.append(layer)
    return stack


def without_refused(stack: Sequence[Sequence[Entry]]) -> Stack:
    """Return `stack` without the entries that the model refuses."""
    kept = [list(layer) for layer in stack]
    while True:
        try:
            merge(kept)
        except Refused as refused:
            del kept[refused.layer][refused.index]
        else:
            return kept


def valid_stacks() -> st.SearchStrategy[Stack]:
    """Draw stacks that merge."""
    return raw_stacks().map(without_refused)


def any_stacks() -> st.SearchStrategy[Stack]:
    """Draw stacks of which some, about a quarter, are refused."""
    return st.one_of(raw_stacks(), valid_stacks(), valid_stacks())
