"""The cache of blobs: what is there survives any end of a process, and what is complete is right."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paralayer.errors import ImageError
from paralayer.registry.cache import BlobCache, CachedBlob, merged, missing
from processes import running, wait_for
from registry_blobs import digest_of, random_blob

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOB = random_blob(10_000, 1)
DIGEST = digest_of(BLOB)
SIZE = len(BLOB)
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])}

# Stores ranges of BLOB as it is told, a line each, and answers when that is done.
WRITER = """
import sys
import threading
from registry_blobs import digest_of, random_blob
from paralayer.registry.cache import BlobCache
blob = random_blob(10_000, 1)
cached = BlobCache(sys.argv[1]).open(digest_of(blob), len(blob))
print("mine" if cached.mine else "not mine", flush=True)
for line in sys.stdin:
    if line == "accept\\n":
        cached.accept()
    else:
        start, stop = map(int, line.split())
        cached.store(start, blob[start:stop])
    print("done", flush=True)
"""

# Opens BLOB, and before it opens the partial file, another process completes the blob, and a third one has the lock on
# a new partial file, which it is about to remove.
OVERTAKEN = """
import fcntl
import os
import sys
from registry_blobs import digest_of, random_blob
from paralayer.registry.cache import BlobCache
blob = random_blob(10_000, 1)
others = []
def meanwhile(event, args):
    if event == "open" and str(args[0]).endswith(".0.partial") and not others:
        others.append(os.open(args[0].removesuffix(".0.partial"), os.O_CREAT | os.O_RDWR))
        os.write(others[0], blob)
        others.append(os.open(args[0], os.O_CREAT | os.O_RDWR))
        fcntl.flock(others[1], fcntl.LOCK_EX)
sys.addaudithook(meanwhile)
cached = BlobCache(sys.argv[1]).open(digest_of(blob), len(blob))
print(len(others), cached.complete, cached.mine)
"""


class Writer:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.mine = self.answer() == "mine"

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def do(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        self.process.stdin.flush()
        assert self.answer() == "done"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def writer(directory: Path) -> Iterator[Writer]:
    """Start another process that has BLOB open."""
    with running([sys.executable, "-c", WRITER, str(directory)], stdin=subprocess.PIPE, env=ENV) as process:
        yield Writer(process)


def opened(directory: Path) -> CachedBlob:
    return BlobCache(str(directory)).open(DIGEST, SIZE)


def content(cached: CachedBlob) -> bytes:
    fd = cached.open()
    try:
        return os.pread(fd, cached.size, 0)
    finally:
        os.close(fd)


def files(directory: Path) -> dict[str, int]:
    return {str(p.relative_to(directory)): p.stat().st_size for p in directory.rglob("*") if p.is_file()}


COMPLETE = {f"blobs/sha256/{DIGEST.encoded}": SIZE}


def test_a_blob_gets_its_name_when_it_is_accepted(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "cache"
    with opened(directory) as cached:
        assert (cached.mine, cached.complete, cached.present) == (True, False, [])
        cached.store(5000, BLOB[5000:])
        cached.store(0, BLOB[:5000])
        assert not COMPLETE.keys() & files(directory).keys()
        cached.accept()
        assert files(directory) == COMPLETE
        assert content(cached) == BLOB
    with opened(directory) as cached:
        assert (cached.mine, cached.complete, cached.present) == (False, True, [(0, SIZE)])
        assert content(cached) == BLOB


def test_what_was_stored_survives_a_kill(tmp_path: Path) -> None:
    with writer(tmp_path) as other:
        other.do("1000 3000")
        other.do("7000 10000")
        other.do("3000 3001")
        other.kill()
    with opened(tmp_path) as cached:
        assert (cached.mine, cached.present) == (True, [(1000, 3001), (7000, SIZE)])
        cached.store(0, BLOB[:1000])
        cached.store(3001, BLOB[3001:7000])
        cached.accept()
        assert content(cached) == BLOB
    assert files(tmp_path) == COMPLETE


@pytest.mark.parametrize("torn", [1, 8, 15])
def test_a_record_that_was_torn_by_a_kill_counts_for_nothing(tmp_path: Path, torn: int) -> None:
    with opened(tmp_path) as cached:
        cached.store(0, BLOB[:10])
        cached.store(10, BLOB[10:20])
    (path,) = tmp_path.rglob("*.partial")
    os.truncate(path, path.stat().st_size - torn)
    with opened(tmp_path) as cached:
        assert cached.present == [(0, 10)]
        cached.store(100, BLOB[100:110])
    with opened(tmp_path) as cached:
        assert cached.present == [(0, 10), (100, 110)]


DAMAGES = {
    "empty": b"",
    "shorter than the blob": BLOB[:100],
    "a torn header": BLOB + b"part",
    "another header": BLOB + bytes(16) + bytes(16),
    "records behind the end": BLOB
    + b"partial1"
    + SIZE.to_bytes(8, "little")
    + bytes(8)
    + (SIZE + 1).to_bytes(8, "little"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_partial_file_without_valid_records_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    opened(tmp_path).close()
    (path,) = tmp_path.rglob("*.partial")
    path.write_bytes(damage)
    with opened(tmp_path) as cached:
        assert (cached.mine, cached.present) == (True, [])
        cached.store(0, BLOB)
        cached.accept()
    assert files(tmp_path) == COMPLETE


def test_a_kill_just_before_the_renaming_loses_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as cached:
        cached.store(0, BLOB)
    (path,) = tmp_path.rglob("*.partial")
    os.truncate(path, SIZE)
    with opened(tmp_path) as cached:
        assert (cached.mine, cached.complete, cached.present) == (True, False, [(0, SIZE)])
        cached.accept()
    assert files(tmp_path) == COMPLETE


def test_an_empty_blob_is_there_at_once(tmp_path: Path) -> None:
    with BlobCache(str(tmp_path)).open(digest_of(b""), 0) as cached:
        assert not missing(cached.present, 0)
        cached.accept()
    assert list(files(tmp_path).values()) == [0]


def test_a_complete_file_of_another_size_is_removed(tmp_path: Path) -> None:
    with opened(tmp_path) as cached:
        cached.store(0, BLOB)
        cached.accept()
    os.truncate(cached.path, SIZE - 1)
    with opened(tmp_path) as cached:
        assert (cached.mine, cached.complete, cached.present) == (True, False, [])
        assert not os.path.exists(cached.path)


@pytest.mark.parametrize("complete", [False, True])
def test_a_blob_that_is_refused_is_gone_for_the_next_one_and_still_there_for_this_one(
    tmp_path: Path, complete: bool
) -> None:
    with opened(tmp_path) as cached:
        cached.store(0, BLOB)
        if complete:
            cached.accept()
    with opened(tmp_path) as cached:
        assert cached.present == [(0, SIZE)]
        cached.refuse()
        assert files(tmp_path) == {}
        assert content(cached) == BLOB
        with opened(tmp_path) as again:
            assert (again.mine, again.present) == (True, [])


def test_a_second_process_sees_what_arrives_for_the_first(tmp_path: Path) -> None:
    with writer(tmp_path) as other:
        assert other.mine
        other.do("0 4000")
        with opened(tmp_path) as cached:
            assert (cached.mine, cached.present) == (False, [(0, 4000)])
            other.do("4000 6000")
            cached.look()
            assert (cached.mine, cached.present) == (False, [(0, 6000)])
            other.do("6000 10000")
            other.do("accept")
            cached.look()
            assert cached.present == [(0, SIZE)]
            other.kill()
            cached.look()
            assert cached.complete
            assert content(cached) == BLOB
    assert files(tmp_path) == COMPLETE


def test_a_second_process_takes_the_place_of_one_that_was_killed(tmp_path: Path) -> None:
    with writer(tmp_path) as other, opened(tmp_path) as cached:
        assert other.mine
        assert not cached.mine
        other.do("0 4000")
        other.kill()
        cached.look()
        assert (cached.mine, cached.present) == (True, [(0, 4000)])
        cached.store(4000, BLOB[4000:])
        cached.accept()
    assert files(tmp_path) == COMPLETE


def test_a_process_that_stands_still_keeps_its_records(tmp_path: Path) -> None:
    with writer(tmp_path) as other, opened(tmp_path) as cached:
        other.do("0 4000")
        other.process.send_signal(signal.SIGSTOP)
        cached.look()
        cached.store(4000, BLOB[4000:])  # as one who has no patience any more
        assert content(cached) == BLOB
        cached.accept()
        assert not COMPLETE.keys() & files(tmp_path).keys()
        other.process.send_signal(signal.SIGCONT)
        other.do("4000 10000")
        other.do("accept")
    assert files(tmp_path) == COMPLETE


def test_files_that_are_deleted_while_they_are_used_stay_readable(tmp_path: Path) -> None:
    with opened(tmp_path) as cached:
        cached.store(0, BLOB[:5000])
        (path,) = tmp_path.rglob("*.partial")
        path.unlink()
        cached.store(5000, BLOB[5000:])
        with opened(tmp_path) as other:
            assert (other.mine, other.present) == (True, [])
            cached.accept()
            assert content(cached) == BLOB
            other.store(0, BLOB)
            other.accept()
    assert files(tmp_path) == COMPLETE


@pytest.mark.requires("root")
def test_a_partial_file_that_may_not_be_written_is_passed_over(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with opened(tmp_path) as cached:
        cached.store(0, BLOB[:10])
    for path in tmp_path.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o644)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.chdir(tmp_path)
            os.setresuid(65534, 65534, 65534)
            cached = CachedBlob(f"blobs/sha256/{DIGEST.encoded}", SIZE)
            status = 0 if cached.mine and cached.present == [] else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(p.name.split(".", 1)[1] for p in tmp_path.rglob("*.partial")) == ["0.partial", "1.partial"]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o007)
    try:
        with opened(tmp_path / "cache") as cached:
            cached.store(0, BLOB)
            cached.accept()
    finally:
        os.umask(before)
    modes = {p.name: oct(p.stat().st_mode & 0o777) for p in tmp_path.rglob("*")}
    assert modes == {"cache": "0o770", "blobs": "0o770", "sha256": "0o770", DIGEST.encoded: "0o660"}


@pytest.mark.parametrize("place", ["directory", "blob", "partial"])
def test_what_is_no_directory_or_no_file_is_named(tmp_path: Path, place: str) -> None:
    blobs = tmp_path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    if place == "directory":
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ImageError, match="File exists"):
            opened(tmp_path / "file")
        return
    os.mkfifo(blobs / (DIGEST.encoded + ("" if place == "blob" else ".0.partial")))
    with pytest.raises(ImageError, match="got a FIFO, want a regular file"):
        opened(tmp_path)


def test_two_threads_of_one_process_are_as_two_processes(tmp_path: Path) -> None:
    with opened(tmp_path) as cached, opened(tmp_path) as second:
        assert cached.mine
        assert not second.mine
        cached.store(0, BLOB)
        cached.accept()
        second.look()
        assert second.present == [(0, SIZE)]


RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda p: (min(p), max(p))))


@given(RANGES)
def test_merged_and_missing_ranges_make_the_whole(ranges: list[tuple[int, int]]) -> None:
    found = merged(ranges)
    want = {n for start, stop in ranges for n in range(start, stop)}
    assert {n for start, stop in found for n in range(start, stop)} == want
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))
    left = [n for start, stop in missing(found, 60) for n in range(start, stop)]
    assert left == sorted(set(range(60)) - want)


def test_processes_that_race_for_a_blob_agree_who_has_it(tmp_path: Path) -> None:
    with writer(tmp_path) as a, writer(tmp_path) as b, writer(tmp_path) as c:
        assert sorted([a.mine, b.mine, c.mine]) == [False, False, True]
        (owner,) = [w for w in (a, b, c) if w.mine]
        owner.kill()
        wait_for(lambda: owner.process.poll() is not None)
        with opened(tmp_path) as cached:
            assert cached.mine


def test_who_is_overtaken_uses_the_complete_blob(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OVERTAKEN, str(tmp_path)]
    told = subprocess.run(command, env=ENV, check=True, capture_output=True, text=True).stdout
    assert told.split() == ["2", "True", "False"]


def test_of_threads_that_race_one_stores_the_blob(tmp_path: Path) -> None:
    stored = []

    def work(directory: Path, barrier: threading.Barrier) -> None:
        barrier.wait()
        with opened(directory) as cached:
            while not (cached.mine or cached.complete):
                cached.look()
            if cached.mine and missing(cached.present, SIZE):
                cached.store(0, BLOB)
                stored.append(directory)
                cached.accept()
            assert content(cached) == BLOB

    rounds = [tmp_path / str(n) for n in range(100)]
    for directory in rounds:
        threads = [
            threading.Thread(target=work, args=(directory, barrier))
            for barrier in [threading.Barrier(4)]
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert files(directory) == COMPLETE
    assert stored == rounds
