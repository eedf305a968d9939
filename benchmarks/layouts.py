"""The images that benchmarks convert: made by `scripts/make-image`, kept for the next time.

They lie in `$PARALAYER_BENCH_DIR`, or else in `.cache/benchmarks`, under their name and size. One that is there is
taken as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIRECTORY = Path(os.environ.get("PARALAYER_BENCH_DIR") or ROOT / ".cache" / "benchmarks")

LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "real": (1800, ()),
    "zstd": (600, ("--compression", "zstd")),
    "many-layers": (600, ("--shape", "many-layers")),
    "fat-layer": (600, ("--shape", "fat-layer")),
    "shadowed": (600, ("--shape", "shadowed")),
    "large-files": (600, ("--shape", "large-files")),
    "small-files": (300, ("--shape", "small-files")),
    "small-image": (5, ()),
}
"""Decoded megabytes, and what `make-image` is to make of them. `real` is an image as people have it; `small-files`
has 400,000 entries; all but `many-layers`, with 100, have 10 layers."""

_LEAST = {"large-files": 60}  # megabytes: its layers are two files, cut from whole ones of this machine

SHAPES = tuple(name for name in LAYOUTS if name != "small-image")


def layout(name: str, scale: float = 1) -> Path:
    """Return the layout `name`, made now if need be; `scale` makes it smaller, but not below a megabyte."""
    size, arguments = LAYOUTS[name]
    size = max(_LEAST.get(name, 1), round(size * scale))
    path = DIRECTORY / f"{name}-{size}"
    if not path.exists():
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        temporary = DIRECTORY / f"{name}-{size}.{os.getpid()}"
        command: list[str | Path] = [
            sys.executable,
            ROOT / "scripts" / "make-image",
            temporary,
            "--size-mb",
            str(size),
            *arguments,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        temporary.rename(path)
    return path
