"""The model, held to rows that can be checked by eye, and to what umoci makes of the same images."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from images import build_with_buildah, build_with_umoci, read_layers, write_image
from model import (
    IMPLIED,
    Entry,
    Node,
    Refused,
    block,
    char,
    directory,
    fifo,
    file,
    hardlink,
    merge,
    node,
    opaque,
    symlink,
    whiteout,
)
from trees import NOT_ON_DISK, diff, from_model, overlay_tree, parse_layer, umoci_unpack

if TYPE_CHECKING:
    from pathlib import Path

OLD: dict[str, Any] = {"uid": 1, "gid": 2, "mtime": 10, "mtime_ns": 3, "xattrs": {b"user.old": b"1"}}
NEW: dict[str, Any] = {"uid": 3, "gid": 4, "mtime": 20, "mtime_ns": 5, "xattrs": {b"user.new": b"2"}}


def implied(path: bytes) -> Entry:
    return directory(path, mtime=0)


def chain(length: int) -> list[Entry]:
    """Return symlinks l0, l1, ...; the last of them points to the directory `d`."""
    targets = [b"l%d" % number for number in range(1, length)] + [b"d"]
    return [symlink(b"l%d" % number, target) for number, target in enumerate(targets)]


def tree_of(entries: list[Entry]) -> dict[bytes, Node]:
    """Return the tree that has just these paths; hard links are to the paths that carry their attributes."""
    carriers = {entry.path: entry.linkname if entry.kind == "hardlink" else entry.path for entry in entries}
    attributes = {entry.path: entry for entry in [IMPLIED, *entries]}
    return {b"": node(attributes[b""], (b"",))} | {
        path: node(attributes[carrier], tuple(sorted(p for p, c in carriers.items() if c == carrier)))
        for path, carrier in carriers.items()
    }


MERGED: dict[str, tuple[list[list[Entry]], list[Entry]]] = {
    "no layers": ([], []),
    "layers without entries": ([[], [], []], []),
    "a whiteout below its own layer's file, as umoci writes it": (
        [[directory(b"d"), file(b"d/x")], [file(b"d", b"new"), whiteout(b"d/x"), opaque(b"d/y")]],
        [file(b"d", b"new")],
    ),
    "a whiteout below its own layer's file, behind a symlink": (
        [[symlink(b"l", b".")], [file(b"p", b"new"), whiteout(b"l/p/x"), opaque(b"l/p/y"), opaque(b"l/p")]],
        [symlink(b"l", b"."), file(b"p", b"new")],
    ),
    "one layer": (
        [
            [
                directory(b"d"),
                file(b"d/f", b"x"),
                symlink(b"s", b"d"),
                fifo(b"p"),
                char(b"c", 5, 1),
                block(b"b", 8, 1),
            ]
        ],
        [
            directory(b"d"),
            file(b"d/f", b"x"),
            symlink(b"s", b"d"),
            fifo(b"p"),
            char(b"c", 5, 1),
            block(b"b", 8, 1),
        ],
    ),
    "the same layer twice": (
        [[file(b"f", b"1")], [whiteout(b"f"), file(b"g")], [file(b"f", b"1")]],
        [file(b"f", b"1"), file(b"g")],
    ),
    "everything removed": ([[directory(b"d"), file(b"d/f")], [whiteout(b"d")]], []),
    # names
    "spellings of one path": (
        [[file(b"./a//b/./c", b"1")], [file(b"/a/x/../b/c", b"2")], [directory(b"a/b/")]],
        [implied(b"a"), directory(b"a/b"), file(b"a/b/c", b"2")],
    ),
    "names are bytes": (
        [[file(b"\xff\n", b"1"), file("é".encode(), b"2"), file(b"e\xcc\x81", b"3"), file(b"A"), file(b"a")]],
        [file(b"\xff\n", b"1"), file("é".encode(), b"2"), file(b"e\xcc\x81", b"3"), file(b"A"), file(b"a")],
    ),
    "dot-dot stays inside": ([[file(b"missing/../f")]], [file(b"f")]),
    "a name of 255 bytes, and a whiteout for it": (
        [[file(b"n" * 255), file(b"m" * 255)], [whiteout(b"n" * 255), whiteout(b"n" * 256)]],
        [file(b"m" * 255)],
    ),
    # symlinks in parents
    "an entry below an older symlink": (
        [[directory(b"usr/lib"), symlink(b"lib", b"usr/lib")], [file(b"lib/foo", b"1")]],
        [implied(b"usr"), directory(b"usr/lib"), symlink(b"lib", b"usr/lib"), file(b"usr/lib/foo", b"1")],
    ),
    "the file stays where a removed symlink led": (
        [[directory(b"real"), symlink(b"l", b"real")], [file(b"l/f")], [whiteout(b"l")]],
        [directory(b"real"), file(b"real/f")],
    ),
    "the file stays where a redirected symlink led": (
        [
            [directory(b"a"), directory(b"b"), symlink(b"l", b"a")],
            [file(b"l/f")],
            [symlink(b"l", b"b"), file(b"l/g")],
        ],
        [directory(b"a"), directory(b"b"), file(b"a/f"), symlink(b"l", b"b"), file(b"b/g")],
    ),
    "an absolute symlink starts at the image's root": (
        [[directory(b"d"), directory(b"d/e"), symlink(b"d/l", b"/d/e")], [file(b"d/l/f")]],
        [directory(b"d"), directory(b"d/e"), symlink(b"d/l", b"/d/e"), file(b"d/e/f")],
    ),
    "dot-dot in a symlink stops at the root": (
        [[directory(b"d"), symlink(b"l", b"../../d")], [file(b"l/f")]],
        [directory(b"d"), symlink(b"l", b"../../d"), file(b"d/f")],
    ),
    "a symlink through symlinks": (
        [[directory(b"d/e"), symlink(b"l", b"m/e"), symlink(b"m", b"./d")], [file(b"l/f")]],
        [implied(b"d"), directory(b"d/e"), symlink(b"l", b"m/e"), symlink(b"m", b"./d"), file(b"d/e/f")],
    ),
    "a dangling symlink's directory is made": (
        [[symlink(b"l", b"x/y")], [file(b"l/f")]],
        [symlink(b"l", b"x/y"), implied(b"x"), implied(b"x/y"), file(b"x/y/f")],
    ),
    "forty symlinks are followed": (
        [[directory(b"d"), *chain(40)], [file(b"l0/f")]],
        [directory(b"d"), *chain(40), file(b"d/f")],
    ),
    "a symlink of the same layer is followed": (
        [[directory(b"real")], [symlink(b"l", b"real"), file(b"l/f")]],
        [directory(b"real"), symlink(b"l", b"real"), file(b"real/f")],
    ),
    "the last component is not followed": (
        [
            [file(b"t", b"1"), symlink(b"f", b"t"), directory(b"e"), symlink(b"d", b"e")],
            [file(b"f", b"2"), directory(b"d")],
        ],
        [file(b"t", b"1"), file(b"f", b"2"), directory(b"e"), directory(b"d")],
    ),
    # implied directories
    "an implied directory": ([[file(b"a/b/f")]], [implied(b"a"), implied(b"a/b"), file(b"a/b/f")]),
    "an implied directory for a whiteout": (
        [[whiteout(b"a/f"), opaque(b"b")]],
        [implied(b"a"), implied(b"b")],
    ),
    "an existing parent keeps its metadata": (
        [[directory(b"d", 0o700, **OLD)], [file(b"d/f")], [whiteout(b"d/f")]],
        [directory(b"d", 0o700, **OLD)],
    ),
    "an implied parent replaces older files": (
        [[file(b"f"), fifo(b"p"), char(b"c", 1, 3)], [file(b"f/x"), whiteout(b"p/x"), directory(b"c/d/e")]],
        [implied(b"f"), file(b"f/x"), implied(b"p"), implied(b"c"), implied(b"c/d"), directory(b"c/d/e")],
    ),
    # replacing
    "a directory over a directory takes all attributes": (
        [[directory(b"d", 0o700, **OLD), file(b"d/f")], [directory(b"d", 0o711, **NEW)]],
        [directory(b"d", 0o711, **NEW), file(b"d/f")],
    ),
    "a file takes everything from its newest entry": (
        [[file(b"f", b"1", mode=0o4755, **OLD)], [file(b"f", b"2", mode=0o600, mtime=5)]],
        [file(b"f", b"2", mode=0o600, mtime=5)],
    ),
    "a file over a directory": ([[directory(b"d"), file(b"d/f")], [file(b"d", b"1")]], [file(b"d", b"1")]),
    "a directory over a file": ([[file(b"d")], [directory(b"d", **NEW)]], [directory(b"d", **NEW)]),
    "nothing is written through a hard link": (
        [[file(b"a", b"1"), hardlink(b"b", b"a")], [file(b"b", b"2")]],
        [file(b"a", b"1"), file(b"b", b"2")],
    ),
    "directory, file, directory": (
        [[directory(b"d"), file(b"d/old")], [file(b"d")], [directory(b"d"), file(b"d/new")]],
        [directory(b"d"), file(b"d/new")],
    ),
    "a hidden file stays hidden": ([[file(b"f")], [directory(b"f")], [whiteout(b"f")]], []),
    "the last of two in one layer": ([[file(b"f", b"1", **OLD), file(b"f", b"2")]], [file(b"f", b"2")]),
    "directory, file, directory in one layer": (
        [
            [directory(b"d"), file(b"d/a")],
            [directory(b"d"), file(b"d/b"), file(b"d"), directory(b"d"), file(b"d/c")],
        ],
        [directory(b"d"), file(b"d/c")],
    ),
    "two in one layer, once through a symlink": (
        [[directory(b"d"), symlink(b"l", b"d")], [file(b"d/f", b"1"), file(b"l/f", b"2")]],
        [directory(b"d"), symlink(b"l", b"d"), file(b"d/f", b"2")],
    ),
    # whiteouts
    "a whiteout removes what has just this name": (
        [
            [directory(b"a"), file(b"a/f"), file(b"ab"), symlink(b"s", b"ab")],
            [whiteout(b"a"), whiteout(b"s")],
        ],
        [file(b"ab")],
    ),
    "a whiteout for nothing": ([[file(b"f")], [whiteout(b"g")]], [file(b"f")]),
    "a whiteout spares newer layers": (
        [[file(b"f", b"1")], [whiteout(b"f")], [file(b"f", b"2")]],
        [file(b"f", b"2")],
    ),
    "a whiteout spares its own layer": (
        [
            [file(b"f", b"1"), file(b"g", b"1")],
            [file(b"f", b"2"), whiteout(b"f"), whiteout(b"g"), file(b"g", b"2")],
        ],
        [file(b"f", b"2"), file(b"g", b"2")],
    ),
    "a directory whited out first and made again": (
        [[directory(b"d", 0o700), file(b"d/old")], [whiteout(b"d"), directory(b"d"), file(b"d/new")]],
        [directory(b"d"), file(b"d/new")],
    ),
    "a directory made again and whited out last": (
        [[directory(b"d", 0o700), file(b"d/old")], [directory(b"d"), file(b"d/new"), whiteout(b"d")]],
        [directory(b"d"), file(b"d/new")],
    ),
    "a directory's entry, then its whiteout": (
        [[directory(b"d", 0o700), file(b"d/old")], [directory(b"d", 0o711), whiteout(b"d")]],
        [directory(b"d", 0o711)],
    ),
    "a directory whited out first and implied again": (
        [[directory(b"d", 0o700), file(b"d/old")], [whiteout(b"d"), file(b"d/new")]],
        [implied(b"d"), file(b"d/new")],
    ),
    "a directory implied again and whited out last": (
        [
            [directory(b"d", 0o700), directory(b"d/e", 0o700), file(b"d/e/old")],
            [file(b"d/e/new"), whiteout(b"d")],
        ],
        [implied(b"d"), implied(b"d/e"), file(b"d/e/new")],
    ),
    "an opaque marker hides older children": (
        [
            [directory(b"d", 0o700), directory(b"d/e"), file(b"d/e/f"), file(b"d/f"), file(b"f")],
            [opaque(b"d"), file(b"d/new")],
        ],
        [directory(b"d", 0o700), file(b"d/new"), file(b"f")],
    ),
    "an opaque marker that comes last spares its layer": (
        [
            [directory(b"d", 0o700), directory(b"d/e", 0o700), file(b"d/e/old")],
            [file(b"d/e/new"), file(b"d/f"), opaque(b"d")],
        ],
        [directory(b"d", 0o700), implied(b"d/e"), file(b"d/e/new"), file(b"d/f")],
    ),
    "an opaque marker that comes first takes a subdirectory's metadata": (
        [[directory(b"d", 0o700), directory(b"d/e", 0o700)], [opaque(b"d"), file(b"d/e/new")]],
        [directory(b"d", 0o700), implied(b"d/e"), file(b"d/e/new")],
    ),
    "an opaque root": (
        [[directory(b"", 0o700), directory(b"d"), file(b"d/f"), file(b"f")], [opaque(b""), file(b"g")]],
        [directory(b"", 0o700), file(b"g")],
    ),
    "a newer whiteout below an older opaque marker": (
        [[directory(b"d"), file(b"d/a")], [opaque(b"d"), file(b"d/b")], [whiteout(b"d")], [file(b"d/c")]],
        [implied(b"d"), file(b"d/c")],
    ),
    "a newer opaque marker over an older one": (
        [
            [directory(b"d"), file(b"d/a")],
            [opaque(b"d"), file(b"d/b")],
            [opaque(b"d"), file(b"d/c"), opaque(b"d")],
        ],
        [directory(b"d"), file(b"d/c")],
    ),
    "a whiteout of any type": (
        [
            [file(b"a"), file(b"b"), file(b"c"), file(b"d")],
            [
                directory(b".wh.a/"),
                symlink(b".wh.b", b"x"),
                file(b".wh.c", b"content"),
                Entry(b".wh.d", "hardlink", linkname=b"missing"),
            ],
        ],
        [],
    ),
    "names that are nearly whiteouts": (
        [[file(b".wh"), file(b".whx"), file(b"x.wh.y"), file(b".wh.d/f")]],
        [file(b".wh"), file(b".whx"), file(b"x.wh.y"), implied(b".wh.d"), file(b".wh.d/f")],
    ),
    "AUFS's bookkeeping": ([[file(b".wh..wh.aufs"), directory(b"d/.wh..wh.orph"), file(b"f")]], [file(b"f")]),
    "AUFS's store of links": (
        [
            [
                directory(b".wh..wh.plnk"),
                file(b".wh..wh.plnk/1", b"1"),
                hardlink(b"a", b".wh..wh.plnk/1"),
                hardlink(b"b", b".wh..wh.plnk/1"),
                file(b".wh..wh.plnk/2", b"2"),
                hardlink(b"c", b".wh..wh.plnk/2"),
            ]
        ],
        [file(b"a", b"1"), hardlink(b"b", b"a"), file(b"c", b"2")],
    ),
    "a whiteout through a symlink": (
        [[directory(b"real"), file(b"real/f"), file(b"real/g"), symlink(b"l", b"real")], [whiteout(b"l/f")]],
        [directory(b"real"), file(b"real/g"), symlink(b"l", b"real")],
    ),
    "an opaque marker through a symlink": (
        [[directory(b"real"), file(b"real/f"), symlink(b"l", b"real")], [file(b"real/g"), opaque(b"l")]],
        [directory(b"real"), file(b"real/g"), symlink(b"l", b"real")],
    ),
    "device 0:0 is a device": ([[file(b"f")], [char(b"f", 0, 0)]], [char(b"f", 0, 0)]),
    # directories
    "the newest entry of a directory has the say": (
        [[directory(b"d", 0o700, **OLD)], [directory(b"d", 0o711, **NEW)], [file(b"d/f"), opaque(b"d")]],
        [directory(b"d", 0o711, **NEW), file(b"d/f")],
    ),
    "a directory's entry follows its children": (
        [[file(b"d/f"), directory(b"d", 0o711, **NEW)]],
        [directory(b"d", 0o711, **NEW), file(b"d/f")],
    ),
    "only entries since a directory's creation count": (
        [[directory(b"d", 0o700, **OLD)], [whiteout(b"d")], [file(b"d/f")]],
        [implied(b"d"), file(b"d/f")],
    ),
    "the root's newest entry": (
        [[directory(b"./", 0o700, **OLD)], [directory(b"/", 0o711, **NEW)], [file(b"f")]],
        [directory(b"", 0o711, **NEW), file(b"f")],
    ),
    # hard links
    "a link keeps what its target was": (
        [
            [file(b"a", b"1"), file(b"b", b"2"), file(b"c", b"3"), file(b"d/e", b"4"), file(b"f/g", b"5")],
            [hardlink(b"A", b"a"), hardlink(b"B", b"b"), hardlink(b"D", b"d/e"), hardlink(b"F", b"f/g")],
            [file(b"a", b"new"), whiteout(b"b"), opaque(b"d"), file(b"f")],
        ],
        [
            file(b"A", b"1"),
            file(b"B", b"2"),
            file(b"D", b"4"),
            file(b"F", b"5"),
            file(b"a", b"new"),
            file(b"c", b"3"),
            implied(b"d"),
            file(b"f"),
        ],
    ),
    "replacing a link spares its target": (
        [[file(b"a", b"1"), hardlink(b"b", b"a"), hardlink(b"c", b"a")], [file(b"b", b"2"), whiteout(b"c")]],
        [file(b"a", b"1"), file(b"b", b"2")],
    ),
    "all names of a file share it, whoever came first": (
        [[file(b"a", b"1"), hardlink(b"b", b"a")], [hardlink(b"c", b"b")], [whiteout(b"a")]],
        [file(b"b", b"1"), hardlink(b"c", b"b")],
    ),
    "equal files are not linked": (
        [[file(b"a", b"1"), file(b"b", b"1")]],
        [file(b"a", b"1"), file(b"b", b"1")],
    ),
    "symlinks, devices and pipes are linked": (
        [
            [symlink(b"s", b"x"), hardlink(b"S", b"s"), fifo(b"p"), hardlink(b"P", b"p")],
            [char(b"c", 1, 3), hardlink(b"C", b"c")],
        ],
        [
            *(symlink(b"s", b"x"), hardlink(b"S", b"s"), fifo(b"p"), hardlink(b"P", b"p")),
            *(char(b"c", 1, 3), hardlink(b"C", b"c")),
        ],
    ),
    "a link's target through a symlink, in another spelling": (
        [[directory(b"d"), file(b"d/f", b"1"), symlink(b"l", b"/d")], [hardlink(b"a", b"./x/../l//f")]],
        [directory(b"d"), file(b"d/f", b"1"), symlink(b"l", b"/d"), hardlink(b"a", b"d/f")],
    ),
    "a link before its layer's new target": (
        [[file(b"f", b"1")], [hardlink(b"a", b"f"), file(b"f", b"2"), hardlink(b"b", b"f")]],
        [file(b"a", b"1"), file(b"f", b"2"), hardlink(b"b", b"f")],
    ),
    "a rename": ([[file(b"a", b"1")], [hardlink(b"b", b"a"), whiteout(b"a")]], [file(b"b", b"1")]),
    "a link's header is ignored": (
        [[file(b"a", b"1", mode=0o711, **OLD)], [hardlink(b"b", b"a", mode=0o600, **NEW)]],
        [file(b"a", b"1", mode=0o711, **OLD), hardlink(b"b", b"a")],
    ),
    "a link to another name of the same file": (
        [[file(b"a", b"1"), hardlink(b"b", b"a")], [hardlink(b"b", b"a")]],
        [file(b"a", b"1"), hardlink(b"b", b"a")],
    ),
    "a link over the directory of its target": (
        [[file(b"d/f", b"1")], [hardlink(b"d", b"d/f")]],
        [file(b"d", b"1")],
    ),
}

REFUSED: dict[str, tuple[list[list[Entry]], tuple[int, bytes]]] = {
    "a name above the root": ([[file(b"a")], [file(b"a/../../b")]], (1, b"a/../../b")),
    "a whiteout above the root": ([[whiteout(b"../f")]], (0, b"../.wh.f")),
    "a name of 256 bytes": ([[file(b"n" * 256)]], (0, b"n" * 256)),
    "a parent of 256 bytes": ([[file(b"n" * 256 + b"/f")]], (0, b"n" * 256 + b"/f")),
    "the root as a file": ([[file(b"./")]], (0, b"./")),
    "a loop of symlinks": ([[symlink(b"a", b"b"), symlink(b"b", b"a")], [file(b"a/f")]], (1, b"a/f")),
    "more than forty symlinks": ([[directory(b"d"), *chain(41)], [file(b"l0/f")]], (1, b"l0/f")),
    "a symlink to a file as a parent": ([[file(b"f"), symlink(b"l", b"f")], [file(b"l/x")]], (1, b"l/x")),
    "a symlink through a file as a parent": (
        [[file(b"f"), symlink(b"l", b"f/../d")], [file(b"l/x")]],
        (1, b"l/x"),
    ),
    "a whiteout behind a symlink to a file": (
        [[file(b"f"), symlink(b"l", b"f")], [whiteout(b"l/x")]],
        (1, b"l/.wh.x"),
    ),
    "a whiteout behind a symlink to its own layer's file": (
        [[symlink(b"l", b"f")], [file(b"f"), opaque(b"l")]],
        (1, b"l/.wh..wh..opq"),
    ),
    "an entry below its own layer's file, behind a symlink": (
        [[symlink(b"l", b".")], [file(b"p"), file(b"l/p/x")]],
        (1, b"l/p/x"),
    ),
    "an entry below its own layer's file": ([[directory(b"f")], [file(b"f"), file(b"f/x")]], (1, b"f/x")),
    "a whiteout without a name": ([[file(b"d/.wh.")]], (0, b"d/.wh.")),
    "a whiteout of dot": ([[file(b"d/.wh..")]], (0, b"d/.wh..")),
    "a whiteout of dot-dot": ([[file(b"d/.wh...")]], (0, b"d/.wh...")),
    "a link to a directory": ([[directory(b"d")], [hardlink(b"a", b"d")]], (1, b"a")),
    "a link to the root": ([[hardlink(b"a", b"/")]], (0, b"a")),
    "a link to a name above the root": ([[file(b"f"), hardlink(b"a", b"../f")]], (0, b"a")),
    "a link to nothing": ([[hardlink(b"a", b"f"), file(b"f")]], (0, b"a")),
    "a link to nothing that a newer layer replaces": ([[hardlink(b"a", b"f")], [file(b"a")]], (0, b"a")),
    "a link to what a whiteout has removed": (
        [[file(b"f")], [whiteout(b"f"), hardlink(b"a", b"f")]],
        (1, b"a"),
    ),
    "a link to what an opaque marker has removed": (
        [[file(b"d/f")], [opaque(b"d"), hardlink(b"a", b"d/f")]],
        (1, b"a"),
    ),
    "a link to itself": ([[file(b"f")], [hardlink(b"./f", b"f")]], (1, b"./f")),
    "a link to itself through a symlink": (
        [[directory(b"d"), file(b"d/f"), symlink(b"l", b"d")], [hardlink(b"l/f", b"d/f")]],
        (1, b"l/f"),
    ),
}

UMOCI_DIFFERS = {
    "a name of 255 bytes, and a whiteout for it": "refuses whiteouts longer than a file name",
    "an implied directory for a whiteout": "makes no directories for whiteouts",
    "an implied parent replaces older files": "refuses",
    "a directory implied again and whited out last": "keeps the older metadata",
    "an opaque marker that comes last spares its layer": "keeps the older metadata",
    "AUFS's store of links": "shows the store",
    "a link over the directory of its target": "removes the target first, and refuses",
}
"""Rows that say nothing about the model: title to what umoci does."""


@pytest.mark.parametrize("title", MERGED)
def test_layers_merge(title: str) -> None:
    layers, want = MERGED[title]
    assert diff(from_model(merge(layers)), tree_of(want)) == []


@pytest.mark.parametrize("title", REFUSED)
def test_layers_are_refused(title: str) -> None:
    layers, (layer, path) = REFUSED[title]
    with pytest.raises(Refused) as refused:
        merge(layers)
    assert (refused.value.layer, refused.value.path) == (layer, path)


@pytest.mark.parametrize("has_entry", [False, True])
def test_root_entry_is_visible(has_entry: bool) -> None:
    root = [directory(b"/")] if has_entry else []
    assert merge([[*root, file(b"f")], [opaque(b"")]]).has_root_entry == has_entry


@pytest.mark.requires("umoci", "root")
@pytest.mark.parametrize("title", [title for title in MERGED if title not in UMOCI_DIFFERS])
def test_umoci_unpacks_the_same(title: str, tmp_path: Path) -> None:
    layers, want = MERGED[title]
    layout = write_image(os.path.join(tmp_path, "image"), layers)
    got = umoci_unpack(layout, os.path.join(tmp_path, "bundle"))
    assert diff(got, tree_of(want), ignore={*NOT_ON_DISK, "dir.mtime", "dir.mtime_ns"}) == []


TIMES = {"mtime", "mtime_ns"}


@pytest.mark.requires("umoci", "root")
def test_umoci_image_merges_to_what_it_was_built_from(tmp_path: Path) -> None:
    image = build_with_umoci(os.path.join(tmp_path, "image"), str(tmp_path))
    got = from_model(merge([parse_layer(tar) for tar in read_layers(image.layout)]))
    assert diff(got, image.want, ignore=TIMES) == []
    unpacked = umoci_unpack(image.layout, os.path.join(tmp_path, "bundle"))
    assert diff(got, unpacked, ignore=NOT_ON_DISK) == []


@pytest.mark.requires("buildah", "root", "overlay", "tar")
def test_buildah_image_merges_to_what_it_was_built_from(tmp_path: Path) -> None:
    image = build_with_buildah(os.path.join(tmp_path, "image"), str(tmp_path))
    layers = read_layers(image.layout)
    got = from_model(merge([parse_layer(tar) for tar in layers]))
    assert diff(got, image.want, ignore=TIMES) == []
    mounted = overlay_tree(layers, os.path.join(tmp_path, "overlay"))
    assert diff(got, mounted, ignore=NOT_ON_DISK) == []
