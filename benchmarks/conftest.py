"""`pytest benchmarks` runs every body once, on tiny layouts; with `--benchmark-enable` it measures, on whole ones."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from benchmarks.layouts import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_TINY = 0.002


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--scale`."""
    parser.addoption("--scale", type=float, help="part of the layouts' sizes (measuring: 1, else: tiny)")


def pytest_configure(config: pytest.Config) -> None:
    """Collect `bench_*.py`."""
    config.addinivalue_line("python_files", "bench_*.py")


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> float:
    """Return the part of the full sizes that is used."""
    given: float | None = request.config.getoption("--scale")
    if given is not None:
        return given
    return 1 if request.config.getoption("--benchmark-enable") else _TINY


@pytest.fixture
def make_layout(scale: float) -> Callable[[str], Path]:
    """Return a function from a layout's name to its path."""
    return lambda name: layout(name, scale)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """Give an empty directory that is removed at once: pytest would keep some gigabytes."""
    path = tmp_path / "scratch"
    path.mkdir()
    yield path
    shutil.rmtree(path)
