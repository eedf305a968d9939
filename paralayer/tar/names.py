"""Names of entries: bytes in, normalised paths out.

A path is relative and has neither empty components nor `.` nor `..`; the root is empty.
"""

from __future__ import annotations

from paralayer.errors import quote
from paralayer.table import DIRECTORY, OPAQUE, WHITEOUT
from paralayer.tar.header import HeaderError

NAME_MAX = 255  # bytes of a component, on Linux
PATH_MAX = (
    32 << 10
)  # bytes; each directory on the way may have to be made, so memory goes with the square of it

WHITEOUT_PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"
RESERVED_PREFIX = b".wh..wh."
LINK_STORE = b".wh..wh.plnk"  # in the root: files that only hard links name


def normalise(name: bytes) -> bytes:
    """Return the path that a name means; refuse one that climbs above the root or is too long.

    `..` takes the component before it away, whether that exists or not.
    """
    components: list[bytes] = []
    for component in name.split(b"/"):
        if component == b"..":
            if not components:
                raise HeaderError("name climbs above the root", quote(name))
            components.pop()
        elif component and component != b".":
            components.append(component)
    for position, component in enumerate(components, 1):
        is_whiteout = position == len(components) and component.startswith(WHITEOUT_PREFIX)
        if len(component) > NAME_MAX and not is_whiteout:  # a whiteout is never created
            raise HeaderError(
                "name has a component that is too long", f"{len(component)} bytes", f"at most {NAME_MAX}"
            )
    path = b"/".join(components)
    if len(path) > PATH_MAX:
        raise HeaderError("name is too long", f"{len(path)} bytes", f"at most {PATH_MAX}")
    if b"\0" in path:
        raise HeaderError("name contains NUL", quote(name))
    return path


def split(path: bytes) -> tuple[bytes, bytes]:
    """Return (parent directory, last component)."""
    parent, _, name = path.rpartition(b"/")
    return parent, name


def marker(path: bytes, kind: int) -> bytes:
    """Return the name of the whiteout or opaque marker that `classify` took for this path and kind."""
    if kind == OPAQUE:
        return path + b"/" + OPAQUE_MARKER if path else OPAQUE_MARKER
    parent, name = split(path)
    return (parent + b"/" if parent else b"") + WHITEOUT_PREFIX + name


def classify(name: bytes, kind: int) -> tuple[bytes, int]:
    """Return (path, kind) of a name that is not plainly a path; kind -1 for names without effect."""
    path = normalise(name)
    if not path:
        if kind != DIRECTORY:
            raise HeaderError("the root must be a directory")
        return path, kind
    parent, base = split(path)
    if not base.startswith(WHITEOUT_PREFIX):
        return path, kind
    if base == OPAQUE_MARKER:
        return parent, OPAQUE
    if base.startswith(RESERVED_PREFIX):
        return path, -1
    hidden = base[len(WHITEOUT_PREFIX) :]
    if hidden in (b"", b".", b".."):
        raise HeaderError("malformed whiteout")
    return (parent + b"/" + hidden if parent else hidden), WHITEOUT
