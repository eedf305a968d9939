"""Options that several commands have."""

from __future__ import annotations

import os
import re
from typing import Any

import click

from paralayer.errors import ParalayerError
from paralayer.image import Platform

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


def epoch(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """Take the environment's SOURCE_DATE_EPOCH where the option is not given."""
    del ctx, param
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if value is not None or not text:
        return value
    if not re.match(r"-?[0-9]{1,18}\Z", text):
        raise click.UsageError(f"SOURCE_DATE_EPOCH: got {text!r}, want seconds since the epoch")
    return int(text)
