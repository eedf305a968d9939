"""Every benchmark runs once, on tiny layouts, and finds its result right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path.name for path in (ROOT / "benchmarks").glob("bench_*.py"))


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


def run(layouts: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "PARALAYER_BENCH_DIR": str(layouts)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("name", FILES)
def test_benchmark_finds_its_result_right(layouts: Path, tmp_path: Path, name: str) -> None:
    printed = run(layouts, "pytest", f"benchmarks/{name}", f"--basetemp={tmp_path}", "-pno:cacheprovider")
    assert "passed" in printed


def test_report_has_all_sections(layouts: Path) -> None:
    printed = run(layouts, "benchmarks.run", "--scale=0.002", "--rounds=1", "--layouts", "real")
    for section in (
        "Targets",
        "Start",
        "Merge",
        "Metadata",
        "Decoding",
        "Conversions",
        "Memory",
        "Squashfs",
        "From",
    ):
        assert f"\n## {section}" in printed
    assert not [path for path in layouts.iterdir() if path.name.startswith("tmp")]
