"""What newer layers hide, told to those who decode older ones, so that they do not store it.

The merger appends to one memfd what each orderly layer hides, as soon as that layer is indexed; decoders look there
now and then. They know at most what the merge knows, often less, and never more: it decides what is stored, not what
survives. A file that is hidden under its own name can still survive under another (a hard link); then its layer is
read a second time.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from paralayer.table import DIRECTORY, OPAQUE

if TYPE_CHECKING:
    from collections.abc import Sequence

_RECORD = struct.Struct(
    "<IQQ"
)  # layer, bytes of hidden paths, bytes of paths that are hidden below; each with NUL


class HidingPaths:
    """The merger's side; `fd` is the memfd."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("hiding", os.MFD_CLOEXEC)
        self.size = 0
        """Bytes of it."""

    def add(self, layer: int, paths: Sequence[bytes], kinds: Sequence[int]) -> None:
        """Tell what an orderly layer hides."""
        own = [path for path, kind in zip(paths, kinds, strict=True) if kind not in (DIRECTORY, OPAQUE)]
        below = [path for path, kind in zip(paths, kinds, strict=True) if kind == OPAQUE]
        parts = [b"".join(path + b"\0" for path in part) for part in (own, below)]
        record = _RECORD.pack(layer, *map(len, parts)) + b"".join(parts)
        while record:  # one write, but for the kernel's limit of 2 GiB
            written = os.pwrite(self.fd, record, self.size)
            self.size += written
            record = record[written:]

    def close(self) -> None:
        """Close the memfd."""
        os.close(self.fd)


class Hiding:
    """A decoder's side: what is hidden of `layer`, as far as `refresh` found it told in `fd`."""

    def __init__(self, fd: int, layer: int) -> None:
        self._fd = fd
        self._layer = layer
        self._at = 0
        self._paths: set[bytes] = set()
        self._below: set[bytes] = set()

    def refresh(self) -> None:
        """Look for what is new."""
        size = os.fstat(self._fd).st_size
        while self._at < size:
            header = os.pread(self._fd, _RECORD.size, self._at)
            if len(header) < _RECORD.size:
                return
            layer, own, below = _RECORD.unpack(header)
            stop = self._at + _RECORD.size + own + below
            if stop > size:
                return  # not all there yet
            if layer > self._layer:
                names = os.pread(self._fd, own + below, self._at + _RECORD.size)
                self._paths.update(names[:own].split(b"\0")[:-1])
                self._below.update(names[own:].split(b"\0")[:-1])
            self._at = stop

    def hides(self, path: bytes) -> bool:
        """Say whether the file at `path` is known to be hidden."""
        if path in self._paths:
            return True
        cut = path.rfind(b"/")
        while cut >= 0:
            path = path[:cut]
            if path in self._paths or path in self._below:
                return True
            cut = path.rfind(b"/")
        return b"" in self._below
