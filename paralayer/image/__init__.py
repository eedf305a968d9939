"""Where layers come from: local images, described without reading their layers.

`open_image` is the way in. A source (`source`, `archive`) finds blobs; `layout` and `docker_archive` know the two
families of documents; `select` chooses among several images. Nothing from an image is trusted before it was
parsed into one of the values exported here.
"""

from paralayer.image.descriptor import Descriptor, Digest, Platform
from paralayer.image.image import Image, Layer
from paralayer.image.opening import open_image
from paralayer.image.source import Blob

__all__ = ["Blob", "Descriptor", "Digest", "Image", "Layer", "Platform", "open_image"]
