"""Two sources to one report: read a, read b, compare."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from paralayer.image import Image, Platform, open_image
from paralayer.image.descriptor import shown
from paralayer.verification.compare import IGNORABLE, VerifyReport, compare

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from paralayer.engine.jobs import Event
    from paralayer.registry.access import Access
    from paralayer.verification.source import Source
    from paralayer.verification.tree import Tree

Side = Literal["a", "b"]


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """So many bytes of a side are read: of an image the stored bytes of its layers, else the contents of files."""

    side: Side
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class _Options:
    jobs: int
    memory: int
    platform: Platform | None
    mount: bool
    check: bool
    newest: int | None
    access: Access | None
    cache: str | os.PathLike[str] | None


def verify(
    a: str | os.PathLike[str] | Image,
    b: str | os.PathLike[str] | Image,
    *,
    ignore: Collection[str] = frozenset(),
    jobs: int | None = None,
    memory: int | None = None,
    platform: str | Platform | None = None,
    mount: bool = False,
    check: bool = True,
    newest: int | None = None,
    access: Access | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[VerifyProgress], None] | None = None,
) -> VerifyReport:
    """Compare two trees: type, mode, owner, size, content, link target, hard links, xattrs, device numbers, times.

    Each of `a` and `b` is an image (whatever `open_image` takes, or returned), a squashfs file, a flat tar archive or
    a directory. ``dir:PATH``, ``tar:PATH`` and ``squashfs:PATH`` beside ``oci:`` and the other prefixes of images say
    which; without one, what is there tells. What one side cannot hold is not compared, and named in the report.

    `ignore` may have ``times``, ``owner`` and ``xattrs``. `jobs`, `memory`, `platform`, `check`,
    `access` and `cache` are those of `convert`, `newest` is the `mtime` that a conversion was given: it applies to
    images. `mount` lets the kernel, or squashfuse, read squashfs files. `progress` is called in this thread.

    Raises `ImageError` for what cannot be read or is not understood, `WorkerError`, and `ValueError` for arguments
    that make no sense.
    """
    from paralayer.engine.limits import default_budget, usable_cpus

    unknown = set(ignore) - IGNORABLE
    if unknown:
        raise ValueError(
            f"ignore: got {', '.join(sorted(unknown))}, want any of {', '.join(sorted(IGNORABLE))}"
        )
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: got {jobs}, want 1 or more")
    if memory is not None and memory < 1:
        raise ValueError(f"memory: got {memory}, want 1 or more bytes")
    options = _Options(
        jobs or usable_cpus(),
        memory or default_budget(),
        Platform.parse(platform) if isinstance(platform, str) else platform,
        mount,
        check,
        newest,
        access,
        cache,
    )

    def read(side: Side, source: str | os.PathLike[str] | Image) -> tuple[str, Tree]:
        def advance(done: int, total: int) -> None:
            if progress is not None:
                progress(VerifyProgress(side, done, total))

        return _read(source, options, advance)

    name_a, tree_a = read("a", a)
    name_b, tree_b = read("b", b)
    return compare(tree_a, tree_b, names=(name_a, name_b), ignore=ignore)


def _read(
    source: str | os.PathLike[str] | Image, options: _Options, advance: Callable[[int, int], None]
) -> tuple[str, Tree]:
    """Return a name and the tree of one side."""
    from paralayer.verification.source import open_source

    if not isinstance(source, Image):
        source = os.fspath(source)
        with ExitStack() as stack:
            found = open_source(source, stack, mount=options.mount)
            if found is not None:
                _hash(found, options, advance)
                return shown(source), found.tree
        source = open_image(source, platform=options.platform, check=options.check, access=options.access)
    return source.reference, _read_image(source, options, advance)


def _hash(source: Source, options: _Options, advance: Callable[[int, int], None]) -> None:
    from paralayer.engine.attempts import open_executor
    from paralayer.verification.work import work

    done = 0

    def step(size: int) -> None:
        nonlocal done
        done += size
        advance(done, source.size)

    with open_executor(options.jobs, [source.size]) as executor:
        work(source.tasks(), executor, step)


def _read_image(image: Image, options: _Options, advance: Callable[[int, int], None]) -> Tree:
    from paralayer.engine.attempts import convert_layers
    from paralayer.engine.jobs import Finished, Indexed
    from paralayer.fetching import fetch
    from paralayer.survivors import Rules
    from paralayer.verification.image import TreeSink

    sizes = [layer.blob.size for layer in image.layers]
    read = [0] * len(sizes)  # the most that was seen: layers may be read twice

    def observe(event: Event) -> None:
        assert not isinstance(event, Finished)
        read[event.layer] = max(read[event.layer], event.read)
        advance(sum(read), sum(sizes))
        if isinstance(event, Indexed) and options.check:
            arrivals.accept(event.layer)

    sink = TreeSink()
    with fetch(image, memory=options.memory, cache=options.cache) as arrivals:
        convert_layers(
            arrivals,
            sink,
            Rules(newest=options.newest),
            jobs=options.jobs,
            memory=options.memory,
            check=options.check,
            observe=observe,
        )
    sink.tree.warnings = image.warnings
    return sink.tree
