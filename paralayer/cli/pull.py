"""``paralayer pull``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from paralayer.cli.options import PlatformType, access, access_options, cache_options, files
from paralayer.cli.terminal import Display, interrupts, size_text

if TYPE_CHECKING:
    from paralayer.image import Platform


@click.command("pull", short_help="Store an image of a registry as an OCI layout.")
@click.option("--platform", type=PlatformType(), metavar="P", help="As for convert.")
@cache_options
@access_options
@click.option("--force", is_flag=True, help="Replace an existing OCI_DIR, at the end and at once.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.argument("reference", metavar="REF")
@click.argument("directory", metavar="OCI_DIR", shell_complete=files)
def pull_command(
    reference: str,
    directory: str,
    *,
    platform: Platform | None,
    cache: str | None,
    no_cache: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
    **registry: Any,
) -> None:
    """Store the image docker://[HOST[:PORT]/]NAME[:TAG|@DIGEST] as an OCI layout, under its tag.

    Every digest is checked. OCI_DIR appears when it is complete.

    \b
    Example:
      paralayer pull --platform linux/arm64 docker://debian:bookworm debian
    """
    from paralayer.pull import pull

    if "://" not in reference:
        reference = f"docker://{reference}"
    with interrupts(), Display(quiet=quiet or as_json) as display:
        result = pull(
            reference,
            directory,
            platform=platform,
            access=access(**registry),
            cache=None if no_cache else cache,
            force=force,
            progress=display.show_bytes,
        )
    for warning in () if quiet else result.warnings:
        click.echo(f"paralayer: warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(result.as_dict()))
    elif not quiet:
        text = f"{result.output}: {result.image}, {result.platform}, {result.layers} layers, {size_text(result.size)}"
        click.echo(f"{text}, {result.digest}", err=True)
