"""Which failures are worth another try, and after how long.

The source of chance and the time are parameters. Retry-After: RFC 9110, section 10.2.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

RETRIED_STATUS = frozenset({408, 429, 500, 502, 503, 504})
"""What may be otherwise the next time; any other status is final."""
PATIENCE_SECONDS = 120.0
"""A server that asks for a longer pause is not waited for."""

_FIRST_SECONDS = 0.5
_LONGEST_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter: a pause is chance between nothing and a bound that doubles each time.

    So that many clients that a registry sent away together do not come back together.
    """

    retries: int

    def delay(self, failures: int, asked_seconds: float | None, chance: Random) -> float | None:
        """Return the seconds to wait after the `failures`th failure in a row, from 1; None to give up.

        What the server asked for is the least; the jitter goes on top.
        """
        if failures > self.retries or (asked_seconds is not None and asked_seconds > PATIENCE_SECONDS):
            return None
        bound = min(_LONGEST_SECONDS, _FIRST_SECONDS * 2 ** min(failures - 1, 16))
        return (asked_seconds or 0.0) + chance.uniform(0, bound)


def asked_seconds(text: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for, by a number or a date; None if it does neither."""
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:  # "-0000", which tells no zone: HTTP dates are in UTC
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
