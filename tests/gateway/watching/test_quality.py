"""Jitter, playout and the opinion score, against numbers worked out by hand or published."""

from __future__ import annotations

import pytest

from services.gateway.watching.quality import Jitter, Playout, mos


def test_steady_audio_has_no_jitter() -> None:
    jitter = Jitter()
    for number in range(100):
        jitter.arrived(5.0 + 0.08 * number, 0.08)
    assert jitter.seconds == pytest.approx(0, abs=1e-9)


def test_jitter_is_that_of_rfc_3550() -> None:
    jitter = Jitter()
    for at in (0.0, 0.09, 0.16):  # 10 ms late, then in time again: |D| is 10 ms twice
        jitter.arrived(at, 0.08)
    first = 0.010 / 16
    assert jitter.seconds == pytest.approx(first + (0.010 - first) / 16)


def test_pieces_of_any_size_that_come_when_they_are_full_are_steady() -> None:
    jitter, at = Jitter(), 0.0
    for seconds in (0.02, 0.5, 0.08, 0.01, 0.3):
        at += seconds
        jitter.arrived(at, seconds)
    assert jitter.seconds == pytest.approx(0, abs=1e-9)


def test_a_player_forgives_160_ms_once() -> None:
    playout = Playout(0.08)
    playout.answered(0.0)
    playout.answered(0.08 + 0.159)
    assert playout.underruns == 0
    playout.answered(0.16 + 0.161)
    assert playout.underruns == 1
    playout.answered(0.16 + 0.161 + 0.08 + 0.159)  # it has waited for as much again
    assert playout.underruns == 1


def test_a_call_that_falls_behind_runs_dry_again_and_again() -> None:
    playout = Playout(0.08)
    for number in range(100):
        playout.answered(0.1 * number)  # 20 ms lost with every frame: 160 ms after 8 of them
    assert playout.underruns == 100 // 9


@pytest.mark.parametrize(("delay_s", "loss", "expected"), [
    (0.0, 0.0, 4.41),  # G.107: R = 93.2 is MOS 4.41
    (0.150, 0.0, 4.34),  # R = 93.2 - 3.6
    (0.400, 0.0, 3.05),  # R = 93.2 - 9.6 - 24.5 = 59.1
    (0.0, 0.01, 3.83),  # Ie,eff = 95 * 1 / 5.3 = 17.9, R = 75.3
    (0.0, 0.02, 3.26),  # Ie,eff = 95 * 2 / 6.3 = 30.2, R = 63.0
])
def test_opinion_score(delay_s: float, loss: float, expected: float) -> None:
    assert mos(delay_s, 0.0, loss) == pytest.approx(expected, abs=0.015)


def test_an_opinion_is_between_1_and_4_5() -> None:
    scores = [mos(delay_s, 0.01, loss) for delay_s in (0, 0.1, 1, 10) for loss in (0, 0.01, 0.2, 1)]
    assert all(1 <= score <= 4.5 for score in scores)
    assert scores[0] == max(scores) and mos(10, 0.0, 1.0) == 1
