"""``paralayer convert``."""

from __future__ import annotations

import json
import os
import sys
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
from paralayer.cli.terminal import Display, interrupts, is_terminal, size_text
from paralayer.oneshot import ConversionResult, convert
from paralayer.spec import ImageSpec

if TYPE_CHECKING:
    from paralayer.image import Platform
    from paralayer.spec import Engine, Format


@click.command("convert", short_help="Convert an image to a squashfs, tar archive or directory.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Layers worked on at the same time. [default: the processors that may be used]",
)
@click.option(
    "--memory",
    type=Size(),
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
    type=PlatformType(),
    metavar="P",
    help="os/arch[/variant] to take from a multi-platform image. [default: this machine's]",
)
@click.option("--check-diff-ids", is_flag=True, help="Check the digests of decoded layers as well.")
@click.option("--no-check", is_flag=True, help="Check no digests at all.")
@click.option(
    "--mtime",
    type=click.IntRange(-LARGEST, LARGEST),
    metavar="T",
    callback=epoch,
    help="Latest modification time, seconds since the epoch. [default: $SOURCE_DATE_EPOCH]",
)
@click.option(
    "--compression",
    metavar="NAME[:LEVEL]",
    help="squashfs: zstd, gzip, xz, lz4 or none. [default: zstd:3]",
)
@click.option("--block-size", type=Size(), metavar="SIZE", help="squashfs: 4K to 1M. [default: 128K]")
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
@cache_options
@access_options
@click.option("--verify", "verified", is_flag=True, help="Compare OUTPUT with IMAGE before it gets its name.")
@click.option("--force", is_flag=True, help="Replace an existing OUTPUT, at the end and at once.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON object on standard output."
)
@click.argument("image", shell_complete=files)
@click.argument("output", shell_complete=files)
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
    cache: str | None,
    no_cache: bool,
    **registry: Any,
) -> None:
    """Convert IMAGE to OUTPUT.

    IMAGE is oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], or the path of any of these or of an
    extracted `docker save`; or docker://[HOST[:PORT]/]NAME[:TAG|@DIGEST], an image in a registry.

    OUTPUT is a squashfs image if it ends in .squashfs, .sqsh, .sqfs or .sfs, a tar archive if it ends in .tar or is -
    (standard output), and a directory if it ends in / or has no suffix. It appears when it is complete; on any error
    nothing does. Let GNU tar extract an archive with --delay-directory-restore: entries of one directory can stand
    apart.

    \b
    Examples:
      paralayer convert --jobs 16 oci:image:v1 image.squashfs
      paralayer convert --compression zstd:15 --block-size 1M oci:image:v1 image.squashfs
      paralayer convert --memory 512M --platform linux/arm64 oci-archive:multi.tar rootfs/
      paralayer convert --cache ~/.cache/paralayer docker://debian:bookworm debian.squashfs
    """
    if check_diff_ids and no_check:
        raise click.UsageError("--check-diff-ids and --no-check exclude each other")
    if as_json and output == "-":
        raise click.UsageError("--json and an output of - both want standard output")
    if verified and output == "-":
        raise click.UsageError("--verify: what went to standard output cannot be read again")
    if output == "-" and is_terminal(sys.stdout):
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
    import paralayer.engine.attempts  # noqa: F401 - see `interrupts`

    with interrupts(), Display(quiet=quiet or as_json) as display:
        result = convert(
            image,
            spec,
            jobs=jobs,
            memory=memory,
            platform=platform,
            check=not no_check,
            check_diff_ids=check_diff_ids,
            verify=verified,
            access=access(**registry),
            cache=None if no_cache else cache,
            progress=display.show,
        )
    for warning in () if quiet else result.warnings:
        click.echo(f"paralayer: warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(result.as_dict()))
    elif not quiet:
        click.echo(_summary(result), err=True)


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


def _summary(result: ConversionResult) -> str:
    seconds = result.seconds["total"]
    again = f", {result.second_readings} read twice" if result.second_readings else ""
    return (
        f"{result.output}: {result.survivors} paths of {result.entries} entries in {result.layers} layers{again}; "
        f"{size_text(result.bytes_decoded)} decoded, {size_text(result.bytes_written)} written in {seconds:.2f} s "
        f"({size_text(result.bytes_decoded / max(seconds, 0.001))}/s), {result.jobs} jobs, "
        f"peak memory {size_text(result.peak_memory)}"
    )
