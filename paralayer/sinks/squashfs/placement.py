"""Where blocks go: what workers packed comes here in output order, and nothing but that order decides.

Data blocks are written as they come. A file that equals an earlier one gives its place up again. Tail ends fill
fragment blocks one after another; these are packed by workers, too, while more data blocks are written, so each is
written some fragment blocks later: a fixed number, or the order would depend on how fast workers are.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from paralayer.engine.jobs import Finished
from paralayer.sinks.squashfs.data import DIGEST_SIZE, SIZE_MASK, PackFragments, Settings
from paralayer.sinks.squashfs.inode import NO_FRAGMENT, Content

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer.engine.jobs import Job

_LAG = (
    16 << 20
)  # bytes of fragment blocks that are being packed, or wait for it, while data blocks are written
_GROUP = 1 << 20  # bytes of fragment blocks that make a job
_FRAGMENT = np.dtype([("start", "<u8"), ("size", "<u4"), ("unused", "<u4")])


BEHIND_BLOCKS = -1


@dataclass(slots=True)
class FilePart:
    """A part of a file, in a `Part`: `blocks` data blocks, and a tail end of `tail` bytes.

    That is at `tail_at` of the stream, or `BEHIND_BLOCKS` in the part's memfd, as the only one there.
    """

    entry: int
    size: int  # of the whole file
    last: bool  # part of the file
    blocks: int
    tail: int
    tail_at: int


@dataclass(slots=True)
class Part:
    """What one job packs of the files of a layer. See `SinkJob`; `fds[0]` is the memfd with the blocks."""

    job: Job
    layer: int
    begin: int | None
    fds: Sequence[int]
    stream_fd: int
    files: list[FilePart]
    words: Sequence[int] | None = None  # None: not packed yet
    digests: bytes = b""
    # How far it is placed: files, words, digests, bytes of the blocks.
    file: int = 0
    word: int = 0
    digest: int = 0
    at: int = 0


@dataclass(slots=True)
class FragmentGroup:
    """Fragment blocks that one job packs. See `SinkJob`; `fds[0]` is the memfd with the blocks."""

    job: Job
    layer: int
    begin: int | None
    fds: Sequence[int]
    words: Sequence[int] | None = None
    word: int = 0
    at: int = 0


@dataclass(slots=True)
class _File:
    """The file whose blocks are being placed."""

    start: int  # in the image
    words: array[int] = field(default_factory=lambda: array("I"))
    digests: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _Open:
    """The fragment block that is being filled: bytes that are here already, and tail ends in the part's stream."""

    size: int = 0
    carried: bytearray = field(default_factory=bytearray)
    tails: array[int] = field(default_factory=lambda: array("q"))  # offset, length; again and again


class Placement:
    """Writes blocks to the file `fd` from `position` on."""

    def __init__(self, fd: int, position: int, settings: Settings) -> None:
        self._fd = fd
        self.position = position
        self._settings = settings
        self._lag = max(4, _LAG // settings.block_size)
        self._parts: deque[Part] = deque()
        self._file: _File | None = None
        # Equal files: digest of a tail end that is the whole file → fragment, offset; of blocks and size → the place.
        self._small: dict[bytes, tuple[int, int]] = {}
        self._large: dict[tuple[int, bytes], tuple[int, int, int, int, int, int]] = {}
        self._open = _Open()
        self._closed: list[_Open] = []  # of the part that is being placed
        self._fragments = 0  # closed ones
        self._groups: deque[FragmentGroup] = deque()  # in order; what is not written yet of fragment blocks
        self._fragment_starts = array("Q")
        self._fragment_words = array("I")
        # Content, an item for each file.
        self._entries = array("q")
        self._places = array("q")  # start, sparse, first, count
        self._ends = array("I")  # fragment, offset
        self._words = array("I")  # of all files

    @property
    def waiting(self) -> int:
        """How many parts are not placed yet."""
        return len(self._parts)

    @property
    def held(self) -> int:
        """Bytes of packed blocks that are in memory."""
        items: list[Part | FragmentGroup] = [*self._parts, *self._groups]
        return sum(os.fstat(item.fds[0]).st_blocks * 512 for item in items)

    def add(self, part: Part) -> None:
        """Take the next part in output order, not packed yet."""
        self._parts.append(part)

    def advance(self) -> list[FragmentGroup]:
        """Place what can be placed by now; return what is to be packed next."""
        groups: list[FragmentGroup] = []
        while self._parts and self._parts[0].words is not None:
            part = self._parts[0]
            complete = self._place(part)
            self._make_groups(part, groups, everything=complete)
            if not complete:
                break
            self._carry(part)
            part.begin = None
            _close(part.fds)
            self._parts.popleft()
        return groups

    def finish(self) -> None:
        """Write what is left of fragment blocks, when all parts are placed."""
        assert not self._parts
        if self._open.size:
            self._fragments += 1
            group = self._group(0, [self._open])
            self._open = _Open()
            for event in group.job.run([*group.fds, *group.fds]):
                assert isinstance(event, Finished)
                group.words = array("I", event.result)
        while self._write_fragment():
            pass
        assert not self._groups

    def content(self, entries: int) -> tuple[Content, bytes]:
        """Return where the content of all files is, for so many entries, and the records of the fragment table."""
        files = np.array(self._entries, np.int64)
        start, sparse, first, count = (np.zeros(entries, np.int64) for _ in range(4))
        fragment, offset = np.full(entries, NO_FRAGMENT, np.uint32), np.zeros(entries, np.uint32)
        places = np.array(self._places, np.int64).reshape(-1, 4)
        for index, column in enumerate((start, sparse, first, count)):
            column[files] = places[:, index]
        ends = np.array(self._ends, np.uint32).reshape(-1, 2)
        fragment[files], offset[files] = ends[:, 0], ends[:, 1]
        records = np.zeros(self._fragments, _FRAGMENT)
        records["start"], records["size"] = self._fragment_starts, self._fragment_words
        sizes = np.array(self._words, np.uint32)
        return Content(start, fragment, offset, sparse, first, count, sizes), records.tobytes()

    @property
    def fragments(self) -> int:
        """Number of fragment blocks."""
        return self._fragments

    def close(self) -> None:
        """Close all memfds."""
        for part in self._parts:
            _close(part.fds)
        for group in self._groups:
            _close(group.fds)
        self._parts.clear()
        self._groups.clear()

    # Parts

    def _place(self, part: Part) -> bool:
        """Place the files of a part; return whether all are, or a fragment block has to be waited for."""
        words, digests, dedup = part.words, part.digests, self._settings.dedup
        assert words is not None
        begin = at = part.at  # of the blocks that are not written yet
        word, digest = part.word, part.digest
        files = part.files
        file_at = -1  # in the part, of the file that is being placed; it may have begun in another part
        for index in range(part.file, len(files)):
            piece = files[index]
            if self._file is None:
                if self._fragments - len(self._fragment_words) > self._lag:
                    self._send(part, begin, at)
                    begin = at
                    while self._fragments - len(self._fragment_words) > self._lag:
                        if not self._write_fragment():
                            part.file, part.word, part.digest, part.at = index, word, digest, at
                            return False
                if not piece.blocks:
                    key = digests[digest : digest + DIGEST_SIZE]
                    digest += len(key)
                    place = self._small.get(key) if dedup else None
                    if place is None:
                        place = self._add_tail(part, piece, at)
                        if dedup:
                            self._small[key] = place
                    self._entries.append(piece.entry)
                    self._places.extend((0, 0, 0, 0))
                    self._ends.extend(place)
                    continue
                self._file = _File(self.position + at - begin)
                file_at = at
            file = self._file
            own = words[word : word + piece.blocks]
            word += piece.blocks
            file.words.extend(own)
            at += sum(each & SIZE_MASK for each in own)
            if dedup:
                length = (piece.blocks + (piece.tail > 0)) * DIGEST_SIZE
                file.digests.append(digests[digest : digest + length])
                digest += length
            if not piece.last:
                continue
            self._file = None
            self._entries.append(piece.entry)
            key_of_all = piece.size, b""
            if dedup:
                key_of_all = (
                    piece.size,
                    hashlib.sha256(b"".join([file.words.tobytes(), *file.digests])).digest(),
                )
                known = self._large.get(key_of_all)
                if known is not None:
                    self._places.extend(known[:4])
                    self._ends.extend(known[4:])
                    if file_at < 0:
                        self.position = file.start
                    else:
                        self._send(part, begin, file_at)
                    begin = at
                    continue
            end = self._add_tail(part, piece, at) if piece.tail else (NO_FRAGMENT, 0)
            holes = file.words.count(0)
            sparse = min(holes * self._settings.block_size, piece.size)
            place_of_all = (
                file.start if holes < len(file.words) else 0,
                sparse,
                len(self._words),
                len(file.words),
            )
            self._words.extend(file.words)
            self._places.extend(place_of_all)
            self._ends.extend(end)
            if dedup:
                self._large[key_of_all] = (*place_of_all, *end)
        self._send(part, begin, at)
        return True

    def _send(self, part: Part | FragmentGroup, begin: int, end: int) -> None:
        """Write packed blocks at the position."""
        if begin == end:
            return
        os.lseek(self._fd, self.position, os.SEEK_SET)
        self.position += end - begin
        while begin < end:
            sent = os.sendfile(self._fd, part.fds[0], begin, end - begin)
            assert sent, "what was packed is there"
            begin += sent

    # Fragments

    def _add_tail(self, part: Part, piece: FilePart, at: int) -> tuple[int, int]:
        """Put a tail end into the open fragment block, or the next one; return which it is, and the offset.

        `at` is where the file's blocks end in the part.
        """
        if self._open.size + piece.tail > self._settings.block_size:
            self._closed.append(self._open)
            self._fragments += 1
            self._open = _Open()
        place = self._fragments, self._open.size
        self._open.size += piece.tail
        if piece.tail_at == BEHIND_BLOCKS:
            self._carry(part)
            self._open.carried += os.pread(part.fds[0], piece.tail, at)
        else:
            self._open.tails.extend((piece.tail_at, piece.tail))
        return place

    def _make_groups(self, part: Part, groups: list[FragmentGroup], *, everything: bool) -> None:
        """Make jobs of closed fragment blocks."""
        each = max(1, _GROUP // self._settings.block_size)
        while len(self._closed) >= each or (everything and self._closed):
            closed, self._closed = self._closed[:each], self._closed[each:]
            groups.append(self._group(part.layer, closed))

    def _group(self, layer: int, closed: Sequence[_Open]) -> FragmentGroup:
        fd = os.memfd_create("fragments", os.MFD_CLOEXEC)
        carried = closed[0].carried
        write_all(fd, carried)
        tails, counts = array("q"), array("q")
        for fragment in closed:
            tails.extend(fragment.tails)
            counts.append(len(fragment.tails) // 2)
        job = PackFragments(self._settings, len(carried), tails.tobytes(), counts.tobytes())
        group = FragmentGroup(job, layer, min(tails[::2], default=None), [fd])
        self._groups.append(group)
        return group

    def _carry(self, part: Part) -> None:
        """Take the open fragment block's tail ends out of the stream of a part that is placed."""
        tails = self._open.tails
        for index in range(0, len(tails), 2):
            at, length = tails[index : index + 2]
            self._open.carried += os.pread(part.stream_fd, length, at)
        self._open.tails = array("q")

    def _write_fragment(self) -> bool:
        """Write the next fragment block at the position; return False if it is not packed yet."""
        if not self._groups:
            return False
        group = self._groups[0]
        if group.words is None:
            return False
        word = group.words[group.word]
        size = word & SIZE_MASK
        self._fragment_starts.append(self.position)
        self._fragment_words.append(word)
        self._send(group, group.at, group.at + size)
        group.at += size
        group.word += 1
        if group.word == len(group.words):
            _close(group.fds)
            self._groups.popleft()
        return True


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def write_all(fd: int, data: bytes | bytearray, position: int = 0) -> None:
    """Write all of `data` at `position`."""
    with memoryview(data) as view:
        at = 0
        while at < len(view):
            at += os.pwrite(fd, view[at:], position + at)
