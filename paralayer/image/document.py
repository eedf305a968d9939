"""JSON documents as typed values.

Every accessor states what it wants, and a document that has something else is refused with the names of the
document and of the field. A null member counts as absent, since Go's encoder writes it for whatever is empty;
duplicate keys mean the last one; unknown members are ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from paralayer.errors import ImageError
from paralayer.image.descriptor import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paralayer.image.descriptor import Digest

DOCUMENT_LIMIT = 8 << 20
"""Size in bytes above which no document is read: many tiny objects take 26 times as much memory once parsed.

The OCI distribution specification asks clients and registries for 4 MB at least, and few registries take more.
"""


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it is stored, with what its descriptor tells."""

    media_type: str
    digest: Digest
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Value:
    """A JSON value and its place."""

    document: str
    field: str
    """Empty for the document as a whole."""
    raw: object

    @property
    def where(self) -> str:
        """The value's place for messages."""
        return f"{self.document}: {self.field}" if self.field else self.document

    def __getitem__(self, name: str) -> Value:
        """Return a member that has to be there."""
        value = self.get(name)
        if value is None:
            raise ImageError(self.document, f"required field {self._path(name)} is missing")
        return value

    def get(self, name: str) -> Value | None:
        """Return a member, None where it is absent or null."""
        if not isinstance(self.raw, dict):
            raise self.error(self._kind(), "an object")
        raw = self.raw.get(name)
        return None if raw is None else Value(self.document, self._path(name), raw)

    def has(self, name: str) -> bool:
        """Say whether the object has this member, be it null."""
        return isinstance(self.raw, dict) and name in self.raw

    def elements(self) -> Iterator[Value]:
        """Return what the array holds, one value at a time: an array may be made of millions of nothings."""
        if not isinstance(self.raw, list):
            raise self.error(self._kind(), "an array")
        return (Value(self.document, f"{self.field}[{i}]", raw) for i, raw in enumerate(self.raw))

    def elements_of(self, name: str, *, required: bool = True) -> Iterator[Value]:
        """Return what the array in this member holds, nothing if it is null, or if it is absent and need not be."""
        value = self.get(name)
        if value is not None:
            return value.elements()
        return self[name].elements() if required and not self.has(name) else iter(())

    def text(self) -> str:
        """Return the string, which can be encoded as UTF-8 and has no NUL."""
        if not isinstance(self.raw, str):
            raise self.error(self._kind(), "a string")
        try:
            self.raw.encode()
        except UnicodeEncodeError:
            raise self.error(shown(self.raw), "Unicode text") from None
        if "\0" in self.raw:
            raise self.error(shown(self.raw), "text without NUL")
        return self.raw

    def integer(self) -> int:
        """Return the number, which has no fraction."""
        if not isinstance(self.raw, int) or isinstance(self.raw, bool):
            raise self.error(self._kind(), "an integer")
        return self.raw

    def error(self, got: object, want: object) -> ImageError:
        """Return the error for a value that is not as it must be; `got` is a number, or text that was `shown`."""
        got = got if isinstance(got, str) else shown(str(got))  # numbers have up to 4300 digits
        return ImageError(self.document, f"field {self.field}" if self.field else "document", got, want)

    def _path(self, name: str) -> str:
        return f"{self.field}.{name}" if self.field else name

    def _kind(self) -> str:
        match self.raw:
            case None:
                return "null"
            case bool():
                return "a boolean"
            case int():
                return "an integer"
            case float():
                return "a number with a fraction"
            case str():
                return "a string"
            case list():
                return "an array"
            case _:
                return "an object"


def parse_document(data: bytes, name: str) -> Value:
    """Return the JSON document in `data`, UTF-8 without a byte order mark; `name` is for messages."""
    try:
        raw = json.loads(data.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ImageError(name, f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ImageError(name, "JSON is nested too deeply") from None
    except ValueError as error:  # beside bad syntax: numbers of thousands of digits
        raise ImageError(
            name, "not JSON" if data else "empty document", str(error) if data else None
        ) from None
    return Value(name, "", raw)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
