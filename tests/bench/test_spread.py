"""A figure and its repeats."""

from __future__ import annotations

from bench.spread import spread


def test_a_spread_has_the_least_the_middle_and_the_greatest() -> None:
    assert spread([3, 1.0, 2.0]) == {"min": 1.0, "median": 2.0, "max": 3.0}
    assert spread(value for value in (4.0, 1.0)) == {"min": 1.0, "median": 2.5, "max": 4.0}


def test_what_was_not_measured_has_none() -> None:
    assert spread([]) == {}
