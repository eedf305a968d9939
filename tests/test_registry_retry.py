"""When a failed request is tried again."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paralayer.registry.retry import PATIENCE_SECONDS, Backoff, asked_seconds

NOW = datetime(2026, 7, 1, 12, 0, 0, tzinfo=UTC)

RETRY_AFTER: dict[str, tuple[str | None, float | None]] = {
    "seconds": ("120", 120.0),
    "none": ("0", 0.0),
    "blanks": (" 5 ", 5.0),
    "very many": ("9" * 30, 999999999999.0),
    "date": ("Wed, 01 Jul 2026 12:00:30 GMT", 30.0),
    "date in another zone": ("Wed, 01 Jul 2026 14:00:30 +0200", 30.0),
    "date without a zone": ("Wed, 01 Jul 2026 12:00:30 -0000", 30.0),
    "date that is over": ("Wed, 01 Jul 2026 11:00:00 GMT", 0.0),
    "absent": (None, None),
    "empty": ("", None),
    "negative": ("-5", None),
    "fraction": ("1.5", None),
    "other digits": ("٣", None),
    "words": ("soon", None),
    "year 10000": ("Wed, 01 Jul 10000 12:00:30 GMT", None),
    "year of many digits": (f"Wed, 01 Jul {'9' * 30} 12:00:30 GMT", None),
    "no such day": ("Wed, 99 Jul 2026 12:00:30 GMT", None),
    "zone beyond all": ("Wed, 01 Jul 2026 12:00:30 +9999999999", None),
}


@pytest.mark.parametrize("title", RETRY_AFTER)
def test_retry_after_is_a_number_or_a_date(title: str) -> None:
    text, want = RETRY_AFTER[title]
    assert asked_seconds(text, NOW) == want


@given(st.integers(0, 20), st.integers(1, 2000), st.none() | st.floats(0, PATIENCE_SECONDS), st.randoms())
def test_pause_is_at_least_what_was_asked_and_bounded(
    retries: int, failures: int, asked: float | None, chance: random.Random
) -> None:
    pause = Backoff(retries).delay(failures, asked, chance)
    if failures > retries:
        assert pause is None
    else:
        assert pause is not None
        assert (asked or 0) <= pause <= (asked or 0) + min(30, 0.5 * 2 ** (failures - 1))


def test_pauses_grow_and_differ() -> None:
    chance = random.Random(1)
    drawn = [[Backoff(5).delay(n, None, chance) or 0 for _ in range(200)] for n in range(1, 6)]
    means = [sum(pauses) / len(pauses) for pauses in drawn]
    assert all(1.5 < after / before < 2.5 for before, after in pairwise(means))
    assert len(set(drawn[0])) > 100


def test_server_that_wants_a_very_long_pause_is_not_waited_for() -> None:
    assert Backoff(5).delay(1, 99999999.0, random.Random(1)) is None
