"""Records of different lengths in one buffer: where each begins is known, so many are put in place at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Positions = NDArray[np.int64]


def ends_of(lengths: NDArray[Any]) -> Positions:
    """Return where records of these lengths begin when they follow one another, and last where they all end."""
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends


def put(buffer: Bytes, at: Positions, records: NDArray[Any]) -> None:
    """Write `records[i]`, of any dtype and contiguous, at `at[i]`."""
    if len(records):
        _windows(buffer, records.dtype.itemsize)[at] = records.view(f"V{records.dtype.itemsize}")


def copy(buffer: Bytes, at: Positions, source: Bytes, start: Positions, length: NDArray[Any]) -> None:
    """Copy `length[i]` bytes from `start[i]` in `source` to `at[i]`; what differs in length costs most."""
    by_length = np.argsort(length, kind="stable")
    sizes, counts = np.unique(length, return_counts=True)
    for size, same in zip(sizes.tolist(), np.split(by_length, np.cumsum(counts)), strict=False):
        if size:
            _windows(buffer, size)[at[same]] = _windows(source, size)[start[same]]


def runs(first: NDArray[Any], count: NDArray[Any]) -> Positions:
    """Return `first[i]`, `first[i]` + 1, ... `count[i]` of them, for each i in turn."""
    total = ends_of(count)
    return np.repeat(first - total[:-1], count) + np.arange(total[-1])


def _windows(buffer: Bytes, size: int) -> NDArray[np.void]:
    """Return all runs of so many bytes as one array, whose items overlap."""
    return np.ndarray((len(buffer) - size + 1,), f"V{size}", buffer, strides=(1,))
