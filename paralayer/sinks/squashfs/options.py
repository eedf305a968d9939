"""How a squashfs image is to be, whatever writes it."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_SIZES = [1 << bits for bits in range(12, 21)]
TIMES = "times before 1970 or after 2106"
"""What is clamped and counted under this name."""

_NAMES = ("zstd", "gzip", "xz", "lz4", "none")
_CHOICE = "zstd, gzip, xz, lz4 or none"
_LEVELS = {"gzip": range(1, 10), "zstd": range(1, 23)}
_DEFAULT_LEVELS = {"gzip": 9, "zstd": 3}


@dataclass(frozen=True, slots=True)
class Compression:
    """A compressor and its level; the level is the effective one, None where there are no levels."""

    name: str
    level: int | None

    @classmethod
    def parse(cls, text: str) -> Compression:
        """Return what `NAME` or `NAME:LEVEL` stands for; anything unknown is a ValueError that says what there is."""
        name, colon, number = text.partition(":")
        if name not in _NAMES:
            raise ValueError(f"compression: got {text!r}, want {_CHOICE}")
        if not colon:
            return cls(name, _DEFAULT_LEVELS.get(name))
        levels = _LEVELS.get(name)
        if levels is None:
            raise ValueError(f"compression: got {text!r}, want {name} without a level")
        if not (number.isascii() and number.isdigit()) or int(number) not in levels:
            raise ValueError(f"compression: got {text!r}, want a level from {levels[0]} to {levels[-1]}")
        return cls(name, int(number))


@dataclass(frozen=True, slots=True)
class Options:
    """What `ImageSpec.squashfs` describes; `time`, in seconds since the epoch, is when the image was made."""

    compression: Compression
    block_size: int
    fragments: bool
    dedup: bool
    exports: bool
    pad: bool
    time: int
