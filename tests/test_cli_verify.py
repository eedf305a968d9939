"""`paralayer verify` from the command line: exit statuses, options, and what is printed where."""

from __future__ import annotations

import gzip
import json
import os
import pty
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import paralayer
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
from layouts import Layout, archive_of, for_platform
from model import directory, file, hardlink, whiteout
from paralayer.image import Platform
from processes import AS_NOBODY, COMMAND, end_of, finish, one_line, running, workers_of
from test_cli import read_terminal, with_source
from test_faults import flip, layer_paths, open_to_nobody

if TYPE_CHECKING:
    from pathlib import Path

    from model import Entry

VERIFY = (*COMMAND, "verify")
MIB = 1 << 20
KEYS = {
    "same", "a", "b", "only_in_a", "only_in_b", "differences", "only_in_a_count", "only_in_b_count",
    "difference_count", "paths_a", "paths_b", "not_compared", "warnings",
}  # fmt: skip
COARSE = "times below a second, before 1970 and after 2106"
ACLS = "access control lists"

STACK: list[list[Entry]] = [
    [directory(b"./", 0o755, mtime=5), directory(b"d", mtime=1000), file(b"d/old", b"old", mtime=2000)],
    [
        file(b"new", b"new", mtime=3000, uid=5, xattrs={b"user.a": b"1"}),
        hardlink(b"odd\n\xff", b"new"),
        whiteout(b"nothing"),
    ],
]
CHANGED: list[list[Entry]] = [
    [
        directory(b"./", 0o755, mtime=5),
        directory(b"d", mtime=1000),
        file(b"d/old", b"OLD", mtime=2500),
        file(b"new", b"new", mtime=3000, uid=6, xattrs={b"user.a": b"2"}),
        file(b"odd\n\xff", b"new", mtime=3000, uid=5, xattrs={b"user.a": b"1"}),
        file(b"more"),
    ]
]

pytestmark = pytest.mark.requires("root")


def verify(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `paralayer verify` to its end."""
    return finish([*VERIFY, *map(str, arguments)], **options)


def named(sources: dict[str, str], words: list[str]) -> list[str]:
    """Put sources where they are named."""
    return [sources.get(word, word) for word in words]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the same tree in each kind of source, and one that is different."""
    top = tmp_path_factory.mktemp("sources")
    layout = write_image(f"{top}/layout", STACK, compression="gzip")
    paralayer.convert_tar(layout, top / "flat.tar")
    paralayer.convert_dir(layout, top / "tree")
    paralayer.convert_squashfs(layout, top / "image.squashfs")
    changed = write_image(f"{top}/changed", CHANGED)
    paralayer.convert_squashfs(changed, top / "changed.squashfs")
    archive = archive_of(layout)
    return {
        "LAYOUT": layout,
        "TAGGED": f"oci:{layout}:latest",
        "ARCHIVE": archive,
        "TAR": f"{top}/flat.tar",
        "TREE": f"{top}/tree",
        "SQUASHFS": f"{top}/image.squashfs",
        "CHANGED": f"{top}/changed.squashfs",
        "CHANGED LAYOUT": changed,
    }


# The same

SAME: dict[str, tuple[list[str], list[str]]] = {
    "squashfs": (["LAYOUT", "SQUASHFS"], [COARSE, ACLS]),
    "squashfs first": (["SQUASHFS", "LAYOUT"], [COARSE, ACLS]),
    "tar": (["TAGGED", "TAR"], []),
    "directory": (["LAYOUT", "TREE"], []),
    "archive": (["ARCHIVE", "SQUASHFS"], [COARSE, ACLS]),
    "archive and layout": (["ARCHIVE", "LAYOUT"], []),
    "no image": (["TREE", "SQUASHFS"], [COARSE, ACLS]),
    "no image and no directory": (["TAR", "SQUASHFS"], [COARSE, ACLS]),
    "itself": (["SQUASHFS", "SQUASHFS"], [COARSE, ACLS]),
    "a mount": (["--mount", "LAYOUT", "SQUASHFS"], [COARSE, ACLS]),
    "nothing to mount": (["--mount", "LAYOUT", "TAR"], []),
    "one job, little memory": (["--jobs", "1", "--memory", "1", "LAYOUT", "TAR"], []),
    "many jobs": (["--jobs", "5", "--memory", "64M", "LAYOUT", "TAR"], []),
    "no digests": (["--no-check", "LAYOUT", "TAR"], []),
    "this platform": (["--platform", str(Platform.host()), "LAYOUT", "TAR"], []),
    "nothing ignored": (["--ignore", "", "LAYOUT", "TAR"], []),
}


@pytest.mark.parametrize(("arguments", "not_compared"), SAME.values(), ids=SAME)
def test_the_same(sources: dict[str, str], arguments: list[str], not_compared: list[str]) -> None:
    done = verify(*named(sources, arguments))
    assert (done.returncode, done.stderr) == (0, "")
    line = one_line(done.stdout, ": same, 5 paths")
    assert line.partition("; not compared: ")[2] == ", ".join(not_compared)


def test_prefixes_say_what_it_is(sources: dict[str, str]) -> None:
    for a, b in (
        (f"oci:{sources['LAYOUT']}", f"squashfs:{sources['SQUASHFS']}"),
        (f"oci-archive:{sources['ARCHIVE']}", f"tar:{sources['TAR']}"),
        (f"dir:{sources['TREE']}", sources["LAYOUT"]),
    ):
        done = verify(a, b)
        assert (done.returncode, done.stderr) == (0, ""), (a, b)
    done = verify(f"dir:{sources['LAYOUT']}", sources["LAYOUT"])
    assert done.returncode == 1, "as a tree the layout is not its image"
    assert f"oci-layout: only in dir:{sources['LAYOUT']}\n" in done.stdout


@pytest.mark.requires("skopeo")
def test_docker_archive_is_an_image(sources: dict[str, str], tmp_path: Path) -> None:
    saved = f"docker-archive:{tmp_path}/saved.tar"
    finish(["skopeo", "copy", "--quiet", sources["TAGGED"], f"{saved}:x:1"]).check_returncode()
    assert verify(saved, sources["TAGGED"]).returncode == 0
    assert verify(sources["SQUASHFS"], f"{saved}:x:1").returncode == 0


# Different


def test_each_difference_is_a_line(sources: dict[str, str]) -> None:
    done = verify(*named(sources, ["LAYOUT", "CHANGED"]))
    assert (done.returncode, done.stderr) == (1, "")
    old, new = (digest_of(data) for data in (b"old", b"OLD"))
    a, b = f"{sources['LAYOUT']}:latest", sources["CHANGED"]
    assert done.stdout.splitlines() == [
        f"more: only in {b}",
        f"d/old: content: {old}, {new}",
        "d/old: time: 2000, 2500",
        "new: owner: 5:0, 6:0",
        "new: xattr user.a: 1, 2",
        "odd\\n\\xff: link: new, None",
        f"{a}, {b}: 6 differences; not compared: {COARSE}, {ACLS}",
    ]


def test_sides_are_not_confused(sources: dict[str, str]) -> None:
    done = verify(*named(sources, ["CHANGED", "TREE"]))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert f"more: only in {sources['CHANGED']}" in lines
    assert "new: owner: 6:0, 5:0" in lines


IGNORED: dict[str, tuple[list[str], set[str]]] = {
    "nothing": ([], {"owner", "xattr user.a", "time", "content", "link"}),
    "times": (["--ignore", "times"], {"owner", "xattr user.a", "content", "link"}),
    "owner": (["--ignore", "owner"], {"xattr user.a", "time", "content", "link"}),
    "xattrs": (["--ignore", "xattrs"], {"owner", "time", "content", "link"}),
    "all": (["--ignore", "times,owner,xattrs"], {"content", "link"}),
    "twice": (["--ignore", "times,times"], {"owner", "xattr user.a", "content", "link"}),
}


@pytest.mark.parametrize(("options", "fields"), IGNORED.values(), ids=IGNORED)
def test_what_is_ignored(sources: dict[str, str], options: list[str], fields: set[str]) -> None:
    done = verify(*options, *named(sources, ["LAYOUT", "CHANGED"]))
    assert (done.returncode, done.stderr) == (1, "")
    *lines, last = done.stdout.splitlines()
    assert {line.split(": ")[1] for line in lines if "only in" not in line} == fields
    for what in "".join(options[1:]).split(","):
        assert what in last.partition("; not compared: ")[2]


def test_ignored_differences_are_none(tmp_path: Path) -> None:
    one = write_image(f"{tmp_path}/one", [[file(b"f", mtime=1, uid=2, xattrs={b"user.a": b"1"})]])
    two = write_image(f"{tmp_path}/two", [[file(b"f", mtime=2, gid=2)]])
    assert verify(one, two).returncode == 1
    assert verify("--ignore", "times,owner", one, two).returncode == 1
    assert verify("--ignore", "times,owner,xattrs", one, two).returncode == 0


def test_clamp_of_the_conversion(sources: dict[str, str], tmp_path: Path) -> None:
    paralayer.convert_squashfs(sources["LAYOUT"], tmp_path / "out.sfs", mtime=1500)
    sides = (sources["LAYOUT"], tmp_path / "out.sfs")
    assert verify(*sides).returncode == 1
    assert verify("--mtime", "1500", *sides).returncode == 0
    assert verify(*sides, env=with_source(SOURCE_DATE_EPOCH="1500")).returncode == 0
    assert verify("--mtime", "1499", *sides, env=with_source(SOURCE_DATE_EPOCH="1500")).returncode == 1
    assert verify(*sides, env=with_source(SOURCE_DATE_EPOCH="")).returncode == 1


def test_platform_is_chosen(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "multi")
    platforms = ("linux/arm64", "linux/s390x")
    images = [
        for_platform(layout.image([write_layer([file(name.encode()[6:])])], name), name) for name in platforms
    ]
    path = layout.finish(*images)
    for name in platforms:
        out = tmp_path / name[6:]
        paralayer.convert_squashfs(path, out, platform=name)
        assert verify("--platform", name, path, out).returncode == 0
    assert verify("--platform", "linux/arm64", path, tmp_path / "s390x").returncode == 1
    assert verify("--platform", "linux/riscv64", path, tmp_path / "s390x").returncode == 2


# What is printed


@pytest.mark.parametrize(("other", "status"), [("SQUASHFS", 0), ("CHANGED", 1)])
def test_quiet_prints_nothing(sources: dict[str, str], other: str, status: int) -> None:
    done = verify("--quiet", *named(sources, ["LAYOUT", other]))
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_json_is_one_object(sources: dict[str, str], quiet: tuple[str, ...]) -> None:
    done = verify("--json", *quiet, *named(sources, ["LAYOUT", "CHANGED"]))
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (1, "", 1)
    report = json.loads(done.stdout)
    assert report.keys() == KEYS
    assert report["same"] is False
    assert (report["a"], report["b"]) == (f"{sources['LAYOUT']}:latest", sources["CHANGED"])
    assert (report["only_in_a"], report["only_in_b"]) == ([], ["more"])
    assert (report["only_in_a_count"], report["only_in_b_count"], report["difference_count"]) == (0, 1, 5)
    assert report["differences"][1] == {"path": "d/old", "field": "time", "a": "2000", "b": "2500"}
    assert report["differences"][-1] == {"path": "odd\\n\\xff", "field": "link", "a": "new", "b": None}
    assert (report["paths_a"], report["paths_b"]) == (5, 6)
    assert report["not_compared"] == [COARSE, ACLS]


def test_json_of_the_same(sources: dict[str, str]) -> None:
    done = verify("--json", *named(sources, ["LAYOUT", "TAR"]))
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["same"] is True
    assert not any(report[key] for key in KEYS if key.startswith(("only", "diff", "not", "warn")))


def test_more_than_can_be_told_is_counted(tmp_path: Path) -> None:
    one = write_image(f"{tmp_path}/one", [[file(b"%04d" % n) for n in range(1200)]])
    two = write_image(f"{tmp_path}/two", [[]])
    done = verify(one, two)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert len(lines) == 1002
    assert lines[-2] == "... and 200 more"
    assert ": 1200 differences" in lines[-1]


def test_progress_is_shown_on_a_terminal_and_disappears(sources: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*VERIFY, sources["LAYOUT"], sources["SQUASHFS"]],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    ) as process:
        os.close(theirs)
        shown = read_terminal(ours)
        assert process.stdout is not None
        assert process.stdout.read().endswith(f": same, 5 paths; not compared: {COARSE}, {ACLS}\n".encode())
    assert process.returncode == 0
    assert " of the first read" in shown
    assert shown.endswith("\x1b[?25h") or shown.rstrip().endswith("\x1b[2K"), "nothing is left of it"


@pytest.mark.parametrize("option", [(), ("--quiet",), ("--json",)])
def test_no_progress_is_shown_elsewhere(sources: dict[str, str], option: tuple[str, ...]) -> None:
    ours, theirs = pty.openpty()
    stderr = theirs if option else subprocess.PIPE
    done = verify(*option, *named(sources, ["LAYOUT", "SQUASHFS"]), stderr=stderr)
    os.close(theirs)
    assert done.returncode == 0
    assert read_terminal(ours) == ""
    assert not done.stderr


def test_text_that_nobody_can_take_is_no_difference(sources: dict[str, str]) -> None:
    for options in ((), ("--json",)):
        with open("/dev/full", "wb") as full:
            done = verify(*options, *named(sources, ["LAYOUT", "SQUASHFS"]), stdout=full)
        assert done.returncode == 2
        one_line(done.stderr, "paralayer: error: standard output: No space left on device")


def test_warnings_have_a_line_each(tmp_path: Path) -> None:
    """As with `convert`, which takes the image as well, though it is for another machine."""
    layout = Layout(tmp_path / "layout")
    other = "linux/s390x"
    path = layout.finish(for_platform(layout.image([write_layer([file(b"f")])], other), other))
    done = verify(path, path)
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if not line.startswith("paralayer: warning: ")] == []
    assert "linux/s390x" in done.stderr
    assert verify("--quiet", path, path).stderr == ""


# Could not compare

REFUSED: dict[str, tuple[list[str], str]] = {
    "nothing there": (["LAYOUT", "/nothing/there"], "/nothing/there: "),
    "nothing there, first": (["/nothing/there", "LAYOUT"], "/nothing/there: "),
    "unknown tag": (["TAGGED:none", "TAR"], "no image"),
    "standard input": (["-", "TAR"], "No such file"),
    "a device": (["/dev/null", "TAR"], "neither a file nor a directory"),
    "not a tar": (["tar:SQUASHFS", "TAR"], "not a tar archive"),
    "not a squashfs": (["squashfs:TAR", "TAR"], "not a squashfs"),
    "not a squashfs, mounted": (["--mount", "squashfs:TAR", "TAR"], "cannot be mounted"),
    "not a directory": (["dir:TAR", "TAR"], "want dir"),
    "not a layout": (["oci:TREE", "TAR"], "oci-layout"),
}


@pytest.mark.parametrize("options", [(), ("--json",), ("--quiet",)])
@pytest.mark.parametrize(("arguments", "error"), REFUSED.values(), ids=REFUSED)
def test_could_not_compare(
    sources: dict[str, str], arguments: list[str], error: str, options: tuple[str, ...]
) -> None:
    def put(word: str) -> str:
        for name in ("TAGGED", "LAYOUT", "SQUASHFS", "TREE", "TAR"):
            word = word.replace(name, sources[name])
        return word

    done = verify(*options, *map(put, arguments))
    assert (done.returncode, done.stdout) == (2, "")
    one_line(done.stderr, "paralayer: error: ", error)


def test_damage_of_an_image_is_no_difference(sources: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(sources["LAYOUT"], tmp_path / "layout")
    blob = layer_paths(f"{tmp_path}/layout")[0]
    with open(blob, "r+b") as stream:
        data = gzip.decompress(stream.read())
        stream.seek(0)
        stream.truncate()
        stream.write(gzip.compress(data, mtime=1))
    done = verify(tmp_path / "layout", sources["TAR"])
    assert (done.returncode, done.stdout) == (2, "")
    one_line(done.stderr, "paralayer: error: layer 0 ")
    done = verify("--no-check", tmp_path / "layout", sources["TAR"])
    assert done.returncode == 0, done.stderr
    flip(0.6)(blob)
    done = verify("--no-check", tmp_path / "layout", sources["TAR"])
    assert (done.returncode, done.stdout) == (2, "")


def test_damage_of_a_squashfs_is_no_difference(sources: dict[str, str], tmp_path: Path) -> None:
    with open(sources["SQUASHFS"], "rb") as stream:
        (tmp_path / "cut.sfs").write_bytes(stream.read()[:300])
    for options in ((), ("--mount",)):
        done = verify(*options, sources["LAYOUT"], tmp_path / "cut.sfs")
        assert (done.returncode, done.stdout) == (2, "")
        one_line(done.stderr, "paralayer: error: ", f"{tmp_path}/cut.sfs: ")


def test_mount_of_an_ordinary_user_needs_squashfuse(sources: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(sources["SQUASHFS"], tmp_path / "image.sfs")
    os.chmod(tmp_path, 0o755)
    open_to_nobody(tmp_path)
    (tmp_path / "tools").mkdir()
    command = [*AS_NOBODY[:-1], "verify", "--mount", f"{tmp_path}/image.sfs", f"{tmp_path}/image.sfs"]
    done = finish(command, env={**os.environ, "PATH": f"{tmp_path}/tools"})
    assert (done.returncode, done.stdout) == (2, "")
    one_line(done.stderr, "paralayer: error: ", "cannot be mounted: squashfuse_ll is not installed")


USAGE: dict[str, list[str]] = {
    "no arguments": [],
    "one side": ["LAYOUT"],
    "three sides": ["LAYOUT", "TAR", "TREE"],
    "unknown option": ["--nothing", "LAYOUT", "TAR"],
    "unknown word": ["--ignore", "time", "LAYOUT", "TAR"],
    "one unknown word": ["--ignore", "times,mode", "LAYOUT", "TAR"],
    "no jobs": ["--jobs", "0", "LAYOUT", "TAR"],
    "no memory": ["--memory", "0", "LAYOUT", "TAR"],
    "platform of one word": ["--platform", "linux", "LAYOUT", "TAR"],
    "mtime that is no number": ["--mtime", "yesterday", "LAYOUT", "TAR"],
}


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE)
def test_usage_error(sources: dict[str, str], arguments: list[str]) -> None:
    done = verify(*named(sources, arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert " verify [OPTIONS] A B\n" in done.stderr
    assert "\nError: " in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_word_is_told_what_there_is(sources: dict[str, str]) -> None:
    done = verify("--ignore", "times,mode", *named(sources, ["LAYOUT", "TAR"]))
    assert "got 'mode', want any of owner, times, xattrs" in done.stderr


def test_help_names_every_option() -> None:
    done = verify("--help", env=with_source(SOURCE_DATE_EPOCH="today"))
    assert (done.returncode, done.stderr) == (0, "")
    for word in (
        "verify [OPTIONS] A B", "--ignore WHAT[,WHAT]", "--mount", "--jobs N", "--memory SIZE", "--platform P",
        "--no-check", "--mtime T", "--quiet", "--json", "0 the same, 1 different, 2 could not compare",
    ):  # fmt: skip
        assert word in done.stdout, word


# Interrupts


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an image that nobody waits for: 32 GiB of zeros, as gzip members."""
    layout = str(tmp_path_factory.mktemp("endless") / "layout")
    size, piece = 32 << 30, 64 * MIB
    head, zeros, end = (
        gzip.compress(data, mtime=0)
        for data in (pack_headers(file(b"zeros"), size), bytes(piece), END_OF_ARCHIVE)
    )
    stored = head + zeros * (size // piece) + end
    blob = Blob(MEDIA_TYPES["gzip"], write_blob(layout, stored), len(stored), digest_of(b""))
    write_documents(layout, [blob], "latest")
    return layout


@pytest.mark.parametrize("whom", ["group", "parent"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt(endless: str, sources: dict[str, str], number: signal.Signals, whom: str) -> None:
    with running([*VERIFY, "--jobs", "2", sources["TAR"], endless]) as process:
        workers_of(process, 2)
        if whom == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
        status, error = end_of(process)
        assert status == 130
        one_line(error, f"paralayer: interrupted by {number.name}")
        assert process.stdout is not None
        assert process.stdout.read() == b""


def test_death_of_a_worker_is_no_difference(endless: str, sources: dict[str, str]) -> None:
    with running([*VERIFY, "--jobs", "2", endless, sources["TAR"]]) as process:
        workers_of(process, 2)[0].kill()
        status, error = end_of(process)
        assert status == 2
        one_line(error, "paralayer: error: ", "worker")
