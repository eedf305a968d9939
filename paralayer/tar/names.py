"""Names of entries: bytes in, normalised paths out.

A path is relative and has neither empty components nor `.` nor `..`; the root is empty.
"""

from __future__ import annotations

from paralayer.errors import quote
from paralayer.tar.header import HeaderError

NAME_MAX = 255  # of a component, on Linux

WHITEOUT_PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"
RESERVED_PREFIX = b".wh..wh."
LINK_STORE = b".wh..wh.plnk"  # in the root: files that only hard links name


def normalise(name: bytes) -> bytes:
    """Return the path that a name means; refuse one that climbs above the root.

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
    if b"\0" in path:
        raise HeaderError("name contains NUL", quote(name))
    return path


def split(path: bytes) -> tuple[bytes, bytes]:
    """Return (parent directory, last component)."""
    parent, _, name = path.rpartition(b"/")
    return parent, name
