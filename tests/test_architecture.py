"""Imports point one way: what stands higher in this list may use what stands lower, never the reverse."""

from __future__ import annotations

import ast
from pathlib import Path

import paralayer

TOP = Path(paralayer.__file__).parent

# Each line may import the lines below it, and within itself.
LAYERS = [
    ["paralayer.__main__"],
    ["paralayer.cli"],
    ["paralayer"],
    ["paralayer.streaming"],
    ["paralayer.display", "paralayer.oneshot"],
    ["paralayer.progress", "paralayer.spec"],
    ["paralayer.verification"],
    ["paralayer.fetching", "paralayer.downloading"],
    [
        "paralayer.engine.attempts",
        "paralayer.engine.conversion",
        "paralayer.engine.pool",
        "paralayer.engine.worker",
    ],
    ["paralayer.sinks"],
    ["paralayer.engine"],
    ["paralayer.survivors", "paralayer.tar.writer"],
    ["paralayer.overlay"],
    ["paralayer.changeset"],
    ["paralayer.tar.rows", "paralayer.tar.scanner"],
    ["paralayer.compression", "paralayer.image", "paralayer.registry"],
    ["paralayer.tar"],
    ["paralayer.table"],
    ["paralayer.growing", "paralayer.stream"],
    ["paralayer.errors"],
]


def rank(module: str) -> int:
    """Return how high a module stands: by its own name, or by that of the package that is listed for it."""
    name = module
    while True:
        for number, line in enumerate(LAYERS):
            if name in line:
                return number
        name = name.rpartition(".")[0]


def imports_of(path: Path) -> set[str]:
    """Return the project's modules that a module needs to run; what only type checkers import does not count."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("paralayer"):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(
                name if (TOP.parent / (name.replace(".", "/") + ".py")).exists() else node.module
                for name in inner
            )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def test_imports_point_one_way() -> None:
    wrong = []
    for path in TOP.rglob("*.py"):
        module = ".".join(path.relative_to(TOP.parent).with_suffix("").parts).removesuffix(".__init__")
        wrong += [f"{module} imports {other}" for other in imports_of(path) if rank(other) < rank(module)]
    assert not wrong


def test_the_merge_knows_neither_processes_nor_files() -> None:
    for name in ("overlay", "changeset", "engine/plan", "tar/header", "tar/pax", "tar/sparse", "tar/names"):
        source = (TOP / f"{name}.py").read_text()
        used = {
            alias.name
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not used & {"os", "io", "socket", "subprocess", "mmap", "multiprocessing"}, name
