"""Images of umoci and buildah, judged by umoci, the kernel's overlayfs and the common tar tools."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import paralayer
from images import build_with_buildah, build_with_umoci, read_layers, write_image
from model import char, directory, fifo, file, hardlink, merge, symlink
from paralayer.spec import ImageSpec
from processes import AS_NOBODY, finish, one_line
from trees import (
    NOT_ON_DISK,
    diff,
    extract_tar,
    from_model,
    overlay_tree,
    snapshot_directory,
    snapshot_tar,
    umoci_unpack,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from images import RealImage
    from model import Node

pytestmark = pytest.mark.requires("umoci", "root")


@pytest.fixture(scope="module", params=["umoci", "buildah"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealImage]:
    top = tmp_path_factory.mktemp(request.param)
    if request.param == "umoci":
        yield build_with_umoci(f"{top}/layout", f"{top}/scratch")
        return
    if not shutil.which("buildah"):
        pytest.skip("missing: buildah")
    yield build_with_buildah(f"{top}/layout", f"{top}/scratch")


@pytest.fixture(scope="module")
def unpacked(image: RealImage, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, Node]:
    """Return the tree as umoci unpacks it."""
    return umoci_unpack(image.layout, f"{tmp_path_factory.mktemp('unpacked')}/bundle", image.tag)


@pytest.fixture(scope="module")
def flat(image: RealImage, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the flat tar."""
    path = f"{tmp_path_factory.mktemp('flat')}/out.tar"
    paralayer.convert(image.layout, ImageSpec.tar(path), jobs=2)
    return path


def test_tar_is_what_umoci_unpacks(flat: str, unpacked: dict[bytes, Node]) -> None:
    assert diff(snapshot_tar(flat), unpacked, ignore=NOT_ON_DISK) == []
    assert len(unpacked) > 100


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("memory", [1, None])
def test_directory_is_what_umoci_unpacks(
    image: RealImage, unpacked: dict[bytes, Node], tmp_path: Path, jobs: int, memory: int | None
) -> None:
    result = paralayer.convert(image.layout, ImageSpec.directory(tmp_path / "out"), jobs=jobs, memory=memory)
    assert result.warnings == ()
    assert diff(snapshot_directory(os.fsencode(tmp_path / "out")), unpacked) == []
    assert os.listdir(tmp_path) == ["out"]


def test_tree_is_the_one_that_was_built(image: RealImage, flat: str) -> None:
    assert diff(snapshot_tar(flat), image.want, ignore=[*NOT_ON_DISK, "mtime", "mtime_ns"]) == []


@pytest.mark.requires("overlay")
def test_tree_is_what_the_kernel_mounts(image: RealImage, flat: str, tmp_path: Path) -> None:
    mounted = overlay_tree(read_layers(image.layout, image.tag), f"{tmp_path}/overlay")
    # umoci stores no entries for unchanged parents; the kernel takes their metadata from where they are implied.
    implied = [f"dir.{name}" for name in ("mode", "uid", "gid", "mtime", "mtime_ns", "xattrs")]
    ignore = [*NOT_ON_DISK, *(implied if "umoci" in image.layout else ())]
    assert diff(snapshot_tar(flat), mounted, ignore=ignore) == []


def test_gnu_tar_extracts_the_same_tree(
    flat: str, unpacked: dict[bytes, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is, but for the times of directories that are filled again after others; with one option, these too."""
    assert diff(extract_tar(flat, f"{tmp_path}/plain"), unpacked, ignore=["dir.mtime", "dir.mtime_ns"]) == []
    monkeypatch.setenv("TAR_OPTIONS", "--delay-directory-restore")
    assert diff(extract_tar(flat, f"{tmp_path}/delayed"), unpacked) == []


@pytest.mark.requires("bsdtar")
def test_bsdtar_extracts_the_same_tree(flat: str, unpacked: dict[bytes, Node], tmp_path: Path) -> None:
    extracted = extract_tar(flat, f"{tmp_path}/extracted", "bsdtar")
    # It sets no times on the directory that it extracts into.
    extracted[b""] = replace(extracted[b""], mtime=unpacked[b""].mtime, mtime_ns=unpacked[b""].mtime_ns)
    assert diff(extracted, unpacked) == []


def test_python_extracts_the_same_tree(flat: str, unpacked: dict[bytes, Node], tmp_path: Path) -> None:
    """But for what `tarfile` does not know: xattrs, nanoseconds, times of symlinks."""
    extracted = extract_tar(flat, f"{tmp_path}/extracted", "tarfile")
    assert diff(extracted, unpacked, ignore=["xattrs", "mtime_ns", "symlink.mtime"]) == []


def test_sparse_file_stays_sparse(tmp_path: Path) -> None:
    layer = subprocess.run(
        ["tar", "-C", tmp_path, "--format=posix", "--sparse", "-cf", "-", "sparse"],
        check=True,
        stdout=subprocess.PIPE,
        cwd=make_sparse(tmp_path / "sparse"),
    ).stdout
    assert len(layer) < 1 << 20
    layout = write_image(str(tmp_path / "layout"), [layer], compression="gzip")
    want = (tmp_path / "sparse").read_bytes()
    paralayer.convert(layout, ImageSpec.directory(tmp_path / "out"))
    paralayer.convert(layout, ImageSpec.tar(tmp_path / "out.tar"))
    assert (tmp_path / "out/sparse").read_bytes() == want
    assert blocks(tmp_path / "out/sparse") < 1 << 20
    assert blocks(tmp_path / "out.tar") < 1 << 20
    assert snapshot_tar(str(tmp_path / "out.tar"))[b"sparse"].data == want


def make_sparse(path: Path) -> Path:
    with open(path, "wb") as stream:
        stream.seek(3 << 20)
        stream.write(b"an island" * 1000)
        stream.seek(7 << 20)
        stream.write(b"another")
        stream.truncate(20 << 20)
    return path.parent


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


# As an ordinary user

MINE = 65534
PRIVILEGED = (b"security.", b"trusted.")


@pytest.fixture
def common(tmp_path: Path) -> Path:
    """Return a directory that everybody can write to."""
    path = tmp_path / "common"
    path.mkdir()
    path.chmod(0o777)
    for parent in path.parents:
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(parent.stat().st_mode | 0o011)
    return path


def as_nobody(layout: str, output: Path, *options: str) -> str:
    """Convert as an ordinary user; return what was printed on standard error."""
    done = finish([*AS_NOBODY, *options, layout, str(output)])
    assert done.returncode == 0, done.stderr
    return done.stderr


def without_privileges(tree: dict[bytes, Node]) -> dict[bytes, Node]:
    """Return what an ordinary user can make of a tree."""
    possible = {}
    for path, node in tree.items():
        if node.kind not in ("char", "block"):
            xattrs = {key: value for key, value in node.xattrs.items() if not key.startswith(PRIVILEGED)}
            possible[path] = replace(node, uid=MINE, gid=MINE, xattrs=xattrs)
    return possible


@pytest.mark.requires("setpriv")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ordinary_user_gets_all_but_what_root_alone_can_make(
    image: RealImage, unpacked: dict[bytes, Node], common: Path, jobs: str
) -> None:
    layout = shutil.copytree(image.layout, common / "layout")
    subprocess.run(["chmod", "-R", "a+rX", layout], check=True)
    error = as_nobody(str(layout), common / "out", "--jobs", jobs)
    assert diff(snapshot_directory(os.fsencode(common / "out")), without_privileges(unpacked)) == []
    devices = sum(node.kind in ("char", "block") for node in unpacked.values())
    inodes = len({node.group for node in unpacked.values() if node.kind not in ("char", "block")})
    warning, summary = error.splitlines()
    assert warning == (
        f"paralayer: warning: left out or changed: devices (only root can make them): {devices}, "
        f"owners (only root can give files away): {inodes}, xattrs that may not or cannot be set here: 1"
    )
    assert summary.startswith(f"{common}/out: ")


@pytest.mark.requires("setpriv")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ordinary_user_gets_what_is_closed_to_himself(common: Path, jobs: str) -> None:
    stack = [
        [
            directory(b"./", 0o555),
            directory(b"closed", 0),
            directory(b"closed/below", 0o555, xattrs={b"user.d": b"1"}),
            file(b"closed/below/f", b"data" * 100_000, mode=0o400, mtime_ns=5),
            file(b"secret", b"data", mode=0),
            file(b"tagged", b"data", mode=0o444, xattrs={b"user.x": b"1"}),
            hardlink(b"closed/link", b"tagged"),
            symlink(b"pointer", b"closed"),
            fifo(b"pipe", mode=0),
        ]
    ]
    layout = write_image(f"{common}/layout", stack)
    error = as_nobody(layout, common / "out", "--jobs", jobs)
    want = without_privileges(from_model(merge(stack)))
    assert diff(snapshot_directory(os.fsencode(common / "out")), want) == []
    assert "owners (only root can give files away): 8" in error


@pytest.mark.requires("setpriv")
def test_ordinary_user_can_replace_what_he_made(common: Path) -> None:
    """Whatever its modes are."""
    stack = [
        [
            directory(b"./", 0o555),
            directory(b"d", 0o500),
            directory(b"d/d", 0),
            file(b"d/d/f", b"data", mode=0),
        ]
    ]
    layout = write_image(f"{common}/layout", stack)
    for _ in range(2):
        as_nobody(layout, common / "out", "--force")
    assert sorted(os.listdir(common)) == ["layout", "out"]
    want = without_privileges(from_model(merge(stack)))
    assert diff(snapshot_directory(os.fsencode(common / "out")), want) == []


@pytest.mark.requires("setpriv")
def test_hard_links_of_a_device_are_left_out_with_it(common: Path) -> None:
    layout = write_image(
        f"{common}/layout",
        [[char(b"null", 1, 3), hardlink(b"zero", b"null"), file(b"f", uid=MINE, gid=MINE)]],
    )
    one = as_nobody(layout, common / "out", "--quiet")
    assert one == ""
    assert os.listdir(common / "out") == ["f"]
    error = as_nobody(layout, common / "out", "--force")
    assert "devices (only root can make them): 2" in error


@pytest.mark.requires("setpriv")
def test_no_warning_where_nothing_is_lost(common: Path) -> None:
    mine = {"uid": MINE, "gid": MINE}
    stack = [
        [
            directory(b"./", 0o711, **mine),
            directory(b"d", 0o2755, **mine),
            file(b"d/f", b"x", mode=0o4755, **mine),
        ]
    ]
    layout = write_image(f"{common}/layout", stack)
    one_line(as_nobody(layout, common / "out"), f"{common}/out: ")
    assert diff(snapshot_directory(os.fsencode(common / "out")), from_model(merge(stack))) == []


@pytest.mark.requires("setpriv")
def test_nothing_is_inherited_from_the_place(tmp_path: Path) -> None:
    """Neither the group of a set-group-id directory nor default ACLs: the tree is the image's."""
    place = tmp_path / "place"
    place.mkdir()
    os.chown(place, 0, 1234)
    place.chmod(0o2777)
    # linux/posix_acl_xattr.h: version 2; user::rwx, user:1000:rwx, group::rwx, mask::rwx, other::rwx
    entries = [
        (1, 7, 0xFFFFFFFF),
        (2, 7, 1000),
        (4, 7, 0xFFFFFFFF),
        (0x10, 7, 0xFFFFFFFF),
        (0x20, 7, 0xFFFFFFFF),
    ]
    acl = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + permissions.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, permissions, who in entries
    )
    os.setxattr(place, "system.posix_acl_default", acl)
    stack = [
        [directory(b"d", 0o750), file(b"d/f", b"x", mode=0o640), fifo(b"p", mode=0o600), symlink(b"l", b"d")]
    ]
    layout = write_image(f"{tmp_path}/layout", stack)
    paralayer.convert(layout, ImageSpec.directory(place / "out"))
    assert diff(snapshot_directory(os.fsencode(place / "out")), from_model(merge(stack))) == []


# Deep and long


def test_deep_tree_is_made_and_removed(tmp_path: Path) -> None:
    depth = 1500
    paths = [b"/".join([b"deep"] * count) for count in range(1, depth)]
    stack = [[*map(directory, paths), file(paths[-1] + b"/f", b"x"), symlink(paths[-1] + b"/l", b"f")]]
    layout = write_image(f"{tmp_path}/layout", stack, compression="gzip")
    for _ in range(2):
        paralayer.convert(layout, ImageSpec.directory(tmp_path / "out", force=True))
    assert sorted(os.listdir(tmp_path)) == ["layout", "out"]
    paralayer.convert(layout, ImageSpec.tar(tmp_path / "out.tar"))
    assert snapshot_tar(str(tmp_path / "out.tar")).keys() == {b"", *(entry.path for entry in stack[0])}
    below = os.open(tmp_path / "out", os.O_RDONLY)
    for _ in range(depth - 1):
        above, below = below, os.open("deep", os.O_RDONLY, dir_fd=below)
        os.close(above)
    try:
        assert sorted(os.listdir(below)) == ["f", "l"]
        assert os.readlink("l", dir_fd=below) == "f"
    finally:
        os.close(below)
    subprocess.run(["rm", "-r", tmp_path / "out"], check=True)
