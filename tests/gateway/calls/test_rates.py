"""Token buckets, with a clock that the test turns."""

from __future__ import annotations

import pytest

from services.gateway.calls.rates import MOST_NAMES, Rate


def test_a_burst_and_then_a_pace() -> None:
    now = [100.0]
    rate = Rate(3, 0.5, lambda: now[0])
    assert [rate.take("a") for _ in range(3)] == [0, 0, 0]
    assert rate.take("a") == pytest.approx(2)
    assert rate.take("b") == 0  # somebody else
    now[0] += 1
    assert rate.take("a") == pytest.approx(1)  # asking in vain costs nothing
    now[0] += 1
    assert rate.take("a") == 0
    assert rate.take("a") == pytest.approx(2)
    now[0] += 3600
    assert [rate.take("a") for _ in range(4)] == [0, 0, 0, pytest.approx(2)]


def test_the_names_are_bounded() -> None:
    rate = Rate(1, 1.0)
    for number in range(MOST_NAMES + 10):
        rate.take(str(number))
    assert len(rate._used) == MOST_NAMES
    assert rate.take("0") == 0
