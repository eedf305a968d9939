"""The library inside other programs: threads, asyncio, scripts, and what it tells while it works."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING

import pytest

import paralayer
from images import write_image
from model import directory, file, hardlink, whiteout
from paralayer import ImageError, ImageSpec, PackerProgress, ParalayerError
from paralayer.engine.plan import SMALL_IMAGE
from processes import finish

if TYPE_CHECKING:
    from pathlib import Path

    from model import Entry

MIB = 1 << 20
NOISE = random.Random(2).randbytes(6 * MIB)


def layer(number: int) -> list[Entry]:
    return [
        directory(b"d"),
        file(b"d/%d" % number, bytes([number]) + NOISE),
        hardlink(b"l%d" % number, b"d/%d" % number),
    ]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an image that is large enough for worker processes."""
    stack = [*map(layer, range(3)), [whiteout(b"d/1"), whiteout(b"l1"), file(b"small", b"small")]]
    layout = write_image(str(tmp_path_factory.mktemp("image") / "layout"), stack)
    assert sum(each.blob.size for each in paralayer.open_image(layout).layers) > SMALL_IMAGE
    return layout


@pytest.fixture(scope="module")
def flat(image: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return what the serial reference makes of the image."""
    path = tmp_path_factory.mktemp("flat") / "flat.tar"
    paralayer.convert(image, ImageSpec.tar(path), jobs=1)
    return path.read_bytes()


def test_public_names() -> None:
    assert sorted(paralayer.__all__) == [
        "ConversionResult", "Difference", "DigestError", "Image", "ImageError", "ImageSpec", "Layer",
        "LayerError", "LayerMeta", "LayerWriter", "MediaTypeError", "PackerProgress", "ParalayerError", "Platform",
        "RegistryError", "SinkError", "StreamingPacker", "UsageError", "VerifyProgress", "VerifyReport", "WorkerError",
        "convert", "convert_dir", "convert_dir_streaming", "convert_mksquashfs", "convert_mksquashfs_streaming",
        "convert_squashfs", "convert_squashfs_streaming", "convert_tar", "convert_tar_streaming", "open_image", "verify",
    ]  # fmt: skip
    assert all(hasattr(paralayer, name) for name in paralayer.__all__)
    assert set(paralayer.__all__) <= set(dir(paralayer))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = paralayer.nothing


def test_nothing_is_loaded_before_it_is_needed() -> None:
    """The command could not catch signals meanwhile."""
    program = "import sys, paralayer.__main__; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert {"paralayer", "paralayer.__main__"} == {name for name in loaded if name.startswith("paralayer")}
    assert not {"click", "dataclasses", "numpy"} & set(loaded)


# Other programs


def test_in_a_program_with_threads(image: str, flat: bytes, tmp_path: Path) -> None:
    before = threading.active_count()
    done = threading.Event()
    bystander = threading.Thread(target=done.wait)
    bystander.start()
    try:
        paralayer.convert(image, ImageSpec.tar(tmp_path / "out.tar"), jobs=2)
        assert threading.active_count() == before + 1
    finally:
        done.set()
        bystander.join()
    assert (tmp_path / "out.tar").read_bytes() == flat


def test_from_several_threads_at_the_same_time(image: str, flat: bytes, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as threads:
        outputs = [tmp_path / f"{number}.tar" for number in range(3)]
        list(threads.map(lambda output: paralayer.convert_tar(image, output, jobs=2, memory=MIB), outputs))
    assert {output.read_bytes() for output in outputs} == {flat}


def test_in_asyncio(image: str, flat: bytes, tmp_path: Path) -> None:
    async def main() -> list[int]:
        ticks: list[int] = []
        conversion = asyncio.create_task(
            asyncio.to_thread(paralayer.convert, image, ImageSpec.tar(tmp_path / "out.tar"), jobs=2)
        )
        while not conversion.done():
            ticks.append(len(ticks))
            await asyncio.sleep(0)
        await conversion
        return ticks

    assert len(asyncio.run(main())) > 1
    assert (tmp_path / "out.tar").read_bytes() == flat


SCRIPT = """
import sys, paralayer
print("once")
result = paralayer.convert(sys.argv[1], paralayer.ImageSpec.tar(sys.argv[2]), jobs=2)
print(result.layers)
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_from_a_script_without_a_guard(image: str, flat: bytes, tmp_path: Path, threads: str) -> None:
    """Workers are forked (one thread) or new interpreters (several): neither runs the script again."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(tmp_path / "script.py"), image, str(tmp_path / "out.tar")]
    done = finish(command, env=environment(OPENBLAS_NUM_THREADS=threads))
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n4\n", "")
    assert (tmp_path / "out.tar").read_bytes() == flat


def environment(**variables: str) -> dict[str, str]:
    """Return an environment in which a script elsewhere finds the package under test."""
    return {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(paralayer.__file__)), **variables}


def test_from_standard_input_and_interactively(image: str, flat: bytes, tmp_path: Path) -> None:
    for option in ("-", "-i"):
        done = finish(
            [sys.executable, option, image, f"{tmp_path}/{option}.tar"]
            if option == "-"
            else [sys.executable, option],
            stdin=None,
            input=SCRIPT.replace("sys.argv[1]", repr(image)).replace(
                "sys.argv[2]", repr(f"{tmp_path}/{option}.tar")
            ),
            env=environment(OPENBLAS_NUM_THREADS="2"),
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"{option}.tar").read_bytes() == flat


def test_program_that_reaps_all_children(image: str, flat: bytes, tmp_path: Path) -> None:
    """With SIGCHLD ignored, the kernel reaps the workers."""
    code = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n" + SCRIPT
    for threads in ("1", "2"):
        out = tmp_path / f"{threads}.tar"
        done = finish(
            [sys.executable, "-c", code, image, str(out)], env=environment(OPENBLAS_NUM_THREADS=threads)
        )
        assert done.returncode == 0, done.stderr
        assert out.read_bytes() == flat


def test_program_without_standard_streams(image: str, flat: bytes, tmp_path: Path) -> None:
    code = "import os; os.closerange(0, 3)\n" + SCRIPT.replace("print", "str")
    for threads in ("1", "2"):
        out = tmp_path / f"{threads}.tar"
        done = finish(
            [sys.executable, "-c", code, image, str(out)], env=environment(OPENBLAS_NUM_THREADS=threads)
        )
        assert done.returncode == 0
        assert out.read_bytes() == flat


def test_import_has_no_effects() -> None:
    code = (
        "import json, os, signal, sys, warnings\n"
        "before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], dict(os.environ), warnings.filters[:]\n"
        "import paralayer, paralayer.cli\n"
        "after = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], dict(os.environ), warnings.filters[:]\n"
        "import threading\n"
        "print(json.dumps([len(os.listdir('/proc/self/task')), threading.active_count(),"
        " open(f'/proc/self/task/{os.getpid()}/children').read(), 'numpy' in sys.modules, before == after]))"
    )
    done = finish([sys.executable, "-W", "error", "-c", code], env=environment())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, 1, "", False, True]


def test_signals_stay_the_programs_own(image: str, tmp_path: Path) -> None:
    code = (
        "import signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: None); own = signal.getsignal(signal.SIGTERM)\n"
        + SCRIPT
        + "assert signal.getsignal(signal.SIGTERM) is own\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    done = finish([sys.executable, "-c", code, image, str(tmp_path / "out.tar")], env=environment())
    assert done.returncode == 0, done.stderr


# Progress


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("memory", [1, 1 << 30])
@pytest.mark.parametrize("form", ["tar", "directory"])
def test_progress_comes_in_order(image: str, tmp_path: Path, form: str, jobs: int, memory: int) -> None:
    spec = ImageSpec.tar(tmp_path / "out") if form == "tar" else ImageSpec.directory(tmp_path / "out")
    check_progress(image, spec, jobs, memory)


@pytest.mark.parametrize("last", [directory(b"./", 0o711), file(b"d/2", b"twice")], ids=["root", "twice"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_progress_comes_in_order_although_output_starts_over(tmp_path: Path, jobs: int, last: Entry) -> None:
    """A layer's last entry overturns what was written of it."""
    layout = write_image(f"{tmp_path}/layout", [layer(0), layer(1), [*layer(2), last], [file(b"small")]])
    check_progress(layout, ImageSpec.tar(tmp_path / "out.tar"), jobs, 1)


def check_progress(image: str, spec: ImageSpec, jobs: int, memory: int) -> None:
    """Convert an image of four layers, and check the events."""
    events: list[PackerProgress] = []
    threads = set()

    def progress(event: PackerProgress) -> None:
        events.append(event)
        threads.add(threading.current_thread())

    result = paralayer.convert(image, spec, jobs=jobs, memory=memory, progress=progress)
    assert threads == {threading.current_thread()}
    layers = paralayer.open_image(image).layers
    assert {event.layer for event in events} == {0, 1, 2, 3}
    for index, each in enumerate(layers):
        own = [event for event in events if event.layer == index]
        runs = [name for name, _ in groupby(event.event for event in own)]
        assert [name for name in runs if name != "bytes"] == ["started", "indexed", "finished"]
        assert runs[0] == "started"
        assert runs[-1] == "finished"
        assert {(event.size, event.layers, event.total) for event in own} == {
            (each.blob.size, 4, sum(other.blob.size for other in layers))
        }
        first = own[: [event.event for event in own].index("indexed") + 1]
        assert [event.read for event in first] == sorted(event.read for event in first)
        assert [event.decoded for event in first] == sorted(event.decoded for event in first)
        assert first[-1].read == each.blob.size
        assert all(0 <= event.read <= event.size for event in own)
    indexed = [event.decoded for event in events if event.event == "indexed"]
    assert sum(indexed) == result.bytes_decoded


def test_progress_of_a_small_image(tmp_path: Path) -> None:
    events: list[PackerProgress] = []
    layout = write_image(f"{tmp_path}/layout", [[], [file(b"f")], []])
    paralayer.convert(layout, ImageSpec.tar(tmp_path / "out.tar"), progress=events.append)
    for index in range(3):
        names = [event.event for event in events if event.layer == index and event.event != "bytes"]
        assert names == ["started", "indexed", "finished"]


@pytest.mark.parametrize("name", ["started", "bytes", "indexed", "finished"])
@pytest.mark.parametrize("form", ["tar", "directory"])
def test_error_of_the_program_ends_the_conversion(image: str, tmp_path: Path, form: str, name: str) -> None:
    class OwnError(Exception):
        pass

    def progress(event: PackerProgress) -> None:
        if event.event == name:
            raise OwnError

    spec = ImageSpec.tar(tmp_path / "out") if form == "tar" else ImageSpec.directory(tmp_path / "out")
    with pytest.raises(OwnError):
        paralayer.convert(image, spec, jobs=2, memory=8 * MIB, progress=progress)
    assert os.listdir(tmp_path) == []


# Results, arguments, errors


def test_result_tells_what_was_done(image: str, flat: bytes, tmp_path: Path) -> None:
    result = paralayer.convert(image, ImageSpec.tar(tmp_path / "out.tar"), jobs=2, memory=1 << 30)
    assert (result.format, result.output) == ("tar", f"{tmp_path}/out.tar")
    assert (result.layers, result.entries, result.survivors) == (4, 12, 6)
    assert result.bytes_written == len(flat)
    assert result.bytes_read == sum(each.blob.size for each in paralayer.open_image(image).layers)
    assert (result.jobs, result.memory, result.second_readings, result.warnings) == (2, 1 << 30, 0, ())
    assert result.peak_memory > MIB
    assert json.loads(json.dumps(result.as_dict()))["survivors"] == 6
    parts = {name: value for name, value in result.seconds.items() if name != "total"}
    assert abs(sum(parts.values()) - result.seconds["total"]) < 0.1


def test_peak_memory_does_not_count_what_is_only_granted(tmp_path: Path) -> None:
    layout = write_image(f"{tmp_path}/layout", [[file(b"%d" % number)] for number in range(200)])
    program = f"import paralayer; print(paralayer.convert_tar({layout!r}, '{tmp_path}/out.tar').peak_memory)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, env=environment())
    assert int(done.stdout) < 100 * MIB


def test_image_that_is_open_already(image: str, flat: bytes, tmp_path: Path) -> None:
    opened = paralayer.open_image(image)
    paralayer.convert(opened, ImageSpec.tar(tmp_path / "1.tar"))
    paralayer.convert_tar(opened, tmp_path / "2.tar", jobs=1)
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes() == flat


def test_shorthands_take_the_same_options(image: str, tmp_path: Path) -> None:
    for _ in range(2):
        paralayer.convert_tar(image, tmp_path / "out.tar", force=True, mtime=5, memory=MIB)
        paralayer.convert_dir(image, str(tmp_path / "out"), force=True, mtime=5, jobs=1)
    assert (tmp_path / "out/small").stat().st_mtime == 5
    with pytest.raises(TypeError, match="nonsense"):
        paralayer.convert_tar(image, tmp_path / "other.tar", nonsense=1)


@pytest.mark.parametrize(
    "options",
    [{"jobs": 0}, {"jobs": -1}, {"memory": 0}, {"memory": -5}],
    ids=["jobs", "few jobs", "memory", "debt"],
)
def test_arguments_that_make_no_sense(image: str, tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="want 1 or more"):
        paralayer.convert(image, ImageSpec.tar(tmp_path / "out.tar"), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="path"):
        paralayer.convert(image, ImageSpec("directory", None))
    assert os.listdir(tmp_path) == []


def test_platform_as_text_or_value(image: str, tmp_path: Path) -> None:
    for platform in ("linux/nothing", paralayer.Platform("linux", "nothing")):
        with pytest.raises(ImageError, match="linux/nothing"):
            paralayer.convert(image, ImageSpec.tar(tmp_path / "out.tar"), platform=platform)


def error_classes() -> list[type[ParalayerError]]:
    found = [ParalayerError]
    for each in found:
        found.extend(each.__subclasses__())
    return found


@pytest.mark.parametrize("error_class", error_classes())
def test_errors_keep_their_fields_when_pickled(error_class: type[ParalayerError]) -> None:
    error = error_class("layer 3", "size", 5, "7")
    error.add_note("a note")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is error_class
        assert (again.where, again.what, again.got, again.want) == ("layer 3", "size", 5, "7")
        assert str(again) == str(error) == "layer 3: size: got 5, want 7"
        assert again.__notes__ == ["a note"]


def test_errors_are_all_exported() -> None:
    assert {each.__name__ for each in error_classes()} <= set(paralayer.__all__)


def test_error_crosses_from_a_worker(tmp_path: Path) -> None:
    layout = write_image(f"{tmp_path}/layout", [layer(0), layer(1), [file(b"x" * 256)], layer(2)])
    for jobs in (1, 2):
        with pytest.raises(paralayer.LayerError) as raised:
            paralayer.convert(layout, ImageSpec.tar(tmp_path / "out.tar"), jobs=jobs)
        assert raised.value.where.startswith("layer 2 (sha256:")
        assert raised.value.got is not None
        assert str(raised.value).startswith(raised.value.where)
    assert os.listdir(tmp_path) == ["layout"]


def test_conversion_after_an_error(image: str, flat: bytes, tmp_path: Path) -> None:
    """Nothing of a conversion that failed is in the way of the next."""
    for _ in range(2):
        with pytest.raises(ParalayerError):
            paralayer.convert(image, ImageSpec.tar(tmp_path / "nowhere/out.tar"), jobs=2)
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(3):
        paralayer.convert(image, ImageSpec.tar(tmp_path / f"{number}.tar"), jobs=2)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert (tmp_path / "2.tar").read_bytes() == flat


def test_type_checker_sees_the_types(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import paralayer\n"
        "result = paralayer.convert('image', paralayer.ImageSpec.tar('flat.tar'), jobs=2)\n"
        "reveal_type(result.survivors)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, tmp_path / "program.py"],
        check=False, capture_output=True, text=True, cwd=tmp_path, env=environment(),
    )  # fmt: skip
    assert 'Revealed type is "int"' in done.stdout or 'Revealed type is "builtins.int"' in done.stdout, (
        done.stdout
    )
