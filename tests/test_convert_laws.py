"""The output is the model's tree, and a function of the image and the options alone."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import paralayer
from engines import UNLIMITED, Engines, run
from images import pack_special, pax_record, write_image, write_layer
from model import Refused, directory, fifo, file, hardlink, merge, normalised, opaque, symlink, whiteout
from paralayer.errors import LayerError
from paralayer.sinks.directory import DirectorySink
from paralayer.sinks.tar import TarSink
from paralayer.spec import ImageSpec
from processes import CONVERT
from processes import convert as run_convert
from strategies import any_stacks, valid_stacks, without_refused
from trees import NOT_ON_DISK, diff, from_model, snapshot_directory, snapshot_tar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from images import Compression
    from model import Entry, Node

KIB, MIB = 1 << 10, 1 << 20
NOISE = random.Random(1).randbytes(8 * MIB)
FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
SOME = settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])


@contextmanager
def scratch() -> Iterator[str]:
    """Give a new directory in memory, for one example."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield path


def flat(layout: str, engines: Engines, *, jobs: int = 1, memory: int = UNLIMITED) -> bytes:
    """Return the flat tar of an image."""
    path = f"{layout}.{jobs}.{memory}.tar"
    run(layout, TarSink(path), engines, jobs=jobs, memory=memory)
    with open(path, "rb") as stream:
        content = stream.read()
    os.remove(path)
    return content


# The tree


def has_whiteouts_for_directories(stack: Sequence[Sequence[Entry]]) -> bool:
    """Say whether a directory's name begins as a whiteout's: it stays, but `snapshot_tar` would not have it."""
    return any(
        name.startswith(b".wh.")
        for layer in stack
        for entry in layer
        for name in (normalised(entry.path) or [])[:-1]
    )


@SOME
@given(any_stacks(), st.sampled_from(["none", "gzip", "zstd"]))
def test_tar_is_the_tree_of_the_model(stack: Sequence[Sequence[Entry]], compression: Compression) -> None:
    assume(not has_whiteouts_for_directories(stack))
    with scratch() as top:
        layout = write_image(f"{top}/layout", stack, compression=compression)
        try:
            want = from_model(merge(stack))
        except Refused:
            with pytest.raises(LayerError, match=r"^layer \d+ "):
                paralayer.convert(layout, ImageSpec.tar(f"{top}/out.tar"), jobs=1)
            assert os.listdir(top) == ["layout"]
            return
        paralayer.convert(layout, ImageSpec.tar(f"{top}/out.tar"), jobs=1)
        assert diff(snapshot_tar(f"{top}/out.tar"), want) == []


@pytest.mark.requires("root")
@SOME
@given(any_stacks())
def test_directory_is_the_tree_of_the_model(stack: Sequence[Sequence[Entry]]) -> None:
    with scratch() as top:
        layout = write_image(f"{top}/layout", stack)
        try:
            want = from_model(merge(stack))
        except Refused:
            with pytest.raises(LayerError):
                paralayer.convert(layout, ImageSpec.directory(f"{top}/out"), jobs=1)
            assert os.listdir(top) == ["layout"]
            return
        result = paralayer.convert(layout, ImageSpec.directory(f"{top}/out"), jobs=1)
        unsupported = (
            {"file.xattrs", "dir.xattrs"} if any("xattrs" in each for each in result.warnings) else set()
        )
        assert (
            diff(snapshot_directory(os.fsencode(f"{top}/out")), want, ignore=NOT_ON_DISK | unsupported) == []
        )


def test_image_without_layers(tmp_path: Path) -> None:
    layout = write_image(str(tmp_path / "layout"), [])
    want = from_model(merge([]))
    paralayer.convert(layout, ImageSpec.tar(tmp_path / "out.tar"))
    paralayer.convert(layout, ImageSpec.directory(tmp_path / "out"))
    assert snapshot_tar(str(tmp_path / "out.tar")) == want
    assert snapshot_directory(os.fsencode(tmp_path / "out")) == want


# Any jobs, any memory


@pytest.mark.parametrize("form", ["tar", "directory"])
def test_any_jobs_give_what_serial_gives(form: Literal["tar", "directory"]) -> None:
    with Engines() as engines:

        @FEW
        @given(valid_stacks(), compressions(5))
        def law(stack: Sequence[Sequence[Entry]], kinds: Sequence[Compression]) -> None:
            with scratch() as top:
                layout = write_image(f"{top}/layout", stack, compression=kinds[: len(stack)])
                results: list[object] = []
                for jobs in (1, 2, 3):
                    if form == "tar":
                        results.append(flat(layout, engines, jobs=jobs))
                        continue
                    run(layout, DirectorySink(f"{top}/{jobs}"), engines, jobs=jobs)
                    results.append(snapshot_directory(os.fsencode(f"{top}/{jobs}")))
                assert results[1] == results[0]
                assert results[2] == results[0]

        law()


def compressions(count: int) -> st.SearchStrategy[list[Compression]]:
    kind: st.SearchStrategy[Compression] = st.sampled_from(["none", "gzip", "zstd", "bzip2", "xz"])
    return st.lists(kind, min_size=count, max_size=count)


SIZES = st.sampled_from(
    [
        0,
        1,
        512,
        100 * KIB,
        128 * KIB - 1,
        128 * KIB,
        MIB - 512,
        MIB,
        MIB + 1,
        2 * MIB - 1024,
        3 * MIB,
        5 * MIB,
    ]
)
"""Around the limits of what is sent by the kernel, of the sinks' buffers and of the smallest grant."""


PATHS = st.sampled_from([b"a", b"b", b"c", b"d/a", b"d/b", b"e/f/a"])
KINDS = st.sampled_from([*["file"] * 6, "whiteout", "link", "opaque", "root", "directory"])
STEPS = st.tuples(KINDS, PATHS, SIZES, st.integers(0, 1000))
"""Kind, path, size of the data, and a number that tells data from other data and picks a link's target."""
PLANS = st.lists(st.lists(STEPS, min_size=1, max_size=4), min_size=1, max_size=4)
"""Layers, in which data is hidden, linked, in an implied directory, or comes twice."""

Plan = list[list[tuple[str, bytes, int, int]]]


def heavy_stack(plan: Plan) -> list[list[Entry]]:
    """Return the layers of a plan, each with at most 6 MiB of data."""
    stack: list[list[Entry]] = []
    for serial, steps in enumerate(plan):
        layer: list[Entry] = []
        left = 6 * MIB
        for kind, path, wanted, number in steps:
            files = sorted(
                {old.path for each in (*stack, layer) for old in each if old.kind == "file"} - {path}
            )
            size = min(left, wanted)
            if kind == "file":
                left -= size
                layer.append(file(path, NOISE[number : number + size], mtime=serial + 1))
            elif kind == "whiteout":
                layer.append(whiteout(path))
            elif kind == "opaque":
                layer.append(opaque(b"d"))
            elif kind in ("root", "directory"):
                layer.append(directory(b"./" if kind == "root" else b"d", 0o700, mtime=serial))
            elif files:
                layer.append(hardlink(path, files[number % len(files)]))
        stack.append(layer)
    return without_refused(stack)


JOBS = st.integers(1, 3)
MEMORIES = (1, MIB, 2 * MIB + 1, 5 * MIB, 12 * MIB)


@pytest.mark.parametrize("form", ["tar", "pipe", "directory"])
def test_any_memory_gives_what_unlimited_gives(form: str) -> None:
    second_readings = 0
    with Engines() as engines:

        @FEW
        @given(PLANS, st.sampled_from(MEMORIES), st.tuples(JOBS, JOBS, JOBS))
        def law(plan: Plan, some: int, jobs: Sequence[int]) -> None:
            nonlocal second_readings
            with scratch() as top:
                layout = write_image(f"{top}/layout", heavy_stack(plan))
                results: list[Mapping[bytes, object]] = []
                for memory, workers in zip((UNLIMITED, 1, some), jobs, strict=True):
                    sink, path = open_sink(form, f"{top}/out")
                    counts, _ = run(layout, sink, engines, jobs=workers, memory=memory)
                    second_readings += counts.second_readings
                    if form == "directory":
                        results.append(snapshot_directory(os.fsencode(path)))
                        shutil.rmtree(path)
                    else:
                        with open(path, "rb") as stream:
                            results.append({path.encode(): stream.read()})
                        os.remove(path)
                assert [path for path in results[0] if results[1].get(path) != results[0][path]] == []
                assert [path for path in results[0] if results[2].get(path) != results[0][path]] == []
                assert results[0].keys() == results[1].keys() == results[2].keys()

        law()
    assert second_readings > 20


def open_sink(form: str, path: str) -> tuple[TarSink | DirectorySink, str]:
    """Return a sink and where its output will be; `pipe` writes in order, as to a pipe."""
    if form == "directory":
        return DirectorySink(path), path
    if form == "tar":
        return TarSink(path), path
    with open(path, "wb") as stream:
        return TarSink(None, fd=stream.fileno()), path


CEASE_TO_FLOW: dict[str, list[Entry]] = {
    "in the middle of a file": [file(b"a", NOISE[: 3 * MIB]), file(b"d/a")],
    "between files": [
        *(file(b"a", NOISE[: 500 * KIB]), file(b"b", NOISE[:MIB])),
        *(file(b"x/y"), file(b"c", NOISE[: 3 * MIB])),
    ],
    "with a path that comes twice": [
        file(b"a", NOISE[: 3 * MIB]),
        file(b"b", NOISE[:MIB]),
        file(b"a", NOISE[:5]),
    ],
    "with a root": [file(b"a", NOISE[: 3 * MIB]), directory(b"./", 0o700)],
}


@pytest.mark.parametrize("memory", [1, 2 * MIB, 3 * MIB])
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("newest", CEASE_TO_FLOW.values(), ids=CEASE_TO_FLOW)
def test_layer_that_ceases_to_flow(tmp_path: Path, newest: list[Entry], jobs: int, memory: int) -> None:
    """What was taken of a stream is written before that is dropped; the second reading goes on behind it."""
    stack = [[file(b"old")], newest]
    layout = write_image(str(tmp_path / "layout"), stack)
    with Engines() as engines:
        run(layout, DirectorySink(str(tmp_path / "out")), engines, jobs=jobs, memory=memory)
        run(layout, TarSink(str(tmp_path / "out.tar")), engines, jobs=jobs, memory=memory)
    want = from_model(merge(stack))
    assert diff(snapshot_directory(os.fsencode(tmp_path / "out")), want) == []
    assert diff(snapshot_tar(str(tmp_path / "out.tar")), want) == []


@pytest.mark.parametrize("memory", [1, 2 * MIB, UNLIMITED])
@pytest.mark.parametrize("jobs", [1, 2])
def test_large_and_sparse_files_come_in_parts(tmp_path: Path, jobs: int, memory: int) -> None:
    """A file beyond what one worker writes at once, and sparse ones, of which the last does not end in data."""
    large = NOISE[:MIB] + bytes(40 * MIB) + NOISE + bytes(30 * MIB - 1)
    layers = [
        write_layer([file(b"hidden", NOISE), file(b"large", large, mode=0o4555), directory(b"d", 0o500)]),
        sparse_layer(b"d/sparse", [(4096, NOISE[: 2 * MIB]), (60 * MIB, NOISE[MIB : 4 * MIB])], 80 * MIB),
        sparse_layer(b"hole", [], 3 * MIB + 5),
        write_layer([file(b"hidden", NOISE[:5])]),
    ]
    layout = write_image(str(tmp_path / "layout"), layers, compression=["zstd", "gzip", "none", "none"])
    sparse = bytearray(80 * MIB)
    sparse[4096 : 4096 + 2 * MIB] = NOISE[: 2 * MIB]
    sparse[60 * MIB : 63 * MIB] = NOISE[MIB : 4 * MIB]
    want = {b"large": large, b"d/sparse": bytes(sparse), b"hole": bytes(3 * MIB + 5), b"hidden": NOISE[:5]}

    paralayer.convert(layout, ImageSpec.directory(tmp_path / "out"), jobs=jobs, memory=memory)
    for path, data in want.items():
        written = os.path.join(os.fsencode(tmp_path / "out"), path)
        with open(written, "rb") as stream:
            assert stream.read() == data, path
        status = os.stat(written)
        assert status.st_mtime == 1_000_000_000
        assert (path == b"large") == (status.st_mode & 0o7777 == 0o4555)
    assert os.stat(tmp_path / "out/d/sparse").st_blocks * 512 < 6 * MIB
    assert os.stat(tmp_path / "out/hole").st_blocks * 512 < MIB
    shutil.rmtree(tmp_path / "out")

    paralayer.convert(layout, ImageSpec.tar(tmp_path / "out.tar"), jobs=jobs, memory=memory)
    tree = snapshot_tar(str(tmp_path / "out.tar"))
    assert {path: node.data for path, node in tree.items() if node.kind == "file"} == want


@pytest.mark.parametrize("memory", [1, 2 * MIB, UNLIMITED])
def test_a_tar_that_idle_workers_write_is_that_of_one(tmp_path: Path, memory: int) -> None:
    """Files that take more than one job, more files than one job takes, and entries without data around them."""
    layers = [
        write_layer(
            [
                directory(b"a"),
                symlink(b"a/first", b"x"),
                file(b"a/large", NOISE * 3, mode=0o600),
                *(file(b"a/%d" % number, NOISE[number : number + number % 700]) for number in range(4500)),
                file(b"a/larger", NOISE * 2 + b"1"),
                *(symlink(b"a/s%d" % number, b"x" * number) for number in range(1, 150)),
            ]
        ),
        sparse_layer(b"d/sparse", [(4096, NOISE[:MIB]), (6 * MIB, NOISE[MIB : 2 * MIB])], 8 * MIB),
        write_layer([file(b"a/7", NOISE), hardlink(b"z", b"a/7"), *(fifo(b"f%d" % n) for n in range(9))]),
    ]
    layout = write_image(str(tmp_path / "layout"), layers, compression=["zstd", "gzip", "none"])
    with Engines() as engines:
        assert flat(layout, engines, jobs=5, memory=memory) == flat(layout, engines)


def sparse_layer(path: bytes, islands: Sequence[tuple[int, bytes]], size: int) -> bytes:
    """Return a layer with a file in GNU tar's PAX format 1.0: name and size in records, the map before the data."""
    numbers = [len(islands), *(number for offset, data in islands for number in (offset, len(data)))]
    map_ = b"".join(b"%d\n" % number for number in numbers)
    stored = map_ + bytes(-len(map_) % 512) + b"".join(data for _, data in islands)
    records = {
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": path,
        b"GNU.sparse.realsize": b"%d" % size,
    }
    special = pack_special(b"x", b"PaxHeaders/0", b"".join(map(pax_record, records, records.values())))
    entry = write_layer([directory(b"d", 0o500), file(b"GNUSparseFile.0/x", stored)])
    header = entry.index(b"GNUSparseFile.0/x")
    return entry[:header] + special + entry[header:]


def test_parents_known_only_at_the_end_wait(tmp_path: Path) -> None:
    """Every layer but the oldest implies its directories: nothing can be written before all are indexed."""
    stack = [[directory(b"d", 0o700, mtime=5), file(b"d/0", NOISE[:MIB])]]
    stack += [
        [file(b"d/%d" % number, NOISE[number : MIB + number]), file(b"n/%d" % number)]
        for number in range(1, 9)
    ]
    layout = write_image(str(tmp_path / "layout"), stack, compression="zstd")
    results = []
    with Engines() as engines:
        for jobs, memory in ((1, UNLIMITED), (1, 1), (2, 1), (3, 3 * MIB), (3, UNLIMITED)):
            results.append(flat(layout, engines, jobs=jobs, memory=memory))
    assert set(results) == {results[0]}
    (tmp_path / "out.tar").write_bytes(results[0])
    assert diff(snapshot_tar(str(tmp_path / "out.tar")), from_model(merge(stack))) == []


def test_hundreds_of_layers(tmp_path: Path) -> None:
    stack = [
        [directory(b"d", mtime=number), file(b"d/f", b"%d" % number), file(b"d/%d" % number, b"x" * number)]
        for number in range(400)
    ]
    stack[350].append(whiteout(b"d/17"))
    layout = write_image(str(tmp_path / "layout"), stack, compression=["gzip", "zstd"] * 200)
    paralayer.convert(layout, ImageSpec.tar(tmp_path / "out.tar"))
    assert diff(snapshot_tar(str(tmp_path / "out.tar")), from_model(merge(stack))) == []
    with Engines() as engines:
        assert flat(layout, engines, jobs=3) == (tmp_path / "out.tar").read_bytes()
        run(layout, DirectorySink(str(tmp_path / "out")), engines, jobs=3)
    assert snapshot_directory(os.fsencode(tmp_path / "out")) == from_model(merge(stack))


@pytest.mark.parametrize("form", ["tar", "directory"])
def test_small_layers_are_not_read_twice(tmp_path: Path, form: Literal["tar", "directory"]) -> None:
    """Memory is counted by what layers have, not by their number."""
    stack = [[file(b"d%d/f" % number, b"x")] for number in range(100)]
    layout = write_image(str(tmp_path / "layout"), stack)
    result = paralayer.convert(layout, ImageSpec(form, str(tmp_path / "out")), memory=64 * MIB)
    assert result.second_readings == 0


# Options


@SOME
@given(valid_stacks(), st.sampled_from([-1, 0, 1, 1002, 2004, 10**10]))
def test_mtime_is_the_latest_time_of_all(stack: Sequence[Sequence[Entry]], newest: int) -> None:
    assume(not has_whiteouts_for_directories(stack))
    with scratch() as top:
        layout = write_image(f"{top}/layout", stack)
        paralayer.convert(layout, ImageSpec.tar(f"{top}/out.tar", mtime=newest))
        got = snapshot_tar(f"{top}/out.tar")
        if not merge(stack).has_root_entry:
            got[b""] = clamped(got[b""], newest)  # no entry, no time
        want = {path: clamped(node, newest) for path, node in from_model(merge(stack)).items()}
        assert diff(got, want) == []
        paralayer.convert(layout, ImageSpec.directory(f"{top}/out", mtime=newest))
        assert (
            diff(snapshot_directory(os.fsencode(f"{top}/out")), want, ignore=[*NOT_ON_DISK, "xattrs"]) == []
        )


def clamped(node: Node, newest: int) -> Node:
    return dataclasses.replace(node, mtime=newest, mtime_ns=0) if node.mtime >= newest else node


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("memory", ["1", "16M", "1G"])
def test_standard_output_is_as_the_file(tmp_path: Path, jobs: int, memory: str) -> None:
    stack = [
        [
            directory(b"d"),
            file(b"d/%d" % number, NOISE[number : 3 * MIB]),
            hardlink(b"%d" % number, b"d/%d" % number),
        ]
        for number in range(4)
    ]
    layout = write_image(str(tmp_path / "layout"), stack)
    result = paralayer.convert(layout, ImageSpec.tar(tmp_path / "out.tar"), jobs=1)
    assert result.bytes_written == (tmp_path / "out.tar").stat().st_size
    command = [*CONVERT, "--jobs", str(jobs), "--memory", memory, layout, "-"]
    piped = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    assert piped.stdout == (tmp_path / "out.tar").read_bytes()
    for mode in ("wb", "ab"):
        with open(tmp_path / "redirected", mode) as redirected:
            done = run_convert("--jobs", str(jobs), layout, "-", stdout=redirected)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "redirected").read_bytes() == 2 * (tmp_path / "out.tar").read_bytes()


@pytest.mark.requires("skopeo")
def test_every_form_of_an_image_gives_the_same(tmp_path: Path) -> None:
    stack = [
        [directory(b"d"), file(b"d/f", NOISE[:MIB])],
        [whiteout(b"d/f"), symlink(b"l", b"d")],
        [fifo(b"l/p")],
    ]
    layout = write_image(str(tmp_path / "layout"), stack, compression="gzip")
    paralayer.convert(layout, ImageSpec.tar(tmp_path / "want.tar"))
    want = (tmp_path / "want.tar").read_bytes()
    for form in ("oci:{}/copy:v1", "oci-archive:{}/copy.tar:v1", "docker-archive:{}/docker.tar:x:v1"):
        copy = form.format(tmp_path)
        command = ["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{layout}:latest", copy]
        subprocess.run(command, check=True)
        paralayer.convert(copy, ImageSpec.tar(tmp_path / "out.tar", force=True))
        assert (tmp_path / "out.tar").read_bytes() == want, form


def test_same_layer_twice(tmp_path: Path) -> None:
    layer = [directory(b"d"), file(b"d/f", NOISE[: 3 * MIB])]
    stack = [layer, [whiteout(b"d"), file(b"g", NOISE[:MIB])], layer]
    layout = write_image(str(tmp_path / "layout"), stack)
    with Engines() as engines:
        assert flat(layout, engines, jobs=2, memory=1) == flat(layout, engines)
    paralayer.convert(layout, ImageSpec.tar(tmp_path / "out.tar"))
    assert snapshot_tar(str(tmp_path / "out.tar")) == from_model(merge(stack))


def test_conversions_at_the_same_time(tmp_path: Path) -> None:
    layout = write_image(
        str(tmp_path / "layout"), [[file(b"%d" % number, NOISE[:MIB])] for number in range(9)]
    )
    threads = [
        threading.Thread(
            target=paralayer.convert_tar, args=(layout, tmp_path / f"{number}.tar"), kwargs={"jobs": 2}
        )
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(tmp_path / f"{number}.tar").read_bytes() for number in range(3)}) == 1
