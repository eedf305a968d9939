"""What a squashfs image holds, shares and leaves out; and that nothing is left of one that could not be completed."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import paralayer
from engines import Engines, run
from images import (
    END_OF_ARCHIVE,
    MEDIA_TYPES,
    Blob,
    digest_of,
    pack_headers,
    write_blob,
    write_documents,
    write_image,
    write_layer,
)
from model import char, directory, file, hardlink, merge, symlink, whiteout
from paralayer.sinks.squashfs.sink import SquashfsSink
from paralayer.spec import ImageSpec
from processes import (
    CONVERT,
    convert,
    end_of,
    finish,
    one_line,
    running,
    session_of,
    wait_for,
    workers_of,
    written_outputs,
)
from squashfs_data import TEXT, DataReader, options, pack_sparse, read_image
from squashfs_judges import JUDGES, held, is_there
from trees import diff, from_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from model import Entry, Node
    from squashfs_judges import Judge

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NOISE = random.Random(3).randbytes(6 * MIB)
STORED = 1 << 24
OUT = "out.squashfs"


def written(top: Path, layers: list[list[Entry]] | list[bytes], **changes: Any) -> DataReader:
    """Convert layers to an image of small blocks, with more than one job, and return its reader."""
    layout = write_image(f"{top}/layout", layers)
    with Engines() as engines:
        run(layout, SquashfsSink(f"{top}/{OUT}", options(**changes), jobs=2), engines, jobs=2)
    return read_image(f"{top}/{OUT}")


def checked(reader: DataReader, layers: list[list[Entry]]) -> dict[bytes, Node]:
    """Return the tree, which must be that of the layers."""
    tree = reader.tree()
    assert diff(tree, held(from_model(merge(layers)))) == []
    return tree


# Blocks and tail ends


@pytest.mark.parametrize("fragments", [True, False])
@pytest.mark.parametrize("block_size", [4 * KIB, 128 * KIB, MIB])
def test_files_of_every_size_around_blocks(tmp_path: Path, block_size: int, fragments: bool) -> None:
    sizes = [0, 1, 511, block_size - 1, block_size, block_size + 1, 2 * block_size - 1, 2 * block_size]
    entries = [directory(b"d")]
    for number, size in enumerate(sizes):
        data = NOISE[number : number + size]
        entries += [
            file(b"d/%d" % size, data),
            file(b"d/hole%d" % size, bytes(size)),
            file(b"d/hole before%d" % size, bytes(size) + data),
            file(b"d/hole behind%d" % size, data + bytes(size)),
            file(b"d/almost a hole%d" % size, bytes(size) + b"\1"),
        ]
    reader = written(tmp_path, [entries], block_size=block_size, fragments=fragments, compression="none")
    checked(reader, [entries])
    assert bool(reader.fragments) == fragments
    assert bool(reader.flags & 0x10) != fragments


def test_what_does_not_shrink_is_stored(tmp_path: Path) -> None:
    entries = [
        file(b"noise", NOISE[:9000]),
        file(b"text", TEXT[:8192]),
        file(b"text with a tail", TEXT[:9000]),
    ]
    reader = written(tmp_path, [entries], block_size=4096)
    checked(reader, [entries])
    sizes = {path: reader.places[number].sizes for path, number in reader.paths.items() if path}
    assert sizes[b"noise"] == (4096 | STORED, 4096 | STORED)
    assert all(0 < size < 4096 for size in sizes[b"text"])


def test_small_files_share_fragment_blocks_with_their_neighbours(tmp_path: Path) -> None:
    """Those of one kind in one directory do not lie in more blocks than they fill, and one at either end.

    Other kinds are elsewhere: so they compress better.
    """
    entries: list[Entry] = []
    for folder in range(20):
        entries += [directory(b"%02d" % folder)]
        for number in range(40):
            for suffix in (b"c", b"py"):
                data = NOISE[len(suffix) * MIB + folder * 1000 + number :][: 200 + number]
                entries.append(file(b"%02d/%d.%s" % (folder, number, suffix), data))
    reader = written(tmp_path, [entries], block_size=16 * KIB)
    tree = checked(reader, [entries])
    blocks: dict[bytes, set[int]] = {b".c": set(), b".py": set()}
    for folder in range(20):
        for suffix, all_used in blocks.items():
            paths = [path for path in tree if path.startswith(b"%02d/" % folder) and path.endswith(suffix)]
            size = sum(len(tree[path].data) for path in paths)
            used = {reader.places[reader.paths[path]].fragment for path in paths}
            assert len(used) <= -(-size // (16 * KIB)) + 1
            all_used.update(used)
    assert blocks[b".c"].isdisjoint(blocks[b".py"])


@pytest.mark.parametrize(("last", "fragments"), [(1, 1), (2, 2)])
def test_fragment_blocks_are_filled_to_the_last_byte(tmp_path: Path, last: int, fragments: int) -> None:
    entries = [file(b"a", NOISE[:2000]), file(b"b", NOISE[7:][:2095]), file(b"c", NOISE[9:][:last])]
    reader = written(tmp_path, [entries], block_size=4096)
    checked(reader, [entries])
    assert reader.fragments == fragments


# What is there once


@pytest.mark.parametrize("fragments", [True, False])
def test_equal_files_of_any_layer_are_stored_once(tmp_path: Path, fragments: bool) -> None:
    """They are larger than what one job packs: what was written of a second one is given up again."""
    large = NOISE[: 5 * MIB + 1234]
    stack = [
        [file(b"old", large), file(b"small", NOISE[7:99])],
        [file(b"middle", NOISE[5:] + b"."), file(b"d/equal", large), file(b"d/small", NOISE[7:99])],
        [file(b"new", large), file(b"other", NOISE[: MIB + 5]), file(b"again", NOISE[5:] + b".")],
    ]
    reader = written(tmp_path, stack, fragments=fragments)
    checked(reader, stack)
    places = {path: reader.places[number] for path, number in reader.paths.items() if number in reader.places}
    assert places[b"old"] == places[b"d/equal"] == places[b"new"]
    assert places[b"small"] == places[b"d/small"]
    assert places[b"middle"] == places[b"again"]
    assert len(reader.image) < len(large) + len(NOISE) + MIB + 200 * KIB
    assert reader.flags & 0x40
    (tmp_path / "all").mkdir()
    many = written(tmp_path / "all", stack, fragments=fragments, dedup=False)
    checked(many, stack)
    assert len(many.image) > 3 * len(large) + 2 * len(NOISE) - 10
    assert not many.flags & 0x40


def test_blocks_and_tail_ends_are_shared_apart(tmp_path: Path) -> None:
    blocks = NOISE[:8192]
    entries = [
        file(b"a", blocks + b"tail"),
        file(b"b", blocks + b"other tail"),
        file(b"c", NOISE[5:4101] + b"tail"),
        file(b"d", b"tail"),
        file(b"e", blocks),
    ]
    reader = written(tmp_path, [entries])
    checked(reader, [entries])
    places = {path: reader.places[number] for path, number in reader.paths.items() if path}
    assert places[b"a"].start == places[b"b"].start == places[b"e"].start != places[b"c"].start
    tails = {path: (place.fragment, place.offset) for path, place in places.items()}
    assert tails[b"a"] == tails[b"c"] == tails[b"d"] != tails[b"b"]


def test_nothing_is_left_of_what_was_given_up_last(tmp_path: Path) -> None:
    """Blocks that were written once reach beyond the tables and the padding."""
    reader = written(tmp_path, [[file(b"a", NOISE), file(b"b", NOISE)]])
    checked(reader, [[file(b"a", NOISE), file(b"b", NOISE)]])
    assert len(reader.image) - reader.end > 1
    assert len(reader.image) % 4096 == 0
    assert os.stat(tmp_path / OUT).st_size == len(reader.image) < len(NOISE) + 100 * KIB


# Sparse files and positions beyond 4 GiB


@pytest.mark.requires("root")
@pytest.mark.parametrize("name", ["kernel", "unsquashfs"])
def test_sparse_file_beyond_4_gib(tmp_path: Path, name: str) -> None:
    JUDGES[name].require()
    islands = {0: NOISE[:1000], 3 * GIB - 5: NOISE[:70_000], 5 * GIB - 6: NOISE[: MIB + 3]}
    size = 5 * GIB + 2 * MIB + 777
    chunks = [(offset, len(island)) for offset, island in islands.items()]
    sparse = pack_sparse(file(b"sparse"), chunks, "pax", size=size, stored=b"".join(islands.values()))
    layout = write_image(f"{tmp_path}/layout", [sparse + write_layer([file(b"behind", b"behind")])])
    paralayer.convert(layout, ImageSpec.squashfs(tmp_path / OUT, block_size=MIB, compression="zstd:1"))
    assert os.stat(tmp_path / OUT).st_size < 4 * MIB
    with opened(name, tmp_path) as top:
        assert os.stat(top / "sparse").st_size == size
        assert os.stat(top / "sparse").st_blocks * 512 < 10 * MIB
        with open(top / "sparse", "rb") as stream:
            for offset, island in islands.items():
                around = os.pread(stream.fileno(), len(island) + 20, max(0, offset - 10))
                assert around.strip(b"\0") == island.strip(b"\0")
            assert os.pread(stream.fileno(), MIB, size - 777) == bytes(777)
        assert (top / "behind").read_bytes() == b"behind"


@contextmanager
def opened(judge: str, top: Path) -> Iterator[Path]:
    """Give the directory in which a judge shows the image."""
    point = top / "opened"
    if judge == "kernel":
        point.mkdir()
        subprocess.run(["mount", "-t", "squashfs", "-o", "loop,ro", top / OUT, point], check=True)
        try:
            yield point
        finally:
            subprocess.run(["umount", point], check=True)
        return
    command = ["unsquashfs", "-strict-errors", "-no-progress", "-quiet", "-dest", str(point), str(top / OUT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    yield point
    shutil.rmtree(point)


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_image_above_4_gib(tmp_path: Path, judge: Judge) -> None:
    """The first blocks are placed as if 5 GiB were there already, as a hole of the output."""
    judge.require()
    stack = [
        [
            file(b"a", NOISE[: MIB + 5]),
            file(b"b", b"tail end"),
            directory(b"d", xattrs={b"user.x": b"y" * 300}),
        ],
        [file(b"d/again", NOISE[: MIB + 5]), file(b"d/hole", bytes(MIB)), hardlink(b"d/b", b"b")],
    ]
    layout = write_image(f"{tmp_path}/layout", stack)
    sink = SquashfsSink(f"{tmp_path}/{OUT}", options(), jobs=1)
    sink._placement.position = 5 * GIB
    with Engines() as engines:
        run(layout, sink, engines)
    assert os.stat(tmp_path / OUT).st_blocks * 512 < 2 * MIB
    want = held(from_model(merge(stack)))
    assert judge.differences(f"{tmp_path}/{OUT}", want, f"{tmp_path}/scratch") == []


# Compressors

SAID = {
    "zstd": (6, True),
    "zstd:1": (6, True),
    "zstd:15": (6, False),
    "zstd:22": (6, True),
    "gzip": (1, False),
    "gzip:1": (1, True),
    "gzip:9": (1, False),
    "xz": (4, False),
    "lz4": (5, True),
    "none": (1, False),
}
"""Compression to number of the compressor and whether its options follow the superblock, as mksquashfs has it."""
MIXED: list[Entry] = [
    directory(b"./", 0o751, uid=5, gid=6, mtime=77, xattrs={b"user.root": b"r", b"trusted.t": b"\0"}),
    *(file(b"text%d" % number, TEXT[number:], mode=0o4711) for number in range(3)),
    file(b"noise", NOISE[: MIB + 7]),
    file(b"both", TEXT * 3 + NOISE[:300_000] + bytes(300_000) + TEXT),
    file(b"owner", b"o", uid=(1 << 32) - 2, gid=1 << 31, xattrs={b"security.x": b"v" * 200}),
    symlink(b"link", b"text1"),
    hardlink(b"again", b"text1"),
    char(b"null", 1, 3),
    char(b"large", 4095, 1_048_575),
    file(b"n" * 255, b"long name"),
    file(b"/".join([b"d" * 100] * 20), b"far below"),
]


@pytest.mark.parametrize("block_size", [4 * KIB, 128 * KIB, MIB])
@pytest.mark.parametrize("compression", SAID)
def test_every_compression_with_every_block_size(tmp_path: Path, compression: str, block_size: int) -> None:
    layout = write_image(f"{tmp_path}/layout", [MIXED])
    spec = ImageSpec.squashfs(tmp_path / OUT, compression=compression, block_size=block_size)
    result = paralayer.convert(layout, spec, jobs=2)
    assert result.warnings == ()
    reader = read_image(f"{tmp_path}/{OUT}")
    tree = checked(reader, [MIXED])
    assert result.bytes_written == len(reader.image)
    assert (reader.compressor, bool(reader.flags & 0x400)) == SAID[compression]
    kernel = JUDGES["kernel"]
    if all(map(is_there, kernel.needs)):
        assert kernel.differences(f"{tmp_path}/{OUT}", held(tree), f"{tmp_path}/scratch") == []


# Times and losses


def test_times_are_clamped_to_those_of_the_format(tmp_path: Path) -> None:
    """One warning for all, with how many there were."""
    times = [-(1 << 40), -1, 0, (1 << 32) - 1, 1 << 32, 1 << 40]
    layers = [
        [file(b"hidden", mtime=-5), directory(b"d", mtime=-7)],
        [whiteout(b"hidden"), *(file(b"d/%d" % number, mtime=time) for number, time in enumerate(times))],
    ]
    layout = write_image(f"{tmp_path}/layout", layers)
    result = paralayer.convert(layout, ImageSpec.squashfs(tmp_path / OUT))
    reader = read_image(f"{tmp_path}/{OUT}")
    tree = checked(reader, layers)
    assert [tree[b"d/%d" % number].mtime for number in range(6)] == [0, 0, 0, *[(1 << 32) - 1] * 3]
    (warning,) = result.warnings
    assert "times before 1970 or after 2106: 5" in warning
    assert reader.time == 0


def test_what_was_begun_again_is_counted_once(tmp_path: Path) -> None:
    layers = [
        [file(b"old", mtime=-1)],
        [
            file(b"a", NOISE, mtime=-1),
            file(b"b", NOISE, xattrs={b"system.posix_acl_access": b"acl"}),
            file(b"a", NOISE[5:], mtime=-1),
        ],
    ]
    layout = write_image(f"{tmp_path}/layout", layers)
    with Engines() as engines:
        for memory in (1, 1 << 40):
            sink = SquashfsSink(f"{tmp_path}/{memory}", options(), jobs=1)
            _, restarted = run(layout, sink, engines, memory=memory)
            assert restarted == (memory == 1)
            assert dict(sink.lost) == {
                "times before 1970 or after 2106": 2,
                "xattrs that are not user, trusted or security": 1,
            }


# Faults


def noisy(number: int) -> list[Entry]:
    """Return a layer of 5 MiB, more than the decoders announce at a time, like no other."""
    data = NOISE[number:]
    return [
        directory(b"d"),
        file(b"d/large%d" % number, data[: 3 * MIB]),
        file(b"d/other%d.x" % number, data[3 * MIB : 5 * MIB]),
        *(file(b"d/%d.%d" % (number, small), data[small * 3000 :][:2900]) for small in range(100)),
    ]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an image of four layers that is large enough for worker processes."""
    layers = [noisy(number) for number in range(4)]
    return write_image(f"{tmp_path_factory.mktemp('image')}/layout", layers, compression="zstd")


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an image that takes long: nobody waits for its end. The newest layer has 64 GiB, as gzip members."""
    layout = f"{tmp_path_factory.mktemp('endless')}/layout"
    size = 64 * GIB
    piece = gzip.compress(NOISE[: 8 * KIB] * 2048, mtime=0)
    stored = (
        gzip.compress(pack_headers(file(b"large"), size), mtime=0)
        + piece * (size // (16 * MIB))
        + gzip.compress(END_OF_ARCHIVE, mtime=0)
    )
    old = write_layer(noisy(0))
    blobs = [
        Blob(MEDIA_TYPES["none"], write_blob(layout, old), len(old), digest_of(old)),
        Blob(MEDIA_TYPES["gzip"], write_blob(layout, stored), len(stored), digest_of(b"")),
    ]
    write_documents(layout, blobs, "latest")
    return layout


def put_old(top: Path) -> Path:
    """Put an output there that must stay."""
    (top / OUT).write_bytes(b"old")
    return top / OUT


def check_old(top: Path) -> None:
    assert os.listdir(top) == [OUT]
    assert (top / OUT).read_bytes() == b"old"


@pytest.mark.parametrize("whom", ["group", "parent"])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_interrupt_leaves_nothing(endless: str, tmp_path: Path, jobs: str, whom: str) -> None:
    old = put_old(tmp_path)
    command = [*CONVERT, "--force", "--jobs", jobs, "--memory", "64M", endless, str(old)]
    with running(command) as process:
        wait_for(lambda: has_grown(process, tmp_path))
        if whom == "group":
            os.killpg(process.pid, signal.SIGINT)
        else:
            os.kill(process.pid, signal.SIGINT)
        status, error = end_of(process)
        assert status == 130, error
        one_line(error, "interrupted by SIGINT")
        assert session_of(process) == []
    check_old(tmp_path)


def has_grown(process: subprocess.Popen[bytes], top: Path) -> bool:
    return any(temporary.stat().st_size > 5 * MIB for temporary in written_outputs(process, top))


def test_death_of_one_worker_is_told_in_one_line(endless: str, tmp_path: Path) -> None:
    old = put_old(tmp_path)
    command = [*CONVERT, "--force", "--jobs", "2", "--memory", "64M", endless, str(old)]
    with running(command) as process:
        wait_for(lambda: has_grown(process, tmp_path))
        worker = workers_of(process, 2)[0]
        worker.kill()
        status, error = end_of(process)
        assert status == 1
        one_line(error, f"paralayer: error: worker process {worker.pid}: died: got signal SIGKILL")
        assert session_of(process) == []
    check_old(tmp_path)


PAUSING = """
import sys, paralayer
image, output, event, memory = sys.argv[1:]
waits = True
def pause(progress):
    global waits
    if waits and progress.event == event:
        waits = False
        print("paused", flush=True)
        sys.stdin.readline()
spec = paralayer.ImageSpec.squashfs(output, force=True, block_size=4096)
try:
    paralayer.convert(image, spec, jobs=2, memory=int(memory), progress=pause)
except paralayer.WorkerError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""
"""Converts; at the first `event`, waits for a line."""
MOMENTS = {
    "first reading": ("bytes", 8 * MIB),
    "newest survivors": ("indexed", GIB),
    "no memory": ("indexed", 1),
    "second reading": ("finished", 1),
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_death_of_the_workers_is_noticed(image: str, tmp_path: Path, moment: tuple[str, int]) -> None:
    event, memory = moment
    old = put_old(tmp_path)
    command = [sys.executable, "-c", PAUSING, image, str(old), event, str(memory)]
    with running(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"paused\n"
        for worker in workers_of(process, 2):
            worker.kill()
        process.stdin.close()
        status, error = end_of(process)
        assert status == 1
        one_line(error, "worker process", "died: got signal SIGKILL")
        assert session_of(process) == []
    check_old(tmp_path)


@pytest.mark.requires("root")
@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("room", ["size=4k", "size=64k", "size=7m", "size=19m", "size=64m,nr_inodes=1"])
def test_full_disk(image: str, tmp_path: Path, room: str, jobs: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", room, "tmpfs", disk], check=True)
    try:
        done = convert("--jobs", jobs, "--compression", "none", image, disk / OUT)
        assert done.returncode == 1
        one_line(done.stderr, "paralayer: error: ", str(disk / OUT), "No space left on device")
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.requires("root")
def test_disk_that_is_full_when_the_tables_come(tmp_path: Path) -> None:
    """There is just room for the blocks."""
    disk = tmp_path / "disk"
    disk.mkdir()
    names = [file(b"%d" % number, b"", uid=number % 7, mtime=number) for number in range(20_000)]
    layout = write_image(f"{tmp_path}/layout", [[*names, file(b"large", NOISE[:MIB])]])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1100k", "tmpfs", disk], check=True)
    try:
        done = convert("--jobs", "1", "--compression", "none", layout, disk / OUT)
        assert done.returncode == 1
        one_line(done.stderr, "paralayer: error: ", str(disk / OUT), "No space left on device")
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("limit", [32, 64])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_few_descriptors_suffice_or_are_named(image: str, tmp_path: Path, jobs: str, limit: int) -> None:
    done = limited(limit, "--jobs", jobs, "--block-size", "4K", image, str(tmp_path / OUT))
    if done.returncode:
        assert done.returncode == 1
        one_line(done.stderr, "paralayer: error: ", "Too many open files")
        assert os.listdir(tmp_path) == []


def limited(descriptors: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Convert with so few descriptors."""
    return finish(["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *CONVERT, *arguments])


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_descriptors_do_not_grow_with_the_files(tmp_path: Path, jobs: str) -> None:
    """Each sparse file is packed alone, and its tail end fills a fragment block."""
    stack = [[file(b"%d" % number, NOISE[number:][:3000]) for number in range(1000)]]
    sparse = b"".join(pack_sparse(entry, [(0, 3000)], "pax") for entry in stack[0])
    layout = write_image(f"{tmp_path}/layout", [sparse + END_OF_ARCHIVE])
    done = limited(256, "--jobs", jobs, "--block-size", "4K", layout, str(tmp_path / OUT))
    assert done.returncode == 0, done.stderr
    checked(read_image(f"{tmp_path}/{OUT}"), stack)
