"""What each reader makes of sources that are odd or damaged; judges are the kernel and what the tests wrote."""

from __future__ import annotations

import json
import lzma
import os
import random
import resource
import struct
import subprocess
import sys
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lz4.block
import psutil
import pytest
import zstandard

import paralayer
from images import (
    END_OF_ARCHIVE,
    pack_header,
    pack_special,
    pax_record,
    run,
    write_file,
    write_image,
    write_layer,
)
from model import directory, file, hardlink
from paralayer.errors import ImageError
from paralayer.verification import verify
from paralayer.verification.mount import _squashfuse, mounted
from paralayer.verification.squashfs_reader import SquashfsReader, _Lz4, _Xz, _Zlib, _Zstd
from processes import finish, running, wait_for
from test_verify import assert_same
from verify_trees import MIB, NOISE, gnu_tar_of, make_tree, squashfs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.requires("root", "mksquashfs", "tar")

GIB = 1 << 30


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> str:
    top = str(tmp_path_factory.mktemp("tree") / "top")
    make_tree(top, sockets=True, linked_symlinks=False)
    return top


# Squashfs

FORMS: dict[str, list[str]] = {
    "gzip": ["-comp", "gzip"],
    "zstd": ["-comp", "zstd"],
    "xz": ["-comp", "xz"],
    "xz with a filter": ["-comp", "xz", "-Xbcj", "x86"],
    "lz4": ["-comp", "lz4"],
    "lz4 in its slow form": ["-comp", "lz4", "-Xhc"],
    "nothing compressed": ["-noI", "-noD", "-noF", "-noX"],
    "no metadata compressed": ["-noI", "-noX", "-comp", "zstd"],
    "small blocks": ["-b", "4096"],
    "large blocks": ["-b", "1048576"],
    "tail ends in fragments": ["-always-use-fragments"],
    "no fragments": ["-no-fragments"],
    "no duplicates": ["-no-duplicates"],
    "no exports": ["-no-exports"],
}


@pytest.mark.parametrize("form", FORMS)
def test_squashfs_of_every_form_is_read(form: str, tree: str, tmp_path: Path) -> None:
    image = squashfs_of(tree, str(tmp_path / "image"), *FORMS[form])
    assert_same(verify(tree, image))
    assert_same(verify(tree, image, jobs=3))
    assert_same(verify(image, image, mount=True))


def test_a_large_directory_and_many_owners_and_xattr_sets_are_read(tmp_path: Path) -> None:
    """Tables of more than one metadata block: 600 xattr sets, 5,000 owners, 3,000 fragments."""
    entries = [
        file(
            b"d/%05d %s" % (n, b"x" * (n % 90)),
            b"%d" % n if n % 4 else NOISE[n : n + 4000],
            uid=n % 5000 + 70_000,
            xattrs={b"user.number": b"%d" % (n % 600), b"user.long": b"%d" % (n % 600) * 500}
            if n % 8 == 0
            else {},
        )
        for n in range(12_000)
    ]
    image = write_image(str(tmp_path / "image"), [[directory(b"d"), *entries]])
    top = str(tmp_path / "top")
    paralayer.convert_dir(image, top)
    packed = squashfs_of(top, str(tmp_path / "squashfs"), "-b", "4096", "-comp", "zstd")
    assert_same(verify(image, packed, jobs=2))
    assert_same(verify(packed, top, mount=True))


def test_files_over_4_gib_and_their_holes_are_compared(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    with open(top / "sparse", "wb") as stream:
        stream.truncate(5 * GIB + 11)
        stream.seek(4 * GIB + 77)
        stream.write(NOISE)
    archive = gnu_tar_of(str(top), str(tmp_path / "tar"))
    assert os.path.getsize(archive) < 10 * MIB
    image = write_image(str(tmp_path / "layout"), [read(archive)])
    packed = str(tmp_path / "squashfs")
    paralayer.convert_squashfs(image, packed)  # mksquashfs reads holes, which takes 11 s
    for other in (archive, image, packed):
        assert_same(verify(other, str(top), jobs=1))
    with open(top / "sparse", "r+b") as stream:
        stream.seek(4 * GIB + 77 + MIB)
        stream.write(b"\0")
    for other in (archive, packed):
        (difference,) = verify(other, str(top), ignore={"times"}).differences
        assert (difference.field, str(difference).count(str(4 * GIB + MIB))) == ("content", 2)


def test_a_tree_deeper_than_any_path_is_read(tmp_path: Path) -> None:
    """Neither recursion nor a path's length is a limit; mksquashfs and GNU tar have theirs."""
    path = b"/".join([b"d" * 200] * 40)
    parents = [path[: 201 * n + 200] for n in range(40)]
    entries = [
        *map(directory, parents),
        file(path + b"/f", NOISE[:100]),
        hardlink(path + b"/l", path + b"/f"),
    ]
    layout = write_image(str(tmp_path / "image"), [entries])
    paralayer.convert_dir(layout, tmp_path / "top")
    paralayer.convert_tar(layout, tmp_path / "tar")
    assert_same(verify(layout, str(tmp_path / "top")))
    assert_same(verify(str(tmp_path / "tar"), str(tmp_path / "top")))
    top = tmp_path / "many"
    top.mkdir()
    run("mkdir", "-p", f"{top}/{'/'.join(['e'] * 1200)}")
    assert_same(verify(str(top), squashfs_of(str(top), str(tmp_path / "squashfs"))))
    run("rm", "-r", str(top), str(tmp_path / "top"))


def small_squashfs(tmp_path: Path, *options: str) -> bytes:
    top = tmp_path / "top"
    top.mkdir()
    for n in range(40):
        write_file(str(top / f"f{n}"), NOISE[n : n * 300])
    write_file(str(top / "large"), NOISE[:50_000] * 5)
    os.symlink("f1", top / "link")
    os.link(top / "f1", top / "other")
    (top / "d" / "d" / "d").mkdir(parents=True)
    os.setxattr(top / "f2", "user.a", b"a" * 300)
    os.setxattr(top / "f3", "user.a", b"a" * 300)
    with open(squashfs_of(str(top), str(tmp_path / "good"), "-no-exports", *options), "rb") as stream:
        return stream.read()


@contextmanager
def little_memory(more: int = GIB) -> Iterator[None]:
    """Let this process have so much more address space than it has."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        size = int(statm.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def error_of(a: str, b: str) -> str:
    """Return the message of the `ImageError`, empty if there is none; no other is raised."""
    try:
        verify(a, b, jobs=1)
    except ImageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("form", ["nothing compressed", "zstd", "gzip", "xz", "lz4"])
def test_damaged_squashfs_is_an_error_or_a_difference(form: str, tmp_path: Path) -> None:
    good = small_squashfs(tmp_path, *FORMS[form])
    path = tmp_path / "bad"
    rng = random.Random(form)
    refused = 0
    with little_memory():
        for _ in range(150):
            bad = bytearray(good)
            for _ in range(rng.choice([1, 1, 4, 64])):
                # Most of it is data; what can lead astray is in the superblock and behind the data.
                at = rng.choice(
                    [rng.randrange(96), rng.randrange(len(bad)), len(bad) - 1 - rng.randrange(6000)]
                )
                bad[at] = rng.choice([0, 0xFF, rng.randrange(256), bad[at] ^ 1 << rng.randrange(8)])
            path.write_bytes(bad)
            message = error_of(f"squashfs:{path}", str(tmp_path / "top"))
            refused += bool(message)
            assert message.startswith(str(path) if message else "")
            assert "\n" not in message
    assert refused > 30


def test_squashfs_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    good = small_squashfs(tmp_path)
    for length in [0, 3, 4, 95, 96, 97, *range(200, len(good) - 4096, len(good) // 40)]:
        (tmp_path / "bad").write_bytes(good[:length])
        with pytest.raises(ImageError):
            verify(f"squashfs:{tmp_path / 'bad'}", str(tmp_path / "top"), jobs=1)


def test_a_directory_that_holds_itself_is_refused(tmp_path: Path) -> None:
    """The entry of `d/d` is made to lead to the inode of its parent `d`."""
    top = tmp_path / "top"
    (top / "d" / "d").mkdir(parents=True)
    packed = bytearray(
        read(squashfs_of(str(top), str(tmp_path / "bad"), "-noI", "-no-exports", "-no-xattrs"))
    )
    # Names are stored behind their entries: inode offset, inode number, type, size of the name less one.
    table = int.from_bytes(packed[72:80], "little") + 2
    listings = [
        at
        for at in range(table, len(packed))
        if packed[at : at + 1] == b"d" and packed[at - 2 : at] == bytes(2)
    ]
    assert len(listings) == 2
    offsets = [packed[at - 8 : at - 6] for at in listings]
    packed[listings[0] - 8 : listings[0] - 6] = offsets[1]
    (tmp_path / "bad").write_bytes(packed)
    with pytest.raises(ImageError, match="is in two places"):
        verify(f"squashfs:{tmp_path / 'bad'}", str(top))


def test_an_inode_number_that_is_used_twice_is_refused(tmp_path: Path) -> None:
    """The number of `z` is made that of `a`, which has two names."""
    top = tmp_path / "top"
    top.mkdir()
    for name in ("a", "z"):
        (top / name).touch()
    os.link(top / "a", top / "b")
    packed = bytearray(
        read(squashfs_of(str(top), str(tmp_path / "bad"), "-noI", "-no-exports", "-no-xattrs"))
    )
    fd = os.open(tmp_path / "bad", os.O_RDONLY)
    image = SquashfsReader(fd)
    image.read_tables()
    root = image.sblk.root_inode
    places = {
        entry["name"]: entry["offset"] for entry in image.read_directory(root >> 16, root & 0xFFFF).entries
    }
    os.close(fd)
    assert places[b"a"] == places[b"b"] != places[b"z"]
    first, other = (image.sblk.inode_table_start + 2 + places[name] + 12 for name in (b"a", b"z"))
    packed[other : other + 4] = packed[first : first + 4]
    (tmp_path / "bad").write_bytes(packed)
    with pytest.raises(ImageError, match=r"inode number . twice"):
        verify(f"squashfs:{tmp_path / 'bad'}", str(top))


def test_what_the_kernel_does_not_mount_is_refused(tmp_path: Path) -> None:
    """Each byte of the superblock, changed alone."""
    small_squashfs(tmp_path)
    good = read(squashfs_of(str(tmp_path / "top"), str(tmp_path / "exported")))
    bad = tmp_path / "bad"
    refused = 0
    for at in range(96):
        bad.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        try:
            with mounted(str(bad), "there"):
                continue
        except ImageError:
            refused += 1
            assert error_of(f"squashfs:{bad}", f"squashfs:{bad}"), at
    assert refused > 60


# Title → where the index of the fragment table says that its two blocks are, and what is wrong with that
FRAGMENT_INDEXES: dict[str, tuple[list[int], str]] = {
    "as it should be": ([0, 8194], ""),
    "one block again and again": ([0] * 2000, "blocks that do not follow each other"),
    "backwards": ([8194, 0], "blocks that do not follow each other"),
    "too far apart": ([-1, 8194], "blocks that do not follow each other"),
    "overlapping": ([0, 4000, 8194], "block of the fragment table"),
}


@pytest.mark.parametrize(("offsets", "error"), FRAGMENT_INDEXES.values(), ids=FRAGMENT_INDEXES)
def test_blocks_of_a_table_follow_each_other(offsets: list[int], error: str, tmp_path: Path) -> None:
    """Otherwise a small file could have a table that takes for ever to read. Nothing uses the one that is put here."""
    top = tmp_path / "top"
    top.mkdir()
    write_file(str(top / "f"), NOISE[:100])
    options = ["-no-fragments", "-no-exports", "-no-xattrs", "-noI", "-comp", "gzip"]
    packed = bytearray(read(squashfs_of(str(top), str(tmp_path / "image"), *options)))
    del packed[int.from_bytes(packed[40:48], "little") :]
    first = len(packed)
    packed += 2 * (struct.pack("<H", 0x8000 | 8192) + bytes(8192))
    index = len(packed)
    packed += struct.pack(f"<{len(offsets)}Q", *(first + offset for offset in offsets))
    ids = len(packed)
    packed += struct.pack("<HIQ", 0x8000 | 4, 0, ids)
    struct.pack_into("<I", packed, 16, 512 * len(offsets))
    struct.pack_into("<QQ", packed, 40, len(packed), ids + 6)
    struct.pack_into("<Q", packed, 80, index)
    (tmp_path / "image").write_bytes(packed)
    if error:
        with pytest.raises(ImageError, match=error):
            verify(str(tmp_path / "image"), str(top))
    else:
        assert_same(verify(str(tmp_path / "image"), str(top)))


COMPRESSORS: dict[str, tuple[Callable[[], Any], Callable[[bytes], bytes]]] = {
    "zlib": (_Zlib, zlib.compress),
    "xz": (_Xz, lzma.compress),
    "zstd": (_Zstd, zstandard.compress),
    "zstd without the size": (_Zstd, zstandard.ZstdCompressor(write_content_size=False).compress),
    "lz4": (_Lz4, lambda data: lz4.block.compress(data, store_size=False)),
}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_block_has_at_most_the_size_that_it_can_have(name: str) -> None:
    make, compress = COMPRESSORS[name]
    decompressor = make()
    for size in (8191, 8192):
        stored = compress(NOISE[:100] * 81 + bytes(size - 8100))
        assert len(decompressor.uncompress(stored, len(stored), 8192)) == size
    for size in (8193, 64 * MIB):
        stored = compress(bytes(size))
        with little_memory(32 * MIB), pytest.raises(Exception, match=r".") as caught:
            decompressor.uncompress(stored, len(stored), 8192)
        assert not isinstance(caught.value, MemoryError)


@pytest.mark.parametrize("name", ["zlib", "xz", "zstd"])
def test_a_block_that_is_cut_off_is_refused(name: str) -> None:
    make, compress = COMPRESSORS[name]
    stored = compress(NOISE[:8000])[:-20]
    with pytest.raises(Exception, match=r"."):
        make().uncompress(stored, len(stored), 8192)


def test_squashfs_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    for n in range(2):
        write_file(str(top / f"f{n}"), random.Random(n).randbytes(17 * MIB))
    packed = squashfs_of(str(top), str(tmp_path / "squashfs"), "-noD")

    def cut(event: object) -> None:
        os.truncate(packed, 1000)

    with pytest.raises(ImageError, match="ends before"):
        verify(packed, str(top), jobs=1, progress=cut)


# Mounts

HOLDS_A_MOUNT = """
import sys
from paralayer.verification.mount import mounted
import os
with mounted(sys.argv[1], "there") as point:
    print(sorted(os.listdir(point)), flush=True)
    sys.stdin.read()
"""


def test_a_mount_does_not_outlive_a_process_that_is_killed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "f").touch()
    packed = squashfs_of(str(top), str(tmp_path / "squashfs"))
    with running([sys.executable, "-c", HOLDS_A_MOUNT, packed], stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"['f']\n"
        assert packed in loop_devices()
        process.kill()
        process.wait()
        wait_for(lambda: packed not in loop_devices())


def loop_devices() -> str:
    return run("losetup", "--list", "--noheadings", "--output", "BACK-FILE")


def test_what_cannot_be_mounted_says_so(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"hsqs" + bytes(5000))
    with pytest.raises(ImageError, match="cannot be mounted: "):
        verify(str(tmp_path / "bad"), str(tmp_path), mount=True)


AS_NOBODY = """
import importlib, json, os, pkgutil, sys
for name in ("encodings.ascii", "bz2", "isal.igzip_lib", "lz4.block", "psutil", "zstandard"):
    importlib.import_module(name)
import paralayer
for module in pkgutil.walk_packages(paralayer.__path__, "paralayer."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from paralayer.verification import verify
from paralayer.verification.mount import _squashfuse
from paralayer.verification.squashfs_reader import SquashfsReader, _Lz4, _Xz, _Zlib, _Zstd
try:
    print(json.dumps(verify(sys.argv[1], sys.argv[2], mount=True, ignore=sys.argv[3:]).as_dict()))
except Exception as error:
    print(type(error).__name__, error)
"""


def verify_as_nobody(*arguments: str) -> str:
    """Return what `verify` of two sources says to an ordinary user, who may not read where Python is installed."""
    done = finish([sys.executable, "-c", AS_NOBODY, *arguments])
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout)


def open_to_all(path: Path) -> None:
    """Let everybody reach what a test has made."""
    while path != path.parent and path.name != "tmp":
        os.chmod(path, 0o755)
        path = path.parent


@pytest.mark.requires("squashfuse_ll", "setpriv", "fusermount3")
def test_squashfuse_mounts_until_all_is_read(tmp_path: Path) -> None:
    """Ordinary users get it; here it is root's, since not everywhere may they open /dev/fuse."""
    top = tmp_path / "top"
    top.mkdir()
    write_file(str(top / "f"), b"content")
    packed = squashfs_of(str(top), str(tmp_path / "squashfs"))
    with _squashfuse(packed, "there") as point:
        assert read(f"{point}/f") == b"content"
        assert mounts_of("paralayer-mount")
    assert not mounts_of("paralayer-mount")
    assert not os.path.exists(point)


@pytest.mark.requires("squashfuse_ll", "setpriv", "fusermount3")
def test_squashfuse_shows_hard_links(tmp_path: Path) -> None:
    layout = write_image(f"{tmp_path}/layout", [[file(b"a"), hardlink(b"b", b"a")]])
    paralayer.convert_squashfs(layout, tmp_path / "packed")
    with _squashfuse(str(tmp_path / "packed"), "there") as point:
        assert os.lstat(f"{point}/a").st_ino == os.lstat(f"{point}/b").st_ino


@pytest.mark.requires("squashfuse_ll", "setpriv", "fusermount3")
def test_squashfuse_does_not_outlive_a_process_that_is_killed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "f").touch()
    packed = squashfs_of(str(top), str(tmp_path / "squashfs"))
    script = HOLDS_A_MOUNT.replace("import mounted", "import _squashfuse as mounted")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with running([sys.executable, "-c", script, packed], stdin=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"['f']\n"
        assert mounts_of(str(tmp_path))
        process.kill()
        process.wait()
        wait_for(lambda: not mounts_of(str(tmp_path)))


@pytest.mark.requires("squashfuse_ll", "setpriv", "fusermount3")
def test_a_squashfuse_that_is_killed_leaves_no_mount(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    packed = squashfs_of(str(top), str(tmp_path / "squashfs"))
    with _squashfuse(packed, "there") as point:
        (process,) = psutil.Process().children()
        process.kill()
    assert not mounts_of("paralayer-mount")
    assert not os.path.exists(point)


@pytest.mark.requires("squashfuse_ll", "setpriv", "fusermount3")
def test_what_squashfuse_cannot_mount_says_so(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"hsqs" + bytes(5000))
    with pytest.raises(ImageError, match="cannot be mounted: "), _squashfuse(str(tmp_path / "bad"), "there"):
        pass
    assert not mounts_of("paralayer-mount")


def mounts_of(part: str) -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        return [line for line in mounts if part in line]


# Tar archives


def read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def header(name: bytes, flag: bytes = b"0", **fields: object) -> bytes:
    return pack_header(name=name, flag=flag, magic=b"ustar\x0000", **fields)  # type: ignore[arg-type]


BAD_ARCHIVES: dict[str, tuple[bytes, str]] = {
    "a path twice": (header(b"f") + header(b"./f") + END_OF_ARCHIVE, "f: path occurs twice"),
    "a link to nothing": (
        header(b"l", b"1", linkname=b"f") + END_OF_ARCHIVE,
        "l: hard link to nothing: got f",
    ),
    "a link to a directory": (
        header(b"d", b"5") + header(b"l", b"1", linkname=b"d") + END_OF_ARCHIVE,
        "l: hard link to nothing: got d",
    ),
    "something below a file": (
        header(b"f") + header(b"f/g") + END_OF_ARCHIVE,
        "f/g: entry below what is no directory",
    ),
    "a path above the root": (header(b"../f") + END_OF_ARCHIVE, "../f: path with .."),
    "an unknown type": (header(b"f", b"Z") + END_OF_ARCHIVE, "f: type of the entry: got Z"),
    "a root that is a file": (header(b"./") + header(b".") + END_OF_ARCHIVE, "root must be a directory"),
    "cut off in data": (header(b"f", size=1000) + bytes(512), "truncated"),
    "cut off in a header": (header(b"f") + header(b"g")[:100], "no valid tar header at offset 512"),
    "a damaged header": (
        header(b"f") + header(b"g").replace(b"g", b"h") + END_OF_ARCHIVE,
        "no valid tar header at offset 512",
    ),
    "a negative size": (header(b"f", size=-512) + END_OF_ARCHIVE, "f: "),
    "a huge extended header": (
        pack_header(name=b"x", flag=b"x", magic=b"ustar\x0000", size=1 << 40) + END_OF_ARCHIVE,
        "extended header of",
    ),
    "a negative extended header": (
        pack_header(name=b"x", flag=b"x", magic=b"ustar\x0000", size=-(1 << 20)) + END_OF_ARCHIVE,
        "extended header of",
    ),
    "extended headers without end": (
        pack_special(b"x", b"x", pax_record(b"a", b"b")) * 5000,
        "malformed header",
    ),
    "a huge sparse file": (
        pack_special(
            b"x",
            b"x",
            pax_record(b"GNU.sparse.major", b"1")
            + pax_record(b"GNU.sparse.minor", b"0")
            + pax_record(b"GNU.sparse.realsize", b"%d" % (1 << 60)),
        )
        + header(b"f", size=512)
        + b"0\n".ljust(512, b"\0")
        + END_OF_ARCHIVE,
        "f: size of a file",
    ),
}


@pytest.mark.parametrize("title", BAD_ARCHIVES)
def test_an_archive_that_is_no_tree_is_refused(title: str, tmp_path: Path) -> None:
    archive, message = BAD_ARCHIVES[title]
    (tmp_path / "bad.tar").write_bytes(archive)
    with little_memory(), pytest.raises(ImageError) as caught:
        verify(str(tmp_path / "bad.tar"), str(tmp_path), jobs=1)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "bad.tar"))


def test_implied_directories_of_an_archive_are_as_sinks_write_them(tmp_path: Path) -> None:
    write_file(str(tmp_path / "one"), write_layer([file(b"a/b/f", b"1")]))
    implied = {"mode": 0o755, "mtime": 0}
    entries = [directory(b"a/", **implied), directory(b"a/b/", **implied), file(b"a/b/f", b"1")]
    write_file(str(tmp_path / "two"), write_layer(entries))
    assert_same(verify(str(tmp_path / "one"), str(tmp_path / "two")))


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0", "gnu"])
def test_sparse_files_of_every_format_are_read(version: str, tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    with open(top / "sparse", "wb") as stream:
        for n in range(60):
            stream.seek(n * 300_000)
            stream.write(NOISE[n : n + 5000])
        stream.truncate(30 * MIB + 5)
    archive = str(tmp_path / "tar")
    if version == "gnu":
        run("tar", "--format=gnu", "--numeric-owner", "--sparse", "-C", str(top), "-cf", archive, ".")
    else:
        gnu_tar_of(str(top), archive, f"--sparse-version={version}")
    assert os.path.getsize(archive) < 4 * MIB
    assert_same(verify(str(top), archive, ignore={"times"} if version == "gnu" else ()))


# Directories


def test_nothing_in_a_directory_is_followed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        os.symlink("/", tmp_path / name / "root")
        os.symlink(".", tmp_path / name / "itself")
        os.utime(tmp_path / name, (0, 0))
        for link in ("root", "itself"):
            os.utime(tmp_path / name / link, (0, 0), follow_symlinks=False)
    report = verify(str(tmp_path / "one"), str(tmp_path / "two"))
    assert_same(report)
    assert report.paths_a == 3


def test_a_symlink_to_a_tree_is_that_tree(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    os.symlink("tree", tmp_path / "link")
    assert_same(verify(str(tmp_path / "tree"), str(tmp_path / "link")))


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_may_not_be_read_is_an_error_that_names_it(kind: str, tmp_path: Path) -> None:
    open_to_all(tmp_path)
    if kind == "file":
        (tmp_path / "closed").write_bytes(b"secret")
    else:
        (tmp_path / "closed").mkdir()
    os.chmod(tmp_path / "closed", 0)
    told = verify_as_nobody(str(tmp_path), str(tmp_path))
    assert told == f"ImageError {tmp_path}: closed: Permission denied\n"


def test_what_only_root_can_see_is_not_compared_for_others(tmp_path: Path) -> None:
    open_to_all(tmp_path)
    entries = [file(b"f", xattrs={b"trusted.x": b"1", b"user.x": b"1"})]
    image = write_image(str(tmp_path / "image"), [entries])
    paralayer.convert_dir(image, tmp_path / "top")
    run("chmod", "-R", "a+rX", str(tmp_path / "image"))
    report = json.loads(verify_as_nobody(image, str(tmp_path / "top")))
    assert report["same"] is True
    assert "trusted xattrs, which only root can see" in report["not_compared"]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    for name in ("a", "b"):
        write_file(str(top / name), bytes(17 * MIB))

    def grow(event: object) -> None:
        for name in ("a", "b"):
            with open(top / name, "ab") as stream:
                stream.write(b"more")

    with pytest.raises(ImageError, match="was changed while it was read"):
        verify(str(top), str(top), jobs=1, progress=grow)
