"""StreamingPacker: when output begins, who waits for whom, and that whatever goes wrong ends it without a trace."""

from __future__ import annotations

import asyncio
import gc
import gzip
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import paralayer
from conftest import children
from images import digest_of, write_image, write_layer
from model import directory, file, hardlink, whiteout
from paralayer import (
    DigestError,
    ImageError,
    ImageSpec,
    LayerError,
    LayerMeta,
    MediaTypeError,
    SinkError,
    StreamingPacker,
    UsageError,
    WorkerError,
    streaming,
)
from processes import PATIENCE, finish, wait_for
from streams import FORMS, Arriving, Events, content, descriptors, ended, write_pieces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from model import Entry

MIB = 1 << 20
NOISE = random.Random(4).randbytes(8 * MIB)


def layer(number: int, size: int = 3 * MIB) -> list[Entry]:
    return [
        directory(b"d"),
        file(b"d/%d" % number, bytes([number]) + NOISE[:size]),
        hardlink(b"l%d" % number, b"d/%d" % number),
    ]


STACK = [layer(0), layer(1), [*layer(2), whiteout(b"d/1")], [whiteout(b"l0"), file(b"small", b"small")]]
NEWEST = len(STACK) - 1


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Arriving:
    """Return an image that is large enough for worker processes."""
    return Arriving(write_image(str(tmp_path_factory.mktemp("image") / "layout"), STACK))


@pytest.fixture(scope="module")
def flat(image: Arriving, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the image as `convert` makes a tar of it."""
    path = tmp_path_factory.mktemp("flat") / "flat.tar"
    paralayer.convert_tar(image.layout, path, jobs=1)
    return path.read_bytes()


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    """Fail a test that leaves a thread or a descriptor (or what conftest looks for)."""
    open_before, threads = descriptors(), set(threading.enumerate())
    yield
    assert descriptors() == open_before
    assert set(threading.enumerate()) == threads


def spec_of(form: str, path: Path | str, **fields: Any) -> ImageSpec:
    return ImageSpec(form, str(path), **fields)  # type: ignore[arg-type]


# When output begins


ROOTS: dict[str, list[Entry]] = {
    "no root": [],
    "a root at the beginning": [directory(b"./", 0o711)],
}


@pytest.mark.parametrize("opened", [False, True], ids=["file", "pieces"])
@pytest.mark.parametrize("root", ROOTS.values(), ids=ROOTS)
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_newest_layer_is_written_before_the_others_have_come(
    tmp_path: Path, form: str, jobs: int, root: list[Entry], *, opened: bool
) -> None:
    """A root's entry that comes late starts a tar over, and the events are still those of one conversion."""
    layout = write_image(f"{tmp_path}/layout", [[*root, *layer(0)], layer(1), layer(2)])
    arriving, events = Arriving(layout), Events()
    give: Callable[[StreamingPacker, int], None] = arriving.write if opened else arriving.give
    with arriving.packer(spec_of(form, tmp_path / "out"), jobs=jobs, progress=events) as packer:
        give(packer, 2)
        events.wait("finished", 2)
        assert {event.layer for event in events} == {2}
        give(packer, 0)
        events.wait("indexed", 0)
        assert not events.has("started", 1)
        give(packer, 1)
        ended(packer)
    events.check(3)
    paralayer.convert(layout, spec_of(form, tmp_path / "want"), jobs=1)
    assert content(f"{tmp_path}/out") == content(f"{tmp_path}/want")


@pytest.mark.requires("mksquashfs")
def test_mksquashfs(image: Arriving, tmp_path: Path) -> None:
    """It gets the first byte when the last layer is there."""
    events = Events()
    spec = ImageSpec.squashfs(tmp_path / "out", engine="mksquashfs")
    with image.packer(spec, jobs=1, progress=events) as packer:
        for index in (2, 0, 3):
            image.write(packer, index)
        events.wait("indexed", 3)
        image.give(packer, 1)
        ended(packer)
    events.check(len(STACK))
    paralayer.convert_mksquashfs(image.layout, tmp_path / "want")
    assert content(f"{tmp_path}/out") == content(f"{tmp_path}/want")


COUNTS: dict[str, list[list[Entry]]] = {
    "no layers": [],
    "one layer": [layer(0)],
    "layers without entries": [[], [], []],
    "127 layers": [[directory(b"d"), file(b"d/%d" % number, b"x" * number)] for number in range(127)],
}


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("stack", COUNTS.values(), ids=COUNTS)
def test_any_number_of_layers(tmp_path: Path, stack: list[list[Entry]], jobs: int) -> None:
    layout = write_image(f"{tmp_path}/layout", stack, compression="zstd")
    arriving = Arriving(layout, known=False)  # what is not known counts as large: workers are started
    with arriving.packer(ImageSpec.tar(tmp_path / "out"), jobs=jobs, memory=MIB) as packer:
        writers = [packer.open_layer(index) for index in range(len(stack))]
        for writer in writers:
            writer.write(b"")
        for index, writer in enumerate(writers):
            write_pieces(writer, arriving.data(index), MIB)
            writer.close()
        assert ended(packer).layers == len(stack)
    paralayer.convert_tar(layout, tmp_path / "want", jobs=1)
    assert content(f"{tmp_path}/out") == content(f"{tmp_path}/want")


@pytest.mark.parametrize("opened", [False, True], ids=["file", "pieces"])
def test_layer_of_no_bytes_is_as_in_convert(tmp_path: Path, *, opened: bool) -> None:
    layout = write_image(f"{tmp_path}/layout", [b"", layer(1)])
    arriving = Arriving(layout)

    def error_of(convert: Callable[[], object]) -> str:
        try:
            convert()
        except LayerError as error:
            return str(error)
        return "none"

    def stream() -> None:
        with arriving.packer(ImageSpec.tar(tmp_path / "out", force=True)) as packer:
            arriving.give(packer, 1)
            (arriving.write if opened else arriving.give)(packer, 0)
            ended(packer)

    assert error_of(stream) == error_of(lambda: paralayer.convert_tar(layout, tmp_path / "want"))


def test_result_is_as_of_convert(image: Arriving, tmp_path: Path) -> None:
    with image.packer(ImageSpec.tar(tmp_path / "out"), jobs=1, memory=1 << 30, name="a name") as packer:
        image.give(packer, 0, 1, 2, 3)
        result = packer.finish()
        assert packer.finish() is result
    want = paralayer.convert_tar(image.layout, tmp_path / "want", jobs=1, memory=1 << 30)
    assert (result.image, result.output) == ("a name", f"{tmp_path}/out")
    own = ("image", "output", "seconds", "peak_memory", "second_readings")
    assert {**result.as_dict(), **dict.fromkeys(own)} == {**want.as_dict(), **dict.fromkeys(own)}
    assert result.peak_memory > MIB
    assert "total" in result.seconds


def test_time_of_creation_is_in_a_squashfs(image: Arriving, tmp_path: Path) -> None:
    for created, seconds in (("2024-05-01T00:00:00Z", 1_714_521_600), (None, 0)):
        spec = ImageSpec.squashfs(tmp_path / "out", force=True)
        with StreamingPacker(image.metas, spec, created=created) as packer:
            image.give(packer, 0, 1, 2, 3)
            packer.finish()
        superblock = (tmp_path / "out").read_bytes()[:96]
        assert int.from_bytes(superblock[8:12], "little") == seconds


# Back-pressure


@pytest.mark.parametrize("newest", ["file", "pieces"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_older_layers_are_held_back_until_the_newest_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, newest: str
) -> None:
    """As many older layers as there are workers, so that each of them waits for memory."""
    monkeypatch.setattr(streaming, "_LEAD", 2 * MIB)
    size, memory = 24 * MIB, 8 * MIB
    stack = [[file(b"%d" % number, random.Random(number).randbytes(size))] for number in range(jobs + 1)]
    arriving, events = Arriving(write_image(f"{tmp_path}/layout", stack)), Events()
    spec = ImageSpec.tar(tmp_path / "out")
    with (
        ThreadPoolExecutor(jobs) as threads,
        arriving.packer(spec, jobs=jobs, memory=memory, progress=events) as packer,
    ):
        writers = [packer.open_layer(index) for index in range(jobs)]
        for index, writer in enumerate(writers):
            writer.write(arriving.data(index)[: 2 * MIB])
        for index in range(jobs):
            events.wait("started", index)

        def write_rest(index: int) -> None:
            write_pieces(writers[index], arriving.data(index)[2 * MIB :], 1 << 16)
            writers[index].close()

        tasks = [threads.submit(write_rest, index) for index in range(jobs)]
        for writer in writers:
            wait_for(lambda growing=writer._growing: growing._changed._waiters)  # type: ignore[misc]
            assert writer._growing.published <= memory + 6 * MIB
        assert not any(task.done() for task in tasks)
        assert 0 < sum(decoded_bytes()) <= memory + 2 * MIB
        assert packer._arrivals.error is None
        if newest == "file":
            arriving.give(packer, jobs)
        else:
            arriving.write(packer, jobs)
        result = ended(packer)
        for task in tasks:
            task.result()
    assert result.bytes_read == sum(os.stat(path).st_size for path in arriving.paths)
    paralayer.convert_tar(arriving.layout, tmp_path / "want", jobs=1)
    assert content(f"{tmp_path}/out") == content(f"{tmp_path}/want")


def decoded_bytes() -> Iterator[int]:
    """Yield what is in memory of decoded layers."""
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}").startswith("/memfd:arena"):
                yield os.stat(f"/proc/self/fd/{number}").st_blocks * 512
        except FileNotFoundError:
            continue


def test_writer_that_closes_while_its_decoder_waits_for_memory(tmp_path: Path) -> None:
    """Nobody is held back any more: the decoder must drop what it has, or it would wait for ever."""
    stack = [[file(b"old", NOISE[: 4 * MIB])], [file(b"x/y")], [file(b"new")]]
    arriving, events = Arriving(write_image(f"{tmp_path}/layout", stack)), Events()
    with arriving.packer(ImageSpec.tar(tmp_path / "out"), jobs=1, memory=1, progress=events) as packer:
        writer = packer.open_layer(0)
        writer.write(arriving.data(0))
        events.wait("started", 0)
        writer.close()
        events.wait("indexed", 0)
        arriving.give(packer, 1, 2)
        ended(packer)


# Errors


def reject(image: Arriving, packer: StreamingPacker, tmp_path: Path) -> None:
    """Abort a layer in the middle of a chunk: its gzip members are many, and decode to nothing."""
    writer = packer.open_layer(2)
    writer.write(gzip.compress(b"") * (3 * MIB // 20))
    writer.abort(KeyError("rejected"))


class OwnError(Exception):
    pass


Fault = "Callable[[Arriving, StreamingPacker, Path], object]"
FAULTS: dict[str, tuple[Fault, type[Exception], str]] = {  # type: ignore[valid-type]
    "missing layers": (lambda image, packer, _: image.give(packer, 3, 1), UsageError, "not given: got 0, 2"),
    "no layers": (lambda *_: None, UsageError, "got 0, 1, 2, 3"),
    "told of an error": (lambda _, packer, __: packer.notify_error(OwnError("own")), OwnError, "own"),
    "told while a layer arrives": (
        lambda image, packer, _: (
            packer.open_layer(2).write(image.data(2)[:MIB]),
            packer.notify_error(OwnError()),
        ),
        OwnError,
        "^$",
    ),
    "aborted": (
        lambda _, packer, __: packer.open_layer(2).abort(),
        ImageError,
        "layer 2: its arrival was aborted",
    ),
    "aborted with an error": (
        lambda _, packer, __: packer.open_layer(2).abort(OwnError("x")),
        OwnError,
        "x",
    ),
    "aborted in the middle of a chunk": (reject, KeyError, "rejected"),
    "wrong size of a file": (
        lambda image, packer, _: packer.notify_layer_ready(0, image.paths[3]),
        DigestError,
        "layer 0: size of the blob",
    ),
    "no file": (
        lambda _, packer, top: packer.notify_layer_ready(0, top / "none"),
        ImageError,
        "No such file",
    ),
    "a directory": (lambda _, packer, top: packer.notify_layer_ready(0, top), ImageError, "file type"),
    "not a name": (lambda _, packer, __: packer.notify_layer_ready(0, "a\0b"), ImageError, r"layer 0: not"),
    "the output itself": (
        lambda _, packer, top: packer.notify_layer_ready(0, top / "old"),
        SinkError,
        "the image is in it",
    ),
}
"""Title to (what happens, the error that `finish` raises, what it says)."""


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(("fault", "kind", "text"), FAULTS.values(), ids=FAULTS)
def test_fault_is_raised_by_finish(
    image: Arriving, tmp_path: Path, fault: Any, kind: type[Exception], text: str, jobs: int
) -> None:
    (tmp_path / "old").write_bytes(b"old")
    spec = ImageSpec.tar(tmp_path / "old", force=True)
    packer = image.packer(spec, jobs=jobs)
    fault(image, packer, tmp_path)
    with pytest.raises(kind, match=text):
        ended(packer)
    with pytest.raises(kind, match=text):
        packer.finish()
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


@pytest.mark.parametrize("jobs", [1, 2])
def test_file_that_is_gone_when_it_is_to_be_read(image: Arriving, tmp_path: Path, jobs: int) -> None:
    gone, path = threading.Event(), tmp_path / "gone"
    path.write_bytes(image.data(0))
    packer = image.packer(
        ImageSpec.tar(tmp_path / "out"), jobs=jobs, progress=lambda _: gone.wait(PATIENCE) and None
    )
    image.give(packer, 3)
    packer.notify_layer_ready(0, path)
    path.unlink()
    gone.set()
    image.give(packer, 1, 2)
    with pytest.raises(ImageError, match=rf"layer 0 .*{path}: No such file"):
        ended(packer)
    assert os.listdir(tmp_path) == []


def flipped(data: bytes) -> bytes:
    return data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], type[Exception], bool]] = {
    "flipped": (flipped, ImageError, True),
    "cut": (lambda data: data[:-1], DigestError, True),
    "longer": (lambda data: data + b"\0", DigestError, True),
    "empty": (lambda _: b"", DigestError, True),
    "flipped, nothing known": (flipped, LayerError, False),
    "cut, nothing known": (lambda data: data[:-100], LayerError, False),
}
"""Title to (what is done to a blob, the error, whether digest and size are known)."""


@pytest.mark.parametrize("opened", [False, True], ids=["file", "pieces"])
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(("damage", "kind", "known"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_layer_is_refused(
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    kind: type[Exception],
    jobs: int,
    *,
    known: bool,
    opened: bool,
) -> None:
    stack = [layer(0, 9000), [file(b"a", NOISE[:20_000])], layer(2, 9000)]
    arriving = Arriving(write_image(f"{tmp_path}/layout", stack, compression="gzip"), known=known)
    (tmp_path / "damaged").write_bytes(damage(arriving.data(1)))
    packer = arriving.packer(ImageSpec.tar(tmp_path / "out"), jobs=jobs)
    arriving.give(packer, 0, 2)
    if opened:
        writer = packer.open_layer(1)
        writer.write((tmp_path / "damaged").read_bytes())
        try:
            writer.close()
        except DigestError:
            assert known
    else:
        packer.notify_layer_ready(1, tmp_path / "damaged")
    with pytest.raises(kind, match="layer 1"):
        ended(packer)
    assert sorted(os.listdir(tmp_path)) == ["damaged", "layout"]


def test_what_is_written_may_be_checked_by_its_diff_id_alone(tmp_path: Path) -> None:
    tar = write_layer(layer(0))
    meta = LayerMeta(0, "application/vnd.oci.image.layer.v1.tar+gzip", diff_id=digest_of(tar))
    for data, right in ((tar, True), (write_layer(layer(1)), False)):
        packer = StreamingPacker([meta], ImageSpec.tar(tmp_path / "out", force=True))
        with packer.open_layer(0) as writer:
            writer.write(gzip.compress(data))
        if right:
            ended(packer)
        else:
            with pytest.raises(DigestError, match="diff_id"):
                ended(packer)


def test_check_may_be_left_out(image: Arriving, flat: bytes, tmp_path: Path) -> None:
    wrong = [replace(meta, digest=digest_of(b""), size=5) for meta in image.metas]
    with StreamingPacker(wrong, ImageSpec.tar(tmp_path / "out"), check=False) as packer:
        image.give(packer, 1, 2)
        image.write(packer, 0)
        image.write(packer, 3)
        packer.finish()
    assert (tmp_path / "out").read_bytes() == flat


@pytest.mark.parametrize("index", [-1, 4, 1000])
def test_index_of_no_layer(image: Arriving, flat: bytes, tmp_path: Path, index: int) -> None:
    """It is the caller's mistake: the conversion goes on."""
    with image.packer(ImageSpec.tar(tmp_path / "out")) as packer:
        for give in (lambda: packer.open_layer(index), lambda: packer.notify_layer_ready(index, "x")):
            with pytest.raises(UsageError, match=f"got {index}, want 0 to 3"):
                give()
        image.give(packer, 0, 1, 2, 3)
        packer.finish()
    assert (tmp_path / "out").read_bytes() == flat


@pytest.mark.parametrize("index", ["0", None, 1.0, True, b"0"])
def test_index_that_is_no_integer(image: Arriving, flat: bytes, tmp_path: Path, index: Any) -> None:
    with pytest.raises(UsageError, match=f"layer index: not an integer: got {index!r}"):
        StreamingPacker([LayerMeta(0), LayerMeta(index)], ImageSpec.tar(tmp_path / "out"))
    with image.packer(ImageSpec.tar(tmp_path / "out")) as packer:
        for give in (lambda: packer.open_layer(index), lambda: packer.notify_layer_ready(index, "x")):
            with pytest.raises(UsageError, match=f"layer index: not an integer: got {index!r}"):
                give()
        image.give(packer, 0, 1, 2, 3)
        packer.finish()
    assert (tmp_path / "out").read_bytes() == flat


def test_layer_that_is_given_twice(image: Arriving, flat: bytes, tmp_path: Path) -> None:
    with image.packer(ImageSpec.tar(tmp_path / "out")) as packer:
        image.give(packer, 0)
        image.write(packer, 1)
        for index in (0, 1):
            for give in (image.give, image.write):
                with pytest.raises(UsageError, match=f"layer {index}: was given already"):
                    give(packer, index)
        image.give(packer, 2, 3)
        packer.finish()
    assert (tmp_path / "out").read_bytes() == flat


def test_what_is_no_path_is_not_given(image: Arriving, flat: bytes, tmp_path: Path) -> None:
    with image.packer(ImageSpec.tar(tmp_path / "out")) as packer:
        with pytest.raises(TypeError):
            packer.notify_layer_ready(0, 5)  # type: ignore[arg-type]
        image.give(packer, 0, 1, 2, 3)
        packer.finish()
    assert (tmp_path / "out").read_bytes() == flat


LAYERS: dict[str, tuple[list[LayerMeta], type[Exception]]] = {
    "a gap": ([LayerMeta(0), LayerMeta(2)], UsageError),
    "from one": ([LayerMeta(1)], UsageError),
    "twice": ([LayerMeta(0), LayerMeta(0)], UsageError),
    "less than nothing": ([LayerMeta(0, size=-1)], UsageError),
    "not a layer": ([LayerMeta(0, "text/plain")], MediaTypeError),
    "not a digest": ([LayerMeta(0, digest="sha256:5")], ImageError),
    "not a diff_id": ([LayerMeta(0, diff_id="x")], ImageError),
}


@pytest.mark.parametrize(("layers", "kind"), LAYERS.values(), ids=LAYERS)
def test_layers_that_make_no_sense(tmp_path: Path, layers: list[LayerMeta], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        StreamingPacker(layers, ImageSpec.tar(tmp_path / "out"))
    with pytest.raises(ValueError, match="jobs"):
        StreamingPacker([], ImageSpec.tar(tmp_path / "out"), jobs=0)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_leaving_by_an_exception_aborts(image: Arriving, tmp_path: Path, jobs: int) -> None:
    (tmp_path / "out").mkdir()
    spec = ImageSpec.directory(tmp_path / "out", force=True)
    with pytest.raises(OwnError), image.packer(spec, jobs=jobs) as packer:  # noqa: PT012
        image.give(packer, 3, 2)
        writer = packer.open_layer(0)
        writer.write(image.data(0)[:MIB])
        raise OwnError
    with pytest.raises(UsageError, match="was left before it was finished"):
        packer.finish()
    with pytest.raises(UsageError, match="was left before it was finished"):
        writer.write(b"more")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == []


def test_exception_inside_a_writer_aborts(image: Arriving, tmp_path: Path) -> None:
    packer = image.packer(ImageSpec.tar(tmp_path / "out"))
    with pytest.raises(OwnError), packer.open_layer(0) as writer:  # noqa: PT012
        writer.write(image.data(0)[:5])
        raise OwnError
    with pytest.raises(OwnError):
        ended(packer)


def test_writer_is_done_when_it_is_closed(image: Arriving, flat: bytes, tmp_path: Path) -> None:
    with image.packer(ImageSpec.tar(tmp_path / "out")) as packer:
        image.give(packer, 1, 2, 3)
        with packer.open_layer(0) as writer:
            write_pieces(writer, image.data(0), MIB)
            writer.close()
            writer.abort()
            with pytest.raises(UsageError, match="layer 0: is written after it was closed"):
                writer.write(b"")
        ended(packer)
        writer.close()
        writer.abort()
    assert (tmp_path / "out").read_bytes() == flat


def test_writes_take_whatever_is_bytes(image: Arriving, flat: bytes, tmp_path: Path) -> None:
    import array

    data = image.data(3)
    assert len(data) % 4 == 0
    with image.packer(ImageSpec.tar(tmp_path / "out")) as packer:
        image.give(packer, 0, 1, 2)
        with packer.open_layer(3) as writer:
            for piece in (b"", data[:4], bytearray(data[4:8]), memoryview(data[8:12])[::1]):
                assert writer.write(piece) == len(piece)
            assert writer.write(memoryview(array.array("I", data[12:]))) == len(data) - 12
        packer.finish()
    assert (tmp_path / "out").read_bytes() == flat


@pytest.mark.parametrize("how", ["notify_error", "abort", "leave", "damage"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_writers_that_wait_get_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, how: str
) -> None:
    monkeypatch.setattr(streaming, "_LEAD", 2 * MIB)
    stack = [[file(b"%d" % number, NOISE)] for number in range(3)]
    arriving = Arriving(write_image(f"{tmp_path}/layout", stack), known=how != "damage")
    events = Events()
    packer = arriving.packer(ImageSpec.tar(tmp_path / "out"), jobs=jobs, memory=1, progress=events)
    writer = packer.open_layer(0)
    writer.write(arriving.data(0)[: 2 * MIB])
    events.wait("started", 0)
    with ThreadPoolExecutor(1) as threads:
        task = threads.submit(write_pieces, writer, arriving.data(0)[2 * MIB :], 1 << 16)
        wait_for(lambda: writer._growing._changed._waiters)  # type: ignore[attr-defined]
        kind: type[Exception] = OwnError
        if how == "notify_error":
            packer.notify_error(OwnError())
        elif how == "abort":
            packer.open_layer(1).abort(OwnError())
        elif how == "leave":
            packer.__exit__(None, None, None)
            kind = UsageError
        else:
            with packer.open_layer(2) as broken:
                broken.write(bytes(range(256)) * 4)
            kind = ImageError
        if how == "damage":  # it may also have gone on while the decoders were ended
            task.exception()
        else:
            with pytest.raises(kind):
                task.result()
        with pytest.raises(kind):
            packer._result.result(PATIENCE)  # to finish without layer 1 would be another error
        packer.__exit__(None, None, None)
    assert os.listdir(tmp_path) == ["layout"]


@pytest.mark.parametrize("moment", ["idle", "arriving", "waiting for memory"])
def test_death_of_the_workers(image: Arriving, tmp_path: Path, moment: str) -> None:
    before, events = children(), Events()
    packer = image.packer(ImageSpec.tar(tmp_path / "out"), jobs=2, memory=1, progress=events)
    workers = wait_for(lambda: found if len(found := children() - before) == 2 else set())
    if moment != "idle":
        writer = packer.open_layer(0)
        writer.write(image.data(0)[: MIB // 2 if moment == "arriving" else 2 * MIB])
        events.wait("started", 0)
    for worker in workers:
        worker.kill()
    with pytest.raises(WorkerError, match="died: got signal SIGKILL"):
        packer._result.result(PATIENCE)
    with pytest.raises(WorkerError):
        packer.finish()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["started", "bytes", "indexed", "finished"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_error_of_the_program_in_progress(image: Arriving, tmp_path: Path, jobs: int, name: str) -> None:
    def progress(event: paralayer.PackerProgress) -> None:
        if event.event == name:
            raise OwnError(name)

    packer = image.packer(ImageSpec.tar(tmp_path / "out"), jobs=jobs, memory=MIB, progress=progress)
    image.give(packer, 3, 2)
    with suppress(OwnError):  # it may be there already
        image.write(packer, 0)
        image.write(packer, 1)
    with pytest.raises(OwnError, match=name):
        packer._result.result(PATIENCE)
    packer.__exit__(None, None, None)
    assert os.listdir(tmp_path) == []


def test_progress_may_give_layers_but_not_wait(image: Arriving, flat: bytes, tmp_path: Path) -> None:
    """It is called in the packer's own thread."""
    refused: list[UsageError] = []

    def progress(event: paralayer.PackerProgress) -> None:
        if (event.event, event.layer) == ("finished", 3):
            image.give(packer, 2)
            image.write(packer, 1)
            image.give(packer, 0)
            with pytest.raises(UsageError, match="waits for the thread") as raised:
                packer.finish()
            refused.append(raised.value)

    with image.packer(ImageSpec.tar(tmp_path / "out"), progress=progress) as packer:
        image.give(packer, 3)
        packer._result.result(PATIENCE)
        assert refused
        packer.finish()
    assert (tmp_path / "out").read_bytes() == flat


@contextmanager
def small_disk(point: Path, size: str) -> Iterator[Path]:
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


@pytest.mark.requires("root")
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_full_disk_of_the_output(image: Arriving, tmp_path: Path, form: str, jobs: int) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        packer = image.packer(spec_of(form, disk / "out"), jobs=jobs)
        image.give(packer, 0, 1, 2, 3)
        with pytest.raises(SinkError, match="No space left"):
            ended(packer)
        assert os.listdir(disk) == []


@pytest.mark.requires("root")
@pytest.mark.parametrize("jobs", [1, 2])
def test_full_disk_of_what_is_written(image: Arriving, tmp_path: Path, jobs: int) -> None:
    """What arrives is kept beside the output; when all is over, there is room again."""
    with small_disk(tmp_path / "disk", "4m") as disk:
        packer = image.packer(ImageSpec.directory(disk / "out"), jobs=jobs)
        writers = [packer.open_layer(index) for index in (0, 1)]
        with pytest.raises(SinkError, match="cannot be kept: No space left on device"):  # noqa: PT012
            for index, writer in enumerate(writers):
                write_pieces(writer, image.data(index), 1 << 16)
        with pytest.raises(SinkError, match="cannot be kept: No space left on device"):
            ended(packer)
        assert os.listdir(disk) == []
        status = os.statvfs(disk)
        assert status.f_bfree == status.f_blocks


def test_missing_directory_of_the_output(image: Arriving, tmp_path: Path) -> None:
    packer = image.packer(ImageSpec.tar(tmp_path / "nowhere/out"))
    with pytest.raises(SinkError, match=f"{tmp_path}/nowhere: No such file"):
        packer.open_layer(0)
    with pytest.raises(SinkError, match=f"{tmp_path}/nowhere"):
        ended(packer)
    with pytest.raises(SinkError):
        packer.finish()
    assert os.listdir(tmp_path) == []


# Threads and programs


def test_from_many_threads(image: Arriving, flat: bytes, tmp_path: Path) -> None:
    """Each layer comes from a thread of its own, and the result is waited for in several."""
    with (
        ThreadPoolExecutor(8) as threads,
        image.packer(ImageSpec.tar(tmp_path / "out"), jobs=2, memory=MIB) as packer,
    ):
        given = [threads.submit(image.write, packer, index, 70_001) for index in range(3)]
        given.append(threads.submit(image.give, packer, 3))
        for each in given:
            each.result()
        results = [threads.submit(packer.finish) for _ in range(3)]
        assert len({id(each.result()) for each in results}) == 1
    assert (tmp_path / "out").read_bytes() == flat


def test_several_at_the_same_time(image: Arriving, flat: bytes, tmp_path: Path) -> None:
    packers = [image.packer(ImageSpec.tar(tmp_path / f"{number}"), jobs=2) for number in range(3)]
    for index in (3, 0, 2, 1):
        for packer in packers:
            image.write(packer, index)
    for packer in packers:
        ended(packer)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {flat}


@pytest.mark.parametrize("jobs", [1, 2])
def test_packer_that_is_dropped_aborts(image: Arriving, tmp_path: Path, jobs: int) -> None:
    packer = image.packer(ImageSpec.tar(tmp_path / "out"), jobs=jobs)
    image.give(packer, 3)
    writer = packer.open_layer(0)
    writer.write(image.data(0)[:MIB])
    del packer
    gc.collect()
    with pytest.raises(UsageError, match="was left"):
        writer.write(b"more")
    assert os.listdir(tmp_path) == []


PROGRAM = """
import os, sys, threading
from paralayer import ImageSpec, LayerMeta, StreamingPacker
top, jobs = sys.argv[1], int(sys.argv[2])
packer = StreamingPacker([LayerMeta(0), LayerMeta(1)], ImageSpec.tar(f"{top}/out"), jobs=jobs, memory=1)
writer = packer.open_layer(1)
writer.write(bytes(512))
"""

ENDS: dict[str, tuple[str, int]] = {
    "falls off its end": ("", 0),
    "exits": ("sys.exit(3)", 3),
    "exits within": ("with packer: sys.exit(3)", 3),
    "raises": ("raise SystemExit(4)", 4),
    "in a cycle": ("loop = [packer]; loop.append(loop); del packer, writer", 0),
}


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize(("end", "status"), ENDS.values(), ids=ENDS)
def test_program_that_ends_without_finish(tmp_path: Path, end: str, status: int, jobs: str) -> None:
    command = [sys.executable, "-W", "error", "-c", PROGRAM + end, str(tmp_path), jobs]
    done = finish(command, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    assert os.listdir(tmp_path) == []


FORKING = """
layer = sys.argv[3]
for way in ("exits", "collects"):
    child = os.fork()
    if not child:
        if way == "collects":
            del packer, writer
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
with open(layer, "rb") as stream:
    writer.write(stream.read()[512:])
writer.close()
packer.notify_layer_ready(0, layer)
print(packer.finish().survivors)
"""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_program_that_forks(tmp_path: Path, jobs: str) -> None:
    """What children do with their copy of the packer changes nothing."""
    (tmp_path / "layer").write_bytes(bytes(512) + write_layer([])[512:])
    script = PROGRAM + FORKING
    command = [sys.executable, "-c", script, str(tmp_path), jobs, str(tmp_path / "layer")]
    done = finish(command, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
    assert sorted(os.listdir(tmp_path)) == ["layer", "out"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(paralayer.__file__))}


# One call


ONE_SHOTS: dict[str, tuple[Any, Any]] = {
    "tar": (paralayer.convert_tar_streaming, paralayer.convert_tar),
    "directory": (paralayer.convert_dir_streaming, paralayer.convert_dir),
    "squashfs": (paralayer.convert_squashfs_streaming, paralayer.convert_squashfs),
    "mksquashfs": (paralayer.convert_mksquashfs_streaming, paralayer.convert_mksquashfs),
}


@pytest.mark.requires("mksquashfs")
@pytest.mark.parametrize(("stream", "convert"), ONE_SHOTS.values(), ids=ONE_SHOTS)
def test_one_call_with_an_iterator(image: Arriving, tmp_path: Path, stream: Any, convert: Any) -> None:
    ready = ((index, image.paths[index]) for index in (1, 3, 0, 2))
    result = stream(image.metas, ready, tmp_path / "out", mtime=5, jobs=1)
    convert(image.layout, tmp_path / "want", mtime=5, jobs=1)
    assert result.output == f"{tmp_path}/out"
    assert content(f"{tmp_path}/out") == content(f"{tmp_path}/want")

    async def arrive() -> AsyncIterator[tuple[int, str]]:
        for index in (2, 0, 3, 1):
            await asyncio.sleep(0)
            yield index, image.paths[index]

    awaited = asyncio.run(stream(image.metas, arrive(), tmp_path / "again", mtime=5, jobs=1))
    assert awaited.survivors == result.survivors
    assert content(f"{tmp_path}/again") == content(f"{tmp_path}/want")


def test_one_call_fails_as_its_iterator_does(image: Arriving, tmp_path: Path) -> None:
    def some() -> Iterator[tuple[int, str]]:
        yield 3, image.paths[3]
        raise OwnError

    async def some_more() -> AsyncIterator[tuple[int, str]]:
        yield 3, image.paths[3]
        raise OwnError

    with pytest.raises(OwnError):
        paralayer.convert_tar_streaming(image.metas, some(), tmp_path / "out")
    with pytest.raises(OwnError):
        asyncio.run(as_coroutine(paralayer.convert_tar_streaming(image.metas, some_more(), tmp_path / "out")))
    with pytest.raises(UsageError, match="not given"):
        paralayer.convert_tar_streaming(image.metas, [], tmp_path / "out")
    with pytest.raises(TypeError, match="nonsense"):
        paralayer.convert_tar_streaming(image.metas, [], tmp_path / "out", nonsense=1)
    assert os.listdir(tmp_path) == []


async def as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


# Coroutines


async def write_all(writer: streaming.AsyncLayerWriter, data: bytes) -> None:
    async with writer:
        for at in range(0, len(data), 1 << 18):
            await writer.write(data[at : at + (1 << 18)])


@pytest.mark.parametrize("jobs", [1, 2])
def test_in_coroutines(image: Arriving, flat: bytes, tmp_path: Path, jobs: int) -> None:
    """`finish` is awaited before the last layer comes: the loop goes on meanwhile."""

    async def main() -> paralayer.ConversionResult:
        async with image.packer(ImageSpec.tar(tmp_path / "out"), jobs=jobs, memory=MIB) as packer:
            writers = [packer.open_layer(index) for index in (0, 1, 2)]
            packer.notify_layer_ready(3, image.paths[3])
            finishing = asyncio.create_task(packer.finish())
            await asyncio.sleep(0)
            await asyncio.gather(*(write_all(writers[index], image.data(index)) for index in (0, 1, 2)))
            return await finishing

    assert asyncio.run(main()).layers == 4
    assert (tmp_path / "out").read_bytes() == flat


def test_a_worker_that_waits_begins_what_has_come(tmp_path: Path) -> None:
    arriving, events = Arriving(write_image(f"{tmp_path}/layout", [[file(b"old", NOISE)]] * 3)), Events()
    with arriving.packer(ImageSpec.tar(tmp_path / "out"), jobs=1, progress=events) as packer:
        writers = [packer.open_layer(index) for index in range(3)]
        events.wait("started", 2)
        writers[0].write(arriving.data(0)[: 2 * MIB])
        events.wait("started", 0)
        assert not events.has("started", 1)
        writers[0].write(arriving.data(0)[2 * MIB :])
        for index in (1, 2):
            writers[index].write(arriving.data(index))
        for writer in writers:
            writer.close()
        packer.finish()


def test_coroutines_that_wait_leave_room_for_the_one_that_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More writers wait than the loop's own executor has threads, until another one has written the newest layer."""
    monkeypatch.setattr(streaming, "_LEAD", 2 * MIB)
    monkeypatch.setattr(
        "paralayer.engine.reading.LOOKAHEAD", 0
    )  # layers begin before there is anything of them
    count = min(32, (os.cpu_count() or 1) + 4) + 2
    stack = [[file(b"%d" % number, NOISE[: 4 * MIB])] for number in range(count)]
    arriving, events = Arriving(write_image(f"{tmp_path}/layout", [*stack, [file(b"new")]])), Events()

    async def main() -> None:
        spec = ImageSpec.tar(tmp_path / "out")
        async with arriving.packer(spec, jobs=1, memory=1, progress=events) as packer:
            writers = [packer.open_layer(index) for index in range(count)]
            for writer in writers:
                await writer.write(NOISE[:0])
            for index in range(count):
                await asyncio.to_thread(events.wait, "started", index)
            tasks = [
                asyncio.create_task(write_all(writer, arriving.data(index)))
                for index, writer in enumerate(writers)
            ]
            while not all(writer._writer._growing._changed._waiters for writer in writers):  # type: ignore[attr-defined]  # noqa: ASYNC110
                await asyncio.sleep(0.002)  # between two looks
            assert not any(task.done() for task in tasks)
            await write_all(packer.open_layer(count), arriving.data(count))
            await packer.finish()
            await asyncio.gather(*tasks)

    asyncio.run(main())


@pytest.mark.parametrize("where", ["write", "finish", "body"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_cancellation_aborts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, where: str) -> None:
    monkeypatch.setattr(streaming, "_LEAD", 2 * MIB)
    stack = [[file(b"old", NOISE)], [file(b"new")]]
    arriving, events = Arriving(write_image(f"{tmp_path}/layout", stack)), Events()
    waits = asyncio.Event()

    async def convert() -> None:
        spec = ImageSpec.tar(tmp_path / "out")
        async with arriving.packer(spec, jobs=jobs, memory=1, progress=events) as packer:
            writer = packer.open_layer(0)
            await writer.write(arriving.data(0)[: 2 * MIB])
            if where == "finish":
                packer.open_layer(1)
                waits.set()
                await packer.finish()
            elif where == "body":
                waits.set()
                await asyncio.Event().wait()
            else:
                await asyncio.to_thread(events.wait, "started", 0)
                waits.set()
                await write_all(writer, arriving.data(0)[2 * MIB :])

    async def main() -> None:
        task = asyncio.create_task(convert())
        await waits.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert os.listdir(tmp_path) == ["layout"]

    asyncio.run(main())


def test_write_that_was_cancelled_is_not_repeated(image: Arriving, tmp_path: Path) -> None:
    """How much of it was done is not known, so the layer is given up."""

    async def main() -> None:
        async with image.packer(ImageSpec.tar(tmp_path / "out")) as packer:
            writer = packer.open_layer(0)
            task = asyncio.create_task(writer.write(image.data(0)))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(UsageError, match="layer 0"):
                await writer.write(image.data(0))
            with pytest.raises(ImageError, match="layer 0: its arrival was aborted"):
                await packer.finish()

    asyncio.run(main())
    assert os.listdir(tmp_path) == []


def test_error_reaches_all_coroutines(image: Arriving, tmp_path: Path) -> None:
    async def main() -> None:
        async with image.packer(ImageSpec.tar(tmp_path / "out")) as packer:
            for index in range(4):
                packer.open_layer(index)
            finishing = [asyncio.create_task(packer.finish()) for _ in range(3)]
            await asyncio.sleep(0)
            packer.notify_error(OwnError("own"))
            for task in finishing:
                with pytest.raises(OwnError):
                    await task

    asyncio.run(main())
    assert os.listdir(tmp_path) == []
