"""Hashing with all workers: tasks out, digests into the trees."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from paralayer.engine.jobs import Finished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from paralayer.engine.serial import Executor
    from paralayer.verification.hashing import Task


def work(tasks: Iterable[Task], executor: Executor, advance: Callable[[int], None]) -> None:
    """Do all tasks; they are asked for when a worker is idle. `advance` is told the bytes of each that is done."""
    waiting = iter(tasks)
    working: dict[int, Task] = {}
    try:
        while True:
            for worker in sorted(executor.idle):
                task = next(waiting, None)
                if task is None:
                    break
                working[executor.submit(worker, task.job, task.fds)] = task
            if not working:
                return
            came = executor.wait(block=True)
            assert came is not None
            number, event = came
            assert isinstance(event, Finished)
            task = working.pop(number)
            _close(task)
            task.targets.put(event.result)
            advance(task.size)
    finally:
        for task in working.values():
            _close(task)


def _close(task: Task) -> None:
    for fd in task.owned:
        os.close(fd)
