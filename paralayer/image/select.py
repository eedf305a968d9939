"""Which of several images is meant: by name first, then by platform."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from paralayer.errors import ImageError
from paralayer.image.descriptor import Platform, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

T = TypeVar("T")

_LISTED = 20
_NO_LEVEL = 1000
_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "armhf": "arm"}
_DEFAULT_VARIANTS = {"amd64": 1, "arm64": 8, "arm": 7}


def match_name(tag: str, entries: Sequence[tuple[T, Sequence[str]]]) -> list[T]:
    """Return the entries that `tag` names: those of the first of three readings that has any.

    1. `tag` is one of the entry's names. 2. It is the same Docker reference: ``busybox`` is
    ``docker.io/library/busybox:latest``. 3. It is the tag of one of the names: ``latest``.
    """
    readings: tuple[Callable[[str], bool], ...] = (
        lambda name: name == tag,
        lambda name: full_reference(name) == full_reference(tag),
        lambda name: ":" in (last := name.rpartition("/")[2]) and last.partition(":")[2] == tag,
    )
    for same in readings:
        if found := [entry for entry, names in entries if any(map(same, names))]:
            return found
    return []


def full_reference(name: str) -> str:
    """Return a Docker reference with the registry, repository and tag that a short one implies."""
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif "." not in first and ":" not in first and first != "localhost":
        name = f"docker.io/{name}"
    last = name.rpartition("/")[2]
    return name if ":" in last or "@" in last else f"{name}:latest"


def match_platform(
    where: str, candidates: Sequence[tuple[T, Platform]], wanted: Platform | None
) -> tuple[list[T], str | None]:
    """Return the candidates that fit `wanted` best, in their order, and a warning or None.

    None stands for this machine. Then a candidate without competitors is taken even if it is for another
    platform: that is the warning. There must be at least one candidate.
    """
    target = wanted or Platform.host()
    ranked = [(rank(target, platform), candidate) for candidate, platform in candidates]
    if fitting := [place for place, _ in ranked if place is not None]:
        best = min(fitting)
        return [candidate for place, candidate in ranked if place == best], None
    if wanted is None and len(candidates) == 1:
        found, platform = candidates[0]
        return [
            found
        ], f"image is for {platform}, not for this machine's {target}; taken since it is the only one"
    have = listed(str(platform) for _, platform in candidates)
    raise ImageError(where, f"no image for platform {target}", f"images for {have}")


def rank(wanted: Platform, platform: Platform) -> tuple[int, int] | None:
    """Return how well `platform` fits, smallest is best, None if it does not.

    Where no variant is wanted, a plain architecture comes first, then the architecture's usual variant, then
    the one that the most machines understand. A wanted variant also runs what was made for lower ones.
    """
    architecture, level = _normalise(platform)
    wanted_architecture, wanted_level = _normalise(wanted)
    if (platform.os.lower(), architecture) != (wanted.os.lower(), wanted_architecture):
        return None
    spelled = 1 if platform.variant else 0
    if not wanted.variant:
        return (0, spelled) if level == wanted_level else (1, level)
    if wanted.variant == platform.variant:
        return (0, 0)
    return (wanted_level - level, 1 + spelled) if level <= wanted_level < _NO_LEVEL else None


def listed(names: Iterable[str]) -> str:
    """Return the names as a list for a message: each once, in order, cut where it gets long."""
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - _LISTED} more" if len(unique) > _LISTED else ""
    return ", ".join(map(shown, unique[:_LISTED])) + more


def _normalise(platform: Platform) -> tuple[str, int]:
    """Return the architecture's usual name and the variant's level."""
    architecture = platform.architecture.lower()
    architecture = _ARCHITECTURES.get(architecture, architecture)
    variant = platform.variant.lower().removeprefix("v")
    if not variant:
        return architecture, _DEFAULT_VARIANTS.get(architecture, 0)
    return architecture, int(variant) if variant.isascii() and variant.isdigit() and len(
        variant
    ) < 4 else _NO_LEVEL
