"""Convert OCI container images into squashfs images, tar archives or directories, on every core.

>>> import paralayer
>>> result = paralayer.convert("oci:image:latest", paralayer.ImageSpec.squashfs("image.squashfs"))  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paralayer.errors import (
        DigestError,
        ImageError,
        LayerError,
        MediaTypeError,
        ParalayerError,
        RegistryError,
        SinkError,
        UsageError,
        WorkerError,
    )
    from paralayer.image import Image, Layer, Platform, open_image
    from paralayer.oneshot import (
        ConversionResult,
        convert,
        convert_dir,
        convert_mksquashfs,
        convert_squashfs,
        convert_tar,
    )
    from paralayer.progress import PackerProgress
    from paralayer.spec import ImageSpec
    from paralayer.streaming import (
        LayerMeta,
        LayerWriter,
        StreamingPacker,
        convert_dir_streaming,
        convert_mksquashfs_streaming,
        convert_squashfs_streaming,
        convert_tar_streaming,
    )
    from paralayer.verification import Difference, VerifyProgress, VerifyReport, verify

__all__ = [
    "ConversionResult",
    "Difference",
    "DigestError",
    "Image",
    "ImageError",
    "ImageSpec",
    "Layer",
    "LayerError",
    "LayerMeta",
    "LayerWriter",
    "MediaTypeError",
    "PackerProgress",
    "ParalayerError",
    "Platform",
    "RegistryError",
    "SinkError",
    "StreamingPacker",
    "UsageError",
    "VerifyProgress",
    "VerifyReport",
    "WorkerError",
    "convert",
    "convert_dir",
    "convert_dir_streaming",
    "convert_mksquashfs",
    "convert_mksquashfs_streaming",
    "convert_squashfs",
    "convert_squashfs_streaming",
    "convert_tar",
    "convert_tar_streaming",
    "open_image",
    "verify",
]
__version__ = "0.1.0"


_VERIFICATION = {"Difference", "VerifyProgress", "VerifyReport", "verify"}
_OTHERS = ("errors", "spec", "image", "progress", "oneshot", "streaming")
"""Where the other names are, what loads least first."""


def __getattr__(name: str) -> Any:
    # Nothing is loaded before it is needed: the command has to catch signals first, and streaming's asyncio alone takes
    # as long to load as all the rest.
    if name in __all__:
        for module in ("verification",) if name in _VERIFICATION else _OTHERS:
            found = vars(import_module(f"paralayer.{module}"))
            if name in found:
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
