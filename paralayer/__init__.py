"""Convert OCI container images into squashfs images, tar archives or directories, on every core.

>>> import paralayer
>>> result = paralayer.convert("oci:image:latest", paralayer.ImageSpec.squashfs("image.squashfs"))  # doctest: +SKIP
"""

from paralayer.convert import (
    ConversionResult,
    ImageSpec,
    PackerProgress,
    convert,
    convert_dir,
    convert_mksquashfs,
    convert_squashfs,
    convert_tar,
)
from paralayer.errors import (
    DigestError,
    ImageError,
    InterruptedByUser,
    LayerError,
    MediaTypeError,
    ParalayerError,
    RegistryError,
    SinkError,
    WorkerError,
)
from paralayer.image import Image, Layer, Platform, open_image
from paralayer.verify import Difference, VerifyProgress, VerifyReport, verify

__all__ = [
    "ConversionResult",
    "Difference",
    "DigestError",
    "Image",
    "ImageError",
    "ImageSpec",
    "InterruptedByUser",
    "Layer",
    "LayerError",
    "MediaTypeError",
    "PackerProgress",
    "ParalayerError",
    "Platform",
    "RegistryError",
    "SinkError",
    "VerifyProgress",
    "VerifyReport",
    "WorkerError",
    "convert",
    "convert_dir",
    "convert_mksquashfs",
    "convert_squashfs",
    "convert_tar",
    "open_image",
    "verify",
]
__version__ = "0.1.0"
