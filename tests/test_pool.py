"""Worker processes: which of its jobs a worker goes on with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paralayer.engine.jobs import Finished, Progress, Waiting
from paralayer.engine.pool import Pool
from paralayer.table import Length

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer.engine.jobs import Run


@dataclass(frozen=True, slots=True)
class Steps:
    """Waits to be answered, then yields an event for each byte that it reads from its descriptor."""

    count: int

    def run(self, fds: Sequence[int]) -> Run:
        yield Waiting(0, 0, 0, Length(), orderly=False)
        for number in range(self.count):
            os.read(fds[0], 1)
            yield Progress(0, number, 0, Length(), orderly=False)


def test_a_worker_goes_on_with_the_job_that_came_first() -> None:
    reader, writer = os.pipe()
    try:
        with Pool(1) as pool:
            first = pool.submit(0, Steps(2), [reader])
            second = pool.submit(0, Steps(3), [reader])
            assert [pool.wait(block=True) for _ in range(2)] == [
                (job, Waiting(0, 0, 0, Length(), orderly=False)) for job in (first, second)
            ]
            assert pool.idle == {0}
            pool.answer(second, None)  # it waits for a byte
            pool.answer(first, None)
            assert pool.idle == set()
            os.write(writer, bytes(5))
            order = []
            while not pool.idle:
                came = pool.wait(block=True)
                assert came is not None
                order.append(came[0] if not isinstance(came[1], Finished) else -came[0])
    finally:
        os.close(reader)
        os.close(writer)
    begun = order.index(first)
    assert begun <= 1, "the answer may come before the second job begins to read"
    assert order[begun:] == [first, first, -first, *[second] * (3 - begun), -second]
