"""Each kind of source against each, and each field that can be different."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import stat
import struct
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import pytest

import paralayer
from images import run, write_image
from model import directory, file, hardlink, symlink, whiteout
from paralayer.errors import DigestError, ImageError, quote
from paralayer.verification import VerifyProgress, VerifyReport, verify
from verify_trees import (
    MIB,
    NOISE,
    copy_tree,
    make_tree,
    restore_times,
    source_of,
    squashfs_of,
    times_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model import Entry

pytestmark = pytest.mark.requires("root", "mksquashfs", "tar")

KINDS = ["image", "directory", "tar", "our tar", "our directory", "squashfs"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> str:
    top = str(tmp_path_factory.mktemp("tree") / "top")
    make_tree(top, linked_symlinks=False)
    return top


@pytest.fixture(scope="module")
def sources(tree: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the same tree in each kind of source."""
    scratch = tmp_path_factory.mktemp("sources")
    return {kind: source_of(kind, tree, str(scratch / kind)) for kind in KINDS}


def assert_same(report: VerifyReport) -> None:
    assert report.same, json.dumps(report.as_dict(), indent=1)
    assert report.paths_a == report.paths_b


# The same tree


@pytest.mark.parametrize("a", KINDS)
@pytest.mark.parametrize("b", KINDS)
def test_the_same_tree_is_the_same(a: str, b: str, sources: dict[str, str]) -> None:
    report = verify(sources[a], sources[b])
    assert_same(report)
    assert report.paths_a > 140
    assert ("times below a second, before 1970 and after 2106" in report.not_compared) == (
        "squashfs" in (a, b)
    )


@pytest.mark.parametrize("b", ["our directory", "our tar", "squashfs", "image"])
def test_worker_processes_find_the_same(b: str, sources: dict[str, str]) -> None:
    """The tree has more than the 8 MiB below which this process does everything."""
    assert_same(verify(sources["image"], sources[b], jobs=1))
    assert_same(verify(sources["image"], sources[b], jobs=3))


@pytest.mark.parametrize("jobs", [1, 2])
def test_little_memory_finds_the_same(jobs: int, sources: dict[str, str]) -> None:
    assert_same(verify(sources["image"], sources["our tar"], jobs=jobs, memory=1))


def test_a_mount_is_the_same(sources: dict[str, str], tmp_path: Path) -> None:
    assert_same(verify(sources["squashfs"], sources["image"], mount=True))
    assert_same(verify(sources["squashfs"], f"squashfs:{sources['squashfs']}", mount=True))
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        assert sources["squashfs"] not in mounts.read()


def test_sockets_are_compared(tmp_path: Path) -> None:
    make_tree(str(tmp_path / "top"), sockets=True, linked_symlinks=False)
    image = squashfs_of(str(tmp_path / "top"), str(tmp_path / "image"))
    assert_same(verify(str(tmp_path / "top"), image))
    os.remove(tmp_path / "top" / "dev" / "socket")
    assert verify(str(tmp_path / "top"), image, ignore={"times"}).only_in_b == (b"dev/socket",)


def test_an_implied_root_is_what_sinks_write(tmp_path: Path) -> None:
    image = write_image(str(tmp_path / "image"), [[file(b"f", b"content")]])
    paralayer.convert_tar(image, tmp_path / "out.tar")
    paralayer.convert_dir(image, tmp_path / "out")
    assert_same(verify(image, str(tmp_path / "out.tar")))
    assert_same(verify(image, str(tmp_path / "out")))
    os.chmod(tmp_path / "out", 0o700)
    (difference,) = verify(image, str(tmp_path / "out")).differences
    assert str(difference) == "/: mode: 0755, 0700"


def test_the_clamp_of_a_conversion_applies_to_the_image(tmp_path: Path) -> None:
    image = write_image(str(tmp_path / "image"), [[file(b"late", mtime=2000), file(b"early", mtime=10)]])
    paralayer.convert_tar(image, tmp_path / "out.tar", mtime=1000)
    assert_same(verify(image, str(tmp_path / "out.tar"), newest=1000))
    (difference,) = verify(image, str(tmp_path / "out.tar")).differences
    assert (difference.path, difference.field) == (b"late", "time")


def test_attributes_that_no_output_holds_are_not_expected(tmp_path: Path) -> None:
    entries = [
        file(b"f", xattrs={b"trusted.overlay.opaque": b"y", b"strange.name": b"1", b"user.kept": b"1"}),
        symlink(b"l", b"f", xattrs={b"user.not_here": b"1"}),
    ]
    image = write_image(str(tmp_path / "image"), [entries])
    paralayer.convert_dir(image, tmp_path / "out")
    assert_same(verify(image, str(tmp_path / "out")))


def test_the_merged_tree_is_meant(tmp_path: Path) -> None:
    base: list[Entry] = [directory(b"d"), file(b"d/old", b"old"), hardlink(b"kept", b"d/old"), file(b"gone")]
    image = write_image(
        str(tmp_path / "image"), [base, [whiteout(b"d/old"), whiteout(b"gone"), file(b"d/new")]]
    )
    flat = write_image(str(tmp_path / "flat"), [[directory(b"d"), file(b"d/new"), file(b"kept", b"old")]])
    assert_same(verify(image, flat))


def test_an_output_that_starts_over_is_read_whole(tmp_path: Path) -> None:
    """A path that comes twice overturns what was resolved early."""
    noise = NOISE[: 2 * MIB]
    layer = [*(file(b"f%d" % n, noise) for n in range(16)), file(b"f3", b"the last one counts")]
    image = write_image(str(tmp_path / "image"), [[file(b"base")], layer])
    paralayer.convert_tar(image, tmp_path / "out.tar")
    assert_same(verify(image, str(tmp_path / "out.tar"), jobs=2))


# Different trees


def remove(top: str, path: str) -> None:
    os.remove(os.path.join(top, path))


def write(top: str, path: str, data: bytes, at: int = 0) -> None:
    with open(os.path.join(top, path), "r+b") as stream:
        stream.seek(at)
        stream.write(data)


def break_link(top: str, path: str) -> None:
    whole = os.path.join(top, path)
    shutil.copy2(whole, whole + ".copy")
    os.chown(whole + ".copy", os.stat(whole).st_uid, os.stat(whole).st_gid)
    os.replace(whole + ".copy", whole)


def relink(top: str, path: str, target: str) -> None:
    remove(top, path)
    os.link(os.path.join(top, target), os.path.join(top, path))


def resymlink(top: str, path: str, target: str) -> None:
    status = os.lstat(os.path.join(top, path))
    remove(top, path)
    os.symlink(target, os.path.join(top, path))
    os.chown(os.path.join(top, path), status.st_uid, status.st_gid, follow_symlinks=False)


def replace_by_directory(top: str, path: str) -> None:
    remove(top, path)
    os.mkdir(os.path.join(top, path))


def renode(top: str, path: str, kind: int, device: int) -> None:
    mode = stat.S_IMODE(os.stat(os.path.join(top, path)).st_mode)
    remove(top, path)
    os.mknod(os.path.join(top, path), kind, device)
    os.chmod(os.path.join(top, path), mode)


# What is done to a copy, and the lines that tell it; those about times come last, when times are as they were.
MUTATIONS: dict[str, tuple[Callable[[str], object], list[str]]] = {
    "nothing": (lambda top: None, []),
    "mode": (lambda top: os.chmod(f"{top}/bin/su", 0o755), ["bin/su: mode: 4755, 0755"]),
    "mode of a directory": (lambda top: os.chmod(f"{top}/tmp", 0o777), ["tmp: mode: 1777, 0777"]),
    "mode of the root": (lambda top: os.chmod(top, 0o755), ["/: mode: 0750, 0755"]),
    "user": (lambda top: os.chown(f"{top}/data/large", 9, 0), ["data/large: owner: 0:0, 9:0"]),
    "group": (
        lambda top: os.chown(f"{top}/data/part", 12345, 1),
        ["data/part: owner: 12345:4294967293, 12345:1"],
    ),
    "owner of a symlink": (
        lambda top: os.chown(f"{top}/bin/link", 7, 9, follow_symlinks=False),
        ["bin/link: owner: 7:8, 7:9"],
    ),
    "size": (lambda top: write(top, "data/empty", b"x"), ["data/empty: size: 0, 1"]),
    "size of a large file": (
        lambda top: os.truncate(f"{top}/data/large", 3 * MIB),
        ["data/large: size: 3145735, 3145728"],
    ),
    "content": (lambda top: write(top, "data/small", b"S"), ["data/small: content: sha256:*, sha256:*"]),
    "content in a later part": (
        lambda top: write(top, "data/large", b"....", 2 * MIB + 5),
        ["data/large: content: sha256:* of bytes 2097152 to 3145727, sha256:* of bytes 2097152 to 3145727"],
    ),
    "content at the end": (
        lambda top: write(top, "data/large", b"\0\0\0", 3 * MIB + 4),
        ["data/large: content: sha256:* of bytes 3145728 to 3145734, sha256:* of bytes 3145728 to 3145734"],
    ),
    "content in a hole": (
        lambda top: write(top, "data/hole", b"1", 2 * MIB),
        ["data/hole: content: sha256:* of bytes 2097152 to 2097152, sha256:* of bytes 2097152 to 2097152"],
    ),
    "a hole in content": (
        lambda top: write(top, "data/text", bytes(MIB), MIB),
        ["data/text: content: sha256:* of bytes 1048576 to 2097151, sha256:* of bytes 1048576 to 2097151"],
    ),
    "target": (
        lambda top: resymlink(top, "bin/link", "../data/large"),
        ["bin/link: target: ../data/small, ../data/large"],
    ),
    "device": (
        lambda top: renode(top, "dev/null", stat.S_IFCHR, os.makedev(1, 5)),
        ["dev/null: device: 1:3, 1:5"],
    ),
    "device of another driver": (
        lambda top: renode(top, "dev/null", stat.S_IFCHR, os.makedev(5, 3)),
        ["dev/null: device: 1:3, 5:3"],
    ),
    "device of large numbers": (
        lambda top: renode(top, "dev/large", stat.S_IFBLK, os.makedev(0xABC, 0x1ABCD)),
        ["dev/large: device: 2748:633805, 2748:109517"],
    ),
    "type of a device": (
        lambda top: renode(top, "dev/null", stat.S_IFBLK, os.makedev(1, 3)),
        ["dev/null: type: character device, block device"],
    ),
    "type": (lambda top: replace_by_directory(top, "data/small"), ["data/small: type: file, directory"]),
    "xattr added": (
        lambda top: os.setxattr(f"{top}/data/large", "user.new", b"1\xff"),
        ["data/large: xattr user.new: None, 1\\xff"],
    ),
    "xattr removed": (
        lambda top: os.removexattr(f"{top}/bin/ping", "security.capability"),
        ["bin/ping: xattr security.capability: *, None"],
    ),
    "xattr changed": (
        lambda top: os.setxattr(f"{top}/data", "trusted.on a directory", b"2"),
        ["data: xattr trusted.on a directory: 1, 2"],
    ),
    "empty xattr removed": (
        lambda top: os.removexattr(f"{top}/data/small", "user.empty"),
        ["data/small: xattr user.empty: , None"],
    ),
    "end of a long xattr": (
        lambda top: os.setxattr(f"{top}/data/part", "user.long", b"v" * 2999 + b"w"),
        ["data/part: xattr user.long: 3000 bytes, sha256:*, 3000 bytes, sha256:*"],
    ),
    "xattr of a symlink": (
        lambda top: os.setxattr(f"{top}/bin/broken", "trusted.link", b"", follow_symlinks=False),
        ["bin/broken: xattr trusted.link: on a link, "],
    ),
    "time": (
        lambda top: os.utime(f"{top}/data/large", ns=(0, 5 * 10**9)),
        ["data/large: time: *, 5"],
    ),
    "time after 2038": (
        lambda top: os.utime(f"{top}/data/empty", ns=(0, 4 * 10**18)),
        ["data/empty: time: 2147483648, *"],
    ),
    "time of the root": (lambda top: os.utime(top, ns=(0, 0)), ["/: time: *, 0"]),
    "time of a symlink": (
        lambda top: os.utime(f"{top}/bin/link", ns=(0, 0), follow_symlinks=False),
        ["bin/link: time: *, 0"],
    ),
    "a link that is none": (
        lambda top: break_link(top, "data/shared"),
        ["data/shared: link: a first name, None"],
    ),
    "a link whose first name is another": (
        lambda top: break_link(top, "a first name"),
        ["bin/shared: link: a first name, None", "data/shared: link: a first name, bin/shared"],
    ),
    "a path of a group is missing": (lambda top: remove(top, "a first name"), ["only in a: a first name"]),
    "something is missing": (
        lambda top: shutil.rmtree(f"{top}/deep/d/d"),
        [
            *("only in a: deep/d" + "/d" * n for n in range(1, 120)),
            "only in a: deep" + "/d" * 120 + "/bottom",
        ],
    ),
    "something is too much": (
        lambda top: os.mkdir(f"{top}/names/new"),
        ["only in b: names/new"],
    ),
    "a name that is not UTF-8": (
        lambda top: os.rename(
            os.path.join(os.fsencode(top), b"names/not utf-8 \xff\xfe"),
            os.path.join(os.fsencode(top), b"names/not utf-8 \xff\xfd"),
        ),
        ["only in a: names/not utf-8 \\xff\\xfe", "only in b: names/not utf-8 \\xff\\xfd"],
    ),
}


@pytest.mark.parametrize("kind", ["directory", "tar", "squashfs", "image"])
@pytest.mark.parametrize("title", MUTATIONS)
def test_a_change_is_found_and_nothing_else(title: str, kind: str, tree: str, tmp_path: Path) -> None:
    mutate, want = MUTATIONS[title]
    changed = copy_tree(tree, str(tmp_path / "changed"))
    if not title.startswith("time"):
        mutate(changed)
    restore_times(changed, times_of(tree))
    if title.startswith("time"):
        mutate(changed)
    source = source_of(kind, changed, str(tmp_path / "source"))
    report = verify(tree, source)
    got = told(report)
    assert len(got) == len(want), got
    assert all(map(fnmatchcase, got, want)), got
    assert report.same == (not want)
    if kind == "directory":
        back = verify(source, tree)
        assert [(each.path, each.field, each.b, each.a) for each in back.differences] == [
            (each.path, each.field, each.a, each.b) for each in report.differences
        ]
        assert (back.only_in_a, back.only_in_b) == (report.only_in_b, report.only_in_a)


def told(report: VerifyReport) -> list[str]:
    return [
        *(f"only in a: {quote(path)}" for path in report.only_in_a),
        *(f"only in b: {quote(path)}" for path in report.only_in_b),
        *map(str, report.differences),
    ]


@pytest.mark.parametrize(
    ("ignore", "left"),
    {
        "nothing": ((), ["owner", "xattr user.new", "time"]),
        "times": (("times",), ["owner", "xattr user.new"]),
        "owner": (("owner",), ["xattr user.new", "time"]),
        "xattrs": (("xattrs",), ["owner", "time"]),
        "all": (("times", "owner", "xattrs"), []),
    }.values(),
)
def test_what_is_ignored_is_not_reported(
    ignore: tuple[str, ...], left: list[str], tree: str, tmp_path: Path
) -> None:
    changed = copy_tree(tree, str(tmp_path / "changed"))
    os.chown(f"{changed}/data/large", 1, 1)
    os.setxattr(f"{changed}/data/large", "user.new", b"")
    os.utime(f"{changed}/data/large", ns=(0, 0))
    report = verify(tree, changed, ignore=ignore)
    assert [difference.field for difference in report.differences] == left
    assert set(ignore) <= set(report.not_compared)


def test_times_that_squashfs_cannot_hold_are_compared_as_it_holds_them(tmp_path: Path) -> None:
    times = {b"before 1970": (-5, 0), b"after 2106": (1 << 33, 0), b"a fraction": (77, 999_999_999)}
    entries = [file(name, mtime=seconds, mtime_ns=rest) for name, (seconds, rest) in times.items()]
    image = write_image(str(tmp_path / "image"), [entries])
    held = {b"before 1970": 0, b"after 2106": (1 << 32) - 1, b"a fraction": 77}
    top = tmp_path / "top"
    top.mkdir()
    for name, seconds in held.items():
        (top / os.fsdecode(name)).touch()
        os.utime(top / os.fsdecode(name), (0, seconds))
    os.chmod(top, 0o755)
    for path in (*top.iterdir(), top):
        os.chmod(path, 0o644 if path != top else 0o755)
    os.utime(top, (0, 0))
    assert_same(verify(image, squashfs_of(str(top), str(tmp_path / "squashfs"))))
    assert verify(image, str(top)).difference_count == 3


def test_modes_of_symlinks_are_not_compared(tmp_path: Path) -> None:
    odd = [replace(symlink(b"l", b"f"), mode=0o700)]
    image = write_image(str(tmp_path / "image"), [odd])
    other = write_image(str(tmp_path / "other"), [[symlink(b"l", b"f")]])
    for form in ("tar", "squashfs", "dir"):
        getattr(paralayer, f"convert_{form}")(image, tmp_path / form)
        assert_same(verify(other, str(tmp_path / form)))


def test_links_of_two_images_are_compared(tmp_path: Path) -> None:
    linked = write_image(
        str(tmp_path / "linked"), [[file(b"f", b"1"), hardlink(b"g", b"f"), hardlink(b"h", b"f")]]
    )
    apart = write_image(str(tmp_path / "apart"), [[file(b"f", b"1"), file(b"g", b"1"), hardlink(b"h", b"f")]])
    alone = write_image(str(tmp_path / "alone"), [[file(b"f", b"1"), file(b"g", b"1"), file(b"h", b"1")]])
    assert told(verify(linked, apart)) == ["g: link: f, None"]
    assert told(verify(linked, alone)) == ["g: link: f, None", "h: link: f, None"]
    assert told(verify(alone, apart)) == ["h: link: None, f"]


def test_times_before_1970_keep_their_fraction(tmp_path: Path) -> None:
    entries = [file(b"f", mtime=-5, mtime_ns=400_000_000), file(b"g", mtime=-1, mtime_ns=1)]
    image = write_image(str(tmp_path / "image"), [entries])
    paralayer.convert_tar(image, tmp_path / "tar")
    paralayer.convert_dir(image, tmp_path / "dir")
    assert_same(verify(image, str(tmp_path / "tar")))
    assert_same(verify(str(tmp_path / "dir"), str(tmp_path / "tar")))


def test_access_control_lists_are_compared_where_both_sides_can_hold_them(tmp_path: Path) -> None:
    # linux/posix_acl_xattr.h: version 2; user::rw-, user:5:r--, group::r--, mask::r--, other::r--
    entries = [(1, 6, -1), (2, 4, 5), (4, 4, -1), (16, 4, -1), (32, 4, -1)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    acl = {b"system.posix_acl_access": value}
    image = write_image(str(tmp_path / "image"), [[file(b"f", xattrs=acl, mtime=5)]])
    paralayer.convert_tar(image, tmp_path / "out.tar")
    paralayer.convert_dir(image, tmp_path / "out")
    assert_same(verify(image, str(tmp_path / "out.tar")))
    assert_same(verify(image, str(tmp_path / "out")))
    os.removexattr(tmp_path / "out" / "f", "system.posix_acl_access")
    os.chmod(tmp_path / "out" / "f", 0o644)
    (difference,) = verify(image, str(tmp_path / "out")).differences
    assert difference.field == "xattr system.posix_acl_access"
    packed = squashfs_of(str(tmp_path / "out"), str(tmp_path / "squashfs"))
    assert_same(verify(image, packed))


def test_all_differences_are_counted_and_the_first_thousand_kept(tmp_path: Path) -> None:
    one = write_image(
        str(tmp_path / "one"), [[*(file(b"%04d" % n, b"1") for n in range(1100)), file(b"a1"), file(b"a2")]]
    )
    two = write_image(str(tmp_path / "two"), [[*(file(b"%04d" % n, b"2") for n in range(1100)), file(b"b1")]])
    report = verify(one, two)
    assert (report.difference_count, report.only_in_a_count, report.only_in_b_count) == (1100, 2, 1)
    assert [difference.path for difference in report.differences] == [b"%04d" % n for n in range(1000)]
    assert report.only_in_a == (b"a1", b"a2")
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["same"] is False
    assert plain["difference_count"] == 1100
    assert plain["differences"][0]["path"] == "0000"


def test_progress_of_each_side_ends_with_all_of_it(sources: dict[str, str]) -> None:
    events: list[VerifyProgress] = []
    verify(sources["image"], sources["squashfs"], jobs=2, progress=events.append)
    for side in ("a", "b"):
        mine = [event for event in events if event.side == side]
        assert [event.done for event in mine] == sorted(event.done for event in mine)
        assert mine[-1].done == mine[-1].total > 0


# What a side is


def test_prefixes_settle_what_a_path_is(sources: dict[str, str], tree: str) -> None:
    layout = sources["image"]
    assert verify(layout, f"oci:{layout}").same
    report = verify(f"dir:{layout}", f"oci:{layout}")
    assert b"oci-layout" in report.only_in_a
    assert verify(f"tar:{sources['tar']}", f"dir:{tree}").same
    assert verify(f"squashfs:{sources['squashfs']}", sources["squashfs"]).same


def test_an_archive_of_an_image_is_an_image_unless_it_is_said_to_be_a_tree(tmp_path: Path) -> None:
    layout = write_image(str(tmp_path / "layout"), [[file(b"f", b"in the image")]])
    archive = str(tmp_path / "archive.tar")
    run("tar", "-C", layout, "-cf", archive, ".")
    assert_same(verify(archive, layout))
    assert_same(verify(f"oci-archive:{archive}:latest", layout))
    assert_same(verify(f"{archive}:latest", f"{layout}:latest"))
    assert_same(verify(f"tar:{archive}", f"dir:{layout}", ignore={"times"}))


def test_an_opened_image_and_a_path_object_are_taken(sources: dict[str, str], tmp_path: Path) -> None:
    image = paralayer.open_image(sources["image"])
    paralayer.convert_tar(image, tmp_path / "out.tar")
    assert_same(verify(image, tmp_path / "out.tar"))


REFUSED: dict[str, tuple[Callable[[str], str], str]] = {
    "nothing there": (lambda top: f"{top}/missing", "No such file"),
    "no tree there": (lambda top: f"dir:{top}/missing", "No such file"),
    "a name that is none": (lambda top: "tar:a\0b", "no file can have this name"),
    "a device": (lambda top: "/dev/null", "neither a file nor a directory"),
    "a file that is no directory": (lambda top: f"dir:{top}/file", "file type: got a file, want dir"),
    "a directory that is no tar": (lambda top: f"tar:{top}", "file type: got a directory, want tar"),
    "an empty file": (lambda top: f"{top}/empty", "empty file"),
    "no archive": (lambda top: f"{top}/file", "not a tar archive"),
    "compressed": (lambda top: f"{top}/gzip", "archive is compressed with gzip"),
    "no squashfs": (lambda top: f"squashfs:{top}/file", "not a squashfs 4.0 image"),
    "big-endian squashfs": (lambda top: f"squashfs:{top}/sqsh", "not a squashfs 4.0 image"),
}


@pytest.mark.parametrize("title", REFUSED)
def test_what_is_no_source_is_refused(title: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"some text\n" * 100)
    (tmp_path / "empty").touch()
    (tmp_path / "gzip").write_bytes(gzip.compress(bytes(1024)))
    (tmp_path / "sqsh").write_bytes(b"sqsh" + bytes(200))
    name, message = REFUSED[title]
    with pytest.raises(ImageError) as caught:
        verify(name(str(tmp_path)), str(tmp_path))
    assert message in str(caught.value)


def test_damage_of_an_image_is_told(tmp_path: Path) -> None:
    layout = write_image(str(tmp_path / "image"), [[file(b"f", b"content")]])
    blob = max((tmp_path / "image" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[600] ^= 1
    blob.write_bytes(data)
    with pytest.raises(DigestError):
        verify(layout, str(tmp_path))


@pytest.mark.parametrize(
    "options", [{"jobs": 0}, {"memory": 0}, {"ignore": {"time"}}], ids=["jobs", "memory", "ignore"]
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        verify(str(tmp_path), str(tmp_path), **options)
