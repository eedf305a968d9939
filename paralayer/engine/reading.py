"""What a conversion knows of each layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from paralayer.engine.jobs import LOOKAHEAD, Arriving
from paralayer.growing import Growing
from paralayer.image import Blob
from paralayer.table import Length

if TYPE_CHECKING:
    from paralayer.engine.memory import LayerStream
    from paralayer.image import Layer
    from paralayer.sinks.sink import Placed, SinkJob


@dataclass(slots=True)
class Reading:
    """What is known of a layer, and where its decoded bytes are."""

    layer: Layer
    stream: LayerStream | None = None
    table_fd: int | None = None
    length: Length = field(default_factory=Length)  # of the table, published
    flowed: Length = field(default_factory=Length)  # of the table, resolved already
    flowed_bytes: int = 0  # decoded by then
    orderly: bool = False  # as far as published
    job: int | None = None  # that decodes it now
    window: bool = False  # bytes are taken as they come
    identity: tuple[int, ...] | None = None
    whole: bool = True  # nothing was left out of the stream because it is hidden
    stale: bool = False  # something of that is needed after all: what is not taken yet is to be read again
    placed: list[Placed] = field(default_factory=list)  # batches whose data is not taken yet
    jobs: list[SinkJob] = field(default_factory=list)  # of the sink, not finished
    resolved: bool = False  # all its survivors are placed
    finished: bool = False

    @property
    def where(self) -> str:
        """The layer's name for messages."""
        digest = self.layer.digest
        name = f"{digest.algorithm}:{digest.encoded[:12]}" if digest else self.layer.media_type
        return f"layer {self.layer.index} ({name})"

    @property
    def growing(self) -> Growing | None:
        """Its blob, if that is one that arrives, or arrived, in pieces."""
        return self.layer.blob if isinstance(self.layer.blob, Growing) else None

    @property
    def blob(self) -> Blob | Arriving:
        """What a job is told of its blob."""
        if isinstance(self.layer.blob, Growing):
            return Arriving()
        assert isinstance(self.layer.blob, Blob)
        return self.layer.blob

    @property
    def grows(self) -> bool:
        """Whether its blob is not all there yet."""
        return self.growing is not None and not self.growing.complete

    def has_begun(self) -> bool:
        """Say whether enough of its blob is there to decode some; else its arrival will wake the engine."""
        return self.growing is None or self.growing.want(LOOKAHEAD)

    def has(self, offset: int) -> bool:
        """Say whether the stream has, or will have, what is from there on."""
        return self.stream is not None and offset >= self.stream.released and not self.stale

    def close_stream(self) -> None:
        """Drop what there is of the stream."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None
