"""What is decided without looking: how many processes, and which layer is decoded when. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SMALL_IMAGE = 8 << 20
"""Compressed bytes below which worker processes cost more than they bring: starting them takes as long as
decoding this much."""


def processes(jobs: int, sizes: Sequence[int | None]) -> int:
    """Return how many worker processes serve `jobs` for blobs of these sizes; 0: this process does the work.

    A size that is not known (None) is taken for a large one.
    """
    return (
        0 if jobs == 1 or sum(SMALL_IMAGE if size is None else size for size in sizes) < SMALL_IMAGE else jobs
    )


def next_layer(waiting: Sequence[int], sizes: Sequence[int | None], jobs: int) -> int:
    """Return which of the waiting layers to decode next.

    That is the newest, since output goes newest-first; but a layer so large that it would still be decoding when
    all others are done goes first, as soon as that is so. When there are no more layers than jobs, all start anyway.
    """
    largest = max(waiting, key=lambda layer: (sizes[layer] or 0, layer))
    if len(waiting) > jobs and (sizes[largest] or 0) * jobs >= sum(sizes[layer] or 0 for layer in waiting):
        return largest
    return max(waiting)
