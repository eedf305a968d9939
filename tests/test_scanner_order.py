"""What the scanner proves of layers that are cheap to merge: which row is the parent, which the target of a link."""

from __future__ import annotations

import pytest

from paralayer.table import NONE, ROOT
from scans import (
    header,
    scan,
)

DIRECTORY = header(b"a/", b"5")
ORDERLY: dict[str, tuple[list[bytes], list[int], list[int]]] = {
    "nothing": ([], [], []),
    "files": ([header(b"f"), header(b"g")], [ROOT, ROOT], [NONE, NONE]),
    "below directories": (
        [DIRECTORY, header(b"a/b", b"5"), header(b"a/b/c"), header(b"a/d")],
        [ROOT, 0, 1, 0],
        [NONE] * 4,
    ),
    "odd spellings": ([header(b"./a//", b"5"), header(b"/a/x/../f")], [ROOT, 0], [NONE, NONE]),
    "the root": ([header(b"./", b"5"), header(b"f"), header(b"/", b"5")], [ROOT] * 3, [NONE] * 3),
    "hard links": (
        [
            DIRECTORY,
            header(b"a/f"),
            header(b"a/g", b"1", linkname=b"./a/f"),
            header(b"h", b"1", linkname=b"a/g"),
        ],
        [ROOT, 0, 0, ROOT],
        [NONE, NONE, 1, 1],
    ),
    "hard link to a symlink": (
        [header(b"s", b"2", linkname=b"x"), header(b"h", b"1", linkname=b"s")],
        [ROOT, ROOT],
        [NONE, 0],
    ),
    "whiteouts": (
        [
            DIRECTORY,
            header(b"a/.wh.f"),
            header(b"a/f"),
            header(b".wh.g"),
            header(b".wh.a"),
            header(b"a/.wh.f"),
        ],
        [ROOT, 0, 0, ROOT, ROOT, 0],
        [NONE] * 6,
    ),
    "opaque": ([DIRECTORY, header(b"a/.wh..wh..opq"), header(b".wh..wh..opq")], [ROOT, 0, ROOT], [NONE] * 3),
    "reserved names take no row": (
        [header(b".wh..wh.aufs"), DIRECTORY, header(b".wh..wh.plnk/", b"5"), header(b"a/f")],
        [ROOT, 0],
        [NONE, NONE],
    ),
}


@pytest.mark.parametrize("case", ORDERLY)
def test_layer_is_orderly(case: str) -> None:
    members, parents, targets = ORDERLY[case]
    got = scan(b"".join(members))
    assert (got.orderly, got.orderly_rows) == (True, len(parents))
    assert (got.parents, got.targets) == (parents, targets)


# Title → the member that ends the order, after a/ (directory), f (file), s (symlink to a) and a/g (file).
DISORDERLY = {
    "a file twice": header(b"f"),
    "a file twice, another spelling": header(b"./a/../f"),
    "a directory twice": DIRECTORY,
    "file, then directory": header(b"f", b"5"),
    "directory, then file": header(b"a"),
    "directory, then hard link": header(b"a", b"1", linkname=b"f"),
    "file, then hard link": header(b"f", b"1", linkname=b"a/g"),
    "without its directory": header(b"b/c"),
    "without a deeper directory": header(b"a/b/c"),
    "directory without its directory": header(b"b/c", b"5"),
    "below a file": header(b"f/x"),
    "below a symlink": header(b"s/x"),
    "whiteout without its directory": header(b"b/.wh.c"),
    "whiteout below a file": header(b"f/.wh.c"),
    "opaque without its directory": header(b"b/.wh..wh..opq"),
    "opaque of a symlink": header(b"s/.wh..wh..opq"),
    "hard link to nothing": header(b"h", b"1", linkname=b"none"),
    "hard link to itself": header(b"h", b"1", linkname=b"h"),
    "hard link to a directory": header(b"h", b"1", linkname=b"a"),
    "hard link to the root": header(b"h", b"1", linkname=b"."),
    "hard link through a symlink": header(b"h", b"1", linkname=b"s/g"),
    "in the store of links": header(b".wh..wh.plnk/1.2"),
}


@pytest.mark.parametrize("case", DISORDERLY)
def test_order_ends(case: str) -> None:
    before = [DIRECTORY, header(b"f"), header(b"s", b"2", linkname=b"a"), header(b"a/g")]
    got = scan(b"".join([*before, DISORDERLY[case], header(b"a/h"), header(b"last")]))
    assert (got.orderly, got.orderly_rows) == (False, 4)
    assert got.parents[:4] == [ROOT, ROOT, ROOT, 0]
    assert got.parents[5:] == [NONE, NONE]
    assert len(got.rows) == 7


def test_order_is_proved_across_batches() -> None:
    many = [header(b"a/%d" % number) for number in range(9000)]
    link = header(b"a/link", b"1", linkname=b"a/5")
    tar = b"".join([DIRECTORY, *many, link])
    got = scan(tar, range(10000, len(tar), 10000))
    assert (got.orderly, got.orderly_rows) == (True, 9002)
    assert got.parents == [ROOT] + [0] * 9001
    assert got.targets == [NONE] * 9001 + [6]
    late = scan(tar + header(b"a/7") + b"".join(many[:2]), range(10000, len(tar), 10000))
    assert (late.orderly, late.orderly_rows) == (False, 9002)
    assert late.parents[:9002] == got.parents
