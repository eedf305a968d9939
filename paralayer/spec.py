"""What to make of an image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

Format = Literal["tar", "directory", "squashfs"]
Engine = Literal["paralayer", "mksquashfs"]


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What to make of an image, and where.

    Use the constructors that name the format. `force` replaces an existing output, at the end and at once. `mtime`,
    in seconds since the epoch, is the latest modification time that anything in the output may have: later ones
    become it.
    """

    format: Format
    path: str | None
    force: bool = False
    mtime: int | None = None
    compression: str = "zstd"
    block_size: int = 128 << 10
    fragments: bool = True
    dedup: bool = True
    exports: bool = True
    pad: bool = True
    engine: Engine = "paralayer"
    mksquashfs: str | None = None

    @classmethod
    def tar(
        cls, path: str | os.PathLike[str] | None, *, force: bool = False, mtime: int | None = None
    ) -> ImageSpec:
        """Describe a flat tar archive; None writes it to standard output."""
        return cls("tar", None if path is None else os.fspath(path), force, mtime)

    @classmethod
    def directory(
        cls, path: str | os.PathLike[str], *, force: bool = False, mtime: int | None = None
    ) -> ImageSpec:
        """Describe a directory with the tree itself."""
        return cls("directory", os.fspath(path), force, mtime)

    @classmethod
    def squashfs(
        cls,
        path: str | os.PathLike[str],
        *,
        force: bool = False,
        mtime: int | None = None,
        compression: str = "zstd",
        block_size: int = 128 << 10,
        fragments: bool = True,
        dedup: bool = True,
        exports: bool = True,
        pad: bool = True,
        engine: Engine = "paralayer",
        mksquashfs: str | None = None,
    ) -> ImageSpec:
        """Describe a squashfs image.

        `compression` is zstd, gzip, xz, lz4 or none, with `:LEVEL` for the first two. Blocks have `block_size` bytes, a
        power of two from 4 KiB to 1 MiB; else ValueError. With `fragments`, tail ends of files share blocks; with `dedup`, equal files
        are stored once; with `exports` there is a table for NFS; with `pad`, the size is a multiple of 4 KiB. The image
        was made at `mtime`, else when the container image was, else at 0. `engine` is what writes it: paralayer, or the
        program mksquashfs, where `mksquashfs` is its path if it is not to be looked for.
        """
        from paralayer.sinks.squashfs.options import BLOCK_SIZES, Compression

        Compression.parse(compression)
        if block_size not in BLOCK_SIZES:
            raise ValueError(f"block size: got {block_size}, want a power of two from 4096 to 1048576")
        return cls(
            "squashfs",
            os.fspath(path),
            force,
            mtime,
            compression,
            block_size,
            fragments,
            dedup,
            exports,
            pad,
            engine,
            mksquashfs,
        )
