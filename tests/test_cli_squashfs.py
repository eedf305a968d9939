"""Squashfs images from the command line: names, each option, times, verification; judged by unsquashfs."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from images import write_image, write_layer
from layouts import Layout
from model import directory, file, hardlink, merge, symlink, whiteout
from paralayer import ImageError, verify
from paralayer.image import Platform
from processes import AS_NOBODY, convert, finish, one_line
from squashfs_judges import JUDGES, held
from test_cli import KEYS, SUMMARY, with_source
from test_faults import flip, layer_paths, open_to_nobody

if TYPE_CHECKING:
    from pathlib import Path

    from model import Entry

CREATED = 1_600_000_000
NOISE = random.Random(11).randbytes(300_000)  # two blocks of 128 KiB and a tail end
OUT = "out.squashfs"
ENGINES = ("paralayer", "mksquashfs")

STACK: list[list[Entry]] = [
    [directory(b"d", mtime=1000), file(b"d/old", NOISE, mtime=2000, uid=70_000), file(b"gone")],
    [
        whiteout(b"gone"),
        file(b"new", NOISE, mtime=3000, xattrs={b"user.a": b"1"}),
        file(b"text", b"to be compressed\n" * 30_000, mtime=3000),
        hardlink(b"again", b"new"),
        symlink(b"link", b"d/old", mtime=3000),
    ],
]

pytestmark = pytest.mark.requires("root", "unsquashfs", "mksquashfs")


def write_layout(path: Path, created: str | None) -> str:
    """Write an image of `STACK` that says when it was made."""
    layout = Layout(path)
    layers = [write_layer(layer) for layer in STACK]
    platform = str(Platform.host())
    fields = {} if created is None else {"created": created}
    return layout.finish(layout.image(layers, platform, config=layout.config(layers, platform, **fields)))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_layout(tmp_path_factory.mktemp("image") / "layout", "2020-09-13T12:26:40Z")


@pytest.fixture(scope="module")
def usual(image: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return what is made without any option."""
    path = tmp_path_factory.mktemp("usual") / OUT
    assert convert(image, path).returncode == 0
    return path.read_bytes()


def told(output: Path) -> set[str]:
    """Return the lines that unsquashfs has of a superblock."""
    return {line.strip() for line in finish(["unsquashfs", "-s", str(output)]).stdout.splitlines()}


def made_at(output: Path) -> int:
    return int(finish(["unsquashfs", "-fstime", str(output)]).stdout)


def times_in(output: Path) -> dict[bytes, int]:
    scratch = f"{output}.extracted"
    return {path: node.mtime for path, node in JUDGES["unsquashfs"].read(str(output), scratch).items()}


# Names


@pytest.mark.parametrize(
    "name", ["o.squashfs", "o.sqsh", "o.sqfs", "o.sfs", "O.SQUASHFS", "O.Sfs", "o.tar.sfs", ".squashfs"]
)
def test_name_tells_the_format(image: str, usual: bytes, tmp_path: Path, name: str) -> None:
    done = convert(image, tmp_path / name)
    assert (done.returncode, done.stdout) == (0, "")
    found = SUMMARY.fullmatch(done.stderr)
    assert found, done.stderr
    assert found["output"] == f"{tmp_path}/{name}"
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == usual


@pytest.mark.parametrize("name", ["odd.img", "out.tar", "out", "out.squashfs.old"])
def test_format_may_be_said(image: str, usual: bytes, tmp_path: Path, name: str) -> None:
    assert convert("--quiet", "--format", "squashfs", image, tmp_path / name).returncode == 0
    assert (tmp_path / name).read_bytes() == usual


def test_other_formats_may_have_the_names(image: str, tmp_path: Path) -> None:
    assert convert("--format", "tar", image, tmp_path / "tar.sfs").returncode == 0
    assert convert(image, f"{tmp_path}/directory.sfs/").returncode == 0
    assert (tmp_path / "tar.sfs").read_bytes()[257:262] == b"ustar"
    assert (tmp_path / "directory.sfs/new").is_file()


# Options

OPTIONS: dict[str, tuple[list[str], set[str]]] = {
    "none": (
        [],
        {
            *("Compression zstd", "compression-level 3", "Block size 131072", "Data is compressed"),
            *("Filesystem is exportable via NFS", "Duplicates are removed"),
        },
    ),
    "least zstd": (["--compression", "zstd:1"], {"Compression zstd", "compression-level 1"}),
    "zstd as usual": (["--compression", "zstd"], {"Compression zstd", "compression-level 3"}),
    "most zstd": (["--compression", "zstd:22"], {"Compression zstd", "compression-level 22"}),
    "gzip": (["--compression", "gzip"], {"Compression gzip", "Data is compressed"}),
    "least gzip": (["--compression", "gzip:1"], {"Compression gzip", "compression-level 1"}),
    "xz": (["--compression", "xz"], {"Compression xz"}),
    "lz4": (["--compression", "lz4"], {"Compression lz4"}),
    "no compression": (["--compression", "none"], {"Inodes are uncompressed", "Data is uncompressed"}),
    "smallest blocks": (["--block-size", "4K"], {"Block size 4096"}),
    "blocks in bytes": (["--block-size", "65536"], {"Block size 65536"}),
    "largest blocks": (["--block-size", "1MiB"], {"Block size 1048576"}),
    "no fragments": (["--no-fragments"], {"Fragments are not stored", "Number of fragments 0"}),
    "no dedup": (["--no-dedup"], {"Duplicates are not removed"}),
    "no exports": (["--no-exports"], {"Filesystem is not exportable via NFS"}),
    "everything": (
        ["--compression", "gzip:1", "--block-size", "8K", "--no-fragments", "--no-dedup", "--no-exports"],
        {
            *("Compression gzip", "Block size 8192", "Fragments are not stored"),
            *("Duplicates are not removed", "Filesystem is not exportable via NFS"),
        },
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("options", "lines"), OPTIONS.values(), ids=OPTIONS)
def test_option_is_in_the_superblock(
    image: str, tmp_path: Path, engine: str, options: list[str], lines: set[str]
) -> None:
    done = convert("--quiet", "--engine", engine, *options, image, tmp_path / OUT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert lines <= told(tmp_path / OUT)
    assert (tmp_path / OUT).stat().st_size % 4096 == 0
    judge = JUDGES["unsquashfs"]
    assert judge.differences(str(tmp_path / OUT), held(dict(merge(STACK))), f"{tmp_path}/seen") == []


def test_default_engine_may_be_said(image: str, usual: bytes, tmp_path: Path) -> None:
    options = ["--engine", "paralayer", "--pad", "--compression", "zstd:3", "--block-size", "128k"]
    assert convert(*options, image, tmp_path / OUT).returncode == 0
    assert (tmp_path / OUT).read_bytes() == usual


@pytest.mark.parametrize("engine", ENGINES)
def test_duplicates_are_stored_once_unless_asked_otherwise(image: str, tmp_path: Path, engine: str) -> None:
    sizes = []
    for option in ((), ("--no-dedup",)):
        assert convert("--engine", engine, *option, "--force", image, tmp_path / OUT).returncode == 0
        sizes.append((tmp_path / OUT).stat().st_size)
    assert sizes[1] - sizes[0] > len(NOISE) * 0.95


@pytest.mark.requires("root")
def test_what_is_not_padded_is_not_mounted(image: str, tmp_path: Path) -> None:
    assert convert("--no-pad", image, tmp_path / OUT).returncode == 0
    assert (tmp_path / OUT).stat().st_size % 512
    with pytest.raises(
        ImageError, match=r"a loop device has whole sectors: got .* bytes, want a multiple of 512"
    ):
        verify(image, tmp_path / OUT, mount=True)


def test_a_time_that_squashfs_cannot_hold_is_told(image: str, tmp_path: Path) -> None:
    done = convert("--mtime", str(1 << 32), image, tmp_path / OUT)
    assert "warning: left out or changed: times before 1970 or after 2106: 1\n" in done.stderr
    assert convert("--mtime", str((1 << 32) - 1), image, tmp_path / "other.sfs").stderr.count("warning") == 0
    assert (tmp_path / OUT).read_bytes() == (tmp_path / "other.sfs").read_bytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_padding_can_be_left_out(image: str, tmp_path: Path, engine: str) -> None:
    assert convert("--engine", engine, image, tmp_path / OUT).returncode == 0
    assert convert("--engine", engine, "--no-pad", image, tmp_path / "bare.sfs").returncode == 0
    padded, bare = (tmp_path / OUT).read_bytes(), (tmp_path / "bare.sfs").read_bytes()
    assert padded == bare + bytes(-len(bare) % 4096)
    assert padded != bare
    if engine == "paralayer":  # mksquashfs 4.5 leaves something behind the end where it changes the root
        assert any(line.startswith(f"Filesystem size {len(bare)} bytes") for line in told(tmp_path / OUT))


@pytest.mark.parametrize("engine", ENGINES)
def test_jobs_and_memory_do_not_change_it(image: str, tmp_path: Path, engine: str) -> None:
    outputs = set()
    for options in (["--jobs", "1"], ["--jobs", "3", "--memory", "1"], ["--memory", "1G"]):
        done = convert("--force", "--engine", engine, *options, image, tmp_path / OUT)
        assert done.returncode == 0, done.stderr
        outputs.add((tmp_path / OUT).read_bytes())
    assert len(outputs) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_an_ordinary_user_gets_the_same(image: str, usual: bytes, tmp_path: Path, engine: str) -> None:
    """Owners and attributes are only written, not made."""
    shutil.copytree(image, tmp_path / "layout")
    out = tmp_path / "nobody"
    out.mkdir()
    os.chown(out, 65534, 65534)
    os.chmod(tmp_path, 0o755)
    open_to_nobody(tmp_path)
    done = finish([*AS_NOBODY, "--engine", engine, f"{tmp_path}/layout", f"{out}/{OUT}"])
    assert done.returncode == 0, done.stderr
    if engine == "paralayer":  # the owner table of mksquashfs 4.5 has whoever ran it as well
        assert (out / OUT).read_bytes() == usual
    judge = JUDGES["unsquashfs"]
    assert judge.differences(f"{out}/{OUT}", held(dict(merge(STACK))), f"{tmp_path}/seen") == []


# title → (arguments, what the line says)
USAGE: dict[str, tuple[list[str], str]] = {
    "unknown compression": (["--compression", "zip", "IMAGE", OUT], "got 'zip', want zstd, gzip, xz, lz4 or none"),
    "compression in capitals": (["--compression", "ZSTD", "IMAGE", OUT], "got 'ZSTD'"),
    "no name of a compression": (["--compression", "", "IMAGE", OUT], "got ''"),
    "compression of mksquashfs that we lack": (
        ["--engine", "mksquashfs", "--compression", "lzo", "IMAGE", OUT],
        "got 'lzo'",
    ),
    "no level": (["--compression", "zstd:", "IMAGE", OUT], "a level from 1 to 22"),
    "level below all": (["--compression", "zstd:0", "IMAGE", OUT], "a level from 1 to 22"),
    "level beyond all": (["--compression", "zstd:23", "IMAGE", OUT], "a level from 1 to 22"),
    "level of gzip beyond all": (["--compression", "gzip:10", "IMAGE", OUT], "a level from 1 to 9"),
    "level that is no number": (["--compression", "gzip:best", "IMAGE", OUT], "a level from 1 to 9"),
    "negative level": (["--compression", "gzip:-1", "IMAGE", OUT], "a level from 1 to 9"),
    "level of xz": (["--compression", "xz:6", "IMAGE", OUT], "want xz without a level"),
    "level of nothing": (["--compression", "none:1", "IMAGE", OUT], "want none without a level"),
    "block size that is no power of two": (["--block-size", "5000", "IMAGE", OUT], "got 5000, want a power of two"),
    "blocks that are too small": (["--block-size", "2K", "IMAGE", OUT], "got 2048, want a power of two from 4096 to 1048576"),
    "blocks that are too large": (["--block-size", "2M", "IMAGE", OUT], "got 2097152"),
    "no blocks": (["--block-size", "0", "IMAGE", OUT], "--block-size"),
    "blocks that are no number": (["--block-size", "large", "IMAGE", OUT], "--block-size"),
    "unknown engine": (["--engine", "gensquashfs", "IMAGE", OUT], "--engine"),
    "program of the other engine": (["--mksquashfs", "mksquashfs", "IMAGE", OUT], "--mksquashfs is for --engine mksquashfs"),
    "program and our engine": (
        ["--mksquashfs", "mksquashfs", "--engine", "paralayer", "IMAGE", OUT],
        "--mksquashfs is for --engine mksquashfs",
    ),
    "standard output": (["--format", "squashfs", "IMAGE", "-"], "cannot go to standard output"),
    "standard output and mksquashfs": (["--engine", "mksquashfs", "IMAGE", "-"], "squashfs"),
    "verification of standard output": (["--verify", "IMAGE", "-"], "--verify"),
}  # fmt: skip

ONLY_SQUASHFS: dict[str, list[str]] = {
    "compression": ["--compression", "zstd"],
    "block size": ["--block-size", "128K"],
    "fragments": ["--no-fragments"],
    "dedup": ["--no-dedup"],
    "exports": ["--no-exports"],
    "pad": ["--no-pad"],
    "engine": ["--engine", "mksquashfs"],
    "our engine": ["--engine", "paralayer"],
    "program": ["--mksquashfs", "mksquashfs"],
}
USAGE |= {
    f"{title} of {output}": ([*options, "IMAGE", output], "is for a squashfs")
    for title, options in ONLY_SQUASHFS.items()
    for output in ("out.tar", "out")
}


@pytest.mark.parametrize(("arguments", "error"), USAGE.values(), ids=USAGE)
def test_usage_error(image: str, tmp_path: Path, arguments: list[str], error: str) -> None:
    arguments = [image if each == "IMAGE" else each for each in arguments]
    done = convert(*arguments, cwd=tmp_path, env=with_source())
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert error in line
    assert done.stderr.endswith(f"{line}\n")
    assert os.listdir(tmp_path) == []


# Times

CLAMPS: dict[str, tuple[list[str], str, int, list[int]]] = {
    "none": ([], "", CREATED, [1000, 2000, 3000]),
    "environment": ([], "2500", 2500, [1000, 2000, 2500]),
    "option": (["--mtime", "1500"], "2500", 1500, [1000, 1500, 1500]),
    "zero": (["--mtime", "0"], "2500", 0, [0, 0, 0]),
    "later than all": (["--mtime", "1700000000"], "", 1_700_000_000, [1000, 2000, 3000]),
    "as late as it can be": (["--mtime", "4294967295"], "", (1 << 32) - 1, [1000, 2000, 3000]),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("options", "epoch", "made", "times"), CLAMPS.values(), ids=CLAMPS)
def test_times(
    image: str, tmp_path: Path, engine: str, options: list[str], epoch: str, made: int, times: list[int]
) -> None:
    done = convert(
        "--engine", engine, *options, image, tmp_path / OUT, env=with_source(SOURCE_DATE_EPOCH=epoch)
    )
    assert done.returncode == 0, done.stderr
    assert made_at(tmp_path / OUT) == made
    found = times_in(tmp_path / OUT)
    assert [found[path] for path in (b"d", b"d/old", b"new")] == times


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("mtime", "made"), [("-5", 0), ("5000000000", (1 << 32) - 1)])
def test_time_that_no_squashfs_can_hold(
    image: str, tmp_path: Path, engine: str, mtime: str, made: int
) -> None:
    done = convert("--engine", engine, "--mtime", mtime, image, tmp_path / OUT)
    assert done.returncode == 0, done.stderr
    assert made_at(tmp_path / OUT) == made
    assert times_in(tmp_path / OUT)[b"new"] == min(made, 3000)


CREATED_TEXTS: dict[str, tuple[str | None, int]] = {
    "UTC": ("2020-09-13T12:26:40Z", CREATED),
    "nanoseconds": ("2020-09-13T12:26:40.999999999Z", CREATED),
    "time zone": ("2020-09-13T14:26:40+02:00", CREATED),
    "nothing": (None, 0),
    "no time": ("now", 0),
    "before 1970": ("1969-12-31T23:59:59Z", 0),
    "year one": ("0001-01-01T00:00:00Z", 0),
    "after 2106": ("2106-02-07T06:28:16Z", 0),
}


@pytest.mark.parametrize(("created", "made"), CREATED_TEXTS.values(), ids=CREATED_TEXTS)
def test_image_tells_when_it_was_made(tmp_path: Path, created: str | None, made: int) -> None:
    layout = write_layout(tmp_path / "layout", created)
    assert convert(layout, tmp_path / OUT).returncode == 0
    assert made_at(tmp_path / OUT) == made


def test_time_zone_of_this_machine_does_not_matter(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", "2020-09-13T12:26:40")
    outputs = set()
    for zone in ("Asia/Tokyo", "America/New_York", "UTC"):
        assert convert("--force", layout, tmp_path / OUT, env=with_source(TZ=zone)).returncode == 0
        outputs.add((tmp_path / OUT).read_bytes())
    assert len(outputs) == 1


# What is printed


@pytest.mark.parametrize("engine", ENGINES)
def test_json_is_one_object(image: str, tmp_path: Path, engine: str) -> None:
    options = ["--json", "--jobs", "2", "--memory", "64M", "--engine", engine]
    done = convert(*options, image, tmp_path / OUT)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    result = json.loads(done.stdout)
    assert result.keys() == KEYS
    assert (result["format"], result["output"]) == ("squashfs", f"{tmp_path}/{OUT}")
    assert (result["layers"], result["entries"], result["survivors"]) == (2, 8, 6)
    assert result["bytes_written"] == (tmp_path / OUT).stat().st_size
    assert (result["jobs"], result["memory"]) == (2, 64 << 20)
    assert result["seconds"].keys() == {"open", "decode", "write", "commit", "total"}
    assert result["warnings"] == []


@pytest.mark.parametrize("engine", ENGINES)
def test_what_it_cannot_hold_is_one_warning(tmp_path: Path, engine: str) -> None:
    layout = Layout(tmp_path / "layout")
    entries = [
        file(b"early", mtime=-1),
        file(b"late", mtime=1 << 32),
        file(b"acl", xattrs={b"system.posix_acl_access": b"\2\0\0\0"}),
    ]
    path = layout.finish(layout.image([write_layer(entries)], str(Platform.host())))
    done = convert("--engine", engine, path, tmp_path / OUT)
    assert done.returncode == 0
    warning, summary = done.stderr.splitlines(keepends=True)
    assert SUMMARY.fullmatch(summary)
    assert warning == (
        "paralayer: warning: left out or changed: times before 1970 or after 2106: 2, "
        "xattrs that are not user, trusted or security: 1\n"
    )


# The program


def fake(path: Path, script: str) -> str:
    """Make a program beside mksquashfs that does something with it."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_program_is_the_one_that_is_named(image: str, tmp_path: Path) -> None:
    program = fake(tmp_path / "other", 'echo "$@" >> "$0.log"; exec mksquashfs "$@"')
    done = convert("--engine", "mksquashfs", "--mksquashfs", program, image, tmp_path / OUT)
    assert done.returncode == 0, done.stderr
    assert "-tar " in (tmp_path / "other.log").read_text()
    done = convert(
        *("--engine", "mksquashfs", "--mksquashfs", "other", image, f"{tmp_path}/found.sfs"),
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "found.sfs").read_bytes() == (tmp_path / OUT).read_bytes()


@pytest.mark.parametrize("program", ["PATH/none", "PATH", "PATH/text", "no-such-mksquashfs", None])
def test_missing_program_names_the_default_engine(image: str, tmp_path: Path, program: str | None) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "text").write_text("not to be executed")
    options = [] if program is None else ["--mksquashfs", program.replace("PATH", str(tools))]
    done = convert(
        *("--engine", "mksquashfs", *options, image, f"{tmp_path}/{OUT}"),
        env={**os.environ, "PATH": str(tools)},
    )
    assert (done.returncode, done.stdout) == (1, "")
    one_line(done.stderr, "paralayer: error: ", "not found", "--engine paralayer")
    assert os.listdir(tmp_path) == ["tools"]


def test_program_that_fails_is_quoted(image: str, tmp_path: Path) -> None:
    program = fake(tmp_path / "bad", 'case "$1" in -v*|-h*) exec mksquashfs "$@";; esac; echo oh >&2; exit 7')
    done = convert("--engine", "mksquashfs", "--mksquashfs", program, image, tmp_path / OUT)
    assert done.returncode == 1
    one_line(done.stderr, f"paralayer: error: {tmp_path}/{OUT}: ", "oh", "exit status 7")
    assert os.listdir(tmp_path) == ["bad"]


def test_missing_lz4_is_told(image: str, tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/lz4.py").write_text("raise ImportError")
    path = f"{tmp_path}/modules:{with_source()['PYTHONPATH']}"
    done = convert("--compression", "lz4", image, tmp_path / OUT, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 1
    one_line(done.stderr, "paralayer: error: ", "lz4", "paralayer[lz4]")
    assert os.listdir(tmp_path) == ["modules"]


# Verification


@pytest.mark.parametrize("mtime", [[], ["--mtime", "1500"]], ids=["", "clamped"])
@pytest.mark.parametrize(
    ("options", "output"),
    [([], OUT), (["--engine", "mksquashfs"], OUT), ([], "out.tar"), ([], "out/")],
    ids=["squashfs", "mksquashfs", "tar", "directory"],
)
def test_verification_is_a_phase(
    image: str, tmp_path: Path, options: list[str], output: str, mtime: list[str]
) -> None:
    done = convert("--verify", "--json", *mtime, *options, image, f"{tmp_path}/{output}")
    assert (done.returncode, done.stderr) == (0, "")
    seconds = json.loads(done.stdout)["seconds"]
    assert seconds.keys() == {"open", "decode", "write", "complete", "verify", "commit", "total"}
    assert seconds["verify"] > 0
    assert os.listdir(tmp_path) == [output.rstrip("/")]
    done = convert("--force", *mtime, *options, image, tmp_path / "plain", "--format", form_of(output))
    assert done.returncode == 0, done.stderr
    if output != "out/":
        assert (tmp_path / "plain").read_bytes() == (tmp_path / output).read_bytes()


def form_of(output: str) -> str:
    return {OUT: "squashfs", "out.tar": "tar", "out/": "directory"}[output]


DAMAGES: dict[str, tuple[str, str]] = {
    "owners": ('exec mksquashfs "$@" -force-uid 77', ": verification found 7 differences, such as "),
    "attributes": (
        'exec mksquashfs "$@" -no-xattrs',
        ": verification found 2 differences, such as again: xattr ",
    ),
    "content": (
        'mksquashfs "$@" || exit; [ "$1" = - ] && printf other | dd of="$2" bs=1 seek=4096 conv=notrunc',
        ": verification found 3 differences, such as ",
    ),
}


@pytest.mark.parametrize(("script", "error"), DAMAGES.values(), ids=DAMAGES)
def test_verification_finds_what_the_program_did_wrong(
    image: str, tmp_path: Path, script: str, error: str
) -> None:
    options = ["--engine", "mksquashfs", "--mksquashfs", fake(tmp_path / "bad", script)]
    (tmp_path / OUT).write_bytes(b"old")
    done = convert("--verify", "--force", *options, image, tmp_path / OUT)
    assert (done.returncode, done.stdout) == (1, "")
    one_line(done.stderr, f"paralayer: error: {tmp_path}/{OUT}{error}")
    assert sorted(os.listdir(tmp_path)) == ["bad", OUT]
    assert (tmp_path / OUT).read_bytes() == b"old"
    assert convert("--force", *options, image, tmp_path / OUT).returncode == 0, "nobody asked"


@pytest.mark.parametrize("engine", ENGINES)
def test_verification_allows_for_what_a_warning_says(tmp_path: Path, engine: str) -> None:
    """mksquashfs 4.5 cannot be told attributes of the root, and none makes symlinks of other modes than 0777."""
    entries = [
        directory(b"./", xattrs={b"user.a": b"1", b"user.empty": b""}),
        replace(symlink(b"link", b"f"), mode=0o644),
        file(b"f", b"content", mtime=-1, xattrs={b"system.posix_acl_access": b"\2\0\0\0", b"user.b": b"1"}),
    ]
    layout = write_image(str(tmp_path / "layout"), [entries])
    done = convert("--verify", "--engine", engine, layout, tmp_path / OUT)
    assert done.returncode == 0, done.stderr


@pytest.mark.requires("mksquashfs")
def test_verification_tells_what_no_warning_says(tmp_path: Path) -> None:
    """An attribute of the root is counted as lost, and that of a file is not."""
    entries = [directory(b"./", xattrs={b"user.empty": b""}), file(b"f", xattrs={b"user.b": b"1"})]
    layout = write_image(str(tmp_path / "layout"), [entries])
    program = fake(tmp_path / "bad", 'exec mksquashfs "$@" -no-xattrs')
    done = convert("--verify", "--engine", "mksquashfs", "--mksquashfs", program, layout, tmp_path / OUT)
    assert done.returncode == 1
    one_line(
        done.stderr, f"paralayer: error: {tmp_path}/{OUT}: verification found 1 differences, such as f: xattr"
    )


# Existing outputs


@pytest.mark.parametrize("engine", ENGINES)
def test_existing_output_is_refused(image: str, tmp_path: Path, engine: str) -> None:
    (tmp_path / OUT).write_bytes(b"old")
    done = convert("--engine", engine, image, tmp_path / OUT)
    assert done.returncode == 1
    one_line(done.stderr, f"paralayer: error: {tmp_path}/{OUT}: exists already")
    assert os.listdir(tmp_path) == [OUT]
    assert (tmp_path / OUT).read_bytes() == b"old"


@pytest.mark.parametrize("engine", ENGINES)
def test_force_replaces(image: str, tmp_path: Path, engine: str) -> None:
    (tmp_path / OUT).write_bytes(b"old")
    os.link(tmp_path / OUT, tmp_path / "link")
    assert convert("--engine", engine, "--force", image, tmp_path / OUT).returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["link", OUT]
    assert (tmp_path / OUT).read_bytes()[:4] == b"hsqs"
    assert (tmp_path / "link").read_bytes() == b"old", "not written over: another file has the name"


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("engine", ENGINES)
def test_failure_keeps_the_old_output(image: str, tmp_path: Path, engine: str, jobs: str) -> None:
    shutil.copytree(image, tmp_path / "layout")
    flip(0.5)(layer_paths(f"{tmp_path}/layout")[0])
    out = tmp_path / "outputs"
    out.mkdir()
    (out / OUT).write_bytes(b"old")
    before = (out / OUT).stat()
    done = convert("--engine", engine, "--jobs", jobs, "--force", tmp_path / "layout", out / OUT)
    assert done.returncode == 1
    one_line(done.stderr, "paralayer: error: layer 0 ")
    assert os.listdir(out) == [OUT]
    assert (out / OUT).stat()[:8] == before[:8]
    assert (out / OUT).read_bytes() == b"old"
