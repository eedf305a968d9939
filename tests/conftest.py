"""What holds for every test: nothing is left behind, and what CI installs is never skipped.

``@pytest.mark.requires("umoci", "root")`` skips a test where a command, root, or the kernel's overlayfs
(``"overlay"``) is missing, with that reason; where CI=true, the test fails instead.

``--share 1/2`` runs every second file, ``--share 2/2`` the others: tests of one file may look at what all processes have,
such as mounts.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import hypothesis
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IN_CI = os.environ.get("CI") == "true"

hypothesis.settings.register_profile("default", derandomize=True, max_examples=200, deadline=None)
hypothesis.settings.register_profile("ci", derandomize=True, max_examples=300, deadline=None)
hypothesis.settings.load_profile("ci" if IN_CI else "default")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requires(*tools): commands, 'root' or 'overlay' that the test needs")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="N/M", default="1/1", help="run only every Mth file, from the Nth on")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number, shares = map(int, config.getoption("share").split("/"))
    files = list(dict.fromkeys(item.path for item in items))
    mine = set(files[number - 1 :: shares])
    config.hook.pytest_deselected(items=[item for item in items if item.path not in mine])
    items[:] = [item for item in items if item.path in mine]


def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = [tool for marker in item.iter_markers("requires") for tool in marker.args if not is_there(tool)]
    if missing:
        reason = f"missing: {', '.join(missing)}"
        if IN_CI:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def is_there(tool: str) -> bool:
    if tool == "root":
        return os.geteuid() == 0
    if tool == "overlay":
        with open("/proc/filesystems", encoding="ascii") as filesystems:
            return any(line.split()[-1] == "overlay" for line in filesystems)
    return shutil.which(tool) is not None


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process, a memfd, a temporary output or a mount."""
    top = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    processes, memfds = children(), open_memfds()
    yield
    left = [f"process {process}" for process in children() - processes]
    left += [f"memfd {name}" for name in open_memfds() - memfds]
    if top:
        left += [f"mount {point}" for point in mounts_below(top)]
        left += [f"file {path}" for path in temporaries_below(top)]
    if left:
        pytest.fail(f"left behind: {', '.join(left)}", pytrace=False)


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def open_memfds() -> set[str]:
    """Return ``number name`` of each, so that a number that was reused by another memfd counts."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        if target.startswith("/memfd:"):
            found.add(f"{number} {target}")
    return found


def mounts_below(top: Path) -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        points = [line.split()[4] for line in mounts]
    return [point for point in points if f"{point}/".startswith(f"{top}/")]


def temporaries_below(top: Path) -> list[str]:
    return [
        os.path.join(parent, name)
        for parent, directories, files in os.walk(top)
        for name in directories + files
        if name.startswith(".paralayer")
    ]
