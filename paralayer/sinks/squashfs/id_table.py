"""The id table: every owner and group once; inodes have 16-bit indexes into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from paralayer.errors import SinkError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX = 0xFFFF  # the superblock has 16 bits for their number


def number_ids(
    uids: NDArray[np.uint32], gids: NDArray[np.uint32], where: str
) -> tuple[bytes, NDArray[np.uint16], NDArray[np.uint16]]:
    """Return the table's records, and the index of each owner and each group; `where` names the output."""
    ids, inverse = np.unique(np.concatenate([uids, gids]), return_inverse=True)
    if len(ids) > _MAX:
        raise SinkError(
            where, "owners and groups of all files", f"{len(ids)} different ones", f"at most {_MAX}"
        )
    indexes: NDArray[np.uint16] = inverse.astype(np.uint16)
    return ids.astype("<u4").tobytes(), indexes[: len(uids)], indexes[len(uids) :]
