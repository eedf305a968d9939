"""mksquashfs as the engine: right, whatever its version, and clear when it fails.

`$PARALAYER_MKSQUASHFS` may name further mksquashfs programs to be tested, separated by colons.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import paralayer
from images import build_with_umoci, write_image
from model import block, char, directory, fifo, file, hardlink, merge, symlink, whiteout
from paralayer import open_image
from paralayer.engine.arrivals import Arrivals
from paralayer.engine.conversion import Conversion
from paralayer.engine.pool import Pool
from paralayer.engine.serial import Serial
from paralayer.errors import SinkError
from paralayer.sinks.mksquashfs import (
    NAMESPACES,
    ROOT_XATTRS,
    MksquashfsSink,
    _Log,
    find_mksquashfs,
)
from paralayer.sinks.squashfs.options import TIMES, Compression, Options
from paralayer.survivors import Rules
from processes import PATIENCE, wait_for
from squashfs_judges import JUDGES, held
from trees import umoci_unpack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model import Entry, Node
    from paralayer.sinks.mksquashfs import Mksquashfs
    from squashfs_judges import Judge

MIB = 1 << 20
NOISE = random.Random(5).randbytes(3 * MIB)
CREATED = 1_600_000_000

ROOT = directory(b"./", 0o711, uid=70_000, gid=5, mtime=1_234_567, xattrs={b"user.of the root": b"\0\xff"})
LAYERS: list[list[Entry]] = [
    [
        ROOT,
        directory(b"d", 0o2755, xattrs={b"user.of-a-directory": b"x"}, mtime=5),
        file(b"d/gone", b"hidden"),
        file(b"d/kept", NOISE[:300_000], xattrs={b"user.empty": b"", b"user.binary": b"\0=\n\xff"}),
        symlink(b"pointer", b"d/kept"),
    ],
    [
        whiteout(b"d/gone"),
        file(b"d/same", NOISE[:300_000], mode=0o4755, xattrs={b"trusted.t": b"v" * 2000}),
        file(b"d/tail end", NOISE[:200_001], xattrs={b"security.capability": b"\x01\0\0\x02" + bytes(16)}),
        file(b"d/\xff\xfe not UTF-8\nand a newline", b"odd"),
        file(b"implied/deep/" + b"n" * 255, b"long"),
        file(b"/".join([b"p" * 90] * 10), b"far down"),
        file(b"empty", uid=2**32 - 2, gid=70_000),
        file(b"sparse", NOISE[:1000] + bytes(MIB) + NOISE[:1000], mtime_ns=5),
        symlink(b"long", b"t/" * 1000),
        symlink(b"odd", b"\xff" * 120),
        char(b"char", 1, 3),
        block(b"block", 4095, 1048575, mode=0o660, gid=6),
        fifo(b"fifo", mtime=0),
        directory(b"empty directory", 0o1777),
        hardlink(b"again", b"d/same"),
        hardlink(b"d/and again", b"d/same"),
        hardlink(b"char again", b"char"),
    ],
]


def tools() -> list[str]:
    further = os.environ.get("PARALAYER_MKSQUASHFS")
    return ["mksquashfs", *(further.split(":") if further else ())]


@pytest.fixture(params=tools())
def tool(request: pytest.FixtureRequest) -> Mksquashfs:
    return find_mksquashfs(request.param)


def options(**changes: Any) -> Options:
    switches = dict.fromkeys(("fragments", "dedup", "exports", "pad"), True)
    usual = {"compression": Compression.parse("zstd"), "block_size": 128 << 10, "time": CREATED, **switches}
    return Options(**{**usual, **changes})


@contextmanager
def converted(
    image: str,
    output: Path,
    tool: Mksquashfs,
    *,
    workers: int = 0,
    jobs: int = 2,
    memory: int = 64 * MIB,
    newest: int | None = None,
    **changes: Any,
) -> Iterator[MksquashfsSink]:
    """Convert as `paralayer.convert` does, and give the sink when the output is there."""
    layers = open_image(image).layers
    rules = Rules(newest)
    sink = MksquashfsSink(str(output), tool, options(**changes), jobs=jobs, memory=memory)
    try:
        with Pool(workers) if workers else Serial() as executor, Arrivals.of(layers) as arrivals:
            decoders = max(1, workers)
            Conversion(arrivals, sink, executor, rules, memory=64 * MIB, jobs=decoders).run()
        sink.complete()
        sink.commit()
        yield sink
    finally:
        sink.abort()
        sink.close()


def convert(image: str, output: Path, tool: Mksquashfs, **changes: Any) -> str:
    with converted(image, output, tool, **changes):
        return str(output)


def wanted(tree: dict[bytes, Node], tool: Mksquashfs) -> dict[bytes, Node]:
    """Return what mksquashfs can hold of a tree: no modes of symlinks, and the root's xattrs only as it can be told."""
    kept = {
        path: replace(node, mode=0o777) if node.kind == "symlink" else node
        for path, node in held(tree).items()
    }
    root = kept[b""]
    sayable = {name: value for name, value in root.xattrs.items() if value and tool.version >= (4, 6)}
    return {**kept, b"": replace(root, xattrs=sayable)}


@pytest.mark.requires("mksquashfs")
@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_judges_see_the_tree(judge: Judge, tool: Mksquashfs, tmp_path: Path) -> None:
    judge.require()
    image = write_image(str(tmp_path / "layout"), LAYERS, compression="gzip")
    output = convert(image, tmp_path / "out", tool, workers=2)
    want = wanted(dict(merge(LAYERS)), tool)
    assert judge.differences(output, want, str(tmp_path / "scratch")) == []


@pytest.mark.requires("mksquashfs", "umoci", "root")
def test_judges_see_what_umoci_unpacks(tool: Mksquashfs, tmp_path: Path) -> None:
    image = build_with_umoci(f"{tmp_path}/layout", f"{tmp_path}/scratch")
    unpacked = umoci_unpack(image.layout, f"{tmp_path}/bundle")
    output = convert(image.layout, tmp_path / "out", tool, workers=2)
    assert len(unpacked) > 100
    for judge in JUDGES.values():
        judge.require()
        assert judge.differences(output, wanted(unpacked, tool), f"{tmp_path}/seen") == [], judge.name


@pytest.mark.requires("mksquashfs")
@pytest.mark.parametrize("layers", [[[]], [[directory(b"./", 0o700, uid=1)]], [[directory(b"d", uid=1)]]])
def test_small_images(layers: list[list[Entry]], tool: Mksquashfs, tmp_path: Path) -> None:
    JUDGES["kernel"].require()
    output = convert(write_image(str(tmp_path / "layout"), layers), tmp_path / "out", tool)
    want = wanted(dict(merge(layers)), tool)
    assert JUDGES["kernel"].differences(output, want, str(tmp_path / "seen")) == []


@pytest.mark.requires("mksquashfs")
def test_same_bytes_whatever_the_jobs_and_the_clock(
    tool: Mksquashfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = write_image(str(tmp_path / "layout"), LAYERS)
    first = Path(convert(image, tmp_path / "first", tool, jobs=1))
    second = int(time.time())
    wait_for(lambda: int(time.time()) > second)  # mksquashfs gives the root the time that it is
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    other = Path(convert(image, tmp_path / "other", tool, jobs=2, workers=2))
    assert first.read_bytes() == other.read_bytes()


@pytest.mark.requires("mksquashfs")
@pytest.mark.parametrize("start", [b"/", b"./", b"../"])
def test_long_targets_stay_whole_or_are_refused(start: bytes, tool: Mksquashfs, tmp_path: Path) -> None:
    image = write_image(str(tmp_path / "image"), [[symlink(b"link", start + b"t" * 120)]])
    output = tmp_path / "out.squashfs"
    if tool.version < (4, 6):
        with pytest.raises(SinkError, match=r"target of 12[0-9] bytes would be changed"):
            paralayer.convert_mksquashfs(image, output, mksquashfs=tool.path)
        assert not output.exists()
    else:
        paralayer.convert_mksquashfs(image, output, mksquashfs=tool.path)
        assert paralayer.verify(image, output).same


HOLE = bytes(128 << 10)
BLOCK = NOISE[: 128 << 10]
# Contents of files that mksquashfs takes for each other if tail ends behind blocks are in fragments
MIXED_UP = {
    "a hole's block list and another file's tail end": [HOLE, BLOCK + b"t", HOLE + b"t"],
    "a block list and a hole's tail end": [HOLE + b"t", BLOCK + b"u", BLOCK + b"t"],
    "holes and fewer blocks": [HOLE * 2, BLOCK + b"t", HOLE * 2 + b"t"],
    "a tail end alone and its blocks alone": [BLOCK + b"t", BLOCK, b"t"],
    "a tail end alone and another tail end": [BLOCK + b"t", b"u", BLOCK + b"u", b"t"],
}


@pytest.mark.requires("mksquashfs")
@pytest.mark.parametrize("dedup", [True, False])
@pytest.mark.parametrize("contents", MIXED_UP.values(), ids=MIXED_UP)
def test_files_that_are_alike_in_part_keep_their_contents(
    contents: list[bytes], dedup: bool, tool: Mksquashfs, tmp_path: Path
) -> None:
    entries = [file(b"%d" % number, content) for number, content in enumerate(contents)]
    image = write_image(str(tmp_path / "layout"), [entries])
    output = convert(image, tmp_path / "out", tool, dedup=dedup)
    JUDGES["kernel"].require()
    assert JUDGES["kernel"].differences(output, held(merge([entries])), str(tmp_path / "seen")) == []


@pytest.mark.requires("mksquashfs")
def test_what_is_lost_is_counted(tool: Mksquashfs, tmp_path: Path) -> None:
    layers: list[list[Entry]] = [
        [
            directory(b"./", xattrs={b"user.empty": b"", b"user.set": b"1"}, mtime=-5),
            file(b"early", mtime=-1, mtime_ns=5),
            file(b"late", mtime=2**32),
            file(b"acl", xattrs={b"system.posix_acl_access": b"\2\0\0\0", b"user.kept": b"1"}),
            file(b"overlay", xattrs={b"trusted.overlay.opaque": b"y"}),
        ]
    ]
    image = write_image(str(tmp_path / "layout"), layers)
    with converted(image, tmp_path / "out", tool) as sink:
        lost = dict(sink.lost)
        assert sink.written == os.path.getsize(tmp_path / "out")
    told = 1 if tool.version >= (4, 6) else 0
    assert lost == {TIMES: 3, NAMESPACES: 1, ROOT_XATTRS: 2 - told, "xattrs of overlayfs": 1}
    JUDGES["sqfs2tar"].require()
    want = wanted(dict(merge(layers)), tool)
    want[b"overlay"] = replace(want[b"overlay"], xattrs={})
    assert JUDGES["sqfs2tar"].differences(str(tmp_path / "out"), want, str(tmp_path / "seen")) == []


@pytest.mark.requires("mksquashfs")
def test_later_times_become_the_clamp(tool: Mksquashfs, tmp_path: Path) -> None:
    layers = [[directory(b"./", mtime=50), file(b"f", mtime=20), file(b"g", mtime=5)]]
    image = write_image(str(tmp_path / "layout"), layers)
    output = convert(image, tmp_path / "out", tool, newest=10, time=10)
    JUDGES["sqfs2tar"].require()
    seen = JUDGES["sqfs2tar"].read(output, str(tmp_path / "seen"))
    assert {path: node.mtime for path, node in seen.items()} == {b"": 10, b"f": 10, b"g": 5}
    assert superblock(output)["mkfs_time"] == 10


# Options

NO_FRAGMENTS, ALWAYS, DUPLICATES, EXPORTABLE = 1 << 4, 1 << 5, 1 << 6, 1 << 7
UNCOMPRESSED = 1 << 0 | 1 << 1 | 1 << 3
FIELDS = [
    "magic",
    "inodes",
    "mkfs_time",
    "block_size",
    "fragments",
    "compression",
    "block_log",
    "flags",
    "no_ids",
    "major",
    "minor",
]

# title → (options, what is wanted of the superblock, flags that are set, flags that are not)
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, int], int, int]] = {
    "usual": ({}, {"compression": 6, "block_size": 131072, "fragments": 1}, DUPLICATES | EXPORTABLE, ALWAYS | UNCOMPRESSED),
    "gzip": ({"compression": Compression.parse("gzip:5")}, {"compression": 1}, 0, UNCOMPRESSED),
    "xz": ({"compression": Compression.parse("xz")}, {"compression": 4}, 0, UNCOMPRESSED),
    "lz4": ({"compression": Compression.parse("lz4")}, {"compression": 5}, 0, UNCOMPRESSED),
    "none": ({"compression": Compression.parse("none")}, {"compression": 1}, UNCOMPRESSED, 0),
    "smallest blocks": ({"block_size": 4096}, {"block_size": 4096}, 0, 0),
    "smallest blocks with xz": ({"block_size": 4096, "compression": Compression.parse("xz")}, {"block_size": 4096}, 0, 0),
    "largest blocks": ({"block_size": MIB}, {"block_size": MIB}, 0, 0),
    "largest blocks and many jobs": ({"block_size": MIB, "jobs": 40}, {"block_size": MIB}, 0, 0),
    "no fragments": ({"fragments": False}, {"fragments": 0}, NO_FRAGMENTS, 0),
    "no duplicate check": ({"dedup": False}, {}, ALWAYS, DUPLICATES),
    "no exports": ({"exports": False}, {}, 0, EXPORTABLE),
    "too much memory": ({"memory": 1 << 50}, {}, 0, 0),
}  # fmt: skip


def superblock(image: str) -> dict[str, int]:
    with open(image, "rb") as stream:
        return dict(zip(FIELDS, struct.unpack("<5I6H", stream.read(32)), strict=True))


@pytest.mark.requires("mksquashfs")
@pytest.mark.parametrize(("changes", "want", "flags", "without"), OPTIONS.values(), ids=OPTIONS)
def test_options(
    changes: dict[str, Any], want: dict[str, int], flags: int, without: int, tool: Mksquashfs, tmp_path: Path
) -> None:
    entries = [
        file(b"a", NOISE[:MIB]),
        file(b"b", NOISE[:MIB]),
        file(b"c", NOISE[:1000]),
        file(b"d", b"z" * MIB),
    ]
    image = write_image(str(tmp_path / "layout"), [entries])
    output = convert(image, tmp_path / "out", tool, **changes)
    found = superblock(output)
    assert {name: found[name] for name in want} == want
    assert found["flags"] & flags == flags
    assert not found["flags"] & without
    assert found["mkfs_time"] == CREATED
    copies = 1 if changes.get("dedup", True) else 2
    assert copies * MIB < os.path.getsize(output) < (copies + 0.5) * MIB + MIB * bool(flags & UNCOMPRESSED)
    JUDGES["kernel"].require()
    assert JUDGES["kernel"].differences(output, held(merge([entries])), str(tmp_path / "seen")) == []


@pytest.mark.requires("mksquashfs")
@pytest.mark.parametrize("pad", [True, False])
def test_padding(pad: bool, tool: Mksquashfs, tmp_path: Path) -> None:
    image = write_image(str(tmp_path / "layout"), [[file(b"f", NOISE[:5000])]])
    size = os.path.getsize(convert(image, tmp_path / "out", tool, pad=pad))
    assert (size % 4096 == 0) == pad


# What mksquashfs is told, by version: a program in its place writes it down

FAKE = """#!/bin/sh
case "$1" in
-version) echo "mksquashfs version {version} (2022/03/17)"; exit 0;;
-help*) printf '{help}\\tCompressors available:\\n\\t\\tgzip (default)\\n\\t\\tzstd\\n-noI\\tno\\n'; exit 0;;
esac
{body}
"""
RECORD = 'printf "%s\\n" "$@" >> "$0.told"; env > "$0.env"; cat > /dev/null; printf hsqs > "$2"'


def fake(top: Path, body: str, version: str = "4.6.1", text: str | None = None) -> str:
    path = top / "fake-mksquashfs"
    path.write_text(text if text is not None else FAKE.format(version=version, body=body, help="Options:\\n"))
    path.chmod(0o755)
    return str(path)


def told(top: Path, version: str, **changes: Any) -> list[str]:
    """Return what a mksquashfs of that version is told, for an image with metadata of the root."""
    command = fake(top, RECORD, version)
    convert(
        write_image(str(top / "layout"), [[ROOT, file(b"f")]]),
        top / "out",
        find_mksquashfs(command),
        **changes,
    )
    return Path(f"{command}.told").read_text().splitlines()


def test_options_that_damage_are_left_out(tmp_path: Path) -> None:
    seen = {}
    for version in ("4.5", "4.5.1", "4.6", "4.6.1", "4.7", "4.7.4", "4.7.5", "4.8"):
        (top := tmp_path / version).mkdir()
        words = told(top, version, dedup=False)
        assert ("-tailends" in words) != ("-no-tailends" in words)
        seen[version] = "-tailends" in words, "-no-sparse" in words, "-p" in words, "-cpiostyle" in words
        (again := tmp_path / f"{version} with dedup").mkdir()
        assert "-no-tailends" in told(again, version)
    usual = (True, False, True, False)
    assert seen == {
        "4.5": (True, False, False, True),
        "4.5.1": (True, False, False, True),
        "4.6": (False, False, True, False),
        "4.6.1": usual,
        "4.7": (True, True, True, False),
        "4.7.4": (True, True, True, False),
        "4.7.5": usual,
        "4.8": usual,
    }


def test_it_is_told_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    words = told(tmp_path, "4.6.1", jobs=3, memory=100 * MIB, pad=False)
    for option, value in (("-processors", "3"), ("-mem", str(100 * MIB)), ("-mkfs-time", str(CREATED))):
        assert words[words.index(option) + 1] == value
    assert "-nopad" in words
    assert "SOURCE_DATE_EPOCH" not in (tmp_path / "fake-mksquashfs.env").read_text()


# Failures

NOT_USABLE: dict[str, tuple[str, str]] = {
    "too old": (
        FAKE.format(version="4.4", body="", help=""),
        "too old to read a tar: got 4.4, want 4.5 or newer",
    ),
    "another program": ("#!/bin/sh\necho something\n", "not mksquashfs"),
    "without compressors": ("#!/bin/sh\necho mksquashfs version 4.6\n", "which compressors"),
    "not a program": ("\x7fELF nonsense", "Exec format error"),
}


@pytest.mark.parametrize(("text", "error"), NOT_USABLE.values(), ids=NOT_USABLE)
def test_program_is_refused(text: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=error):
        find_mksquashfs(fake(tmp_path, "", text=text))


def test_program_that_does_not_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paralayer.sinks.mksquashfs._ANSWER_SECONDS", 0.1)
    with pytest.raises(SinkError, match=r"no answer to -version in 0\.1 seconds"):
        find_mksquashfs(fake(tmp_path, "", text="#!/bin/sh\nexec sleep 1000\n"))


def test_missing_program_names_the_default_engine(tmp_path: Path) -> None:
    with pytest.raises(SinkError) as caught:
        find_mksquashfs("no-such-mksquashfs")
    assert str(caught.value).startswith("no-such-mksquashfs: not found: install squashfs-tools")
    assert "--engine paralayer" in str(caught.value)
    with pytest.raises(SinkError, match="not found"):
        find_mksquashfs(str(tmp_path / "none"))


def test_compressor_that_it_was_built_without(tmp_path: Path) -> None:
    tool = find_mksquashfs(fake(tmp_path, RECORD))
    assert tool.compressors == {"gzip", "zstd"}
    image = write_image(str(tmp_path / "layout"), [[]])
    with pytest.raises(SinkError, match="built without this compressor: got xz, want gzip, zstd"):
        convert(image, tmp_path / "out", tool, compression=Compression.parse("xz"))
    assert not (tmp_path / "out").exists()


@pytest.mark.requires("mksquashfs")
@pytest.mark.parametrize(("major", "minor"), [(4096, 0), (0, 1 << 20)])
def test_device_number_that_is_too_large(major: int, minor: int, tool: Mksquashfs, tmp_path: Path) -> None:
    image = write_image(str(tmp_path / "layout"), [[char(b"dev/\xff", major, minor)]])
    with pytest.raises(
        SinkError, match=rf"out: dev/\\xff: device number: got {major}, {minor}, want at most"
    ):
        convert(image, tmp_path / "out", tool)
    assert os.listdir(tmp_path) == ["layout"]


FAILS: dict[str, tuple[str, str]] = {
    "at once": ("echo 'FATAL ERROR: no' >&2; exit 3", "mksquashfs: FATAL ERROR: no: got exit status 3"),
    "at once, and says nothing": ("exit 1", "ended before it had done everything: got exit status 1"),
    "at once, without a failure": ("exit 0", "ended before it had done everything: got exit status 0"),
    "in the middle": (
        "head -c 100000 >/dev/null; echo half >&2; exit 1",
        "mksquashfs: half: got exit status 1",
    ),
    "at the end": ("cat > /dev/null; echo all >&2; exit 2", "mksquashfs: all: got exit status 2"),
    "at the end, and leaves a file": ("cat > $2; echo all >&2; exit 2", "mksquashfs: all: got exit status 2"),
    "killed": ("head -c 100000 > /dev/null; kill -KILL $$", "got signal SIGKILL"),
    "killed at the end": ("cat > $2; kill -TERM $$", "got signal SIGTERM"),
    "closes its input": (
        "echo enough >&2; exec sleep 1000 <&-",
        "mksquashfs: stopped reading, and did not end: enough",
    ),
    "says much": (
        "for i in $(seq 30000); do echo \"Unrecognised keyword $i\"; done >&2; printf 'a\\n\\033b\\n' >&2; exit 1",
        r"mksquashfs: a; \\x1bb: got exit status 1",
    ),
    "makes nothing": ("cat > /dev/null", "mksquashfs: ended without an error, and made nothing"),
    "makes an empty file": (
        "cat > /dev/null; : > $2",
        "mksquashfs: .* does not begin as a squashfs: got b'', want",
    ),
    "makes something else": (
        "cat > $2",
        "mksquashfs: .* does not begin as a squashfs: got b'.*', want b'hsqs'",
    ),
    "closes its input first": ("exec <&-; echo then >&2; exit 7", "mksquashfs: then: got exit status 7"),
}


@pytest.mark.parametrize(("body", "error"), FAILS.values(), ids=FAILS)
@pytest.mark.parametrize("workers", [0, 2])
def test_failure_is_told_and_leaves_nothing(body: str, error: str, workers: int, tmp_path: Path) -> None:
    tool = find_mksquashfs(fake(tmp_path, body))
    image = write_image(str(tmp_path / "layout"), [[file(b"f", NOISE)]])
    with pytest.raises(SinkError, match=error) as caught:
        convert(image, tmp_path / "out", tool, workers=workers)
    assert str(caught.value).startswith(f"{tmp_path}/out: ")
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["fake-mksquashfs", "layout"]


def test_only_the_end_of_what_it_says_is_kept() -> None:
    log = _Log()
    try:
        for number in range(100):
            os.write(log.theirs, b"%d\n" % number * 50_000)
            assert len(log._said) <= 3 << 16
        said = log.end()
    finally:
        log.close()
    assert said.startswith(b"99\n")
    assert said.endswith(b"\n99\n")
    assert 1 << 15 < len(said) <= 3 << 16


def test_root_that_an_old_one_cannot_set(tmp_path: Path) -> None:
    body = 'case "$*" in *-cpiostyle*) echo "free(): invalid pointer" >&2; kill -ABRT $$;; esac; cat > "$2"'
    tool = find_mksquashfs(fake(tmp_path, body, "4.5.1"))
    image = write_image(str(tmp_path / "layout"), [[file(b"f")]])
    with pytest.raises(SinkError) as caught:
        convert(image, tmp_path / "out", tool)
    assert "mksquashfs 4.5.1 cannot set the root's metadata: mksquashfs: free(): invalid pointer" in str(
        caught.value
    )
    assert "got signal SIGABRT, want 4.6 or newer" in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["fake-mksquashfs", "layout"]


@pytest.mark.requires("mksquashfs", "root")
@pytest.mark.parametrize("size", ["4k", "64k", "1m", "2900k"])
def test_full_disk(size: str, tool: Mksquashfs, tmp_path: Path) -> None:
    image = write_image(str(tmp_path / "layout"), [[file(b"f", NOISE)]])
    (disk := tmp_path / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
    try:
        with pytest.raises(SinkError, match=r"out: mksquashfs: .*No space left on device"):
            convert(image, disk / "out", tool)
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


INTERRUPTS = {
    "while the pipe is full": "kill -INT $PPID; exec sleep 1000",
    "while it is still at work": "cat > $2; kill -INT $PPID; exec sleep 1000",
}


@pytest.mark.parametrize("body", INTERRUPTS.values(), ids=INTERRUPTS)
@pytest.mark.parametrize("workers", [0, 2])
def test_interrupt_ends_it(body: str, workers: int, tmp_path: Path) -> None:
    tool = find_mksquashfs(fake(tmp_path, body))
    image = write_image(str(tmp_path / "layout"), [[file(b"f", NOISE)]])
    with pytest.raises(KeyboardInterrupt):
        convert(image, tmp_path / "out", tool, workers=workers)
    assert sorted(os.listdir(tmp_path)) == ["fake-mksquashfs", "layout"]


def test_interrupts_of_the_terminal_come_to_us_alone(tmp_path: Path) -> None:
    """Its process group is its own, and it heeds what signals say, though they wait while it is started."""
    state = 'cut -d" " -f1,5 /proc/$$/stat > "$0.group"; grep Sig[BI] /proc/self/status > "$0.signals"'
    tool = find_mksquashfs(fake(tmp_path, f"{state}; {RECORD}"))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    convert(write_image(str(tmp_path / "layout"), [[]]), tmp_path / "out", tool)
    process, group = Path(f"{tool.path}.group").read_text().split()
    assert process == group != str(os.getpgrp())
    masks = dict(line.split() for line in Path(f"{tool.path}.signals").read_text().splitlines())
    assert int(masks["SigBlk:"], 16) == 0
    assert not int(masks["SigIgn:"], 16) & 1 << (signal.SIGPIPE - 1)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_it_ends_when_we_are_killed(tmp_path: Path) -> None:
    """The stream's end ends it, whatever workers there were; its output has only the temporary name."""
    command = fake(
        tmp_path, 'head -c 100000 > /dev/null; kill -KILL $PPID; cat > /dev/null; echo > "$0.ended"'
    )
    image = write_image(str(tmp_path / "layout"), [[file(b"f", NOISE)], [file(b"g", NOISE)]])
    code = (
        "import sys; sys.path[:] = eval(sys.argv[1]); from pathlib import Path; import test_mksquashfs as test;"
        "test.convert(sys.argv[2], Path(sys.argv[3]), test.find_mksquashfs(sys.argv[4]), workers=2)"
    )
    arguments = [repr([os.path.dirname(__file__), *sys.path]), image, str(tmp_path / "out"), command]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL
    wait_for(lambda: os.path.exists(f"{command}.ended"))
    assert not (tmp_path / "out").exists()
