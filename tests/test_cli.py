"""The command line: spellings, exit statuses, and what is printed where."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

import pytest

import paralayer
from images import write_image
from layouts import Layout, for_platform, named
from model import char, directory, file
from processes import COMMAND, CONVERT, PATIENCE, convert, finish, one_line
from trees import snapshot_directory, snapshot_tar

if TYPE_CHECKING:
    from pathlib import Path

STACK = [
    [directory(b"d", mtime=1000), file(b"d/old", b"old", mtime=2000)],
    [file(b"new", b"new" * 100, mtime=3000)],
]
KEYS = {
    "image", "output", "format", "layers", "entries", "survivors", "bytes_read", "bytes_decoded", "bytes_written",
    "second_readings", "jobs", "memory", "peak_memory", "seconds", "warnings",
}  # fmt: skip
SUMMARY = re.compile(
    r"(?P<output>.*): \d+ paths of \d+ entries in \d+ layers(, \d+ read twice)?; \S+ [KMG]?i?B decoded, \S+ [KMG]?i?B written"
    r" in \d+\.\d\d s \(\S+ [KMG]?i?B/s\), \d+ jobs, peak memory \S+ [KMG]iB\n"
)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_image(str(tmp_path_factory.mktemp("image") / "layout"), STACK, compression="gzip")


@pytest.fixture(scope="module")
def flat(image: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("flat") / "flat.tar"
    paralayer.convert_tar(image, path)
    return path.read_bytes()


# What is printed


def test_one_line_sums_up(image: str, tmp_path: Path) -> None:
    done = convert(image, tmp_path / "out.tar")
    assert (done.returncode, done.stdout) == (0, "")
    found = SUMMARY.fullmatch(done.stderr)
    assert found, done.stderr
    assert found["output"] == f"{tmp_path}/out.tar"


def test_quiet_prints_nothing(image: str, tmp_path: Path) -> None:
    done = convert("--quiet", image, tmp_path / "out.tar")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "out.tar").exists()


def test_quiet_prints_errors(image: str, tmp_path: Path) -> None:
    done = convert("--quiet", f"{image}:nothing", tmp_path / "out.tar")
    assert (done.returncode, done.stdout) == (1, "")
    one_line(done.stderr, "paralayer: error: ")


def test_json_is_one_object(image: str, tmp_path: Path) -> None:
    done = convert("--json", "--jobs", "2", "--memory", "64M", image, tmp_path / "out.tar")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert result.keys() == KEYS
    assert result["format"] == "tar"
    assert result["output"] == f"{tmp_path}/out.tar"
    assert (result["layers"], result["entries"], result["survivors"]) == (2, 3, 3)
    assert result["bytes_written"] == (tmp_path / "out.tar").stat().st_size
    assert (result["jobs"], result["memory"]) == (2, 64 << 20)
    assert result["seconds"].keys() == {"open", "decode", "write", "commit", "total"}
    assert result["warnings"] == []


def test_error_prints_no_json(image: str, tmp_path: Path) -> None:
    done = convert("--json", f"{image}:nothing", tmp_path / "out.tar")
    assert (done.returncode, done.stdout) == (1, "")
    one_line(done.stderr, "paralayer: error: ")


def test_nothing_but_the_archive_on_standard_output(image: str, flat: bytes) -> None:
    done = subprocess.run([*CONVERT, image, "-"], check=True, capture_output=True)
    assert done.stdout == flat
    assert done.stderr.startswith(b"-: ")


def test_json_has_odd_names(image: str, tmp_path: Path) -> None:
    name = os.fsdecode(b'\xff\n"\xc3\xbc.tar')
    done = convert("--json", image, tmp_path / name)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == f"{tmp_path}/{name}"
    assert convert(image, tmp_path / name).returncode == 1


def test_warnings_have_a_line_each(image: str, tmp_path: Path) -> None:
    stack = [
        [
            file(b"f", xattrs={b"odd": b"1", b"trusted.overlay.opaque": b"y", b"user.": b"1"}),
            file(
                b"g",
                xattrs={
                    b"user." + b"k" * 250: b"1",
                    b"user." + b"k" * 251: b"1",
                    b"user." + b"k" * 70_000: b"1",
                },
            ),
            char(b"c", 1, 3, xattrs={b"user.x": b"1"}),
        ]
    ]
    layout = write_image(f"{tmp_path}/layout", stack)
    done = convert(layout, tmp_path / "out.tar")
    warning, _ = done.stderr.splitlines()
    assert warning == (
        "paralayer: warning: left out or changed: user xattrs on what is neither file nor directory: 1, "
        "xattrs of overlayfs: 1, xattrs whose names Linux does not take: 3, xattrs without a known namespace: 1"
    )
    quiet = convert("--quiet", "--force", layout, tmp_path / "out.tar")
    assert quiet.stderr == ""


def test_closed_streams_do_no_harm(image: str, flat: bytes, tmp_path: Path) -> None:
    for number, closed in enumerate(("<&-", ">&-", "2>&-", "<&- >&- 2>&-")):
        out = tmp_path / f"{number}.tar"
        done = finish(["sh", "-c", f'"$@" {closed}', "sh", *CONVERT, image, str(out)])
        assert done.returncode == 0, (closed, done.stderr)
        assert out.read_bytes() == flat, closed
    done = finish(["sh", "-c", '"$@" >&-', "sh", *CONVERT, image, "-"])
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("columns", [80, 200])
def test_progress_is_shown_on_a_terminal_and_disappears(image: str, tmp_path: Path, columns: int) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*CONVERT, image, str(tmp_path / "out.tar")],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns)},
    ) as process:
        os.close(theirs)
        shown = read_terminal(ours)
        assert process.stdout is not None
        assert process.stdout.read() == b""
    assert process.returncode == 0
    assert re.search(r"MiB read, \d+ decoded  \d+ MiB/s  (\d+|\?) s left  [·▸●✓]+\S*\s", shown), shown
    assert "100%" in shown or "0%" in shown
    *_, last = (
        shown.replace("\r\n", "\n").rstrip("\n").split("\x1b[2K")
    )  # erase the line, which ends the display
    assert SUMMARY.search(last + "\n"), shown
    assert "\x1b[?25h" in shown, "the cursor is back"


def read_terminal(fd: int) -> str:
    """Return everything that is written to a terminal, until nobody has it open."""
    parts = []
    while select.select([fd], [], [], PATIENCE)[0]:
        try:
            parts.append(os.read(fd, 65536))
        except OSError:  # EIO: nobody
            break
    os.close(fd)
    return b"".join(parts).decode()


def test_archive_is_not_written_to_a_terminal(image: str) -> None:
    ours, theirs = pty.openpty()
    done = convert(image, "-", stdout=theirs)
    os.close(theirs)
    assert done.returncode == 2
    assert "terminal" in done.stderr
    assert read_terminal(ours) == ""


# Usage

USAGE: dict[str, list[str]] = {
    "no arguments": [],
    "no output": ["IMAGE"],
    "too much": ["IMAGE", "out.tar", "more"],
    "unknown option": ["--nothing", "IMAGE", "out.tar"],
    "no jobs": ["--jobs", "0", "IMAGE", "out.tar"],
    "negative jobs": ["--jobs", "-1", "IMAGE", "out.tar"],
    "jobs that are no number": ["--jobs", "many", "IMAGE", "out.tar"],
    "no memory": ["--memory", "0", "IMAGE", "out.tar"],
    "less than a byte": ["--memory", "0.4", "IMAGE", "out.tar"],
    "memory without a number": ["--memory", "M", "IMAGE", "out.tar"],
    "memory with an odd unit": ["--memory", "5X", "IMAGE", "out.tar"],
    "memory beyond all bounds": ["--memory", "9" * 400, "IMAGE", "out.tar"],
    "memory with a newline": ["--memory", "5M\n", "IMAGE", "out.tar"],
    "unknown format": ["--format", "zip", "IMAGE", "out.tar"],
    "name that does not tell": ["IMAGE", "out.img"],
    "directory on standard output": ["--format", "directory", "IMAGE", "-"],
    "JSON and archive on standard output": ["--json", "IMAGE", "-"],
    "platform of one word": ["--platform", "linux", "IMAGE", "out.tar"],
    "mtime that is no number": ["--mtime", "yesterday", "IMAGE", "out.tar"],
    "mtime beyond all bounds": ["--mtime", "9" * 30, "IMAGE", "out.tar"],
    "mtime below all bounds": ["--mtime", "-" + "9" * 30, "IMAGE", "out.tar"],
    "check and no check": ["--check-diff-ids", "--no-check", "IMAGE", "out.tar"],
}


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE)
def test_usage_error(image: str, tmp_path: Path, arguments: list[str]) -> None:
    done = convert(
        *(image if each == "IMAGE" else each for each in arguments), cwd=tmp_path, env=with_source()
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def with_source(**variables: str) -> dict[str, str]:
    """Return an environment in which another working directory does not hide the package under test."""
    source = os.path.dirname(os.path.dirname(paralayer.__file__))
    return {**os.environ, "PYTHONPATH": source, **variables}


@pytest.mark.parametrize("text", ["", "512", "64k", "64K", "64KB", "64KiB", "1.5M", "2GiB", "1T", "99999T"])
def test_sizes(image: str, tmp_path: Path, text: str) -> None:
    sizes = {
        "512": 512, "64k": 65536, "64K": 65536, "64KB": 65536, "64KiB": 65536, "1.5M": 3 << 19, "2GiB": 2 << 30,
        "1T": 1 << 40, "99999T": 99999 << 40,
    }  # fmt: skip
    memory = ["--memory", text] if text else []
    done = convert("--json", *memory, image, tmp_path / "out.tar")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)["memory"]
    assert got == sizes[text] if text else got > 1 << 20


FORMATS: dict[str, str] = {
    "out.tar": "tar",
    "OUT.TAR": "tar",
    "out": "directory",
    "out.tar/": "directory",
    "out.d/": "directory",
    ".hidden": "directory",
}


@pytest.mark.parametrize(("output", "form"), FORMATS.items(), ids=FORMATS)
def test_name_tells_the_format(image: str, flat: bytes, tmp_path: Path, output: str, form: str) -> None:
    done = convert("--quiet", image, f"{tmp_path}/{output}")
    assert done.returncode == 0, done.stderr
    made = tmp_path / output.rstrip("/")
    if form == "tar":
        assert made.read_bytes() == flat
    else:
        assert sorted(os.listdir(made)) == ["d", "new"]


@pytest.mark.parametrize("output", ["out", "out.tar"])
@pytest.mark.parametrize("form", ["tar", "directory"])
def test_format_may_be_said(image: str, flat: bytes, tmp_path: Path, form: str, output: str) -> None:
    assert convert("--format", form, image, tmp_path / output).returncode == 0
    if form == "tar":
        assert (tmp_path / output).read_bytes() == flat
    else:
        assert (tmp_path / output / "new").read_bytes() == b"new" * 100


def test_relative_output(image: str, flat: bytes, tmp_path: Path) -> None:
    assert convert(image, "out.tar", cwd=tmp_path, env=with_source()).returncode == 0
    assert (tmp_path / "out.tar").read_bytes() == flat


def test_output_beside_a_symlink_of_its_path(image: str, tmp_path: Path) -> None:
    """`link/..` is the directory that holds what the link leads to, as everywhere in Linux."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/link").symlink_to("../a/b")
    assert convert(image, tmp_path / "c/link/../out.tar").returncode == 0
    assert sorted(os.listdir(tmp_path / "a")) == ["b", "out.tar"]


@pytest.mark.parametrize(
    "name", ["x" * 251 + ".tar", "\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 125 + ".tar", "x" * 255]
)
def test_longest_names_of_outputs(image: str, tmp_path: Path, name: str) -> None:
    done = convert(image, tmp_path / name)
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("output", ["", ".", "..", "/"])
def test_no_name_of_an_output(image: str, tmp_path: Path, output: str) -> None:
    """Not even by force: that would be the directory that one is in."""
    inside = tmp_path / "a/b"
    inside.mkdir(parents=True)
    (inside / "mine").write_bytes(b"mine")
    done = convert("--force", "--format", "directory", image, output, cwd=inside, env=with_source())
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert (inside / "mine").read_bytes() == b"mine"


@pytest.mark.requires("root")
def test_force_does_not_replace_a_device(image: str, tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", 0o20666, os.makedev(1, 3))
    done = convert("--force", "--format", "tar", image, tmp_path / "null")
    assert done.returncode == 1
    assert (tmp_path / "null").is_char_device()


def test_force_does_not_replace_a_tree_by_a_file(image: str, tmp_path: Path) -> None:
    (tmp_path / "home/me").mkdir(parents=True)
    done = convert("--force", "--format", "tar", image, tmp_path / "home")
    assert done.returncode == 1
    one_line(done.stderr, "paralayer: error: ", f"{tmp_path}/home")
    assert (tmp_path / "home/me").is_dir()


def test_force_does_not_replace_the_image(image: str, tmp_path: Path) -> None:
    layout = write_image(f"{tmp_path}/images/layout", STACK)
    for output in (layout, f"{tmp_path}/images"):
        done = convert("--force", layout, output)
        assert done.returncode == 1
        one_line(done.stderr, "paralayer: error: ", output)
    assert convert(layout, tmp_path / "out.tar").returncode == 0


@pytest.mark.parametrize("output", ["out.tar", "out"])
def test_force_replaces(image: str, tmp_path: Path, output: str) -> None:
    assert convert(image, tmp_path / output).returncode == 0
    before = (tmp_path / output).stat().st_ino
    assert convert(image, tmp_path / output).returncode == 1
    assert (tmp_path / output).stat().st_ino == before
    assert convert("--force", image, tmp_path / output).returncode == 0
    assert (tmp_path / output).stat().st_ino != before
    assert os.listdir(tmp_path) == [output]


# Options that change the output


def test_source_date_epoch(image: str, tmp_path: Path) -> None:
    times = {}
    for title, options, epoch in (
        ("none", [], ""),
        ("environment", [], "2000"),
        ("option", ["--mtime", "1500"], "2000"),
        ("zero", ["--mtime", "0"], "2000"),
    ):
        done = convert(
            "--force", *options, image, tmp_path / "out.tar", env=with_source(SOURCE_DATE_EPOCH=epoch)
        )
        assert done.returncode == 0, done.stderr
        tree = snapshot_tar(str(tmp_path / "out.tar"))
        times[title] = [tree[path].mtime for path in (b"d", b"d/old", b"new")]
    assert times == {
        "none": [1000, 2000, 3000],
        "environment": [1000, 2000, 2000],
        "option": [1000, 1500, 1500],
        "zero": [0, 0, 0],
    }


def test_source_date_epoch_that_makes_no_sense(image: str, tmp_path: Path) -> None:
    done = convert(image, tmp_path / "out.tar", env=with_source(SOURCE_DATE_EPOCH="today"))
    assert done.returncode == 2
    assert "SOURCE_DATE_EPOCH" in done.stderr
    done = convert("--help", env=with_source(SOURCE_DATE_EPOCH="today"))
    assert done.returncode == 0


def test_platform_is_chosen(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "multi")
    images = []
    for platform in ("linux/amd64", "linux/arm64", "linux/s390x"):
        with tarfile.open(tmp_path / "layer.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo(platform.replace("/", "-")))
        images.append(for_platform(layout.image([(tmp_path / "layer.tar").read_bytes()], platform), platform))
    path = layout.finish(named(layout.index(*images), "all"))
    for platform in ("linux/arm64", "linux/s390x"):
        assert convert("--platform", platform, "--force", path, tmp_path / "out").returncode == 0
        assert os.listdir(tmp_path / "out") == [platform.replace("/", "-")]
    done = convert("--platform", "linux/riscv64", path, tmp_path / "none")
    assert done.returncode == 1
    one_line(done.stderr, "paralayer: error: ", "linux/riscv64")


def test_check_diff_ids(image: str, flat: bytes, tmp_path: Path) -> None:
    assert convert("--check-diff-ids", image, tmp_path / "out.tar").returncode == 0
    assert (tmp_path / "out.tar").read_bytes() == flat


def test_directory_is_the_same_as_the_archive(image: str, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("missing: root")
    assert convert("--mtime", "2500", image, tmp_path / "out").returncode == 0
    assert convert("--mtime", "2500", image, tmp_path / "out.tar").returncode == 0
    assert snapshot_directory(os.fsencode(tmp_path / "out")) == snapshot_tar(str(tmp_path / "out.tar"))


# Help


def test_help_needs_no_numpy() -> None:
    done = finish([sys.executable, "-X", "importtime", *COMMAND[1:], "convert", "--help"])
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in loaded
    assert not loaded & {"numpy", "rich", "psutil", "isal", "zstandard", "asyncio"}


def test_help_names_every_option() -> None:
    done = convert("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for word in (
        "--jobs N", "--memory SIZE", "--format [squashfs|tar|directory]", "--platform P", "--check-diff-ids", "--no-check",
        "--mtime T", "--force", "--quiet", "--json", "IMAGE OUTPUT", "--compression NAME[:LEVEL]", "--block-size SIZE",
        "--no-fragments", "--no-dedup", "--no-exports", "--no-pad", "--engine [paralayer|mksquashfs]", "--mksquashfs PATH",
    ):  # fmt: skip
        assert word in done.stdout, word
    assert finish([*COMMAND, "-h"]).returncode == 0


def test_version() -> None:
    done = finish([*COMMAND, "--version"])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"paralayer {paralayer.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "index", "want"),
    [
        ("paralayer con", 1, "convert"),
        ("paralayer convert --m", 2, "--memory"),
        ("paralayer convert --format ", 3, "directory"),
        ("paralayer convert im", 2, "im"),  # of type "file": the shell looks for files that begin so
    ],
)
def test_shell_completion_answers(words: str, index: int, want: str) -> None:
    variables = {"_PARALAYER_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(index)}
    done = finish([sys.executable, "-c", AS_INSTALLED], env=with_source(**variables))
    assert done.returncode == 0, done.stderr
    assert want in [line.partition(",")[2] for line in done.stdout.splitlines()]
    assert done.stderr == ""


AS_INSTALLED = "import sys; sys.argv[0] = 'paralayer'; from paralayer.cli import main; main()"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_is_for_the_three_shells(shell: str) -> None:
    done = finish(
        [sys.executable, "-c", AS_INSTALLED], env=with_source(_PARALAYER_COMPLETE=f"{shell}_source")
    )
    assert done.returncode == 0, done.stderr
    assert "_PARALAYER_COMPLETE" in done.stdout
