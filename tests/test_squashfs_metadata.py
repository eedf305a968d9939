"""Inodes, listings and tables of squashfs images: what goes in comes out, for a slow reader and for the judges."""

from __future__ import annotations

import os
import struct
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import Entry, block, char, directory, fifo, file, hardlink, symlink
from paralayer.errors import SinkError
from paralayer.sinks.squashfs.compressor import Compressor
from paralayer.sinks.squashfs.inode import NO_FRAGMENT, Content
from paralayer.sinks.squashfs.metadata import NO_TABLE
from paralayer.sinks.squashfs.options import Compression
from paralayer.sinks.squashfs.superblock import Flags, Superblock
from paralayer.sinks.squashfs.tree import Tree
from squashfs_judges import JUDGES, held
from squashfs_tables import BLOCK_SIZE, Reader, batch_of, pack_image, tree_of
from trees import diff, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from squashfs_judges import Judge
    from squashfs_tables import Image

SOME = settings(max_examples=150)

ROOT = directory(b"", 0o751, uid=7, gid=8, mtime=1_700_000_000)
COMPRESSIONS = ["zstd", "zstd:19", "gzip", "gzip:6", "xz", "lz4", "none"]
XATTRS = {b"user.a": b"1", b"trusted.b": b"\0=\n", b"security.c": b""}
NOT_USER = {b"trusted.b": b"\0=\n", b"security.c": b"x"}
LONG = {b"trusted.long": b"v" * 300}

CASES: dict[str, list[Entry]] = {
    "an empty root": [ROOT],
    "a root with xattrs": [replace(ROOT, xattrs=XATTRS), file(b"f")],
    "all kinds": [
        ROOT,
        file(b"file", b"data", mode=0o4755, uid=1, gid=2),
        file(b"empty"),
        directory(b"dir", 0o1777),
        symlink(b"link", b"dir/../file"),
        char(b"char", 4, 65),
        block(b"block", 4095, 1_048_575),
        fifo(b"fifo", mode=0),
    ],
    "all kinds with xattrs": [
        ROOT,
        file(b"file", b"data", xattrs=XATTRS),
        file(b"empty", xattrs=XATTRS),
        directory(b"dir", xattrs=XATTRS),
        symlink(b"link", b"odd", xattrs=NOT_USER),
        symlink(b"link2", b"longer", xattrs=NOT_USER),
        char(b"char", 4, 65, xattrs=NOT_USER),
        block(b"block", 8, 1, xattrs=NOT_USER),
        fifo(b"fifo", xattrs=NOT_USER),
    ],
    "hard links of all kinds": [
        ROOT,
        directory(b"a"),
        directory(b"z"),
        file(b"a/file", b"data"),
        hardlink(b"0", b"a/file"),
        hardlink(b"z/1", b"a/file"),
        symlink(b"link", b"target"),
        hardlink(b"a/link", b"link"),
        char(b"z/char", 1, 3),
        hardlink(b"a/char", b"z/char"),
        fifo(b"fifo"),
        hardlink(b"z/fifo", b"fifo"),
        file(b"one", b"data"),
    ],
    "names that sort": [
        ROOT,
        directory(b"a"),
        file(b"a-b"),
        file(b"a/b"),
        file(b"a.b"),
        file(b"ab"),
        directory(b"a/a"),
        file(b"a/a/a"),
        file(b"a/a-"),
        file(b"A"),
        directory(b"\x01"),
        file(b"\x01/\x01"),
        file(b"\x01\x01"),
    ],
    "any byte in a name": [ROOT, *(file(b"x%cx" % byte) for byte in range(1, 256) if byte != ord("/"))],
    "names of 255 bytes": [
        ROOT,
        directory(b"d" * 255),
        file(b"d" * 255 + b"/" + b"\xff" * 255),
        *(file(b"%03d" % number + b"n" * 252) for number in range(300)),
    ],
    "owners": [
        ROOT,
        *(file(b"%d" % number, uid=number * 7, gid=2**32 - 2 - number) for number in range(300)),
    ],
    "times": [
        ROOT,
        file(b"before", mtime=-5, mtime_ns=5),
        file(b"epoch", mtime=0, mtime_ns=999_999_999),
        file(b"last", mtime=2**32 - 1),
        file(b"after", mtime=2**32),
        directory(b"dir", mtime=2**40),
    ],
    "a deep tree": [
        ROOT,
        *(directory(b"/".join([b"d"] * depth)) for depth in range(1, 501)),
        file(b"d/" * 500 + b"file", b"deep"),
    ],
    "long listings": [
        ROOT,
        directory(b"long"),
        *(file(b"long/%05d" % number) for number in range(3000)),
        directory(b"mixed"),
        *(directory(b"mixed/%05d" % number) for number in range(0, 1000, 3)),
        *(symlink(b"mixed/%05d" % number, b"target" * 40) for number in range(1, 1000, 3)),
        *(hardlink(b"mixed/%05d" % number, b"long/%05d" % number) for number in range(2, 1000, 3)),
    ],
    "contents": [
        ROOT,
        file(b"tail", b"t" * 100),
        file(b"tail2", b"u" * (BLOCK_SIZE - 100)),
        file(b"tail3", b"v"),
        file(b"one block", b"b" * BLOCK_SIZE),
        file(b"blocks", b"c" * (3 * BLOCK_SIZE)),
        file(b"blocks and a tail", b"d" * (5 * BLOCK_SIZE + 1)),
        file(b"a hole", b"e" * BLOCK_SIZE + bytes(2 * BLOCK_SIZE) + b"f" * BLOCK_SIZE),
        file(b"nothing but a hole", bytes(4 * BLOCK_SIZE)),
        file(b"a link's", b"g" * (2 * BLOCK_SIZE + 7)),
        hardlink(b"linked", b"a link's"),
    ],
    "shared xattrs": [
        ROOT,
        *(file(b"same%d" % number, xattrs=XATTRS) for number in range(5)),
        file(b"same, other order", xattrs=dict(reversed(XATTRS.items()))),
        *(file(b"long%d" % number, xattrs={**LONG, b"user.n": b"%d" % number}) for number in range(50)),
        file(b"other name", xattrs={b"security.long": LONG[b"trusted.long"]}),
    ],
}
LARGE_XATTRS = {
    "large xattrs": [
        ROOT,
        file(b"64k", xattrs={b"user.x": b"x" * 65536}),
        file(
            b"64k and more", xattrs={b"user.x": b"x" * 65536, b"user.y": b"y" * 9000, b"user.z": b"z" * 9000}
        ),
        file(b"z", xattrs={b"user.z": b"z" * 9000}),
        *(file(b"n%d" % number, xattrs={b"user.n": b"%d" % number * 30}) for number in range(1500)),
    ],
}


def read(entries: Sequence[Entry], **options: object) -> Image:
    """Return what the slow reader finds in the image of `entries`, having found their tree in it."""
    image = Reader(pack_image(entries, **options)).read()  # type: ignore[arg-type]
    assert diff(image.tree, held(tree_of(entries))) == []
    return image


@pytest.mark.parametrize("title", CASES | LARGE_XATTRS)
def test_an_image_holds_the_tree(title: str) -> None:
    read((CASES | LARGE_XATTRS)[title])


@pytest.mark.parametrize(
    ("judge", "title"),
    [
        pytest.param(judge, title, id=f"{name}-{title}")
        for name, judge in JUDGES.items()
        for title in CASES | LARGE_XATTRS
        if not (judge.extracts and title in LARGE_XATTRS)  # where it extracts to, they may not fit
    ],
)
def test_readers_see_the_tree(judge: Judge, title: str, tmp_path: Path) -> None:
    judge.require()
    entries = (CASES | LARGE_XATTRS)[title]
    image = tmp_path / "image"
    image.write_bytes(pack_image(entries))
    assert judge.differences(str(image), held(tree_of(entries)), str(tmp_path / "scratch")) == []


@pytest.mark.parametrize(
    ("judge", "compression"),
    [
        pytest.param(judge, compression, id=f"{name}-{compression}")
        for name, judge in JUDGES.items()
        for compression in COMPRESSIONS
        if compression not in judge.unknown
    ],
)
def test_readers_know_all_compressions(judge: Judge, compression: str, tmp_path: Path) -> None:
    judge.require()
    entries = [*CASES["all kinds with xattrs"], *CASES["contents"][1:], *CASES["names of 255 bytes"][1:]]
    image = tmp_path / "image"
    image.write_bytes(pack_image(entries, compression=compression))
    assert judge.differences(str(image), held(tree_of(entries)), str(tmp_path / "scratch")) == []


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_compression_holds_the_tree(compression: str) -> None:
    read([*CASES["all kinds with xattrs"], *CASES["long listings"][1:]], compression=compression)


def test_inodes_are_basic_wherever_they_can_be() -> None:
    image = read(CASES["all kinds"])
    assert sorted(inode.type for inode in image.inodes.values()) == [1, 1, 2, 2, 3, 4, 5, 6]
    image = read(CASES["all kinds with xattrs"])
    assert sorted(inode.type for inode in image.inodes.values()) == [1, 8, 9, 9, 10, 10, 11, 12, 13]
    image = read(CASES["hard links of all kinds"])
    assert [image.inodes[image.paths[path]].type for path in (b"a/file", b"link", b"one")] == [9, 3, 2]
    image = read(CASES["contents"])
    assert [image.inodes[image.paths[path]].type for path in (b"blocks", b"a hole")] == [2, 9]
    assert image.inodes[image.paths[b"a hole"]].sparse == 2 * BLOCK_SIZE
    image = read(CASES["long listings"])
    assert [image.inodes[image.paths[path]].type for path in (b"", b"long", b"mixed")] == [1, 8, 8]


def test_siblings_have_the_inode_numbers_that_follow_one_another() -> None:
    image = read(CASES["names that sort"])
    assert image.paths[b""] == 1
    names = [b"a/a", b"a/a-", b"a/b"]
    first = image.paths[names[0]]
    assert [image.paths[name] for name in names] == [first, first + 1, first + 2]


def test_no_tables_for_what_is_not_there() -> None:
    reader = Reader(pack_image([ROOT, file(b"f")], exports=False))
    reader.read()
    assert (reader.export_table, reader.xattr_table) == (NO_TABLE, NO_TABLE)


def test_equal_sets_and_long_equal_values_are_stored_once() -> None:
    image = read(CASES["shared xattrs"])
    assert image.sets == 1 + 50 + 1
    assert image.out_of_line == 50


def test_what_the_format_cannot_hold_is_counted() -> None:
    lost: dict[str, int] = {}
    acl = {b"system.posix_acl_access": b"\2", b"user.kept": b"", b"system.posix_acl_default": b"\2"}
    entries = [
        *CASES["times"],
        file(b"acl", xattrs=acl),
        directory(b"only acl", xattrs={b"system.posix_acl_access": b""}),
    ]
    image = Reader(pack_image(entries, lost=lost)).read()
    assert diff(image.tree, held(tree_of(entries))) == []
    assert image.inodes[image.paths[b"only acl"]].type == 1
    assert lost == {
        "times before 1970 or after 2106": 3,
        "xattrs that are not user, trusted or security": 3,
    }


@pytest.mark.parametrize(("major", "minor"), [(4096, 0), (0, 1 << 20)])
def test_device_numbers_beyond_the_format_are_refused(major: int, minor: int) -> None:
    with pytest.raises(
        SinkError, match=rf"out.squashfs: dev: device number: got {major}:{minor}, want at most 4095:1048575"
    ):
        pack_image([ROOT, char(b"dev", major, minor)])


def test_only_devices_have_device_numbers() -> None:
    image = read([ROOT, fifo(b"f")])
    assert image.inodes[image.paths[b"f"]].rdev == 0
    pack_image([ROOT, replace(file(b"f"), major=9999, minor=1 << 31)])


def test_symlink_targets_that_linux_does_not_read_are_refused() -> None:
    read([ROOT, symlink(b"link", b"t" * 4096), symlink(b"next", b"t")])
    with pytest.raises(
        SinkError, match=r"out.squashfs: link: target of the symlink: got 4097 bytes, want at most 4096"
    ):
        pack_image([ROOT, symlink(b"link", b"t" * 4097)])


def test_owners_are_limited_by_the_superblock() -> None:
    """The superblock has 16 bits for their number, so 65,536 would read as none."""
    entries = [replace(ROOT, uid=0, gid=0), *(file(b"%d" % number, uid=number) for number in range(65535))]
    assert len(Reader(pack_image(entries)).read().paths) == 65536
    with pytest.raises(
        SinkError, match="owners and groups of all files: got 65536 different ones, want at most 65535"
    ):
        pack_image([*entries, file(b"more", gid=65535)])


def test_a_path_without_its_directory_is_no_tree() -> None:
    with pytest.raises(AssertionError, match="a path without its directory"):
        pack_image([ROOT, file(b"a/b")])


# Sizes


def test_headers_hold_256_entries() -> None:
    """More than that of the smallest inodes are in a metadata block."""
    image = read([ROOT, *(fifo(b"%03d" % number) for number in range(600))])
    assert [count for _, count in image.inodes[image.paths[b""]].headers] == [256, 154, 190]


def test_headers_reach_as_far_as_16_bits_of_inode_numbers() -> None:
    """The hard links are to files on both sides of the first one's, and further away than a header reaches."""
    count = 60_000
    entries = [
        ROOT,
        directory(b"a"),
        *(hardlink(b"a/%05d" % number, b"m/%05d" % number) for number in range(0, count, 500)),
        directory(b"m"),
        *(file(b"m/%05d" % number) for number in range(count)),
        directory(b"z"),
        *(hardlink(b"z/%05d" % (count - number), b"m/%05d" % number) for number in range(0, count, 500)),
    ]
    read(entries)


def test_a_directory_is_extended_where_16_bits_do_not_hold_its_size() -> None:
    """All its names are below one header, so that it has no index."""
    size = 3 + 12 + 248 * (8 + 255) + 8 + 255
    for last, inode_type in ((0xFFFF - size, 1), (0x10000 - size, 8)):
        names = [b"%03d" % number + b"n" * 252 for number in range(249)] + [b"z" * (last - 8)]
        image = read([ROOT, *(fifo(name) for name in names)])
        root = image.inodes[image.paths[b""]]
        assert (root.type, root.size, root.indexes) == (inode_type, size + last, [])


def test_looking_up_in_a_directory_of_100_000_names(tmp_path: Path) -> None:
    JUDGES["kernel"].require()
    names = [b"%x" % (number * 2654435761 % 2**32) for number in range(100_000)]
    data = pack_image([ROOT, directory(b"d"), *(file(b"d/" + name) for name in names)])
    with mounted(data, tmp_path) as point:
        top = os.path.join(os.fsencode(point), b"d")
        assert sorted(os.listdir(top)) == sorted(names)
        assert os.stat(top).st_nlink == 2
        for name in [*names[::500], min(names), max(names)]:
            os.lstat(os.path.join(top, name))
        for name in (b"", b"0/", b"zz"):
            assert not os.path.lexists(os.path.join(top, name + b"-"))


def test_files_and_images_above_4_gib(tmp_path: Path) -> None:
    """A file of 6 GiB, all holes but its last block, which is 5 GiB into the image; and one with its tail end there."""
    JUDGES["kernel"].require()
    block_size, blocks, data_at = 1 << 20, 6 << 10, 5 << 30
    batch = batch_of([file(b"large"), file(b"tail")])
    batch.rows["size"] = [blocks * block_size, 3]
    compressor = Compressor(Compression.parse("zstd"), block_size)
    tree = Tree("out", compressor, exports=True)
    tree.add(batch_of([ROOT]))
    tree.add(batch)
    tree.settle()
    sizes = np.zeros(blocks, np.uint32)
    sizes[-1] = 1 << 24 | block_size
    content = Content(
        start=np.array([0, data_at, 0]),
        fragment=np.array([NO_FRAGMENT, NO_FRAGMENT, 0], np.uint32),
        offset=np.array([0, 0, 1], np.uint32),
        sparse=np.array([0, (blocks - 1) * block_size, 0]),
        first=np.array([0, 0, blocks]),
        count=np.array([0, blocks, 0]),
        sizes=sizes,
    )
    tables_at = data_at + block_size + 4
    fragments = struct.pack("<QII", data_at + block_size, 1 << 24 | 4, 0)
    pieces, tables = tree.pack(tables_at, content, fragments)
    superblock = Superblock(
        0, block_size, compressor.id, Flags.EXPORTABLE | Flags.COMPRESSOR_OPTIONS, 1, tables
    )
    image = tmp_path / "image"
    with image.open("wb") as stream:
        stream.write(superblock.pack() + compressor.options)
        stream.seek(data_at)
        stream.write(b"b" * block_size + b"xtai")
        stream.writelines(pieces)
        stream.truncate(-(-stream.tell() // 4096) * 4096)
    assert tables.inode_table == tables_at
    with mounted(image, tmp_path) as point, open(os.path.join(point, "large"), "rb") as large:
        status = os.fstat(large.fileno())
        assert (status.st_size, status.st_blocks) == (blocks * block_size, block_size // 512)
        large.seek(-block_size - 1, os.SEEK_END)
        assert large.read() == b"\0" + b"b" * block_size
        with open(os.path.join(point, "tail"), "rb") as tail:
            assert tail.read() == b"tai"


@contextmanager
def mounted(image: bytes | Path, scratch: Path) -> Iterator[str]:
    if isinstance(image, bytes):
        file_of = scratch / "mounted"
        file_of.write_bytes(image)
        image = file_of
    point = scratch / "point"
    point.mkdir()
    run("mount", "-t", "squashfs", "-o", "loop,ro", str(image), str(point))
    try:
        yield str(point)
    finally:
        run("umount", str(point))


# Laws

names = st.one_of(
    st.sampled_from([b"a", b"b", b"a-", b"a.b", b"\x01", b"\xff", b"n" * 255]),
    st.binary(min_size=1, max_size=3).map(lambda name: name.replace(b"/", b"-").replace(b"\0", b"0")),
)
values = st.sampled_from([b"", b"x", b"long" * 40, b"other" * 40])
xattrs = st.dictionaries(
    st.sampled_from([b"user.a", b"user.b", b"trusted.a", b"security.b"]), values, max_size=3
)
contents = st.sampled_from(
    [b"", b"x", b"y" * 100, b"z" * BLOCK_SIZE, b"t" * (2 * BLOCK_SIZE + 5), bytes(BLOCK_SIZE)]
)
looks = st.builds(
    Entry,
    path=st.just(b""),
    kind=st.sampled_from(
        ["file"] * 5 + ["dir"] * 6 + ["symlink", "char", "block", "fifo"] + ["hardlink"] * 3
    ),
    mode=st.sampled_from([0, 0o644, 0o7777]),
    uid=st.sampled_from([0, 1000, 2**32 - 2]),
    gid=st.sampled_from([0, 5]),
    mtime=st.sampled_from([0, 1, 2**32 - 1]),
    data=contents,
    linkname=st.sampled_from([b"t", b"target", b"x" * 300]),
    xattrs=xattrs,
    major=st.sampled_from([0, 7, 4095]),
    minor=st.sampled_from([0, 256, 1_048_575]),
)


@st.composite
def trees(draw: st.DrawFn) -> list[Entry]:
    """Draw a complete tree in any order that has links last."""
    entries = [replace(draw(looks), path=b"", kind="dir")]
    directories = [b""]
    linkable: list[bytes] = []
    taken = set()
    links = []
    for name, look in draw(st.lists(st.tuples(names, looks), max_size=40)):
        parent = draw(st.sampled_from(directories))
        path = parent + b"/" + name if parent else name
        if path in taken or (look.kind == "hardlink" and not linkable):
            continue
        taken.add(path)
        if look.kind == "hardlink":
            links.append(hardlink(path, draw(st.sampled_from(linkable))))
            continue
        entry = replace(look, path=path)
        entries.append(entry)
        if entry.kind == "dir":
            directories.append(path)
        else:
            linkable.append(path)
    return [*entries[:1], *draw(st.permutations(entries[1:])), *links]


@SOME
@given(trees(), st.booleans(), st.booleans(), st.integers(1, 5))
def test_any_tree_comes_out_as_it_went_in(
    entries: list[Entry], exports: bool, tails: bool, batches: int
) -> None:
    fitting = [fitted(entry) for entry in entries]
    image = read(fitting, exports=exports, tails=tails, batches=batches)
    kinds = Counter(entry.kind for entry in fitting)
    assert len(image.inodes) == len(fitting) - kinds["hardlink"]


@SOME
@given(trees(), st.integers(2, 5))
def test_how_entries_are_batched_changes_nothing(entries: list[Entry], batches: int) -> None:
    fitting = [fitted(entry) for entry in entries]
    assert pack_image(fitting, batches=batches) == pack_image(fitting)


@pytest.mark.parametrize("title", CASES)
def test_how_many_are_handled_at_once_changes_nothing(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = pack_image(CASES[title])
    monkeypatch.setattr("paralayer.sinks.squashfs.tree._AT_ONCE", 3)
    monkeypatch.setattr("paralayer.sinks.squashfs.order._AT_ONCE", 2)
    assert pack_image(CASES[title]) == want


def fitted(entry: Entry) -> Entry:
    """Return an entry without what its kind does not have."""
    is_device = entry.kind in ("char", "block")
    return replace(
        entry,
        data=entry.data if entry.kind == "file" else b"",
        linkname=entry.linkname if entry.kind in ("symlink", "hardlink") else b"",
        xattrs={
            name: value
            for name, value in entry.xattrs.items()
            if entry.kind in ("file", "dir") or not name.startswith(b"user.")
        },
        major=entry.major if is_device else 0,
        minor=entry.minor if is_device else 0,
    )
