"""bzip2."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from paralayer.compression.members import Codec, Members

if TYPE_CHECKING:
    from paralayer.compression.source import Source

MAGIC = re.compile(rb"BZh[1-9](?:\x31\x41\x59\x26\x53\x59|\x17\x72\x45\x38\x50\x90)")


class Bzip2(Members):
    """bzip2 streams; nothing may follow the last one."""

    compression = "bzip2"

    def __init__(self, source: Source) -> None:
        import bz2

        super().__init__(source, OSError)
        self._new = bz2.BZ2Decompressor

    def _begin(self) -> Codec | None:
        head = self._source.peek(10)
        if not head:
            return None
        if not MAGIC.match(head):
            raise self._source.garbage(self.compression)
        return self._new()
