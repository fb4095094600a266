"""Callers against a clock that the test turns."""

from __future__ import annotations

import pytest

from services.gateway.path.pace import LIVE_BURST_S, LIVE_SECONDS_PER_S, PIECES_BURST, PIECES_PER_S, Pace, Reading
from services.mesh.errors import SlowCaller


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_speech_is_never_idle_nor_too_early() -> None:
    clock = Clock()
    pace = Pace(live=True, now=clock)
    for _ in range(10_000):
        pace.wait()
        clock.seconds += 0.08
        pace.came(0.08)
        assert pace.too_early_s == 0
    assert pace.idle_s == 0


def test_a_sample_now_and_then_does_not_keep_a_slot() -> None:
    clock = Clock()
    pace = Pace(live=True, now=clock)
    for _ in range(60):
        pace.wait()
        clock.seconds += 1
        pace.came(1 / 24_000)
    assert pace.idle_s == pytest.approx(60, abs=0.1)


def test_a_pause_is_made_up_for_by_a_tenth_of_it() -> None:
    clock = Clock()
    pace = Pace(live=True, now=clock)
    pace.wait()
    clock.seconds += 50
    assert pace.idle_s == 50
    pace.came(0.08)
    for _ in range(62):
        pace.wait()
        clock.seconds += 0.08
        pace.came(0.08)
    assert pace.idle_s < 6


def test_while_the_mesh_keeps_the_caller_waiting_nobody_is_idle() -> None:
    clock = Clock()
    pace = Pace(live=False, now=clock)
    pace.wait()
    pace.came(0.08)
    clock.seconds += 1000  # it is our turn
    assert pace.idle_s == 0


def test_a_live_caller_is_held_to_its_rate_and_an_offline_one_is_not() -> None:
    clock = Clock()
    live, offline = Pace(live=True, now=clock), Pace(live=False, now=clock)
    for _ in range(round(LIVE_BURST_S)):  # all at once: what a client has kept
        for pace in (live, offline):
            pace.came(1.0)
    assert live.too_early_s == pytest.approx(0)
    for pace in (live, offline):
        pace.came(1.0)
    assert live.too_early_s == pytest.approx(1 / LIVE_SECONDS_PER_S)
    assert offline.too_early_s == 0
    clock.seconds += 1 / LIVE_SECONDS_PER_S
    live.came(1.0)
    assert live.too_early_s == pytest.approx(1 / LIVE_SECONDS_PER_S)


def test_who_reads_one_window_every_8_s_is_too_slow() -> None:
    for live in (True, False):
        reading = Reading(0.08, live, stall_s=10)
        with pytest.raises(SlowCaller):
            for _ in range(5):
                reading.took(8.0)
                for _ in range(7):
                    reading.took(0.0)


def test_a_network_that_stalls_at_times_is_forgiven() -> None:
    reading = Reading(0.08, live=True, stall_s=10)
    for _ in range(100):
        reading.took(5.0)
        for _ in range(100):
            reading.took(0.001)


def test_an_offline_caller_may_think() -> None:
    reading = Reading(0.08, live=False, stall_s=10)
    for _ in range(1000):
        reading.took(0.5)


@pytest.mark.parametrize("live", [True, False])
def test_any_number_of_tiny_pieces_is_too_many(live: bool) -> None:
    clock = Clock()
    pace = Pace(live, now=clock)
    for _ in range(int(PIECES_BURST)):
        pace.came(0.01)
        assert pace.too_early_s == 0
    for _ in range(100):
        pace.came(0.01)
        clock.seconds += pace.too_early_s
    assert clock.seconds == pytest.approx(100 + 100 / PIECES_PER_S)
