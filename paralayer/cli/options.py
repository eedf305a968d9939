"""Options that several commands have."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import click

from paralayer.errors import ParalayerError, UsageError
from paralayer.image import Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from click.shell_completion import CompletionItem

    from paralayer.registry.access import Access

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:I?B)?\Z")
LARGEST = (1 << 63) - 1


class Size(click.ParamType[int]):
    """A number of bytes, such as 512M."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse."""
        match = _SIZE.match(str(value).upper())
        size = float(match[1]) * _UNITS[match[2]] if match else 0
        if not 1 <= size < LARGEST:
            self.fail(f"got {value!r}, want a number of bytes, or one with K, M, G or T", param, ctx)
        return int(size)


class PlatformType(click.ParamType[Platform]):
    """A platform, such as linux/arm64."""

    name = "os/arch[/variant]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Platform:
        """Parse."""
        try:
            return Platform.parse(value)
        except ParalayerError as error:
            self.fail(str(error), param, ctx)


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete the names of files."""
    from click.shell_completion import CompletionItem

    del ctx, param
    return [CompletionItem(incomplete, type="file")]


def epoch(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """Take the environment's SOURCE_DATE_EPOCH where the option is not given."""
    del ctx, param
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if value is not None or not text:
        return value
    if not re.match(r"-?[0-9]{1,18}\Z", text):
        raise click.UsageError(f"SOURCE_DATE_EPOCH: got {text!r}, want seconds since the epoch")
    return int(text)


_DOWNLOADS = (
    click.option(
        "--connections",
        type=click.IntRange(1, 64),
        metavar="N",
        help="docker://: downloads at the same time. [default: 4]",
    ),
    click.option(
        "--registry-mirror",
        "mirrors",
        multiple=True,
        metavar="HOST",
        help="docker://: ask there first. [default: $PARALAYER_REGISTRY_MIRROR]",
    ),
)
_TRUST = (
    click.option(
        "--insecure-http",
        multiple=True,
        metavar="HOST",
        help="docker://: speak plain http with HOST[:PORT].",
    ),
    click.option(
        "--ca-file",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE",
        help="docker://: trust these certificate authorities as well.",
    ),
)
_CACHE = (
    click.option(
        "--cache",
        metavar="DIR",
        envvar="PARALAYER_CACHE",
        help="docker://: keep blobs there, and use what is there. [default: $PARALAYER_CACHE]",
    ),
    click.option("--no-cache", is_flag=True, help="docker://: keep no blob."),
)


def access_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how registries are reached; `access` takes what they yield."""
    return _add((*_DOWNLOADS, *_TRUST), command)


def trust_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add those of them that matter where nothing is downloaded."""
    return _add(_TRUST, command)


def cache_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--cache` and `--no-cache`; the first one is None where the second is given."""
    return _add(_CACHE, command)


def _add(options: Sequence[Callable[..., Any]], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def access(
    *,
    connections: int | None = None,
    mirrors: tuple[str, ...] = (),
    insecure_http: tuple[str, ...],
    ca_file: str | None,
) -> Access | None:
    """Return what `access_options` or `trust_options` yielded, None if that is nothing."""
    if not (connections or mirrors or insecure_http or ca_file):
        return None
    from paralayer.registry.access import Access

    default = Access()
    try:
        return Access(
            connections=connections or default.connections,
            mirrors=mirrors or None,
            insecure_http=frozenset(insecure_http),
            ca_file=ca_file,
        )
    except UsageError as error:
        raise click.BadParameter(
            f"got {error.got}, want {error.want}", param_hint="--insecure-http"
        ) from None
