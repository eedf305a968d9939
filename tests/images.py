"""Images to convert: synthetic ones, written header by header, and real ones, built by umoci and buildah.

The tar writer is the tests' own, so that it can write what no sane writer would. `scripts/make-image` uses it
as well.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import platform
import shutil
import stat
import struct
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import zstandard

from model import merge
from trees import snapshot_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from model import Entry, Kind, Node

Format = Literal["ustar", "gnu", "pax", "pax-full"]
"""`pax` writes a record only where ustar cannot hold the value; `pax-full` writes every value as a record, with
a header that says something else."""

Compression = Literal["none", "gzip", "zstd", "bzip2", "xz"]

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
TYPE_FLAGS: dict[Kind, bytes] = {
    "file": b"0",
    "hardlink": b"1",
    "symlink": b"2",
    "char": b"3",
    "block": b"4",
    "dir": b"5",
    "fifo": b"6",
}
MAX_OCTAL_7 = 0o7777777
MAX_OCTAL_11 = 0o77777777777

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
MEDIA_TYPES: dict[Compression, str] = {
    "none": LAYER_TYPE,
    "gzip": LAYER_TYPE + "+gzip",
    "zstd": LAYER_TYPE + "+zstd",
    "bzip2": LAYER_TYPE,  # there is no media type for these two: readers go by the magic
    "xz": LAYER_TYPE,
}
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_layer(entries: Sequence[Entry], *, format: Format = "pax") -> bytes:  # noqa: A002 - the field's word
    """Return the tar of `entries`; `ValueError` if `format` cannot hold one of them."""
    parts = []
    for entry in entries:
        data = entry.data if entry.kind == "file" else b""
        parts += [pack_headers(entry, len(data), format), data, bytes(-len(data) % BLOCK)]
    return b"".join(parts) + END_OF_ARCHIVE


def pack_headers(entry: Entry, size: int, format: Format = "pax") -> bytes:  # noqa: A002 - see above
    """Return the header of `entry`, which has `size` bytes of data, behind the extension headers it needs."""
    if format == "gnu":
        return pack_gnu(entry, size)
    records = {b"SCHILY.xattr." + key: value for key, value in entry.xattrs.items()}
    full = format == "pax-full"
    name, prefix = split_name(entry.path)
    if full or not fits_ustar(entry.path):
        records[b"path"] = entry.path
    if (full and entry.linkname) or len(entry.linkname) > 100:
        records[b"linkpath"] = entry.linkname
    if full or size > MAX_OCTAL_11:
        records[b"size"] = b"%d" % size
    if full or entry.uid > MAX_OCTAL_7:
        records[b"uid"] = b"%d" % entry.uid
    if full or entry.gid > MAX_OCTAL_7:
        records[b"gid"] = b"%d" % entry.gid
    if full or entry.mtime_ns or not 0 <= entry.mtime <= MAX_OCTAL_11:
        records[b"mtime"] = pax_time(entry.mtime, entry.mtime_ns)
    if full:
        name, prefix = b"name-in-header", b""
    if records and format == "ustar":
        raise ValueError(f"ustar cannot hold {entry}")
    header = pack_header(
        name=name,
        mode=entry.mode,
        uid=0 if b"uid" in records else entry.uid,
        gid=0 if b"gid" in records else entry.gid,
        size=0 if b"size" in records else size,
        mtime=0 if b"mtime" in records else entry.mtime,
        flag=TYPE_FLAGS[entry.kind],
        linkname=b"link-in-header" if b"linkpath" in records else entry.linkname,
        magic=b"ustar\x0000",
        major=entry.major,
        minor=entry.minor,
        prefix=prefix,
    )
    if not records:
        return header
    return pack_special(b"x", b"PaxHeaders/0", b"".join(map(pax_record, records, records.values()))) + header


def pack_gnu(entry: Entry, size: int) -> bytes:
    if entry.xattrs or entry.mtime_ns:
        raise ValueError(f"the GNU format cannot hold {entry}")
    header = pack_header(
        name=entry.path[:100],
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        size=size,
        mtime=entry.mtime,
        flag=TYPE_FLAGS[entry.kind],
        linkname=entry.linkname[:100],
        magic=b"ustar  \x00",
        major=entry.major,
        minor=entry.minor,
        prefix=b"",
    )
    if len(entry.linkname) > 100:
        header = pack_special(b"K", b"././@LongLink", entry.linkname + b"\0", b"ustar  \x00") + header
    if len(entry.path) > 100:
        header = pack_special(b"L", b"././@LongLink", entry.path + b"\0", b"ustar  \x00") + header
    return header


def split_name(path: bytes) -> tuple[bytes, bytes]:
    """Return the name and prefix fields for `path`, cut off if it does not fit."""
    if len(path) > 100:
        for at in range(len(path) - 101, min(len(path) - 1, 156)):
            if path[at : at + 1] == b"/" and at > 0:
                return path[at + 1 :], path[:at]
    return path[:100], b""


def fits_ustar(path: bytes) -> bool:
    name, prefix = split_name(path)
    return path == (prefix + b"/" + name if prefix else name)


def pax_time(seconds: int, nanoseconds: int) -> bytes:
    total = seconds * 10**9 + nanoseconds
    whole, part = divmod(abs(total), 10**9)
    sign = "-" if total < 0 else ""
    return (f"{sign}{whole}.{part:09d}" if part else f"{sign}{whole}").encode()


def pax_record(key: bytes, value: bytes) -> bytes:
    """Return ``length SP key=value LF``; the length counts its own digits."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + len(str(len(rest)))
    if len(str(length)) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def pack_special(flag: bytes, name: bytes, content: bytes, magic: bytes = b"ustar\x0000") -> bytes:
    header = pack_header(name=name, size=len(content), flag=flag, magic=magic)
    return header + content + bytes(-len(content) % BLOCK)


def pack_header(
    *,
    name: bytes,
    flag: bytes,
    magic: bytes,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    linkname: bytes = b"",
    major: int = 0,
    minor: int = 0,
    prefix: bytes = b"",
) -> bytes:
    """Return one header block; numbers that do not fit in octal are in base-256."""
    header = struct.pack(
        "100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x",
        name,
        pack_number(mode, 8),
        pack_number(uid, 8),
        pack_number(gid, 8),
        pack_number(size, 12),
        pack_number(mtime, 12),
        b" " * 8,
        flag,
        linkname,
        magic,
        b"",
        b"",
        pack_number(major, 8),
        pack_number(minor, 8),
        prefix,
    )
    return header[:148] + b"%06o\x00 " % sum(header) + header[156:]


def pack_number(value: int, width: int) -> bytes:
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\x00" % (width - 1, value)
    return bytes([0x80 if value >= 0 else 0xFF]) + value.to_bytes(width - 1, "big", signed=True)


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored layer."""

    media_type: str
    digest: str
    size: int
    diff_id: str


def write_image(
    layout: str,
    layers: Sequence[Sequence[Entry] | bytes],
    *,
    compression: Compression | Sequence[Compression] = "none",
    tag: str = "latest",
) -> str:
    """Write an OCI layout for this machine's platform to the new directory `layout`, and return it.

    A layer is its entries or a finished tar. `compression` is one for all layers or one for each.
    """
    each = [compression] * len(layers) if isinstance(compression, str) else compression
    blobs = []
    for layer, kind in zip(layers, each, strict=True):
        tar = layer if isinstance(layer, bytes) else write_layer(layer)
        stored = compress(tar, kind)
        blobs.append(Blob(MEDIA_TYPES[kind], write_blob(layout, stored), len(stored), digest_of(tar)))
    write_documents(layout, blobs, tag)
    return layout


def write_documents(layout: str, layers: Sequence[Blob], tag: str) -> None:
    """Write everything but the layers themselves."""
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": write_document(layout, config, CONFIG_TYPE),
        "layers": [
            {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size} for layer in layers
        ],
    }
    descriptor = write_document(layout, manifest, MANIFEST_TYPE)
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor | {"annotations": {"org.opencontainers.image.ref.name": tag}}],
    }
    write_file(os.path.join(layout, "index.json"), json.dumps(index).encode())
    write_file(os.path.join(layout, "oci-layout"), b'{"imageLayoutVersion": "1.0.0"}')


def write_document(layout: str, document: Mapping[str, object], media_type: str) -> dict[str, object]:
    data = json.dumps(document).encode()
    return {"mediaType": media_type, "digest": write_blob(layout, data), "size": len(data)}


def write_blob(layout: str, data: bytes) -> str:
    digest = digest_of(data)
    os.makedirs(blob_directory(layout), exist_ok=True)
    write_file(os.path.join(blob_directory(layout), digest.removeprefix("sha256:")), data)
    return digest


def blob_directory(layout: str) -> str:
    return os.path.join(layout, "blobs", "sha256")


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def write_file(path: str, data: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(data)


def compress(data: bytes, compression: Compression) -> bytes:
    match compression:
        case "none":
            return data
        case "gzip":
            return gzip.compress(data, mtime=0)
        case "zstd":
            return zstandard.ZstdCompressor().compress(data)
        case "bzip2":
            return bz2.compress(data)
        case "xz":
            return lzma.compress(data)


def read_layers(layout: str, tag: str = "latest") -> list[bytes]:
    """Return the tars of an image with a single manifest per tag, the oldest layer first."""
    with open(os.path.join(layout, "index.json"), "rb") as stream:
        index = json.load(stream)
    chosen = [
        descriptor
        for descriptor in index["manifests"]
        if descriptor.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag
    ]
    (descriptor,) = chosen
    manifest = json.loads(read_blob(layout, descriptor["digest"]))
    return [decompress(read_blob(layout, layer["digest"])) for layer in manifest["layers"]]


def read_blob(layout: str, digest: str) -> bytes:
    with open(os.path.join(blob_directory(layout), digest.removeprefix("sha256:")), "rb") as stream:
        return stream.read()


def decompress(data: bytes) -> bytes:
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    if data.startswith(b"BZh"):
        return bz2.decompress(data)
    if data.startswith(b"\xfd7zXZ\x00"):
        return lzma.decompress(data)
    return data


@dataclass(frozen=True, slots=True)
class RealImage:
    """An image as a builder wrote it, and the tree that it was built from.

    Times are not comparable: both builders store whole seconds, umoci rounded, buildah cut off.
    """

    layout: str
    tag: str
    want: dict[bytes, Node]


def build_with_umoci(layout: str, scratch: str) -> RealImage:
    """Write the image of `STAGES` to `layout`, one layer a stage; needs umoci and root."""
    bundle = os.path.join(scratch, "bundle")
    root = os.path.join(bundle, "rootfs")
    image = f"{layout}:latest"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", image)
    run("umoci", "unpack", "--image", image, bundle)
    for stage in STAGES:
        stage(root)
        run("umoci", "repack", "--refresh-bundle", "--image", image, bundle)
    want = snapshot_directory(os.fsencode(root))
    shutil.rmtree(bundle)
    return RealImage(layout, "latest", want)


def build_with_buildah(layout: str, scratch: str, driver: Literal["overlay", "vfs"] = "overlay") -> RealImage:
    """Write the image of `STAGES` to `layout`, one layer a stage; needs buildah and root."""
    with buildah_storage(scratch, driver) as buildah:
        base = "scratch"
        for number, stage in enumerate(STAGES):
            container = run(*buildah, "from", "--pull-never", base)
            root = run(*buildah, "mount", container)
            stage(root)
            want = snapshot_directory(os.fsencode(root))
            base = f"localhost/stage:{number}"
            run(*buildah, "umount", container)
            run(*buildah, "commit", "--quiet", "--format", "oci", container, base)
            run(*buildah, "rm", container)
        run(*buildah, "push", "--quiet", base, f"oci:{layout}:latest")
    want[b""] = merge([])[b""]  # buildah stores no entry for the root
    return RealImage(layout, "latest", want)


@contextmanager
def buildah_storage(scratch: str, driver: str) -> Iterator[list[str]]:
    """Give the first words of a buildah command with its own storage below `scratch`."""
    root = os.path.join(scratch, "storage")
    state = os.path.join(scratch, "run")
    os.makedirs(root)
    buildah = ["buildah", "--root", root, "--runroot", state, "--storage-driver", driver]
    try:
        yield buildah
    finally:
        run(*buildah, "rm", "--all")
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            points = [line.split()[4] for line in mounts]
        for point in reversed(points):
            if point.startswith((root + "/", state + "/")):
                run("umount", point)
        shutil.rmtree(root)
        shutil.rmtree(state, ignore_errors=True)


def run(*command: str) -> str:
    """Return what the command printed, without the last newline; it must succeed."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout.rstrip("\n")


def populate(root: str) -> None:
    """Bring file trees of this machine, and a merged /usr."""
    os.chmod(root, 0o750)
    for path in ("usr/lib", "usr/bin", "usr/share", "etc", "srv/opaque/sub", "srv/turns", "srv/gone/deep"):
        os.makedirs(os.path.join(root, path))
    os.symlink("usr/lib", os.path.join(root, "lib"))
    os.symlink("/usr/bin", os.path.join(root, "bin"))
    library = os.path.dirname(os.__file__)
    for package in ("email", "json"):
        run("cp", "-a", os.path.join(library, package), os.path.join(root, "usr/lib", package))
    run("cp", "-a", "/etc/profile", "/etc/services", os.path.join(root, "etc"))
    run("cp", "-a", "/usr/share/zoneinfo/Europe", os.path.join(root, "usr/share"))
    for name in sorted(os.listdir("/usr/bin")):
        if os.path.islink(os.path.join("/usr/bin", name)):
            os.symlink(os.readlink(os.path.join("/usr/bin", name)), os.path.join(root, "usr/bin", name))
    for path in (
        "srv/opaque/old",
        "srv/opaque/sub/old",
        "srv/turns/child",
        "srv/gone/deep/file",
        "srv/solid",
    ):
        write_file(os.path.join(root, path), path.encode())
    os.symlink("opaque", os.path.join(root, "srv/pointer"))


def add_specials(root: str) -> None:
    """Add what only root can make, and names and times that are easily lost."""
    shutil.copyfile(sys.executable, os.path.join(root, "usr/bin/su"))
    os.chmod(os.path.join(root, "usr/bin/su"), 0o4755)
    write_file(os.path.join(root, "usr/bin/ping"), b"#!/bin/sh\n")
    os.chmod(os.path.join(root, "usr/bin/ping"), 0o755)
    # vfs_cap_data, revision 2, effective: CAP_NET_RAW (linux/capability.h)
    capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    os.setxattr(os.path.join(root, "usr/bin/ping"), "security.capability", capability)
    os.makedirs(os.path.join(root, "dev"))
    os.mknod(os.path.join(root, "dev/null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(os.path.join(root, "dev/loop0"), stat.S_IFBLK | 0o660, os.makedev(7, 0))
    os.mkfifo(os.path.join(root, "dev/initctl"), 0o600)
    os.makedirs(os.path.join(root, "var/tmp"))
    os.chmod(os.path.join(root, "var/tmp"), 0o1777)
    os.makedirs(os.path.join(root, "var/mail"))
    os.chown(os.path.join(root, "var/mail"), 0, 8)
    os.chmod(os.path.join(root, "var/mail"), 0o2775)
    write_file(os.path.join(root, "var/linked"), b"shared by three names")
    os.link(os.path.join(root, "var/linked"), os.path.join(root, "usr/lib/linked"))
    os.link(os.path.join(root, "var/linked"), os.path.join(root, "etc/linked"))
    with open(os.path.join(root, "var/sparse"), "wb") as stream:
        stream.truncate(1 << 20)
        stream.seek(1 << 19)
        stream.write(b"an island")
    write_file(os.path.join(root, "var/tagged"), b"tagged")
    os.setxattr(os.path.join(root, "var/tagged"), "user.binary", b"\x00=\n\xff")
    os.setxattr(os.path.join(root, "var"), "user.directory", b"kept")
    os.utime(os.path.join(root, "var/tagged"), ns=(0, 1_234_567_890_123_456_789))
    os.chown(os.path.join(root, "var/tagged"), 12345, 54321)
    odd = os.path.join(os.fsencode(root), b"var", b"not utf-8 \xff\xfe\nand a newline")
    with open(odd, "wb") as stream:
        stream.write(b"odd")


def change(root: str) -> None:
    """Overwrite, delete, rename; give one name of a hard-linked file other content; chmod a directory only."""
    write_file(os.path.join(root, "etc/profile"), b"overwritten")
    os.remove(os.path.join(root, "etc/services"))
    shutil.rmtree(os.path.join(root, "srv/gone"))
    os.remove(os.path.join(root, "var/linked"))
    write_file(os.path.join(root, "var/linked"), b"no longer shared")
    shutil.move(os.path.join(root, "usr/lib/json"), os.path.join(root, "usr/lib/json.old"))
    os.remove(os.path.join(root, "srv/turns/child"))
    os.chmod(os.path.join(root, "usr/share"), 0o711)


def replace(root: str) -> None:
    """Make a directory a file, a file a directory, a symlink a directory; empty a directory by removal.

    The directory is an empty one, since umoci would write whiteouts for its children below the new file.
    """
    os.rmdir(os.path.join(root, "srv/turns"))
    write_file(os.path.join(root, "srv/turns"), b"a file now")
    os.remove(os.path.join(root, "srv/solid"))
    os.makedirs(os.path.join(root, "srv/solid/inside"))
    os.remove(os.path.join(root, "srv/pointer"))
    os.makedirs(os.path.join(root, "srv/pointer/new"))
    shutil.rmtree(os.path.join(root, "srv/opaque"))
    os.makedirs(os.path.join(root, "srv/opaque/sub"))
    write_file(os.path.join(root, "srv/opaque/sub/new"), b"new")


def turn_back(root: str) -> None:
    """Make the file a directory again, and bring the deleted back with other content."""
    os.remove(os.path.join(root, "srv/turns"))
    os.makedirs(os.path.join(root, "srv/turns/other"))
    os.makedirs(os.path.join(root, "srv/gone"))
    write_file(os.path.join(root, "srv/gone/again"), b"again")
    write_file(os.path.join(root, "etc/services"), b"back")
    shutil.rmtree(os.path.join(root, "usr/lib/email"))


STAGES: tuple[Callable[[str], None], ...] = (populate, add_specials, change, replace, turn_back)
