"""The order of names in an image: directory by directory, and in each by name, byte for byte.

The kernel looks names up in listings and their indexes by that order. Directories follow one another as a walk meets
them, so that what is near in the tree is near in the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paralayer.sinks.squashfs.records import ends_of, runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from paralayer.sinks.squashfs.records import Bytes, Positions

# Of the two bytes that no name has, NUL sorts before all others: it has to separate names, and "/" ends a path.
_SWAP = bytes([ord("/"), *range(1, ord("/")), 0, *range(ord("/") + 1, 256)])
_AT_ONCE = 1 << 12  # paths: so few that their bytes stay in the cache, and memory is used again


@dataclass(frozen=True, slots=True)
class Order:
    """Names, the root's first, then those of each directory together; item i of each array is about name i.

    A walk through the tree meets name i as the one with number `walk[i]`, the root with number 0.
    """

    path: NDArray[np.int64]
    """Number of the path, as they were added."""
    walk: NDArray[np.int64]
    directory: NDArray[np.int64]
    """The walk's number of the directory that has the name, ascending; -1 for the root."""
    text: Bytes
    """The bytes of all names."""
    start: Positions
    length: NDArray[np.int64]


class Paths:
    """Collects paths that are different: the root, all others, and each one's directory."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []  # paths that sort as a walk meets them
        self._depths: list[NDArray[np.int64]] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._names: list[bytes] = []

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, paths: Sequence[bytes]) -> None:
        """Add paths."""
        for first in range(0, len(paths), _AT_ONCE):
            self._add(paths[first : first + _AT_ONCE])

    def find(self, paths: set[bytes]) -> dict[bytes, int]:
        """Return the numbers of some of the paths."""
        wanted = {path.translate(_SWAP): path for path in paths}
        return {wanted[key]: number for number, key in enumerate(self._keys) if key in wanted}

    def order(self) -> Order:
        """Order the paths, and forget them."""
        keys = self._keys
        path = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
        keys.clear()
        depth = np.concatenate(self._depths)[path]
        lengths = np.concatenate(self._lengths)
        text = np.frombuffer(b"".join(self._names), np.uint8)
        self._names.clear()

        # The directory of a path is the last one before it that is less deep by one.
        walk = np.arange(len(path))
        by_depth = np.argsort(depth, kind="stable")
        above = np.searchsorted(depth[by_depth] * len(path) + by_depth, (depth - 1) * len(path) + walk) - 1
        directory = by_depth[above]
        assert (depth[directory[1:]] == depth[1:] - 1).all(), "a path without its directory"
        directory[0] = -1

        listed = np.argsort(directory, kind="stable")
        path = path[listed]
        return Order(path, listed, directory[listed], text, ends_of(lengths)[path], lengths[path])

    def _add(self, paths: Sequence[bytes]) -> None:
        joined = (b"\0".join(paths) + b"\0").translate(_SWAP)
        self._keys += joined[:-1].split(b"/")
        text = np.frombuffer(joined, np.uint8)
        stop = np.flatnonzero(text == ord("/"))
        start = np.concatenate([[0], stop[:-1] + 1])
        separators = np.concatenate([[-1], np.flatnonzero(text == 0)])
        before = np.searchsorted(separators, stop)
        self._depths.append(before - np.searchsorted(separators, start) + (stop > start))
        name = np.maximum(start, separators[before - 1] + 1)
        self._lengths.append(stop - name)
        self._names.append(text[runs(name, stop - name)].tobytes())
