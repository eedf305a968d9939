"""Where blocks go: what workers packed comes here in output order, and nothing but that order decides.

Data blocks are written as they come. A file whose blocks equal an earlier one's gives its place up again. Tail ends fill
fragment blocks one after another; these are packed by workers, too, while more data blocks are written, so each is
written some fragment blocks later: a fixed number, or the order would depend on how fast workers are.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from paralayer.engine.jobs import Finished
from paralayer.sinks.output import write_all
from paralayer.sinks.squashfs.data import DIGEST_SIZE, SIZE_MASK, PackFragments, Settings
from paralayer.sinks.squashfs.inode import NO_FRAGMENT, Content
from paralayer.stream import Slots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from paralayer.engine.jobs import Job
    from paralayer.stream import Stream

_LAG = (
    16 << 20
)  # bytes of fragment blocks that are being packed, or wait for it, while data blocks are written
_OPEN = 4  # fragment blocks that are being filled, for kinds of files: two percent smaller than with one
_GROUP = 1 << 20  # bytes of fragment blocks that make a job
_NO_TAIL = (NO_FRAGMENT, 0)
_NO_BLOCKS = (0, 0, 0, 0)
_FRAGMENT = np.dtype([("start", "<u8"), ("size", "<u4"), ("unused", "<u4")])


BEHIND_BLOCKS = -1


@dataclass(slots=True, eq=False)
class Part:
    """What one job packs of the files of a layer. See `SinkJob`; `fds[0]` is the memfd with the blocks.

    An item for each file: it has so many data blocks here and a tail end of so many bytes, at some place of the stream,
    or `BEHIND_BLOCKS` in the memfd, as the only one. Tail ends of one kind of files compress better together.
    """

    job: Job
    layer: int
    begin: int | None
    fds: Sequence[int]
    stream: Stream
    entries: NDArray[np.int64]
    kinds: list[bytes]
    sizes: list[int]  # of whole files
    blocks: list[int]
    tails: NDArray[np.int64]
    tails_at: NDArray[np.int64]
    goes_on: bool
    """The last file is not complete; then it is the only one."""
    words: Sequence[int] | None = None  # None: not packed yet
    digests: bytes = b""
    holes: frozenset[int] = (
        frozenset()
    )  # files whose tail end is all zeros: no tail end, but a block that is a hole
    # How far it is placed: files, words, digests, bytes of the blocks.
    file: int = 0
    word: int = 0
    digest: int = 0
    at: int = 0


@dataclass(slots=True, eq=False)
class FragmentGroup:
    """Fragment blocks that one job packs. See `SinkJob`; `fds[0]` is the memfd with the blocks."""

    job: Job
    layer: int
    begin: int | None
    fds: Sequence[int]
    numbers: list[int]
    words: Sequence[int] | None = None
    word: int = 0
    at: int = 0


@dataclass(slots=True)
class _File:
    """The file whose blocks are being placed."""

    start: int  # in the image
    words: array[int] = field(default_factory=lambda: array("I"))
    digests: list[bytes] = field(default_factory=list)
    key: bytes = b""  # of the blocks


@dataclass(slots=True)
class _Open:
    """A fragment block that is being filled: bytes that are here already, and tail ends in the part's stream."""

    number: int  # in the fragment table
    size: int = 0
    carried: bytearray = field(default_factory=bytearray)
    tails: list[int] = field(default_factory=list)  # numbers of files


class Placement:
    """Writes blocks to the file `fd` from `position` on."""

    def __init__(self, fd: int, position: int, settings: Settings) -> None:
        self._fd = fd
        self.position = position
        self._settings = settings
        self._lag = max(4, _LAG // settings.block_size)
        self._digest_size = DIGEST_SIZE if settings.dedup else 0
        self._parts: deque[Part] = deque()
        self._file: _File | None = None
        # What there is already: digest of a tail end → fragment, offset; of the blocks of a file → start, first word.
        self._known_tails: dict[bytes, tuple[int, int]] = {}
        self._known_blocks: dict[bytes, tuple[int, int]] = {}
        self._open: dict[bytes, _Open] = {}  # by kind, the one that got a tail end last is last
        self._closed: list[_Open] = []  # in no group yet
        self._groups: deque[FragmentGroup] = deque()  # in order; what is not written yet of fragment blocks
        self._unwritten = 0  # closed fragment blocks
        self._records: list[tuple[int, int]] = []  # of the fragment table: start, word
        # Of each part: an item of each file with entry, fragment, offset; start, sparse, first, count.
        self._content: list[NDArray[np.int64]] = []
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
            for fragment in self._open.values():
                self._carry(part, fragment)
            part.begin = None
            self._parts.popleft()  # first: an interruption must not have `close` do it again
            _close_all(part.fds)
        return groups

    def finish(self) -> None:
        """Write what is left of fragment blocks, when all parts are placed."""
        assert not self._parts
        if self._open:
            group = self._group(None, [*self._closed, *self._open.values()])
            self._closed.clear()
            self._open.clear()
            for event in group.job.run([*group.fds, *group.fds]):
                assert isinstance(event, Finished)
                group.words = array("I", event.result)
        while self._groups:
            self._write_fragment()

    def content(self, entries: int) -> tuple[Content, bytes]:
        """Return where the content of all files is, for so many entries, and the records of the fragment table."""
        table = np.concatenate([np.zeros((0, 7), np.int64), *self._content])
        files = table[:, 0]
        start, sparse, first, count = (np.zeros(entries, np.int64) for _ in range(4))
        fragment, offset = np.full(entries, NO_FRAGMENT, np.uint32), np.zeros(entries, np.uint32)
        columns: list[NDArray[Any]] = [fragment, offset, start, sparse, first, count]
        for index, column in enumerate(columns, 1):
            column[files] = table[:, index]
        records = np.zeros(len(self._records), _FRAGMENT)
        if self._records:
            records["start"], records["size"] = zip(*self._records, strict=True)
        sizes = np.array(self._words, np.uint32)
        return Content(start, fragment, offset, sparse, first, count, sizes), records.tobytes()

    @property
    def fragments(self) -> int:
        """Number of fragment blocks."""
        return len(self._records)

    def close(self) -> None:
        """Close all memfds."""
        while self._parts:
            _close_all(self._parts.popleft().fds)
        while self._groups:
            _close_all(self._groups.popleft().fds)

    # Parts

    def _place(self, part: Part) -> bool:
        """Place the files of a part; return whether all are, or a fragment block has to be waited for."""
        words, digests, holes = part.words, part.digests, part.holes
        assert words is not None
        kinds, tails = part.kinds, part.tails.tolist()
        digest_size, known_tails, add_tail = self._digest_size, self._known_tails, self._add_tail
        ends: list[tuple[int, int]] = []
        places: list[tuple[int, ...]] = []
        begin = at = part.at  # of the blocks that are not written yet
        word, digest = part.word, part.digest
        file = self._file
        file_at = -1  # in the part, of the file that is being placed; it may have begun in another part
        complete = True
        for index in range(part.file, len(tails)):
            if file is None and self._unwritten > self._lag:
                self._send(part, begin, at)
                begin = at
                complete = self._write_fragments()
                if not complete:
                    part.word, part.digest, part.at = word, digest, at
                    break
            blocks, tail = part.blocks[index], tails[index]
            place = _NO_BLOCKS
            if blocks or file is not None or index in holes:
                if file is None:
                    file, file_at = _File(self.position + at - begin), at
                own = words[word : word + blocks]
                file.words.extend(own)
                at += sum(each & SIZE_MASK for each in own)
                word += blocks
                stop = digest + blocks * digest_size
                file.digests.append(digests[digest:stop])
                digest = stop
                if index in holes:
                    file.words.append(0)
                    tail = 0
                if part.goes_on:
                    continue
                known = self._find_blocks(file)
                if known is None:
                    known = self._add_blocks(file)
                elif file_at < 0:
                    self.position, begin = file.start, at
                else:
                    self._send(part, begin, file_at)
                    begin = at
                block_size = self._settings.block_size
                hole_bytes = file.words.count(0) * block_size
                if not file.words[-1]:  # it may be shorter than a block
                    hole_bytes -= max(0, len(file.words) * block_size - part.sizes[index])
                place = (known[0], hole_bytes, known[1], len(file.words))
                file = None
            end = _NO_TAIL
            if tail:
                key = digests[digest : digest + digest_size]
                digest += digest_size
                end = known_tails.get(key, _NO_TAIL)
                if end is _NO_TAIL:
                    end = add_tail(part, kinds[index], index, tail, at)
                    if key:
                        known_tails[key] = end
            ends.append(end)
            places.append(place)
        self._file = file
        first, part.file = part.file, part.file + len(ends)
        if ends:
            self._content.append(
                np.column_stack((part.entries[first : part.file], np.array(ends), np.array(places)))
            )
        if complete:
            self._send(part, begin, at)
        return complete

    def _find_blocks(self, file: _File) -> tuple[int, int] | None:
        """Return the start and first word of blocks that are there already and equal a file's."""
        if not self._settings.dedup:
            return None
        file.key = hashlib.sha256(b"".join([file.words.tobytes(), *file.digests])).digest()
        return self._known_blocks.get(file.key)

    def _add_blocks(self, file: _File) -> tuple[int, int]:
        place = (file.start if any(file.words) else 0, len(self._words))
        self._words.extend(file.words)
        if self._settings.dedup:
            self._known_blocks[file.key] = place
        return place

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

    def _add_tail(self, part: Part, kind: bytes, file: int, size: int, at: int) -> tuple[int, int]:
        """Put a file's tail end into the fragment block of its kind; return which it is, and the offset.

        `at` is where the file's blocks end in the part.
        """
        into = self._open.pop(kind, None)
        if into is not None and into.size + size > self._settings.block_size:
            self._close(into)
            into = None
        if into is None:
            if len(self._open) == _OPEN:
                self._close(self._open.pop(next(iter(self._open))))
            into = _Open(len(self._records))
            self._records.append((0, 0))
        self._open[kind] = into
        place = into.number, into.size
        into.size += size
        if part.tails_at[file] == BEHIND_BLOCKS:
            into.carried += os.pread(part.fds[0], size, at)
        else:
            into.tails.append(file)
        return place

    def _close(self, fragment: _Open) -> None:
        self._closed.append(fragment)
        self._unwritten += 1

    def _make_groups(self, part: Part, groups: list[FragmentGroup], *, everything: bool) -> None:
        """Make jobs of closed fragment blocks; `everything`: none needs the part's stream behind it.

        A few are carried on, else parts with few tail ends would make many jobs, each with a memfd.
        """
        each = max(1, _GROUP // self._settings.block_size)
        while len(self._closed) >= each or (everything and len(self._closed) > each // 4):
            closed, self._closed = self._closed[:each], self._closed[each:]
            groups.append(self._group(part, closed))
        if everything:
            for fragment in self._closed:
                self._carry(part, fragment)

    def _group(self, part: Part | None, closed: Sequence[_Open]) -> FragmentGroup:
        """Make a job of closed fragment blocks; `part` has what they do not carry."""
        fd = os.memfd_create("fragments", os.MFD_CLOEXEC)
        write_all(fd, b"".join(fragment.carried for fragment in closed))
        counts = array("q")
        for fragment in closed:
            counts.extend((len(fragment.carried), len(fragment.tails)))
        begin, tails, slots = None, b"", Slots(1)
        files = [file for fragment in closed for file in fragment.tails]
        if part is not None and files:
            at = part.tails_at[files]
            begin, sizes = int(at.min()), part.tails[files]
            tails = np.column_stack((at, sizes)).astype("<i8").tobytes()
            slots = part.stream.slots(begin, int((at + sizes).max()))
        job = PackFragments(self._settings, counts.tobytes(), tails, slots)
        numbers = [fragment.number for fragment in closed]
        group = FragmentGroup(job, part.layer if part is not None else 0, begin, [fd], numbers)
        self._groups.append(group)
        return group

    def _carry(self, part: Part, fragment: _Open) -> None:
        """Take a fragment block's tail ends out of the stream of a part."""
        for file in fragment.tails:
            tail = bytearray(int(part.tails[file]))
            part.stream.read(memoryview(tail), int(part.tails_at[file]))
            fragment.carried += tail
        fragment.tails.clear()

    def _write_fragments(self) -> bool:
        """Write fragment blocks whose turn has come; return False if one is not packed yet."""
        while self._unwritten > self._lag:
            if not self._groups or self._groups[0].words is None:
                return False
            self._write_fragment()
        return True

    def _write_fragment(self) -> None:
        """Write the next fragment block at the position."""
        group = self._groups[0]
        assert group.words is not None
        word = group.words[group.word]
        size = word & SIZE_MASK
        self._records[group.numbers[group.word]] = self.position, word
        self._unwritten -= 1
        self._send(group, group.at, group.at + size)
        group.at += size
        group.word += 1
        if group.word == len(group.words):
            self._groups.popleft()
            _close_all(group.fds)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
