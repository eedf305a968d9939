"""How an output gets its name, and how a tree is removed."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

import paralayer
from images import write_image
from model import directory, file, hardlink, symlink
from paralayer.errors import SinkError
from paralayer.sinks.output import Output, remove

if TYPE_CHECKING:
    from pathlib import Path

DEEP = b"/".join([b"d" * 40] * 750)  # 30,749 bytes; Linux takes 4,095 at once


@pytest.fixture
def deep_image(tmp_path: Path) -> str:
    layers = [
        [
            file(DEEP + b"/file", b"content"),
            hardlink(DEEP + b"/link", DEEP + b"/file"),
            directory(DEEP, 0o500),
        ]
    ]
    return write_image(
        str(tmp_path / "image"), [*layers, [symlink(b"short", b"d")]], compression=["gzip", "none"]
    )


def test_a_tree_deeper_than_any_path_is_made_and_removed(deep_image: str, tmp_path: Path) -> None:
    paralayer.convert_dir(deep_image, tmp_path / "tree")
    fd = os.open(tmp_path / "tree", os.O_RDONLY)
    for component in DEEP.split(b"/"):
        below = os.open(component, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    assert sorted(os.listdir(fd)) == ["file", "link"]
    assert os.stat("file", dir_fd=fd).st_nlink == 2
    assert os.fstat(fd).st_mode & 0o7777 == 0o500
    os.close(fd)
    remove(str(tmp_path / "tree"))
    assert not (tmp_path / "tree").exists()


def test_a_tree_deeper_than_any_path_becomes_a_tar(deep_image: str, tmp_path: Path) -> None:
    result = paralayer.convert_tar(deep_image, tmp_path / "flat.tar")
    assert result.survivors == 750 + 3


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    remove(str(tmp_path / "nothing"))


def test_removing_never_follows_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("here")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    remove(str(tmp_path / "tree"))
    assert (tmp_path / "kept" / "file").read_text() == "here"


def test_an_output_that_came_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"), replace=False)
    with open(output.temporary, "w") as file:
        file.write("new")
    (tmp_path / "out").write_text("old")
    with pytest.raises(SinkError, match="cannot be put in place"):
        output.commit()
    output.abort()
    assert (tmp_path / "out").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_has_no_name_before_it_is_complete(replace: bool, tmp_path: Path) -> None:
    if replace:
        (tmp_path / "out").write_text("old")
    output = Output(str(tmp_path / "out"), replace=replace)
    fd = output.create()
    os.write(fd, b"new")
    assert os.listdir(tmp_path) == ["out"] * replace
    with open(output.temporary, "rb") as file:
        assert file.read() == b"new"
    output.commit()
    os.close(fd)
    output.abort()
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"new"


REPLACED = {
    "a file by a file": ("file", "file"),
    "a file by a directory": ("file", "directory"),
    "a directory by a directory": ("directory", "directory"),
    "a symlink, not its target": ("symlink", "file"),
}


@pytest.mark.parametrize(("old", "new"), REPLACED.values(), ids=REPLACED)
def test_an_output_is_replaced_at_once(old: str, new: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("stays")
    make(tmp_path / "out", old, target)
    output = Output(str(tmp_path / "out"), replace=True, directory=new == "directory")
    make(type(tmp_path)(output.temporary), new, target)
    output.commit()
    assert (tmp_path / "out").is_dir() == (new == "directory")
    assert not (tmp_path / "out").is_symlink()
    assert target.read_text() == "stays"
    assert sorted(os.listdir(tmp_path)) == ["out", "target"]


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(SinkError, match="neither a file nor a directory"):
        Output("/dev/null", replace=True)


def make(path: Path, kind: str, target: Path) -> None:
    if kind == "file":
        path.write_text("content")
    elif kind == "directory":
        (path / "below").mkdir(parents=True)
        (path / "below" / "file").write_text("content")
    else:
        path.symlink_to(target)


@pytest.mark.requires("root")
def test_a_directory_with_a_mount_in_it_is_not_replaced(tmp_path: Path) -> None:
    mounted = tmp_path / "old" / "a mount"
    mounted.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", mounted], check=True)
    try:
        (mounted / "data").write_text("x")
        with pytest.raises(SinkError, match=r"a file system mounted in it"):
            Output(str(tmp_path / "old"), replace=True, directory=True)
        assert (mounted / "data").read_text() == "x"
    finally:
        subprocess.run(["umount", mounted], check=True)
