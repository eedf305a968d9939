"""What is different between two trees. Pure.

Paths that both trees have are compared field by field; of a path that is of two types, only that is told. Hard links
are compared as partitions of the paths that both have: each path's group is known by its first path, so a link that
is missing or too much is one difference, at the path that is not where it should be. Modes of symbolic links mean
nothing to Linux, which shows 0777 whatever is stored, and are not compared.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paralayer.errors import quote
from paralayer.verification.tree import DIGEST, PART

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from paralayer.verification.tree import Abilities, Node, Tree

    Value = int | str | bytes | tuple[int, int] | None

IGNORABLE = frozenset({"times", "owner", "xattrs"})
LIMIT = 1000
"""Of each kind of finding, so many are kept; all are counted."""

_SECOND = 10**9
_LATEST = (1 << 32) - 1
_SHOWN = 256


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of one path that is not the same in both."""

    path: bytes
    field: str
    """``type``, ``mode``, ``owner``, ``size``, ``content``, ``target`` (of a symlink), ``device``, ``link``, ``time``, or
    ``xattr NAME``."""
    a: Value
    """Plain values: the time in nanoseconds, owner and device as pairs; of content and of long attributes a text with
    their SHA-256; of a link the first path of its group, None if it is that itself; None where there is no such
    attribute."""
    b: Value

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON; names and bytes in printable form."""
        return {
            "path": quote(self.path),
            "field": self.field,
            "a": shown(self.field, self.a),
            "b": shown(self.field, self.b),
        }

    def __str__(self) -> str:
        return f"{quote(self.path) or '/'}: {self.field}: {shown(self.field, self.a)}, {shown(self.field, self.b)}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What is different between `a` and `b`; paths are sorted, and at most `LIMIT` of each kind are kept."""

    a: str
    b: str
    only_in_a: tuple[bytes, ...]
    only_in_b: tuple[bytes, ...]
    differences: tuple[Difference, ...]
    only_in_a_count: int
    only_in_b_count: int
    difference_count: int
    paths_a: int
    """How many paths there are, the root included."""
    paths_b: int
    not_compared: tuple[str, ...]
    """What was left out: asked for, or because one side cannot hold it."""
    warnings: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Say whether nothing is different."""
        return not self.count

    @property
    def count(self) -> int:
        """How many findings there are."""
        return self.only_in_a_count + self.only_in_b_count + self.difference_count

    def lines(self) -> list[str]:
        """Return a line for each finding that is kept, and a last one with the counts."""
        lines = [f"{quote(path)}: only in {self.a}" for path in self.only_in_a]
        lines += [f"{quote(path)}: only in {self.b}" for path in self.only_in_b]
        lines += map(str, self.differences)
        if len(lines) < self.count:
            lines.append(f"... and {self.count - len(lines)} more")
        findings = "1 difference" if self.count == 1 else f"{self.count} differences"
        result = findings if self.count else f"same, {self.paths_a} paths"
        left_out = f"; not compared: {', '.join(self.not_compared)}" if self.not_compared else ""
        return [*lines, f"{self.a}, {self.b}: {result}{left_out}"]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON; names in printable form."""
        return {
            "same": self.same,
            "a": self.a,
            "b": self.b,
            "only_in_a": [quote(path) for path in self.only_in_a],
            "only_in_b": [quote(path) for path in self.only_in_b],
            "differences": [difference.as_dict() for difference in self.differences],
            "only_in_a_count": self.only_in_a_count,
            "only_in_b_count": self.only_in_b_count,
            "difference_count": self.difference_count,
            "paths_a": self.paths_a,
            "paths_b": self.paths_b,
            "not_compared": list(self.not_compared),
            "warnings": list(self.warnings),
        }


def compare(
    a: Tree, b: Tree, *, names: tuple[str, str], ignore: Collection[str] = frozenset(), limit: int = LIMIT
) -> VerifyReport:
    """Compare two complete trees, called `names`; `ignore` is out of `IGNORABLE`."""
    abilities = a.abilities & b.abilities
    only_in_a = sorted(a.nodes.keys() - b.nodes.keys())
    only_in_b = sorted(b.nodes.keys() - a.nodes.keys())
    common = sorted(a.nodes.keys() & b.nodes.keys())
    kept: list[Difference] = []
    count = 0
    for difference in _differences(a, b, common, abilities, ignore):
        count += 1
        if count <= limit:
            kept.append(difference)
    return VerifyReport(
        a=names[0],
        b=names[1],
        only_in_a=tuple(only_in_a[:limit]),
        only_in_b=tuple(only_in_b[:limit]),
        differences=tuple(kept),
        only_in_a_count=len(only_in_a),
        only_in_b_count=len(only_in_b),
        difference_count=count,
        paths_a=len(a.nodes),
        paths_b=len(b.nodes),
        not_compared=_not_compared(abilities, ignore),
        warnings=a.warnings + b.warnings,
    )


def _differences(
    a: Tree, b: Tree, common: Sequence[bytes], abilities: Abilities, ignore: Collection[str]
) -> Iterator[Difference]:
    first_a: dict[
        int, bytes
    ] = {}  # of each group: the first path that both trees have, by the node's identity
    first_b: dict[int, bytes] = {}
    for path in common:
        node_a, node_b = a.nodes[path], b.nodes[path]
        for field, value_a, value_b in _fields(node_a, node_b, abilities, ignore):
            yield Difference(path, field, value_a, value_b)
        if node_a.names > 1 or node_b.names > 1:
            in_a, in_b = first_a.setdefault(id(node_a), path), first_b.setdefault(id(node_b), path)
            if in_a != in_b:
                yield Difference(path, "link", _unless(in_a, path), _unless(in_b, path))


def _unless(first: bytes, path: bytes) -> bytes | None:
    return None if first == path else first


def _fields(
    a: Node, b: Node, abilities: Abilities, ignore: Collection[str]
) -> Iterator[tuple[str, Value, Value]]:
    """Yield (field, value in a, value in b) of what is different."""
    if a.kind != b.kind:
        yield "type", a.kind, b.kind
        return
    if a.mode != b.mode and a.kind != "symlink":
        yield "mode", a.mode, b.mode
    if (a.uid, a.gid) != (b.uid, b.gid) and "owner" not in ignore:
        yield "owner", (a.uid, a.gid), (b.uid, b.gid)
    if a.size != b.size:
        yield "size", a.size, b.size
    elif a.content != b.content:
        yield "content", *_contents(a, b)
    if a.target != b.target:
        yield "target", a.target, b.target
    if a.device != b.device:
        yield "device", a.device, b.device
    if a.xattrs != b.xattrs and "xattrs" not in ignore:
        yield from _xattrs(a, b, abilities)
    if a.mtime != b.mtime and "times" not in ignore:
        time_a, time_b = a.mtime, b.mtime
        if not abilities.fine_times:
            time_a, time_b = _coarse(time_a), _coarse(time_b)
        if time_a != time_b:
            yield "time", time_a, time_b


def _contents(a: Node, b: Node) -> tuple[str, str]:
    """Return the digests of the first part that is different."""
    at = next(
        at
        for at in range(0, len(a.content), DIGEST)
        if a.content[at : at + DIGEST] != b.content[at : at + DIGEST]
    )
    begin = at // DIGEST * PART
    part = f" of bytes {begin} to {min(begin + PART, a.size) - 1}" if a.size > PART else ""
    digest_a, digest_b = (bytes(node.content[at : at + DIGEST]).hex() for node in (a, b))
    return f"sha256:{digest_a}{part}", f"sha256:{digest_b}{part}"


def _xattrs(a: Node, b: Node, abilities: Abilities) -> Iterator[tuple[str, Value, Value]]:
    for name in sorted(a.xattrs.keys() | b.xattrs.keys()):
        if name.startswith(b"system.") and not abilities.acls:
            continue
        if name.startswith(b"trusted.") and not abilities.trusted_xattrs:
            continue
        value_a, value_b = a.xattrs.get(name), b.xattrs.get(name)
        if value_a != value_b:
            yield f"xattr {quote(name)}", _short(value_a), _short(value_b)


def _short(value: bytes | None) -> Value:
    """Return what a report keeps of an attribute's value."""
    if value is None or len(value) <= _SHOWN:
        return value
    return f"{len(value)} bytes, sha256:{hashlib.sha256(value).hexdigest()}"


def _coarse(time: int) -> int:
    return min(max(time // _SECOND, 0), _LATEST) * _SECOND


def _not_compared(abilities: Abilities, ignore: Collection[str]) -> tuple[str, ...]:
    left_out = [name for name in sorted(IGNORABLE) if name in ignore]
    if not abilities.fine_times and "times" not in ignore:
        left_out.append("times below a second, before 1970 and after 2106")
    if not abilities.acls and "xattrs" not in ignore:
        left_out.append("access control lists")
    if not abilities.trusted_xattrs and "xattrs" not in ignore:
        left_out.append("trusted xattrs, which only root can see")
    return tuple(left_out)


def shown(field: str, value: Value) -> str | None:
    """Return a difference's value in printable form; None stays None."""
    match value:
        case None:
            return None
        case bytes():
            return quote(value)
        case (first, second):
            return f"{first}:{second}"
        case int():
            if field == "mode":
                return f"{value:04o}"
            if field == "time":
                seconds, rest = divmod(value, _SECOND)
                return f"{seconds}.{rest:09d}" if rest else str(seconds)
            return str(value)
        case str():
            return value
