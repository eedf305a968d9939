"""Conversion while layers arrive.

    with StreamingPacker(layers, ImageSpec.squashfs("image.squashfs")) as packer:
        ...                                          # in any order, from any thread:
        packer.notify_layer_ready(3, "layer3.tar.gz")   # it is there
        with packer.open_layer(2) as writer:            # it comes in pieces
            writer.write(piece)
        result = packer.finish()

The conversion runs in a thread of its own, and is the one that `convert` does: the same bytes come out whatever the
order of arrival. Each layer is decoded and indexed as soon as it is there; output begins with the newest layers. What
is written to a `LayerWriter` is kept, as it is, in an unlinked file beside the output until the conversion ends: a layer
may have to be read twice.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import tempfile
import threading
import weakref
from collections.abc import AsyncIterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self, overload

from paralayer.engine.arrivals import Arrivals
from paralayer.errors import DigestError, ImageError, SinkError, UsageError
from paralayer.growing import Growing
from paralayer.image import Blob, Digest, Layer
from paralayer.image.media_type import check_layer_type
from paralayer.image.source import check_regular, io_errors
from paralayer.oneshot import Clock, ConversionResult, check_apart, check_limits, convert_arrivals
from paralayer.spec import ImageSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from types import TracebackType

    from paralayer.progress import PackerProgress

    Ready = tuple[int, str | os.PathLike[str]]
    """A layer's index and the file that it is in."""

_LEAD = 64 << 20
"""Bytes that a writer may be ahead of the decoder of its layer. Decoders tell every 32 MiB, so less would stall both."""


@dataclass(frozen=True, slots=True)
class LayerMeta:
    """What is known of a layer before it arrives; what is None is not checked.

    `index` 0 is the oldest layer. `digest` and `size` (bytes) are of the blob as stored, `diff_id` is the digest of the
    uncompressed tar; digests as in ``sha256:<hex>``.
    """

    index: int
    media_type: str = "application/vnd.oci.image.layer.v1.tar"
    digest: Digest | str | None = None
    size: int | None = None
    diff_id: Digest | str | None = None


class StreamingPacker:
    """Converts layers as they become ready; starts at once.

    `layers` describes all of them, in any order. The other arguments are those of `convert`; `created` is the image's
    creation time as its config has it (a squashfs carries it), `name` is what the result calls the image. `progress`
    is called in the packer's own thread.

    Every call but `finish` is safe from any thread. What goes wrong with the conversion is raised by `finish` and by
    writers. Used as a context manager, it aborts when it is left before `finish` has returned: nothing of the output
    stays. With ``async with`` it gives an `AsyncStreamingPacker`. A packer that is dropped or alive when the program
    ends, aborts.
    """

    def __init__(
        self,
        layers: Sequence[LayerMeta],
        spec: ImageSpec,
        *,
        jobs: int | None = None,
        memory: int | None = None,
        check: bool = True,
        check_diff_ids: bool = False,
        created: str | None = None,
        name: str = "stream",
        progress: Callable[[PackerProgress], None] | None = None,
    ) -> None:
        check_limits(jobs, memory)
        self._layers = _check(layers)
        self._spec = spec
        self._check = check
        self._lock = threading.Lock()
        self._given: set[int] = set()
        self._writers: list[Growing] = []
        self._arrivals = Arrivals([layer.size for layer in self._layers])
        self._result: Future[ConversionResult] = Future()
        self._result.set_running_or_notify_cancel()  # nobody cancels it
        self._threads: ThreadPoolExecutor | None = None  # of coroutines
        options = {
            "reference": name,
            "created": created,
            "warnings": (),
            "jobs": jobs,
            "memory": memory,
            "check": check,
            "check_diff_ids": check_diff_ids,
            "verify": None,
            "progress": progress,
        }
        arguments = (self._arrivals, spec, options, self._writers, self._result)
        self._thread = threading.Thread(target=_run, args=arguments, name="paralayer", daemon=True)
        self._abandon = weakref.finalize(self, _abandon, self._arrivals, self._thread, os.getpid())
        self._thread.start()

    def notify_layer_ready(self, index: int, path: str | os.PathLike[str]) -> None:
        """Tell that all of a layer is in the file at `path`, which must stay until `finish` has returned.

        `UsageError` for an index that there is not, or for the second time.
        """
        name = os.path.abspath(os.fsdecode(path))
        meta = self._give(index)
        try:
            with io_errors(name):
                status = os.stat(name)
            check_regular(status, name)
            check_apart(name, self._spec)
            _check_size(index, status.st_size, self._size_wanted(meta))
            self._arrivals.add(_layer(meta, Blob(name, 0, status.st_size)))
        except (ImageError, SinkError) as error:
            self._arrivals.fail(error)
        except ValueError:  # a name that cannot be
            self._arrivals.fail(ImageError(f"layer {index}", "not the name of a file", repr(name)))

    def open_layer(self, index: int) -> LayerWriter:
        """Return where to write a layer's blob while it arrives; errors as with `notify_layer_ready`.

        `finish` waits until it is closed or aborted.
        """
        meta = self._give(index)
        path = self._spec.path
        folder = os.path.dirname(os.path.abspath(path)) if path is not None else None
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                growing = Growing(os.dup(file.fileno()), size=meta.size, wake=self._arrivals.wake)
        except OSError as error:
            failure = SinkError(folder or tempfile.gettempdir(), error.strerror or "cannot be written")
            self._arrivals.fail(failure)
            raise failure from None
        self._writers.append(growing)
        if self._result.done():
            growing.end()
        self._arrivals.add(_layer(meta, growing))
        return LayerWriter(index, self._size_wanted(meta), growing, self._arrivals, self._result)

    def notify_error(self, error: BaseException) -> None:
        """Abort: `finish` raises `error`."""
        self._arrivals.fail(error)

    def finishing(self) -> Future[ConversionResult]:
        """Tell that all layers are given, and return what will be the result: `finish` for those who wait elsewhere."""
        with self._lock:
            missing = sorted(set(range(len(self._layers))) - self._given)
        if missing and not self._result.done():
            got = ", ".join(map(str, missing))
            self._arrivals.fail(UsageError("finish", "layers that were not given", got, "none"))
        return self._result

    def finish(self) -> ConversionResult:
        """Wait for the end and return the result; errors as with `convert`.

        `UsageError` if layers were not given. Layers that were opened may still be written by other threads.
        """
        if self._thread is threading.current_thread():
            raise UsageError("finish", "waits for the thread that it is called in")
        try:
            return self.finishing().result()
        finally:
            self._abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._abort()

    async def __aenter__(self) -> AsyncStreamingPacker:
        # Writers that wait must not take all threads of the loop's own executor.
        self._threads = ThreadPoolExecutor(max(1, len(self._layers)), "paralayer-writer")
        return AsyncStreamingPacker(self, self._threads)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._arrivals.fail(_aborted())
        await asyncio.shield(asyncio.to_thread(self._end))

    def _give(self, index: int) -> LayerMeta:
        _check_index(index)
        if not 0 <= index < len(self._layers):
            raise UsageError("layer index", "there is no such layer", index, f"0 to {len(self._layers) - 1}")
        with self._lock:
            if index in self._given:
                raise UsageError(f"layer {index}", "was given already")
            self._given.add(index)
        return self._layers[index]

    def _size_wanted(self, meta: LayerMeta) -> int | None:
        return meta.size if self._check else None

    def _end(self) -> None:
        self._abort()
        assert self._threads is not None
        self._threads.shutdown()  # nobody waits in there any more

    def _abort(self) -> None:
        self._abandon.detach()
        _abandon(self._arrivals, self._thread, os.getpid())


class LayerWriter:
    """Where the bytes of one layer's blob are written, in their order. A context manager: it closes, or aborts on errors.

    A blob that is not closed is not complete. Use it from one thread at a time.
    """

    def __init__(
        self,
        index: int,
        want: int | None,
        growing: Growing,
        arrivals: Arrivals,
        result: Future[ConversionResult],
    ) -> None:
        self._index = index
        self._want = want  # bytes
        self._growing = growing
        self._arrivals = arrivals
        self._result = result
        self._closed = False

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write some more; return how many bytes that is.

        Waits while the layer's decoder is behind, which waits itself while the memory is used up and newer layers are
        still to come: give these first, or write each layer in a thread of its own. Raises what the conversion ended with, if it has.
        """
        if self._closed:
            raise UsageError(f"layer {self._index}", "is written after it was closed")
        view = memoryview(data).cast("B")
        growing = self._growing
        if not growing.wait_for_room(_LEAD):
            self._raise_end()
        try:
            growing.store(growing.published, view)
        except OSError as error:
            if not growing.wait_for_room(_LEAD):
                self._raise_end()
            failure = SinkError(f"layer {self._index}", f"cannot be kept: {error.strerror}")
            self._arrivals.fail(failure)
            raise failure from None
        growing.publish(growing.published + len(view))
        return len(view)

    def _raise_end(self) -> NoReturn:
        self._result.result()
        raise UsageError(f"layer {self._index}", "is written after the conversion has ended")

    def close(self) -> None:
        """Tell that the blob is complete; nothing if that or `abort` was done before."""
        if self._closed:
            return
        self._closed = True
        try:
            _check_size(self._index, self._growing.published, self._want)
        except DigestError as error:
            self._arrivals.fail(error)
            raise
        self._growing.close()

    def abort(self, error: BaseException | None = None) -> None:
        """Tell that no more will come: the conversion ends with `error`."""
        if not self._closed:
            self._closed = True
            self._arrivals.fail(error or ImageError(f"layer {self._index}", "its arrival was aborted"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort(error)


class AsyncStreamingPacker:
    """A `StreamingPacker` for coroutines: the same, and nothing blocks the event loop."""

    def __init__(self, packer: StreamingPacker, threads: ThreadPoolExecutor) -> None:
        self._packer = packer
        self._threads = threads
        self.notify_layer_ready = packer.notify_layer_ready
        self.notify_error = packer.notify_error

    def open_layer(self, index: int) -> AsyncLayerWriter:
        """See `StreamingPacker.open_layer`."""
        return AsyncLayerWriter(self._packer.open_layer(index), self._threads)

    async def finish(self) -> ConversionResult:
        """See `StreamingPacker.finish`."""
        result = asyncio.wrap_future(self._packer.finishing())
        result.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # also if nobody waits any more
        return await asyncio.shield(result)


class AsyncLayerWriter:
    """A `LayerWriter` for coroutines. A `write` that is cancelled aborts: nobody knows how much of it was done."""

    def __init__(self, writer: LayerWriter, threads: ThreadPoolExecutor) -> None:
        self._writer = writer
        self._threads = threads

    async def write(self, data: bytes | bytearray | memoryview) -> int:
        """See `LayerWriter.write`."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._writer.write, data)
        except asyncio.CancelledError:
            self._writer.abort()
            raise

    async def close(self) -> None:
        """See `LayerWriter.close`."""
        self._writer.close()

    async def abort(self, error: BaseException | None = None) -> None:
        """See `LayerWriter.abort`."""
        self._writer.abort(error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
        else:
            await self.abort(error)


def _run(
    arrivals: Arrivals,
    spec: ImageSpec,
    options: dict[str, Any],
    writers: list[Growing],
    result: Future[ConversionResult],
) -> None:
    """Convert, in the packer's thread; it knows nothing of the packer, so that one that is dropped is found."""
    done: ConversionResult | None = None
    failure: BaseException | None = None
    with arrivals:
        try:
            done = convert_arrivals(arrivals, spec, **options, clock=Clock())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            arrivals.fail(error)  # unless this is a consequence of what it was told before
            failure = arrivals.error
    for growing in writers:
        growing.end()
    if done is not None:
        result.set_result(done)
    else:
        result.set_exception(failure)
    for growing in writers:
        growing.end()  # one may have come meanwhile


def _abandon(arrivals: Arrivals, thread: threading.Thread, process: int) -> None:
    """Abort, and wait for the end; but not in the packer's own thread or a child of its process."""
    if os.getpid() != process:
        return
    arrivals.fail(_aborted())
    if thread is not threading.current_thread():
        thread.join()


def _aborted() -> UsageError:
    return UsageError("streaming", "was left before it was finished")


def _check(layers: Sequence[LayerMeta]) -> list[LayerMeta]:
    """Return the layers, oldest first; UsageError if their numbers are not those from 0 on, or a size is none."""
    for layer in layers:
        _check_index(layer.index)
    ordered = sorted(layers, key=lambda layer: layer.index)
    numbers = [layer.index for layer in ordered]
    if numbers != list(range(len(ordered))):
        raise UsageError("layers", "indexes", numbers, "0 and the following, each once")
    for layer in ordered:
        check_layer_type(layer.media_type, f"layer {layer.index}")
        if layer.size is not None and layer.size < 0:
            raise UsageError(f"layer {layer.index}", "size", layer.size, "0 or more, or None")
        _layer(layer, Blob("", 0, 0))
    return ordered


def _check_index(index: object) -> None:
    if not isinstance(index, int) or isinstance(index, bool):  # True is 1 as well
        raise UsageError("layer index", "not an integer", repr(index))


def _check_size(index: int, size: int, want: int | None) -> None:
    if want is not None and size != want:
        raise DigestError(f"layer {index}", "size of the blob", size, want)


def _layer(meta: LayerMeta, blob: Blob | Growing) -> Layer:
    where = f"layer {meta.index}"
    digest, diff_id = (
        Digest.parse(text, where) if isinstance(text, str) else text for text in (meta.digest, meta.diff_id)
    )
    return Layer(meta.index, meta.media_type, blob, digest, diff_id)


class _OneShot(Protocol):
    """What the one-shot forms are: an async iterator makes the result awaitable."""

    @overload
    def __call__(
        self,
        layers: Sequence[LayerMeta],
        ready: Iterable[Ready],
        path: str | os.PathLike[str],
        **options: Any,
    ) -> ConversionResult: ...
    @overload
    def __call__(
        self,
        layers: Sequence[LayerMeta],
        ready: AsyncIterable[Ready],
        path: str | os.PathLike[str],
        **options: Any,
    ) -> Awaitable[ConversionResult]: ...


def _one_shot(describe: Callable[..., ImageSpec], output: str, **fixed: Any) -> _OneShot:
    own = inspect.signature(describe).parameters.keys()

    def convert_streaming(
        layers: Sequence[LayerMeta],
        ready: Iterable[Ready] | AsyncIterable[Ready],
        path: str | os.PathLike[str],
        **options: Any,
    ) -> Any:
        spec = describe(path, **fixed, **{name: options.pop(name) for name in own & options.keys()})
        if isinstance(ready, AsyncIterable):
            return _convert_async(layers, ready, spec, options)
        with StreamingPacker(layers, spec, **options) as packer:
            for index, file in ready:
                packer.notify_layer_ready(index, file)
            return packer.finish()

    convert_streaming.__doc__ = f"""Convert layers to {output} as `ready` yields each one's (index, path), in any order.

    `options` are those of `ImageSpec.{describe.__name__}` and of `StreamingPacker`. If `ready` is an async iterator, the
    result is to be awaited.
    """
    return convert_streaming


async def _convert_async(
    layers: Sequence[LayerMeta], ready: AsyncIterable[Ready], spec: ImageSpec, options: dict[str, Any]
) -> ConversionResult:
    async with StreamingPacker(layers, spec, **options) as packer:
        async for index, file in ready:
            packer.notify_layer_ready(index, file)
        return await packer.finish()


convert_tar_streaming = _one_shot(ImageSpec.tar, "a flat tar archive")
convert_dir_streaming = _one_shot(ImageSpec.directory, "a directory")
convert_squashfs_streaming = _one_shot(ImageSpec.squashfs, "squashfs")
convert_mksquashfs_streaming = _one_shot(
    ImageSpec.squashfs, "squashfs with the program mksquashfs", engine="mksquashfs"
)
