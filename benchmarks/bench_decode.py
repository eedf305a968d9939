"""A decode job, one stage more at a time: what each adds to the bare codec, in CPU seconds of one process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from benchmarks.rounds import median_seconds, note, repeat
from benchmarks.stages import STAGES, run_stage
from paralayer import open_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture


# CPU time of this process, so that others on the machine do not show.
@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("name", ["real", "zstd", "small-files"])
@pytest.mark.parametrize("stage", STAGES)
def test_stage_decodes_everything(
    benchmark: BenchmarkFixture, make_layout: Callable[[str], Path], name: str, stage: str
) -> None:
    """Isolates one stage: the codec, our decoder around it, the blob's digest, the scan, the copy into a memfd."""
    layers = open_image(str(make_layout(name))).layers
    done = repeat(benchmark, lambda: run_stage(stage, layers))
    assert done.decoded == run_stage("codec", layers).decoded
    assert bool(done.entries) == (stage in ("scan", "store"))
    if (seconds := median_seconds(benchmark)) is not None:
        note(benchmark, megabytes_per_second=done.decoded / seconds / 1e6)
