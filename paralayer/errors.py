"""Every error that paralayer raises.

    ParalayerError
    ├── ImageError          the image, or what names it, is not as it must be
    │   ├── DigestError     stored bytes are not the ones that their descriptor names
    │   ├── MediaTypeError  a media type that is unknown, encrypted or not a layer
    │   ├── LayerError      a layer's tar stream or compression, or an entry that cannot be applied
    │   └── RegistryError   a registry that cannot be reached, or refuses
    ├── SinkError           the output cannot be written
    ├── WorkerError         a worker process died
    └── UsageError          a call that makes no sense where it stands; a ValueError as well

The message is always ``where: what: got X, want Y``; `got` and `want` may be absent. Errors cross process
boundaries: fields are the positional arguments of `Exception`, so that pickling keeps them.
"""

from __future__ import annotations

_SHOWN_MAX = 4096  # characters of a name in a message: PATH_MAX of Linux; images have names of any length


def quote(name: bytes) -> str:
    r"""Return a name from an image in printable form: no control characters, other bytes as \xNN, a long one cut."""
    text = name.decode("utf-8", "surrogateescape")
    shown = "".join(
        c
        if c.isprintable() and c != "\\"
        else "\\\\"
        if c == "\\"
        else f"\\x{ord(c) - 0xDC00:02x}"
        if 0xDC80 <= ord(c) <= 0xDCFF
        else c.encode("unicode_escape").decode()
        for c in text[:_SHOWN_MAX]
    )
    return shown + "..." * (len(text) > _SHOWN_MAX)


class ParalayerError(Exception):
    """Base of all errors; `where`, `what`, `got`, `want` are its fields."""

    def __init__(self, where: str, what: str, got: object = None, want: object = None) -> None:
        super().__init__(where, what, got, want)
        self.where = where
        self.what = what
        self.got = got
        self.want = want

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.got is not None:
            text += f": got {self.got}"
        if self.want is not None:
            text += f"{',' if self.got is not None else ':'} want {self.want}"
        return text


class ImageError(ParalayerError):
    """The image, or what names it, is not as it must be; `where` is the document, file or layer."""


class DigestError(ImageError):
    """Stored bytes are not the ones that their descriptor names."""


class MediaTypeError(ImageError):
    """A media type that is unknown, encrypted or not a layer's."""


class LayerError(ImageError):
    """A layer's tar stream or compression is broken, or an entry cannot be applied."""


class RegistryError(ImageError):
    """A registry cannot be reached, refuses, or answers what it must not; `where` is the host or the reference."""


class SinkError(ParalayerError):
    """The output cannot be written; `where` is its name."""


class WorkerError(ParalayerError):
    """A worker process died."""


class UsageError(ParalayerError, ValueError):
    """A call that makes no sense where it stands, such as a layer that is given twice."""
