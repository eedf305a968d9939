"""Whatever goes wrong: one clear line, the right exit status, and nothing left behind. Real processes, real faults."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest
import zstandard

import paralayer
from images import (
    BLOCK,
    END_OF_ARCHIVE,
    MEDIA_TYPES,
    Blob,
    blob_directory,
    compress,
    digest_of,
    pack_headers,
    write_blob,
    write_documents,
    write_image,
    write_layer,
)
from model import directory, file, hardlink, whiteout
from paralayer.errors import ImageError, LayerError
from paralayer.spec import ImageSpec
from processes import (
    AS_NOBODY,
    COMMAND,
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from images import Compression
    from model import Entry

MIB = 1 << 20
NOISE = random.Random(0).randbytes(5 * MIB)
TAR, DIRECTORY = "out.tar", "out"
OUTPUTS = (TAR, DIRECTORY)


def noisy(number: int) -> list[Entry]:
    """Return a layer of 5 MiB: more than the decoders announce at a time."""
    data = bytes([number]) + NOISE
    return [
        directory(b"d"),
        file(b"d/large%d" % number, data[: 3 * MIB]),
        file(b"d/other%d" % number, data[3 * MIB :]),
    ]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an image of four layers that is large enough for worker processes."""
    return write_image(
        str(tmp_path_factory.mktemp("image") / "layout"), [noisy(number) for number in range(4)]
    )


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an image that takes long: nobody waits for its end. The newest layer has 64 GiB of zeros, as gzip members."""
    layout = str(tmp_path_factory.mktemp("endless") / "layout")
    size = 64 << 30
    piece = gzip.compress(bytes(64 * MIB), mtime=0)
    head = pack_headers(file(b"zeros"), size)
    stored = (
        gzip.compress(head, mtime=0) + piece * (size // (64 * MIB)) + gzip.compress(END_OF_ARCHIVE, mtime=0)
    )
    blobs = [stored_layer(layout, write_layer([*noisy(0), *[file(b"more", NOISE * 2)]]))]
    # The diff_id is not asked for; hashing 64 GiB to have it would take a minute.
    blobs.append(Blob(MEDIA_TYPES["gzip"], write_blob(layout, stored), len(stored), digest_of(b"")))
    write_documents(layout, blobs, "latest")
    return layout


def stored_layer(
    layout: str, tar: bytes, compression: Compression = "none", damage: Callable[[bytes], bytes] | None = None
) -> Blob:
    """Store a layer, damaged before its descriptor is made."""
    stored = compress(tar, compression)
    stored = damage(stored) if damage else stored
    return Blob(MEDIA_TYPES[compression], write_blob(layout, stored), len(stored), digest_of(tar))


def layer_paths(layout: str) -> list[str]:
    """Return the files of the layers, the oldest first."""
    with open(os.path.join(layout, "index.json"), "rb") as stream:
        digest = json.load(stream)["manifests"][0]["digest"]
    with open(os.path.join(blob_directory(layout), digest[7:]), "rb") as stream:
        layers = json.load(stream)["layers"]
    return [os.path.join(blob_directory(layout), layer["digest"][7:]) for layer in layers]


class Old(NamedTuple):
    """An output that was there before, as it must stay."""

    path: Path
    inode: int

    @classmethod
    def put(cls, path: Path) -> Old:
        if path.suffix:
            path.write_bytes(b"old")
        else:
            path.mkdir()
            (path / "old").write_bytes(b"old")
        return cls(path, path.stat().st_ino)

    def check(self) -> None:
        assert self.path.stat().st_ino == self.inode
        content = self.path if self.path.suffix else self.path / "old"
        assert content.read_bytes() == b"old"
        assert self.path.suffix or os.listdir(self.path) == ["old"]
        assert os.listdir(self.path.parent) == [self.path.name]


# Signals


@pytest.mark.parametrize("whom", ["group", "parent"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_interrupt_leaves_nothing(
    endless: str, tmp_path: Path, jobs: str, output: str, number: signal.Signals, whom: str
) -> None:
    old = Old.put(tmp_path / output)
    with running([*CONVERT, "--force", "--jobs", jobs, "--memory", "64M", endless, str(old.path)]) as process:
        wait_for(lambda: has_grown(process, tmp_path))
        if jobs == "2":
            workers_of(process, 2)
        if whom == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
        status, error = end_of(process)
        assert status == 130
        one_line(error, f"interrupted by {number.name}")
        assert session_of(process) == []
    old.check()


def has_grown(process: subprocess.Popen[bytes], top: Path) -> bool:
    """Say whether a temporary output has content by now."""
    for temporary in written_outputs(process, top):
        with_content = temporary / "zeros" if temporary.is_dir() else temporary
        if with_content.exists() and with_content.stat().st_blocks:
            return True
    return False


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_while_the_pipe_is_full(image: str, jobs: str, number: signal.Signals) -> None:
    with running([*CONVERT, "--jobs", jobs, image, "-"]) as process:
        assert process.stdout is not None
        process.stdout.read(1)  # from here on nobody reads: the rest does not fit into the pipe
        os.kill(process.pid, number)
        status, error = end_of(process)
        assert status == 130
        one_line(error, f"interrupted by {number.name}")
        assert session_of(process) == []


def test_interrupt_again_and_again_changes_nothing(endless: str, tmp_path: Path) -> None:
    with running([*CONVERT, "--jobs", "2", endless, str(tmp_path / TAR)]) as process:
        wait_for(lambda: has_grown(process, tmp_path))
        while process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        status, error = end_of(process)
        assert status == 130
        one_line(error, "interrupted by SIGINT")
    assert os.listdir(tmp_path) == []


def test_interrupt_while_a_failed_output_is_removed(tmp_path: Path) -> None:
    """The oldest layer is refused when all files of the newest have been made."""
    layers = [[hardlink(b"broken", b"nowhere")], [file(b"%d" % number) for number in range(20_000)]]
    layout = write_image(str(tmp_path / "layout"), layers)
    most = 0

    def shrinks() -> bool:
        nonlocal most
        found = sum(len(os.listdir(top)) for top in tmp_path.glob(".paralayer*"))
        most = max(most, found)
        return found < most

    with running([*CONVERT, "--jobs", "1", layout, str(tmp_path / DIRECTORY)]) as process:
        wait_for(lambda: shrinks() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        status, error = end_of(process)
        assert status in (1, 130)
        one_line(error, "paralayer: ")
    assert os.listdir(tmp_path) == ["layout"]


@pytest.mark.parametrize("output", OUTPUTS)
def test_no_worker_outlives_a_killed_parent(endless: str, tmp_path: Path, output: str) -> None:
    with running([*CONVERT, "--jobs", "2", "--memory", "64M", endless, str(tmp_path / output)]) as process:
        workers_of(process, 2)
        wait_for(lambda: has_grown(process, tmp_path))
        process.kill()
        assert end_of(process) == (-signal.SIGKILL, "")
        wait_for(lambda: not session_of(process))
    if output == DIRECTORY:
        (temporary,) = tmp_path.glob(".paralayer*")  # nobody was left to do it
        shutil.rmtree(temporary)
    assert os.listdir(tmp_path) == []


def test_no_worker_outlives_a_parent_killed_while_the_pipe_is_full(image: str) -> None:
    with running([*CONVERT, "--jobs", "2", "--memory", "1", image, "-"]) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        assert len(workers_of(process, 2)) == 2
        process.kill()
        wait_for(lambda: not session_of(process))
        assert end_of(process) == (-signal.SIGKILL, "")


# Workers that die

PAUSING = """
import sys, paralayer
form, image, output, event, memory = sys.argv[1:]
waits = True
def pause(progress):
    global waits
    if waits and progress.event == event:
        waits = False
        print("paused", flush=True)
        sys.stdin.readline()
spec = paralayer.ImageSpec(form, output, force=True)
try:
    paralayer.convert(image, spec, jobs=2, memory=int(memory), progress=pause)
except paralayer.WorkerError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""
"""Converts; at the first `event`, waits for a line."""


MOMENTS: dict[str, tuple[str, int, str]] = {
    "first reading begins": ("started", 1 << 30, "forked"),
    "first reading": ("bytes", 8 << 20, "forked"),
    "newest survivors": ("indexed", 1 << 30, "forked"),
    "newest survivors, new interpreters": ("indexed", 1 << 30, "spawned"),
    "no memory": ("indexed", 1, "forked"),
    "second reading": ("finished", 1, "forked"),
}
"""Title to (event, memory, kind of workers). At that event, there is always work left for the workers."""


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_death_of_the_workers_is_noticed(
    image: str, tmp_path: Path, output: str, moment: tuple[str, int, str]
) -> None:
    event, memory, how = moment
    old = Old.put(tmp_path / output)
    form = "tar" if old.path.suffix else "directory"
    command = [sys.executable, "-c", PAUSING, form, image, str(old.path), event, str(memory)]
    with running(command, stdin=subprocess.PIPE, env=environment(how)) as process:
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
    old.check()


def environment(how: str) -> dict[str, str]:
    """Return an environment in which numpy starts threads, so that workers are new interpreters, or does not."""
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1" if how == "forked" else "2"}


def test_death_of_one_worker_is_told_in_one_line(endless: str, tmp_path: Path) -> None:
    old = Old.put(tmp_path / TAR)
    with running([*CONVERT, "--force", "--jobs", "2", "--memory", "64M", endless, str(old.path)]) as process:
        wait_for(lambda: has_grown(process, tmp_path))
        worker = workers_of(process, 2)[0]
        worker.kill()
        status, error = end_of(process)
        assert status == 1
        one_line(error, f"paralayer: error: worker process {worker.pid}: died: got signal SIGKILL")
        assert session_of(process) == []
    old.check()


def test_death_of_a_worker_while_the_pipe_is_full(image: str) -> None:
    with running([*CONVERT, "--jobs", "2", "--memory", "1", image, "-"]) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        for worker in workers_of(process, 2):
            worker.kill()
        process.stdout.read()
        status, error = end_of(process)
        assert status == 1
        one_line(error, "worker process", "died: got signal SIGKILL")


# Disks that are full


@contextmanager
def small_disk(point: Path, options: str) -> Iterator[Path]:
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


@pytest.mark.requires("root")
@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    "options", ["size=4k", "size=64k", "size=7m", "size=20m", "size=64m,nr_inodes=1", "nr_inodes=6"]
)
def test_full_disk(image: str, tmp_path: Path, options: str, output: str, jobs: str) -> None:
    with small_disk(tmp_path / "disk", options) as disk:
        done = convert("--jobs", jobs, image, disk / output)
        if done.returncode == 0:  # there was room, exactly
            assert output == TAR
            assert "inodes=6" in options
            os.remove(disk / output)
            return
        assert done.returncode == 1
        one_line(done.stderr, "paralayer: error: ", str(disk / output), "No space left on device")
        assert os.listdir(disk) == []


@pytest.mark.requires("root")
@pytest.mark.parametrize("output", OUTPUTS)
def test_full_disk_keeps_the_old_output(image: str, tmp_path: Path, output: str) -> None:
    with small_disk(tmp_path / "disk", "size=12m") as disk:
        old = Old.put(disk / output)
        done = convert("--force", "--jobs", "2", image, old.path)
        assert done.returncode == 1
        one_line(done.stderr, "No space left on device")
        old.check()


# Blobs that are not as they must be


def flip(at: float) -> Callable[[str], None]:
    """Return what changes a byte at that part of a file."""

    def damage(path: str) -> None:
        with open(path, "r+b") as stream:
            data = stream.read()
            place = int(len(data) * at)
            stream.seek(place)
            stream.write(bytes([data[place] ^ 0x10]))

    return damage


def append(path: str) -> None:
    with open(path, "ab") as stream:
        stream.write(b"\0")


def replace_by_directory(path: str) -> None:
    os.remove(path)
    os.mkdir(path)


def replace_by_fifo(path: str) -> None:
    os.remove(path)
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[str], None]] = {
    "flipped early": flip(0.01),
    "flipped in the middle": flip(0.5),
    "flipped late": flip(0.999),
    "cut": lambda path: os.truncate(path, os.stat(path).st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "longer": append,
    "missing": os.remove,
    "a directory": replace_by_directory,
    "a FIFO": replace_by_fifo,
}


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_blob_is_refused(
    tmp_path: Path, damage: Callable[[str], None], compression: Compression
) -> None:
    layers: list[list[Entry]] = [[file(b"a", b"a" * 5000)], [file(b"b", NOISE[:5000])], [file(b"c")]]
    layout = write_image(str(tmp_path / "layout"), layers, compression=compression)
    broken = layer_paths(layout)[1]
    damage(broken)
    for spec in (ImageSpec.tar(tmp_path / TAR), ImageSpec.directory(tmp_path / DIRECTORY)):
        with pytest.raises(ImageError) as raised:
            paralayer.convert(layout, spec)
        assert_names_layer(str(raised.value), 1, broken)
    assert os.listdir(tmp_path) == ["layout"]


def assert_names_layer(message: str, number: int, blob: str) -> None:
    names = (f"layer {number} ", f"layers[{number}]", os.path.basename(blob))
    assert any(name in message for name in names), message
    assert "\n" not in message


@pytest.mark.parametrize(
    "damage", ["flipped early", "flipped in the middle", "flipped late", "cut", "missing", "a FIFO"]
)
def test_damaged_blob_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    layers = [noisy(number) for number in range(4)]
    layout = write_image(str(tmp_path / "layout"), layers, compression=["none", "none", "zstd", "zstd"])
    for number, output in ((1, TAR), (2, DIRECTORY)):
        image = shutil.copytree(layout, tmp_path / f"broken{number}")
        broken = layer_paths(str(image))[number]
        DAMAGES[damage](broken)
        done = convert("--jobs", "2", image, tmp_path / output)
        assert done.returncode == 1
        assert_names_layer(one_line(done.stderr, "paralayer: error: "), number, broken)
    assert sorted(os.listdir(tmp_path)) == ["broken1", "broken2", "layout"]


WITH_CHECKSUM: dict[Compression, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}


@pytest.mark.parametrize("compression", WITH_CHECKSUM)
def test_damage_inside_a_compressed_layer_is_found_without_digests(
    tmp_path: Path, compression: Compression
) -> None:
    layout = str(tmp_path / "layout")
    stored = bytearray(WITH_CHECKSUM[compression](write_layer([file(b"f", NOISE[: MIB // 2])])))
    stored[len(stored) // 2] ^= 1
    blob = Blob(MEDIA_TYPES[compression], write_blob(layout, bytes(stored)), len(stored), digest_of(b""))
    write_documents(layout, [blob], "latest")
    with pytest.raises(LayerError, match=r"^layer 0 \(sha256:"):
        paralayer.convert(layout, ImageSpec.tar(tmp_path / TAR), check=False)
    assert os.listdir(tmp_path) == ["layout"]


TRUE_TO_THEIR_DESCRIPTOR: dict[str, tuple[Compression, Callable[[bytes], bytes]]] = {
    "gzip, cut": ("gzip", lambda stored: stored[: len(stored) // 2]),
    "gzip, last byte missing": ("gzip", lambda stored: stored[:-1]),
    "gzip, second member cut": ("gzip", lambda stored: stored + stored[:-20]),
    "gzip, garbage behind": ("gzip", lambda stored: stored + b"garbage"),
    "zstd, cut": ("zstd", lambda stored: stored[: len(stored) // 2]),
    "zstd, last byte missing": ("zstd", lambda stored: stored[:-1]),
    "zstd, garbage behind": ("zstd", lambda stored: stored + b"garbage"),
    "xz, cut": ("xz", lambda stored: stored[: len(stored) // 2]),
    "bzip2, cut": ("bzip2", lambda stored: stored[: len(stored) // 2]),
    "tar, cut in data": ("none", lambda stored: stored[:-4096]),
    "tar, cut in a header": ("none", lambda stored: stored[:100]),
    "tar, one zero block and more": ("none", lambda stored: bytes(BLOCK) + stored),
}


@pytest.mark.parametrize("case", TRUE_TO_THEIR_DESCRIPTOR.values(), ids=TRUE_TO_THEIR_DESCRIPTOR)
def test_broken_stream_is_refused(tmp_path: Path, case: tuple[Compression, Callable[[bytes], bytes]]) -> None:
    compression, damage = case
    broken = write_layer([file(b"f", NOISE[:30000])])
    small, large = str(tmp_path / "small"), str(tmp_path / "large")
    write_documents(small, [stored_layer(small, broken, compression, damage)], "latest")
    for spec in (ImageSpec.tar(tmp_path / TAR), ImageSpec.directory(tmp_path / DIRECTORY)):
        with pytest.raises(LayerError, match=r"^layer 0 \(sha256:"):
            paralayer.convert(small, spec)
    blobs = [stored_layer(large, write_layer(noisy(number))) for number in range(2)]
    blobs.append(stored_layer(large, broken, compression, damage))
    write_documents(large, blobs, "latest")
    done = convert("--jobs", "2", large, tmp_path / TAR)
    assert done.returncode == 1
    one_line(done.stderr, "paralayer: error: layer 2 (sha256:")
    assert sorted(os.listdir(tmp_path)) == ["large", "small"]


def test_wrong_diff_id_is_refused_when_asked_for(tmp_path: Path) -> None:
    layout = str(tmp_path / "layout")
    blob = stored_layer(layout, write_layer([file(b"f")]), "gzip")
    wrong = Blob(blob.media_type, blob.digest, blob.size, digest_of(b"something else"))
    write_documents(layout, [wrong], "latest")
    done = convert("--check-diff-ids", layout, tmp_path / TAR)
    assert done.returncode == 1
    one_line(done.stderr, "layer 0 ", "diff_id", digest_of(b"something else"))
    assert convert(layout, tmp_path / TAR).returncode == 0


@pytest.mark.requires("root", "setpriv")
def test_unreadable_blob(image: str, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)
    shutil.copytree(image, tmp_path / "layout")
    blob = layer_paths(str(tmp_path / "layout"))[2]
    os.chmod(blob, 0)
    out = f"{tmp_path}/nobody"
    os.mkdir(out, 0o777)
    os.chown(out, 65534, 65534)
    open_to_nobody(tmp_path)
    done = finish([*AS_NOBODY, "--jobs", "2", f"{tmp_path}/layout", f"{out}/{TAR}"])
    assert done.returncode == 1
    one_line(done.stderr, "paralayer: error: ", "Permission denied", os.path.basename(blob))
    assert os.listdir(out) == []


def open_to_nobody(path: Path) -> None:
    """Let anybody pass the directories above, which pytest makes for the owner alone."""
    for parent in path.parents:
        if parent.owner() == "root" and parent.stat().st_mode & 0o077 == 0:
            os.chmod(parent, 0o711)


CHANGING = """
import os, sys, paralayer
image, output, blob = sys.argv[1:]
def change(progress):
    if progress.event == "indexed" and progress.layer == 0:
        os.utime(blob, (0, 0))
try:
    paralayer.convert(image, paralayer.ImageSpec.tar(output), jobs=2, memory=1, progress=change)
except paralayer.ImageError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""


def test_blob_that_changes_between_two_readings(tmp_path: Path) -> None:
    """A parent that every layer implies keeps all of them from being written while they are read first."""
    layers = [[file(b"implied/%d" % number, NOISE[number:])] for number in range(3)]
    layout = write_image(str(tmp_path / "layout"), layers)
    blob = layer_paths(layout)[0]
    done = finish([sys.executable, "-c", CHANGING, layout, str(tmp_path / TAR), blob])
    assert done.returncode == 1
    one_line(done.stderr, "layer 0 ", blob, "was changed while it was converted")
    assert os.listdir(tmp_path) == ["layout"]


# Entries that cannot be applied

REFUSED: dict[str, tuple[list[Entry], str]] = {
    "hard link to nothing": ([file(b"x"), hardlink(b"broken", b"nowhere")], "broken"),
    "above the root": ([file(b"x"), file(b"../../broken")], "../../broken"),
    "nameless whiteout": ([whiteout(b"d/")], "d/.wh."),
    "long component": ([file(b"b" * 256)], "bbbb"),
    "long path": ([file(b"a/" * 2000 + b"b" * 256)], "bbbb"),
    "control characters": ([file(b"../\x1b[31m\n\xff")], r"../\x1b[31m\n\xff"),
}


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused_entry_is_named_with_its_layer(
    tmp_path: Path, case: tuple[list[Entry], str], jobs: str
) -> None:
    layer, name = case
    layout = write_image(str(tmp_path / "layout"), [noisy(0), noisy(1), layer, noisy(3), noisy(4)])
    for output in OUTPUTS:
        done = convert("--jobs", jobs, layout, tmp_path / output)
        assert done.returncode == 1
        one_line(done.stderr, "paralayer: error: layer 2 (sha256:", name)
    assert os.listdir(tmp_path) == ["layout"]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_refused_entry_with_a_name_of_a_mebibyte(tmp_path: Path, jobs: str) -> None:
    long = b"a/" * 250_000 + b"b" * 256
    layout = write_image(str(tmp_path / "layout"), [noisy(0), noisy(1), [file(long)], noisy(3)])
    done = convert("--jobs", jobs, layout, tmp_path / TAR)
    assert done.returncode == 1
    one_line(done.stderr, "paralayer: error: layer 2 (sha256:", "a/a/a/")


# Outputs that cannot be


@pytest.mark.parametrize("output", OUTPUTS)
def test_existing_output_is_refused(image: str, tmp_path: Path, output: str) -> None:
    old = Old.put(tmp_path / output)
    done = convert(image, old.path)
    assert done.returncode == 1
    one_line(done.stderr, f"paralayer: error: {old.path}: exists already")
    old.check()


@pytest.mark.parametrize("output", OUTPUTS)
def test_dangling_symlink_is_an_existing_output(image: str, tmp_path: Path, output: str) -> None:
    os.symlink("nowhere", tmp_path / output)
    assert convert(image, tmp_path / output).returncode == 1
    assert os.listdir(tmp_path) == [output]


@pytest.mark.parametrize("output", OUTPUTS)
def test_output_that_appears_meanwhile_is_kept(image: str, tmp_path: Path, output: str) -> None:
    form = "tar" if output == TAR else "directory"
    script = PAUSING.replace("force=True", "force=False").replace("WorkerError", "SinkError")
    command = [sys.executable, "-c", script, form, image, str(tmp_path / output), "finished", "9999999"]
    with running(command, stdin=subprocess.PIPE, env=environment("forked")) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"paused\n"
        (tmp_path / output).write_bytes(b"mine")
        process.stdin.close()
        status, error = end_of(process)
        assert status == 1
        one_line(error, str(tmp_path / output), "File exists")
    assert os.listdir(tmp_path) == [output]
    assert (tmp_path / output).read_bytes() == b"mine"


@pytest.mark.parametrize("output", OUTPUTS)
def test_missing_directory_of_the_output(image: str, tmp_path: Path, output: str) -> None:
    done = convert(image, tmp_path / "nowhere" / output)
    assert done.returncode == 1
    one_line(done.stderr, f"paralayer: error: {tmp_path}/nowhere/{output}: its directory does not exist")
    assert os.listdir(tmp_path) == []


@pytest.mark.requires("root", "setpriv")
@pytest.mark.parametrize("output", OUTPUTS)
def test_directory_of_the_output_that_is_not_ours(image: str, tmp_path: Path, output: str) -> None:
    open_to_nobody(tmp_path / output)
    open_to_nobody(tmp_path.parent / "x")
    shutil.copytree(image, tmp_path / "layout")
    os.mkdir(tmp_path / "ours")
    done = finish([*AS_NOBODY, str(tmp_path / "layout"), str(tmp_path / "ours" / output)])
    assert done.returncode == 1
    one_line(done.stderr, f"paralayer: error: {tmp_path}/ours/{output}: Permission denied")
    assert os.listdir(tmp_path / "ours") == []


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("memory", ["1", "1G"])
def test_reader_that_goes_away(image: str, jobs: str, memory: str) -> None:
    with running([*CONVERT, "--jobs", jobs, "--memory", memory, image, "-"]) as process:
        assert process.stdout is not None
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        status, error = end_of(process)
        assert status == 1
        one_line(error, "paralayer: error: standard output: Broken pipe")
        assert session_of(process) == []


def test_full_standard_output(image: str) -> None:
    with open("/dev/full", "wb") as full:
        done = convert(image, "-", stdout=full)
    assert done.returncode == 1
    one_line(done.stderr, "paralayer: error: standard output: No space left on device")


@pytest.mark.parametrize("option", ["--json", "--help"])
def test_text_that_nobody_can_take(image: str, tmp_path: Path, option: str) -> None:
    with open("/dev/full", "wb") as full:
        done = convert(option, image, tmp_path / TAR, stdout=full)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("limit", [32, 64])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_few_descriptors_suffice_or_are_named(tmp_path: Path, jobs: str, output: str, limit: int) -> None:
    layers = [[directory(b"d"), file(b"d/%d" % number, b"x")] for number in range(200)]
    layout = write_image(str(tmp_path / "layout"), [noisy(0), noisy(1), noisy(2), *layers])
    shell = f'ulimit -n {limit}; exec "$@"'
    done = finish(["sh", "-c", shell, "sh", *CONVERT, "--jobs", jobs, layout, str(tmp_path / output)])
    if done.returncode:
        assert done.returncode == 1
        one_line(done.stderr, "paralayer: error: ", "Too many open files")
        assert os.listdir(tmp_path) == ["layout"]


def test_usage_error_touches_nothing(image: str, tmp_path: Path) -> None:
    assert finish([*COMMAND, "convert", "--jobs", "0", image, str(tmp_path / TAR)]).returncode == 2
    assert os.listdir(tmp_path) == []


def test_numpy_is_there_before_an_interruption_is_an_exception() -> None:
    """While it is loaded it takes one for a failure of its own, and prints it."""
    script = """
import sys
from paralayer.cli import main, terminal
def enter(_):
    print("numpy" in sys.modules)
    sys.exit()
terminal.interrupts.__enter__ = enter
main()
"""
    for command in ("convert", "verify"):
        assert finish([sys.executable, "-c", script, command, "a", "b.tar"]).stdout == "True\n"
