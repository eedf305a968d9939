"""The jobs of workers: data blocks and fragment blocks.

A job reads parts of a layer's stream, compresses them block by block and leaves the blocks, one after another, in a
memfd of its own. Its result is a word for each block, as the format has it (the size on disk, bit 24 when stored
uncompressed, 0 for a hole); digests by which equal files are recognised: SHA-256 of a block as it is stored, of a
tail end as it is, zeros for a hole; and the numbers of the parts whose tail end is all zeros, which have no digest.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from paralayer.engine.jobs import Finished, Run
from paralayer.sinks.squashfs.compressor import Compressor
from paralayer.sinks.window import Window, reach
from paralayer.stream import Slots, Stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer.sinks.squashfs.options import Compression

UNCOMPRESSED = 1 << 24
SIZE_MASK = UNCOMPRESSED - 1
DIGEST_SIZE = 32
_HOLE_DIGEST = bytes(DIGEST_SIZE)


@dataclass(frozen=True, slots=True)
class Settings:
    """How data is packed."""

    compression: Compression
    block_size: int
    fragments: bool
    """Whether tail ends go into fragment blocks."""
    dedup: bool
    """Whether digests are wanted."""


@dataclass(frozen=True, slots=True)
class PackFiles:
    """Job: pack contiguous parts of files. Descriptors: for the blocks, of the arena.

    `parts`, 64-bit integers: offset in the stream, length, number of blocks; again and again. Blocks are full but for
    the last one of a file; what is left behind the blocks is a tail end, and only its digest is made.
    """

    settings: Settings
    parts: bytes
    slots: Slots

    def run(self, fds: Sequence[int]) -> Run:
        """See `Job`; the result is (words, digests, tail ends that are holes)."""
        output, arena = fds
        stream = Stream(arena, self.slots)
        packer = _Packer(self.settings, output)
        size = self.settings.block_size
        parts = np.frombuffer(self.parts, "<i8").reshape(-1, 3)
        begins, ends = parts[:, 0], parts[:, 0] + parts[:, 1]
        window = Window()
        for index, (begin, end, blocks, stop) in enumerate(
            zip(begins.tolist(), ends.tolist(), parts[:, 2].tolist(), reach(begins, ends), strict=True)
        ):
            for number in range(blocks + 1):
                at = begin + number * size
                until = min(at + size, end)
                if until <= at:
                    break
                if not window.has(at, until):
                    window.fill(stream, at, stop)
                if number < blocks:
                    packer.pack(window.view(at, until))
                else:
                    packer.add_tail(index, window.view(at, until))
        yield Finished(packer.result())


@dataclass(frozen=True, slots=True)
class PackSparse:
    """Job: pack a part of a sparse file, `length` bytes. Descriptors: for the blocks, of the extents, of the arena.

    The extents, pairs of 64-bit integers, are (offset from where the part begins, length); the first may begin before
    it, the last may end behind it. `data` is where the first one's content begins in the stream.
    """

    settings: Settings
    data: int
    length: int
    blocks: int
    slots: Slots

    def run(self, fds: Sequence[int]) -> Run:
        """See `Job`; the result is that of `PackFiles`. A tail end is left behind the blocks."""
        output, extents_fd, arena = fds
        stream = Stream(arena, self.slots)
        extents = np.frombuffer(os.pread(extents_fd, os.fstat(extents_fd).st_size, 0), "<i8").reshape(-1, 2)
        begins = extents[:, 0]
        ends = begins + extents[:, 1]
        stored = self.data + np.cumsum(extents[:, 1]) - extents[:, 1]
        packer = _Packer(self.settings, output)
        size = self.settings.block_size
        if not len(extents):
            packer.add_hole(self.blocks)
            if self.length > self.blocks * size:
                packer.add_hole_tail(0)
            yield Finished(packer.result())
            return
        for number, at in enumerate(range(0, self.length, size)):
            stop = min(at + size, self.length)
            first, last = np.searchsorted(ends, at, "right"), np.searchsorted(begins, stop)
            if first >= last:
                if number < self.blocks:
                    packer.add_hole()
                else:
                    packer.add_hole_tail(0)
                continue
            block = memoryview(bytearray(stop - at))
            for begin, end, place in zip(
                begins[first:last].tolist(),
                ends[first:last].tolist(),
                stored[first:last].tolist(),
                strict=True,
            ):
                low, high = max(begin, at), min(end, at + len(block))
                stream.read(block[low - at : high - at], place + low - begin)
            if number < self.blocks:
                packer.pack(block)
            else:
                packer.add_tail(0, block)
                packer.write(block)  # what is put together is in no stream
        yield Finished(packer.result())


@dataclass(frozen=True, slots=True)
class PackFragments:
    """Job: make fragment blocks out of tail ends. Descriptors: for the blocks, of the arena.

    `fragments`, 64-bit integers for each block: how many of its bytes are in the former already, one block's behind the
    other's, and how many tail ends follow. `tails`, 64-bit integers for each of these: offset in the stream, length.
    """

    settings: Settings
    fragments: bytes
    tails: bytes
    slots: Slots

    def run(self, fds: Sequence[int]) -> Run:
        """See `Job`; the result are the words."""
        output, arena = fds
        stream = Stream(arena, self.slots)
        fragments = array("q", self.fragments)
        tails = np.frombuffer(self.tails, "<i8").reshape(-1, 2)
        begins, ends = tails[:, 0], tails.sum(axis=1)
        carried = os.pread(output, sum(fragments[::2]), 0)
        packer = _Packer(self.settings, output)
        extents = zip(begins.tolist(), ends.tolist(), reach(begins, ends), strict=True)
        window = Window()
        used = 0
        for size, count in zip(fragments[::2], fragments[1::2], strict=True):
            pieces: list[bytes | memoryview] = [carried[used : used + size]]
            used += size
            for at, end, stop in islice(extents, count):
                if not window.has(at, end):
                    pieces = [b"".join(pieces)]
                    window.fill(stream, at, stop)
                pieces.append(window.view(at, end))
            packer.put(b"".join(pieces))
        yield Finished(packer.result()[0])


class _Packer:
    """Packs blocks into a memfd."""

    def __init__(self, settings: Settings, output: int) -> None:
        self._compress = Compressor(settings.compression, settings.block_size).compress
        self._dedup = settings.dedup
        self._output = output
        self._at = 0
        self._words = array("I")
        self._digests: list[bytes] = []
        self._holes = array("I")

    def result(self) -> tuple[bytes, bytes, bytes]:
        """Return words, digests and the parts whose tail end is a hole."""
        return self._words.tobytes(), b"".join(self._digests), self._holes.tobytes()

    def pack(self, block: memoryview) -> None:
        """Pack a data block."""
        if _is_hole(block):
            self.add_hole()
            return
        stored = self.put(block)
        if self._dedup:
            self._digests.append(hashlib.sha256(stored).digest())

    def put(self, block: bytes | memoryview) -> bytes | memoryview:
        """Compress a block, if that makes it smaller, and write it; return what was written."""
        compressed = self._compress(block)
        stored = block if compressed is None else compressed
        self._words.append(len(stored) | (UNCOMPRESSED if compressed is None else 0))
        self.write(stored)
        return stored

    def write(self, stored: bytes | memoryview) -> None:
        """Write something behind what has been written."""
        left = memoryview(stored)
        while left:
            written = os.pwrite(self._output, left, self._at)
            self._at += written
            left = left[written:]

    def add_hole(self, blocks: int = 1) -> None:
        """Take note of blocks that are a hole."""
        self._words.extend(bytes(blocks))
        if self._dedup:
            self._digests.append(_HOLE_DIGEST * blocks)

    def add_hole_tail(self, part: int) -> None:
        """Take note of a part whose tail end is a hole."""
        self._holes.append(part)

    def add_tail(self, part: int, tail: memoryview) -> None:
        """Take note of a part's tail end."""
        if _is_hole(tail):
            self.add_hole_tail(part)
        elif self._dedup:
            self._digests.append(hashlib.sha256(tail).digest())


def _is_hole(block: memoryview) -> bool:
    return not block[0] and not np.frombuffer(block, np.uint8).any()
