"""One image to one output: image → engine → merge → sink."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from paralayer.errors import SinkError
from paralayer.image import Blob, Image, Platform, open_image
from paralayer.progress import Reporter
from paralayer.spec import ImageSpec

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator

    from paralayer.engine.arrivals import Arrivals
    from paralayer.engine.jobs import Event
    from paralayer.progress import PackerProgress
    from paralayer.registry.access import Access
    from paralayer.sinks.mksquashfs import Mksquashfs
    from paralayer.sinks.sink import Sink
    from paralayer.spec import Format
    from paralayer.verification import Difference

_LATEST = (1 << 32) - 1  # seconds since the epoch that a squashfs can hold


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """What was done. Sizes are in bytes, times in seconds."""

    image: str
    output: str
    format: Format
    layers: int
    entries: int
    """Entries of all layers, whiteouts included."""
    survivors: int
    bytes_read: int
    """Stored bytes of all layers."""
    bytes_decoded: int
    bytes_written: int
    second_readings: int
    """Layers that were decoded twice to stay within the memory."""
    jobs: int
    memory: int
    peak_memory: int
    """Most that all processes were seen to have, decoded layers included; sampled."""
    seconds: dict[str, float]
    """By phase: `open` the image, `decode` until every layer is indexed, `write` the rest, `commit`; and `total`. With
    `verify`, the output's completion is `complete`."""
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        return asdict(self)


def convert(
    image: str | Image,
    spec: ImageSpec,
    *,
    jobs: int | None = None,
    memory: int | None = None,
    platform: str | Platform | None = None,
    check: bool = True,
    check_diff_ids: bool = False,
    verify: bool = False,
    access: Access | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[PackerProgress], None] | None = None,
) -> ConversionResult:
    """Convert an image.

    `image` is what `open_image` takes, or returned. `access` says how a registry is reached; `cache` is a directory in
    which its blobs are kept. `jobs` is how many layers are decoded, or parts of the output
    written, at the same time; default: the processors that this process may use. `memory` bounds the decoded bytes
    that are kept (default: a quarter of what is available); neither changes the output. `check` compares the digest
    of every blob with what is read of it, `check_diff_ids` also the decoded streams. `verify` reads the output back and
    compares it with the image before it gets its name. `progress` is called in this thread.

    The output appears under its name when it is complete; on any error nothing does, and what was there stays.
    Raises `ImageError`, `SinkError` or `WorkerError`; `ValueError` for arguments that make no sense.
    """
    # Imports of what loads numpy are where they are needed: who only wants to know our names should not wait for it.
    from paralayer.engine.limits import default_budget
    from paralayer.fetching import fetch

    check_limits(jobs, memory)
    if verify and spec.path is None:
        raise ValueError("what goes to standard output cannot be verified")
    clock = Clock()
    if isinstance(image, str):
        if isinstance(platform, str):
            platform = Platform.parse(platform)
        image = open_image(image, platform=platform, check=check, access=access)
    memory = memory or default_budget()
    clock.lap("open")
    for layer in image.layers:
        if isinstance(layer.blob, Blob):
            check_apart(layer.blob.path, spec)
    with fetch(image, memory=memory, cache=cache) as arrivals:

        def observe(event: PackerProgress) -> None:
            if event.event == "indexed" and check:
                arrivals.accept(event.layer)
            if progress is not None:
                progress(event)

        return convert_arrivals(
            arrivals,
            spec,
            reference=image.reference,
            created=image.created,
            warnings=image.warnings,
            jobs=jobs,
            memory=memory,
            check=check,
            check_diff_ids=check_diff_ids,
            verify=partial(_verify, image, access=access, cache=cache) if verify else None,
            progress=observe,
            clock=clock,
        )


def check_limits(jobs: int | None, memory: int | None) -> None:
    """Refuse what makes no sense."""
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: got {jobs}, want 1 or more")
    if memory is not None and memory < 1:
        raise ValueError(f"memory: got {memory}, want 1 or more bytes")


def convert_arrivals(
    arrivals: Arrivals,
    spec: ImageSpec,
    *,
    reference: str,
    created: str | None,
    warnings: tuple[str, ...],
    jobs: int | None,
    memory: int | None,
    check: bool,
    check_diff_ids: bool,
    verify: Callable[..., None] | None,
    progress: Callable[[PackerProgress], None] | None,
    clock: Clock,
) -> ConversionResult:
    """Convert layers as they arrive; `verify` looks at what comes out. See `convert`."""
    from paralayer.engine.attempts import convert_layers
    from paralayer.engine.limits import default_budget, usable_cpus
    from paralayer.engine.peak import Peak
    from paralayer.survivors import Rules

    jobs = jobs or usable_cpus()
    memory = memory or default_budget()
    rules = Rules(newest=spec.mtime)
    tool = _find_tool(spec)
    with ExitStack() as stack:
        with _undisturbed():
            sink = _open_sink(spec, created, tool, jobs, memory)
            stack.callback(_close, sink)
        peak = Peak()
        reporter = Reporter(arrivals.sizes, progress)

        def observe(event: Event) -> None:
            peak.sample()
            reporter.observe(event)
            if reporter.indexed == arrivals.count:
                clock.lap("decode", once=True)

        counts = convert_layers(
            arrivals,
            sink,
            rules,
            jobs=jobs,
            memory=memory,
            check=check,
            check_diff_ids=check_diff_ids,
            peak=peak,
            observe=observe,
            finished=reporter.finished,
        )
        clock.lap("write")
        sink.complete()
        if verify is not None:
            clock.lap("complete")
            verify(spec, sink, jobs=jobs, memory=memory)
            clock.lap("verify")
        sink.commit()
        clock.lap("commit")
        return ConversionResult(
            image=reference,
            output=spec.path or "-",
            format=spec.format,
            layers=arrivals.count,
            entries=counts.entries,
            survivors=counts.survivors,
            bytes_read=sum(size or 0 for size in arrivals.sizes),
            bytes_decoded=counts.decoded,
            bytes_written=sink.written,
            second_readings=counts.second_readings,
            jobs=jobs,
            memory=memory,
            peak_memory=peak.bytes,
            seconds=clock.seconds(),
            warnings=(*warnings, *_losses(rules.dropped + sink.lost)),
        )


def convert_tar(image: str | Image, path: str | os.PathLike[str] | None, **options: Any) -> ConversionResult:
    """Convert an image to a flat tar archive; `options` are those of `ImageSpec.tar` and of `convert`."""
    return _convert_as(ImageSpec.tar(path), image, options)


def convert_squashfs(image: str | Image, path: str | os.PathLike[str], **options: Any) -> ConversionResult:
    """Convert an image to squashfs; `options` are those of `ImageSpec.squashfs` and of `convert`."""
    own = {name: options.pop(name) for name in _SQUASHFS if name in options}
    return convert(image, ImageSpec.squashfs(path, **own), **options)


def convert_mksquashfs(image: str | Image, path: str | os.PathLike[str], **options: Any) -> ConversionResult:
    """Convert an image to squashfs with the program mksquashfs; `options` as with `convert_squashfs`."""
    return convert_squashfs(image, path, engine="mksquashfs", **options)


def convert_dir(image: str | Image, path: str | os.PathLike[str], **options: Any) -> ConversionResult:
    """Convert an image to a directory; `options` are those of `ImageSpec.directory` and of `convert`."""
    return _convert_as(ImageSpec.directory(path), image, options)


_SQUASHFS = {field.name for field in fields(ImageSpec)}


def _verify(image: Image, spec: ImageSpec, sink: Sink, **options: Any) -> None:
    """Compare the output with the image; SinkError if they are different."""
    from paralayer.sinks.making import DEVICES, OWNERS, XATTRS
    from paralayer.sinks.mksquashfs import ROOT_XATTRS
    from paralayer.verification import verify as compare

    prefix = {"directory": "dir"}.get(spec.format, spec.format)
    # What the output could not get is in a warning already.
    ignore = {what for what, lost in {"owner": OWNERS, "xattrs": XATTRS}.items() if sink.lost[lost]}
    output = f"{prefix}:{sink.temporary}"
    report = compare(image, output, ignore=ignore, newest=spec.mtime, **options)
    kept = tuple(difference for difference in report.differences if not _is_lost_from_root(difference))
    if sink.lost[ROOT_XATTRS] == len(report.differences) - len(kept):
        count = report.difference_count - sink.lost[ROOT_XATTRS]
        report = replace(report, differences=kept, difference_count=count)
    if report.only_in_a_count == sink.lost[DEVICES] and not (
        report.only_in_b_count or report.difference_count
    ):
        return
    raise SinkError(
        spec.path or "", f"verification found {report.count} differences, such as {report.lines()[0]}"
    )


def _is_lost_from_root(difference: Difference) -> bool:
    return not difference.path and difference.field.startswith("xattr ") and difference.b is None


def _convert_as(spec: ImageSpec, image: str | Image, options: dict[str, Any]) -> ConversionResult:
    own = {key: options.pop(key) for key in ("force", "mtime") if key in options}
    return convert(image, replace(spec, **own), **options)


def _losses(lost: Counter[str]) -> tuple[str, ...]:
    """Return one warning with what was left out or changed and how often, if anything was."""
    counts = ", ".join(f"{what}: {count}" for what, count in sorted(lost.items()))
    return (f"left out or changed: {counts}",) if counts else ()


def _close(sink: Sink) -> None:
    """Leave nothing of an output that was not committed."""
    with _undisturbed():
        try:
            sink.abort()
        finally:
            sink.close()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Within, signals wait: what must not be left half done is not interrupted."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_apart(path: str, spec: ImageSpec) -> None:
    """Refuse to replace what a layer is in."""
    if spec.path is None or not os.path.exists(spec.path):
        return
    output = os.path.realpath(spec.path)
    if os.path.commonpath([output, os.path.realpath(path)]) == output:
        raise SinkError(spec.path, "the image is in it")


def _find_tool(spec: ImageSpec) -> Mksquashfs | None:
    if spec.engine != "mksquashfs":
        return None
    from paralayer.sinks.mksquashfs import DEFAULT, find_mksquashfs

    return find_mksquashfs(DEFAULT if spec.mksquashfs is None else spec.mksquashfs)


def _open_sink(spec: ImageSpec, created: str | None, tool: Mksquashfs | None, jobs: int, memory: int) -> Sink:
    try:
        if spec.format == "tar":
            from paralayer.sinks.tar import TarSink

            return TarSink(spec.path, replace=spec.force)
        if spec.path is None:
            raise ValueError(f"a {spec.format} needs a path")
        if spec.format == "directory":
            from paralayer.sinks.directory import DirectorySink

            return DirectorySink(spec.path, replace=spec.force)
        return _open_squashfs(spec, spec.path, created, tool, jobs, memory)
    except OSError as error:
        raise SinkError(spec.path or "standard output", error.strerror or "cannot be written") from None


def _open_squashfs(
    spec: ImageSpec, path: str, created: str | None, tool: Mksquashfs | None, jobs: int, memory: int
) -> Sink:
    from paralayer.sinks.squashfs.options import TIMES, Compression, Options

    compression = Compression.parse(spec.compression)
    made = min(max(0, spec.mtime), _LATEST) if spec.mtime is not None else _parse_created(created)
    switches = {name: getattr(spec, name) for name in ("fragments", "dedup", "exports", "pad")}
    options = Options(compression, spec.block_size, time=made, **switches)
    if tool is not None:
        from paralayer.sinks.mksquashfs import MksquashfsSink

        sink: Sink = MksquashfsSink(path, tool, options, jobs=jobs, memory=memory, replace=spec.force)
    else:
        from paralayer.sinks.squashfs.sink import SquashfsSink

        sink = SquashfsSink(path, options, jobs=jobs, replace=spec.force)
    if spec.mtime is not None and made != spec.mtime:
        sink.lost[TIMES] += 1
    return sink


def _parse_created(text: str | None) -> int:
    """Return when an image was made, 0 if it does not say so in a way that a squashfs can hold."""
    from datetime import UTC, datetime

    try:
        created = datetime.fromisoformat(text or "")
    except ValueError:
        return 0
    if created.tzinfo is None:
        created = created.replace(tzinfo=UTC)  # not the zone of this machine
    seconds = int(created.timestamp())
    return seconds if 0 <= seconds <= _LATEST else 0


class Clock:
    """Seconds per phase."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, phase: str, *, once: bool = False) -> None:
        """End a phase."""
        if once and phase in self._seconds:
            return
        now = time.perf_counter()
        self._seconds[phase] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Return what was measured, rounded to milliseconds."""
        total = {"total": time.perf_counter() - self._start}
        return {phase: round(seconds, 3) for phase, seconds in (self._seconds | total).items()}
