"""The command line: parse, call, print, exit code. The only module that prints.

Exit codes: 0 done, 1 an error of the image or the system, 2 usage, 130 interrupted (SIGINT or SIGTERM). Those of
`verify`: 0 the same, 1 different, 2 could not compare.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn, Self, TextIO

import click

from paralayer import __version__
from paralayer.convert import ConversionResult, ImageSpec, convert
from paralayer.errors import InterruptedByUser, ParalayerError
from paralayer.image import Platform

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from paralayer.convert import Engine, Format, PackerProgress
    from paralayer.verify import VerifyProgress

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:I?B)?\Z")
_INTERRUPTED = 130
_DIFFERENT, _CANNOT_COMPARE = 1, 2
_LARGEST = (1 << 63) - 1


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SIZE.match(str(value).upper())
        size = float(match[1]) * _UNITS[match[2]] if match else 0
        if not 1 <= size < _LARGEST:
            self.fail(f"got {value!r}, want a number of bytes, or one with K, M, G or T", param, ctx)
        return int(size)


class _PlatformType(click.ParamType[Platform]):
    name = "os/arch[/variant]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Platform:
        try:
            return Platform.parse(value)
        except ParalayerError as error:
            self.fail(str(error), param, ctx)


def _epoch(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """Take the environment's SOURCE_DATE_EPOCH where the option is not given."""
    del ctx, param
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if value is not None or not text:
        return value
    if not re.match(r"-?[0-9]{1,18}\Z", text):
        raise click.UsageError(f"SOURCE_DATE_EPOCH: got {text!r}, want seconds since the epoch")
    return int(text)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="paralayer", message="%(prog)s %(version)s")
def cli() -> None:
    """Convert OCI container images into squashfs images, tar archives or directories, on every core.

    \b
    Examples:
      paralayer convert oci:image:latest image.squashfs
      paralayer convert --jobs 8 docker-archive:saved.tar rootfs/
      paralayer verify oci:image:latest image.squashfs
      paralayer convert image.tar - | ssh host 'tar -x -C /srv/root'

    Shell completion: eval "$(_PARALAYER_COMPLETE=bash_source paralayer)", likewise zsh and fish.
    """


@cli.command("convert", short_help="Convert an image to a squashfs, tar archive or directory.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Layers worked on at the same time. [default: the processors that may be used]",
)
@click.option(
    "--memory",
    type=_Size(),
    metavar="SIZE",
    help="Decoded bytes to keep, such as 512M. [default: a quarter of what is available]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["squashfs", "tar", "directory"]),
    help="Needed when OUTPUT does not tell.",
)
@click.option(
    "--platform",
    type=_PlatformType(),
    metavar="P",
    help="os/arch[/variant] to take from a multi-platform image. [default: this machine's]",
)
@click.option("--check-diff-ids", is_flag=True, help="Check the digests of decoded layers as well.")
@click.option("--no-check", is_flag=True, help="Check no digests at all.")
@click.option(
    "--mtime",
    type=click.IntRange(-_LARGEST, _LARGEST),
    metavar="T",
    callback=_epoch,
    help="Latest modification time, seconds since the epoch. [default: $SOURCE_DATE_EPOCH]",
)
@click.option(
    "--compression",
    metavar="NAME[:LEVEL]",
    help="squashfs: zstd, gzip, xz, lz4 or none. [default: zstd:3]",
)
@click.option("--block-size", type=_Size(), metavar="SIZE", help="squashfs: 4K to 1M. [default: 128K]")
@click.option("--no-fragments", is_flag=True, help="squashfs: tail ends of files share no blocks.")
@click.option("--no-dedup", is_flag=True, help="squashfs: store equal files each for itself.")
@click.option("--no-exports", is_flag=True, help="squashfs: no table for exports over NFS.")
@click.option("--pad/--no-pad", default=True, help="squashfs: make the size a multiple of 4K. [default: pad]")
@click.option(
    "--engine",
    type=click.Choice(["paralayer", "mksquashfs"]),
    help="squashfs: what writes it. [default: paralayer]",
)
@click.option("--mksquashfs", metavar="PATH", help="squashfs: the program for --engine mksquashfs.")
@click.option("--verify", "verified", is_flag=True, help="Compare OUTPUT with IMAGE before it gets its name.")
@click.option("--force", is_flag=True, help="Replace an existing OUTPUT, at the end and at once.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON object on standard output."
)
@click.argument("image")
@click.argument("output")
def convert_command(
    image: str,
    output: str,
    *,
    jobs: int | None,
    memory: int | None,
    format_: Format | None,
    platform: Platform | None,
    check_diff_ids: bool,
    no_check: bool,
    mtime: int | None,
    compression: str | None,
    block_size: int | None,
    no_fragments: bool,
    no_dedup: bool,
    no_exports: bool,
    pad: bool,
    engine: Engine | None,
    mksquashfs: str | None,
    verified: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Convert IMAGE to OUTPUT.

    IMAGE is oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], or the path of any of these or of an
    extracted `docker save`.

    OUTPUT is a squashfs image if it ends in .squashfs, .sqsh, .sqfs or .sfs, a tar archive if it ends in .tar or is -
    (standard output), and a directory if it ends in / or has no suffix. It appears when it is complete; on any error nothing does. Let GNU tar extract an archive with
    --delay-directory-restore: entries of one directory can stand apart.

    \b
    Examples:
      paralayer convert --jobs 16 oci:image:v1 image.squashfs
      paralayer convert --compression zstd:15 --block-size 1M oci:image:v1 image.squashfs
      paralayer convert --memory 512M --platform linux/arm64 oci-archive:multi.tar rootfs/
    """
    if check_diff_ids and no_check:
        raise click.UsageError("--check-diff-ids and --no-check exclude each other")
    if as_json and output == "-":
        raise click.UsageError("--json and an output of - both want standard output")
    if verified and output == "-":
        raise click.UsageError("--verify: what went to standard output cannot be read again")
    if output == "-" and _is_terminal(sys.stdout):
        raise click.UsageError("an archive is not written to a terminal")
    squashfs = {
        "compression": compression,
        "block_size": block_size,
        "engine": engine,
        "mksquashfs": mksquashfs,
    }
    squashfs |= {
        "fragments": False if no_fragments else None,
        "dedup": False if no_dedup else None,
        "exports": False if no_exports else None,
        "pad": None if pad else False,
    }
    given = {name: value for name, value in squashfs.items() if value is not None}
    spec = _spec(output, format_, given, force=force, mtime=mtime)
    with _interrupts(), _Display(quiet=quiet or as_json) as display:
        result = convert(
            image,
            spec,
            jobs=jobs,
            memory=memory,
            platform=platform,
            check=not no_check,
            check_diff_ids=check_diff_ids,
            verify=verified,
            progress=display.show,
        )
    for warning in () if quiet else result.warnings:
        click.echo(f"paralayer: warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(result.as_dict()))
    elif not quiet:
        click.echo(_summary(result), err=True)


@cli.command("verify", short_help="Compare an image, squashfs, tar or directory with another.")
@click.option(
    "--ignore",
    metavar="WHAT[,WHAT]",
    default="",
    help="What may be different: times, owner, xattrs.",
)
@click.option(
    "--mount", is_flag=True, help="Read squashfs files through a mount: the kernel's or squashfuse's."
)
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="As for convert.")
@click.option("--memory", type=_Size(), metavar="SIZE", help="As for convert.")
@click.option("--platform", type=_PlatformType(), metavar="P", help="As for convert.")
@click.option("--no-check", is_flag=True, help="Check no digests of images.")
@click.option(
    "--mtime",
    type=click.IntRange(-_LARGEST, _LARGEST),
    metavar="T",
    callback=_epoch,
    help="What convert was given; it is for images. [default: $SOURCE_DATE_EPOCH]",
)
@click.option("--quiet", is_flag=True, help="Print errors only; the exit code tells.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.argument("a")
@click.argument("b")
def verify_command(
    a: str,
    b: str,
    *,
    ignore: str,
    mount: bool,
    jobs: int | None,
    memory: int | None,
    platform: Platform | None,
    no_check: bool,
    mtime: int | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Compare A with B: paths, types, modes, owners, sizes, contents, link targets, hard links, xattrs, devices, times.

    Each is an image as for convert, a squashfs file, a flat tar archive or a directory; dir:PATH, tar:PATH and
    squashfs:PATH say which where that is not clear. What one of them cannot hold is not compared.

    Exit code: 0 the same, 1 different, 2 could not compare.

    \b
    Examples:
      paralayer verify oci:image:v1 image.squashfs
      paralayer verify --ignore times,owner rootfs/ flat.tar
    """
    from paralayer.verify import IGNORABLE, verify

    ignored = {what.strip() for what in ignore.split(",")} - {""}
    if unknown := ignored - IGNORABLE:
        raise click.UsageError(f"--ignore: got {min(unknown)!r}, want any of {', '.join(sorted(IGNORABLE))}")
    try:
        with _interrupts(), _Display(quiet=quiet or as_json) as display:
            report = verify(
                a,
                b,
                ignore=ignored,
                jobs=jobs,
                memory=memory,
                platform=platform,
                mount=mount,
                check=not no_check,
                newest=mtime,
                progress=display.show,
            )
    except InterruptedByUser:
        raise
    except ParalayerError as error:
        click.echo(f"paralayer: error: {error}", err=True)
        return _CANNOT_COMPARE
    for warning in () if quiet else report.warnings:
        click.echo(f"paralayer: warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    elif not quiet:
        for line in report.lines():
            click.echo(line)
    return 0 if report.same else _DIFFERENT


def _spec(
    output: str, format_: Format | None, squashfs: dict[str, Any], *, force: bool, mtime: int | None
) -> ImageSpec:
    """Return what is asked for; `squashfs` are the options that only a squashfs has, as far as they are given."""
    format_ = format_ or _format_of(output)
    if squashfs and format_ != "squashfs":
        name = next(iter(squashfs)).replace("_", "-")
        option = f"--no-{name}" if squashfs[next(iter(squashfs))] is False else f"--{name}"
        raise click.UsageError(f"{option} is for a squashfs, not for a {format_}")
    if format_ == "tar":
        return ImageSpec.tar(None if output == "-" else output, force=force, mtime=mtime)
    if output == "-":
        raise click.UsageError(f"a {format_} cannot go to standard output")
    if format_ == "directory":
        return ImageSpec.directory(output, force=force, mtime=mtime)
    if "mksquashfs" in squashfs and squashfs.get("engine") != "mksquashfs":
        raise click.UsageError("--mksquashfs is for --engine mksquashfs")
    try:
        return ImageSpec.squashfs(output, force=force, mtime=mtime, **squashfs)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _format_of(output: str) -> Format:
    name = os.path.basename(output).lower()
    if output == "-" or name.endswith(".tar"):
        return "tar"
    if name.endswith((".squashfs", ".sqsh", ".sqfs", ".sfs")):
        return "squashfs"
    if not name.strip(".") or "." not in name.lstrip("."):
        return "directory"
    raise click.UsageError(
        f"the name {output!r} does not tell the format: say --format squashfs, tar or directory"
    )


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # a closed one is None


def _summary(result: ConversionResult) -> str:
    seconds = result.seconds["total"]
    again = f", {result.second_readings} read twice" if result.second_readings else ""
    return (
        f"{result.output}: {result.survivors} paths of {result.entries} entries in {result.layers} layers{again}; "
        f"{_size(result.bytes_decoded)} decoded, {_size(result.bytes_written)} written in {seconds:.2f} s "
        f"({_size(result.bytes_decoded / max(seconds, 0.001))}/s), {result.jobs} jobs, "
        f"peak memory {_size(result.peak_memory)}"
    )


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


class _Display:
    """The progress of a command on a terminal's standard error; nothing elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._live: Any = None
        if not quiet and _is_terminal(sys.stderr):
            from paralayer.display import LiveDisplay

            self._live = LiveDisplay()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, event: PackerProgress | VerifyProgress) -> None:
        """Take an event."""
        if self._live is not None:
            self._live.show(event)


class _interrupts:  # noqa: N801 - used as a function
    """Within, SIGINT, SIGTERM and SIGHUP raise InterruptedByUser, once; those that are ignored stay so (nohup)."""

    def __enter__(self) -> None:
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heard = [number for number in wanted if signal.getsignal(number) != signal.SIG_IGN]
        self._old = {number: signal.signal(number, self._raise) for number in heard}

    def _raise(self, number: int, frame: FrameType | None) -> NoReturn:
        del frame
        for each in self._old:
            # Not SIG_IGN: one more that has come already must find a handler.
            signal.signal(each, lambda *_: None)
        raise InterruptedByUser("", f"interrupted by {signal.Signals(number).name}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, InterruptedByUser):
            # The process ends now, and no further signal is to change how, not even behind the last handler's end.
            signal.pthread_sigmask(signal.SIG_BLOCK, set(self._old))
            return
        for number, handler in self._old.items():
            signal.signal(number, handler)


def main() -> NoReturn:
    """Run the command line and exit."""
    # The threads that a linear algebra library would start when numpy loads it serve nothing here, and a process
    # with threads cannot fork its workers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        status = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("paralayer: interrupted", err=True)
        sys.exit(_INTERRUPTED)
    except InterruptedByUser as error:
        click.echo(f"paralayer: {error}", err=True)
        sys.exit(_INTERRUPTED)
    except ParalayerError as error:
        click.echo(f"paralayer: error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        # Only text that could not be printed comes here; what is left of it must not fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        click.echo(f"paralayer: error: standard output: {error.strerror}", err=True)
        sys.exit(_CANNOT_COMPARE if sys.argv[1:2] == ["verify"] else 1)
    sys.exit(status if isinstance(status, int) else 0)
