"""``paralayer inspect``."""

from __future__ import annotations

import json
from typing import Any

import click

from paralayer.cli.options import PlatformType, access, access_options, files
from paralayer.cli.terminal import interrupts, size_text
from paralayer.image import Image, Platform, open_image


@click.command("inspect", short_help="Tell what an image is: platform, layers, sizes, digests.")
@click.option("--platform", type=PlatformType(), metavar="P", help="As for convert.")
@access_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("image", shell_complete=files)
def inspect_command(image: str, *, platform: Platform | None, as_json: bool, **registry: Any) -> None:
    """Tell what IMAGE is, which is named as for convert; no layer is read.

    \b
    Examples:
      paralayer inspect oci:image:v1
      paralayer inspect --platform linux/arm64 docker://debian:bookworm
    """
    with interrupts():
        found = open_image(image, platform=platform, access=access(**registry))
    for warning in found.warnings:
        click.echo(f"paralayer: warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(_as_dict(found)))
        return
    click.echo(f"{found.reference}: {found.platform}, made {found.created or 'at an unknown time'}")
    for layer in reversed(found.layers):
        name = layer.digest or layer.diff_id or ""
        click.echo(f"layer {layer.index}: {size_text(layer.blob.size)}, {layer.media_type}, {name}")


def _as_dict(image: Image) -> dict[str, Any]:
    return {
        "image": image.reference,
        "platform": str(image.platform),
        "created": image.created,
        "layers": [
            {
                "index": layer.index,
                "media_type": layer.media_type,
                "size": layer.blob.size,
                "digest": str(layer.digest) if layer.digest else None,
                "diff_id": str(layer.diff_id) if layer.diff_id else None,
            }
            for layer in image.layers
        ],
    }
