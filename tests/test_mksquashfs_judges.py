"""The judges of squashfs files, on images that mksquashfs makes itself: they see all that they say they see."""

from __future__ import annotations

import os
import random
import subprocess
from typing import TYPE_CHECKING

import pytest

from images import write_layer
from model import block, char, directory, fifo, file, hardlink, merge, symlink
from squashfs_judges import JUDGES, held

if TYPE_CHECKING:
    from pathlib import Path

    from model import Entry
    from squashfs_judges import Judge

pytestmark = pytest.mark.requires("mksquashfs")

NOISE = random.Random(3).randbytes(300_000)
CAPABILITY = b"\x01\0\0\x02" + bytes(16)

EVERYTHING: list[Entry] = [
    directory(b"d", 0o2755, xattrs={b"user.of-a-directory": b"x"}, mtime=5),
    file(
        b"d/large",
        NOISE,
        xattrs={b"user.empty": b"", b"user.binary": b"\0=\n\xff", b"trusted.t": b"v" * 2000},
    ),
    file(b"d/same", NOISE, mode=0o4755, xattrs={b"trusted.t": b"v" * 2000}),
    file(b"d/tail end", NOISE[:200_001], xattrs={b"security.capability": CAPABILITY}),
    file(b"d/\xff\xfe not UTF-8\nand a newline", b"odd"),
    file(b"d/" + b"n" * 255, b"long"),
    file(b"empty", uid=2**32 - 2, gid=70_000),
    file(b"sparse", NOISE[:1000] + bytes(1 << 20) + NOISE[:1000]),
    file(b"hole", bytes(1 << 20)),
    file(b"late", b"x", mtime=2**32 - 1, mode=0o1600),
    file(b"closed", b"x", mode=0),
    symlink(b"absolute", b"/d/large"),
    symlink(b"outwards", b"../../d", uid=7, xattrs={b"trusted.t": b"1"}),
    symlink(b"long", b"t/" * 2000),
    symlink(b"odd", b"\xff" * 120),
    char(b"char", 1, 3),
    block(b"block", 4095, 1048575, mode=0o660, gid=6),
    fifo(b"fifo", mtime=0),
    directory(b"empty directory", 0o1777),
    hardlink(b"again", b"d/large"),
    hardlink(b"d/and again", b"d/large"),
    hardlink(b"char again", b"char"),
    hardlink(b"odd again", b"odd"),
]
LARGE_XATTRS: list[Entry] = [
    file(b"a", mtime=0, xattrs={b"user.large": NOISE[:60_000]}),
    file(b"b", mtime=0, xattrs={b"user.large": NOISE[:60_000], b"user.own": b"1"}),
    file(b"c", mtime=0, xattrs={b"user.%d" % number: NOISE[:100] for number in range(300)}),
]
MANY: list[Entry] = [
    file(b"d/%05d" % number, b"%d" % number, uid=number, mtime=number) for number in range(3000)
]


def mksquashfs(entries: list[Entry], image: Path, *options: str) -> str:
    """Let mksquashfs read a tar of `entries`; its root is as a tree's without an entry for it.

    Before 4.6 mksquashfs heeds the options for the root only when it appends, and there it dies of values that several
    sets of xattrs share.
    """
    root = ["-root-mode", "755", "-root-uid", "0", "-root-gid", "0", "-root-time", "0"]
    command = ["mksquashfs", "-", str(image), "-quiet", "-no-progress", *root]
    for source, tar in ((["-tar", "-noappend", *options], write_layer(entries)), (["-cpiostyle"], b"")):
        done = subprocess.run([*command, *source], input=tar, check=False, capture_output=True)
        assert done.returncode == 0, done.stderr
    return str(image)


def mksquashfs_at_once(entries: list[Entry], image: Path) -> str:
    """Let mksquashfs read a tar of `entries` from the epoch, as root: then so is the root."""
    command = [
        "mksquashfs",
        "-",
        str(image),
        "-tar",
        "-noappend",
        "-quiet",
        "-no-progress",
        "-root-mode",
        "755",
    ]
    done = subprocess.run(
        command,
        input=write_layer(entries),
        env={**os.environ, "SOURCE_DATE_EPOCH": "0"},
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return str(image)


TREES: dict[str, list[Entry]] = {
    "everything": EVERYTHING,
    "many owners and names": [directory(b"d"), *MANY],
    "nothing": [],
}


@pytest.mark.parametrize("entries", TREES.values(), ids=TREES)
@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_judge_sees_the_tree(judge: Judge, entries: list[Entry], tmp_path: Path) -> None:
    judge.require()
    image = mksquashfs(entries, tmp_path / "image", "-tailends", "-exports")
    assert judge.differences(image, held(merge([entries])), str(tmp_path / "scratch")) == []
    assert os.listdir(tmp_path) == ["image"]


@pytest.mark.requires("root")
@pytest.mark.parametrize("name", [name for name, judge in JUDGES.items() if not judge.extracts])
def test_judge_sees_xattrs_that_are_large_and_shared(name: str, tmp_path: Path) -> None:
    JUDGES[name].require()
    image = mksquashfs_at_once(LARGE_XATTRS, tmp_path / "image")
    assert JUDGES[name].differences(image, held(merge([LARGE_XATTRS])), str(tmp_path / "scratch")) == []


@pytest.mark.parametrize(
    ("judge", "compressor"),
    [
        pytest.param(judge, compressor, id=f"{judge.name}-{compressor}")
        for judge in JUDGES.values()
        for compressor in ("gzip", "xz", "lz4", "zstd")
        if compressor not in judge.unknown
    ],
)
def test_judge_knows_the_compressor(judge: Judge, compressor: str, tmp_path: Path) -> None:
    judge.require()
    entries = [file(b"text", b"again and again " * 30_000), file(b"noise", NOISE)]
    image = mksquashfs(entries, tmp_path / "image", "-comp", compressor)
    assert judge.differences(image, held(merge([entries])), str(tmp_path / "scratch")) == []


CHANGES: dict[str, tuple[Entry, Entry, frozenset[str]]] = {
    "data": (file(b"f", b"one"), file(b"f", b"two"), frozenset()),
    "name": (file(b"f"), file(b"g"), frozenset()),
    "kind": (file(b"f"), directory(b"f"), frozenset()),
    "mtime": (file(b"f", mtime=1), file(b"f", mtime=2), frozenset()),
    "link target": (symlink(b"l", b"a"), symlink(b"l", b"b"), frozenset({"7z"})),
    "mode": (file(b"f", mode=0o644), file(b"f", mode=0o4644), frozenset({"7z"})),
    "uid": (file(b"f", uid=1), file(b"f", uid=2), frozenset({"7z"})),
    "gid": (file(b"f", gid=1), file(b"f", gid=2), frozenset({"7z"})),
    "device": (char(b"c", 1, 2), char(b"c", 1, 3), frozenset({"7z"})),
    "xattr": (
        file(b"f", xattrs={b"user.x": b"1"}),
        file(b"f", xattrs={b"user.x": b"2"}),
        frozenset({"7z", "PySquashfsImage"}),
    ),
}
"""Title → (as it is, as it is wanted, the judges that cannot tell)."""


@pytest.mark.parametrize(("entry", "wanted", "blind"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_judge_sees_the_difference(
    judge: Judge, entry: Entry, wanted: Entry, blind: frozenset[str], tmp_path: Path
) -> None:
    judge.require()
    image = mksquashfs([entry], tmp_path / "image")
    found = judge.differences(image, held(merge([[wanted]])), str(tmp_path / "scratch"))
    assert bool(found) != (judge.name in blind), found


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_judge_sees_hard_links(judge: Judge, tmp_path: Path) -> None:
    judge.require()
    image = mksquashfs([file(b"a", b"same"), hardlink(b"b", b"a")], tmp_path / "image")
    apart = held(merge([[file(b"a", b"same"), file(b"b", b"same")]]))
    found = judge.differences(image, apart, str(tmp_path / "scratch"))
    assert bool(found) != (judge.name in {"7z", "rdsquashfs"}), found
