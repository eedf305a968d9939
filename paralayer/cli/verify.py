"""``paralayer verify``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from paralayer.cli.options import (
    LARGEST,
    PlatformType,
    Size,
    access,
    access_options,
    cache_options,
    epoch,
    files,
)
from paralayer.cli.terminal import Display, interrupts
from paralayer.errors import ParalayerError

if TYPE_CHECKING:
    from paralayer.image import Platform

_DIFFERENT, CANNOT_COMPARE = 1, 2


@click.command("verify", short_help="Compare an image, squashfs, tar or directory with another.")
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
@click.option("--memory", type=Size(), metavar="SIZE", help="As for convert.")
@click.option("--platform", type=PlatformType(), metavar="P", help="As for convert.")
@click.option("--no-check", is_flag=True, help="Check no digests of images.")
@click.option(
    "--mtime",
    type=click.IntRange(-LARGEST, LARGEST),
    metavar="T",
    callback=epoch,
    help="What convert was given; it is for images. [default: $SOURCE_DATE_EPOCH]",
)
@cache_options
@access_options
@click.option("--quiet", is_flag=True, help="Print errors only; the exit code tells.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.argument("a", shell_complete=files)
@click.argument("b", shell_complete=files)
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
    cache: str | None,
    no_cache: bool,
    **registry: Any,
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
    import paralayer.engine.attempts  # noqa: F401 - see `interrupts`
    from paralayer.verification import IGNORABLE, verify

    ignored = {what.strip() for what in ignore.split(",")} - {""}
    if unknown := ignored - IGNORABLE:
        raise click.UsageError(f"--ignore: got {min(unknown)!r}, want any of {', '.join(sorted(IGNORABLE))}")
    try:
        with interrupts(), Display(quiet=quiet or as_json) as display:
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
                access=access(**registry),
                cache=None if no_cache else cache,
                progress=display.show,
            )
    except ParalayerError as error:
        click.echo(f"paralayer: error: {error}", err=True)
        return CANNOT_COMPARE
    for warning in () if quiet else report.warnings:
        click.echo(f"paralayer: warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    elif not quiet:
        for line in report.lines():
            click.echo(line)
    return 0 if report.same else _DIFFERENT
