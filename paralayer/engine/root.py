"""The root's entry for the sink, which as a rule needs it first: as it is known, or as it may be taken for granted.

It is known when every layer is resolved that can have it. Before that it is where a look at the layers' beginnings
finds it; and when nothing goes on before more arrives, layers that have not come are taken to have none. Whoever gives
out what depends on it lets it be checked: each error here says that the output has to start over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paralayer.overlay import Overlay, OverturnedError
from paralayer.survivors import Rules, gather_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paralayer.engine.peek import Beginnings
    from paralayer.sinks.sink import Sink
    from paralayer.table import Table


class RootArrived(OverturnedError):  # noqa: N818 - not an error of anybody's
    """A layer came that has the root's entry, when output had started without."""


class Root:
    """Gives the root to `sink`, once; with `early`, before all layers are resolved. `tables` are by layer, as they come."""

    def __init__(
        self,
        sink: Sink,
        overlay: Overlay,
        beginnings: Beginnings,
        tables: Sequence[Table | None],
        rules: Rules,
        *,
        early: bool,
    ) -> None:
        self._sink = sink
        self._overlay = overlay
        self._beginnings = beginnings
        self._tables = tables
        self._rules = rules
        self._early = early
        self._place: tuple[int, int] | None = None  # layer and row, as the sink has it
        self._given = False
        self._guessing = False  # that layers which have not come have no entry of it

    def is_settled(self) -> bool:
        """Say whether the sink has it or does not need it yet; give it, if it is known or may be taken for granted."""
        if self._given or not self._sink.root_first:
            return True
        place = self._overlay.root
        table = None
        if place is None and not self._overlay.done:
            if not self._early:
                return False
            known, layer, table = self._beginnings.newest_root(guessing=self._guessing)
            if not known:
                return False
            place = None if table is None else (layer, 0)
        self._give(place, table)
        return True

    def guess(self) -> bool:
        """Take it for granted that layers which have not come have no entry of it; say whether that changes anything."""
        if self._guessing or self.is_settled() or not self._early:
            return False
        self._guessing = True
        return True

    def check_arrival(self, layer: int) -> None:
        """Raise RootArrived if a layer that has come now has a newer entry than output started with."""
        newer = self._place is None or layer > self._place[0]
        if self._guessing and newer and self._beginnings.root_of(layer) is not None:
            raise RootArrived

    def check(self) -> None:
        """Raise OverturnedError if all layers are resolved, and it is not what the sink was given."""
        if self._overlay.done and self._given and self._overlay.root != self._place:
            raise OverturnedError

    def finish(self) -> None:
        """Give it to a sink that did not need it before all else."""
        if not self._given:
            self._give(self._overlay.root)

    def _give(self, place: tuple[int, int] | None, table: Table | None = None) -> None:
        self._place, self._given = place, True
        if place is not None and table is None:
            table = self._tables[place[0]]
        batch = gather_root(table, place[1] if place is not None else 0, self._rules)
        self._sink.root(batch, explicit=place is not None)
