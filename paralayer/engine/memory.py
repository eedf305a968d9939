"""Decoded layers in memory, and the budget for all of them.

A layer's decoded bytes are one sparse memfd in which file offset equals stream offset. The worker that decodes it
writes forward and never reads; everybody else reads and never writes. So no lock is needed: bytes are handed over by
the message that announces them. Released pages read as zeros, so nothing may read below `released`.

The budget counts the bytes that decoders were granted and that have not been released. It decides when bytes are
dropped and read a second time, never what comes out.
"""

from __future__ import annotations

import os

from paralayer.errors import SinkError
from paralayer.growing import punch

_PAGE = os.sysconf("SC_PAGESIZE")
_SMALLEST_GRANT, _LARGEST_GRANT = 1 << 20, 128 << 20


class LayerStream:
    """The decoded bytes of one layer; `fd` is its memfd.

    `decoded` bytes have been written, those before `released` are gone again.
    """

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.fd = os.memfd_create(f"layer-{layer}", os.MFD_CLOEXEC)
        self.decoded = 0
        self.granted = 0
        self.released = 0

    def release(self, upto: int) -> int:
        """Free the pages before `upto`; return how many bytes became free."""
        upto = min(upto, self.granted)
        freed = upto - self.released
        if freed <= 0:
            return 0
        start, stop = self.released // _PAGE * _PAGE, upto // _PAGE * _PAGE
        if stop > start:
            try:
                punch(self.fd, start, stop - start)
            except OSError as error:
                raise SinkError("memory", f"a memfd cannot be released: {error.strerror}") from None
        self.released = upto
        return freed

    @property
    def present(self) -> int:
        """Bytes of the pages that are there."""
        return os.fstat(self.fd).st_blocks * 512

    def trim(self) -> int:
        """Give back the grant that was not used, when all is decoded; return how many bytes that is."""
        unused, self.granted = self.granted - self.decoded, self.decoded
        return unused

    def close(self) -> int:
        """Free everything, also for a worker that has it open; return how many granted bytes became free."""
        freed = self.release(self.granted)
        os.close(self.fd)
        return freed


class Budget:
    """How many decoded bytes may be present: `total`."""

    def __init__(self, total: int, jobs: int) -> None:
        self.total = total
        self.used = 0
        self.unit = max(_SMALLEST_GRANT, min(_LARGEST_GRANT, total // (4 * jobs)))

    def grant(self, stream: LayerStream, *, essential: bool) -> bool:
        """Let a stream grow by one unit, if there is room.

        An essential stream, whose bytes are released as they come, always has room for one unit; it would wait for
        ever otherwise.
        """
        held = stream.granted - stream.released
        if self.used + self.unit > self.total and not (essential and held < self.unit):
            return False
        stream.granted += self.unit
        self.used += self.unit
        return True

    def free(self, freed: int) -> None:
        """Take back what `LayerStream.release` or `.close` returned."""
        self.used -= freed
