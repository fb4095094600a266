"""The resampler: clean, exact, and the same whatever the pieces."""

from __future__ import annotations

import numpy as np
import pytest

from harness.resample_floor import PIECE_MS, TONE_HERTZ, directions, floor_db, in_pieces, resample_floor_db, tone
from services.gateway.edges.resampling import Resampler

ALL = pytest.mark.parametrize(("source", "target"), directions())


def test_a_tone_in_pieces_of_10_ms_has_no_line_above_80_db_below_it_at_any_rate() -> None:
    assert resample_floor_db() < -80


def test_a_click_at_each_piece_would_be_seen() -> None:
    """The measure itself: the same resampler without its memory."""
    pcm = tone(16_000)
    made = [Resampler(16_000, 24_000).resample(pcm[at:at + 160]) for at in range(0, len(pcm), 160)]
    assert floor_db(np.concatenate(made), 24_000) > -40


@ALL
def test_any_pieces_give_the_same_as_one_whole_piece(source: int, target: int) -> None:
    noise = np.random.default_rng(1).uniform(-1, 1, source).astype(np.float32)
    whole = in_pieces(noise, len(noise), Resampler(source, target))
    for samples in (source * 7 // 1000, source * PIECE_MS // 1000, 331, 1):
        if samples > 1:
            pieces = in_pieces(noise, samples, Resampler(source, target))
        else:
            pieces, whole = in_pieces(noise[:500], 1, Resampler(source, target)), in_pieces(
                noise[:500], 500, Resampler(source, target))
        np.testing.assert_allclose(pieces, whole, atol=1e-6)


@ALL
def test_a_frame_in_is_a_frame_out_at_once(source: int, target: int) -> None:
    """80 ms at one rate are 80 ms at the other, without waiting for the next piece."""
    resampler, frame = Resampler(source, target), np.zeros(source * 8 // 100, np.float32)
    assert [len(resampler.resample(frame)) for _ in range(5)] == [target * 8 // 100] * 5


@ALL
def test_the_sound_is_late_by_the_delay_that_is_stated_and_complete_after_the_flush(source: int, target: int) -> None:
    resampler = Resampler(source, target)
    made = in_pieces(tone(source), source * PIECE_MS // 1000, resampler)
    assert 0.002 < resampler.delay_s < 0.006
    times = np.arange(len(made)) / target - resampler.delay_s
    steady = slice(target // 50, -target // 50)
    np.testing.assert_allclose(made[steady], 0.5 * np.sin(2 * np.pi * TONE_HERTZ * times)[steady], atol=1e-5)
    impulse = np.zeros(source // 10, np.float32)
    impulse[-1] = 1.0
    made = in_pieces(impulse, len(impulse), Resampler(source, target))
    assert np.argmax(made) / target == pytest.approx((len(impulse) - 1) / source + resampler.delay_s, abs=1.1 / target)


def test_speech_below_the_band_edge_keeps_its_level_and_what_can_t_be_held_is_gone() -> None:
    times = np.arange(24_000) / 24_000
    for hertz, level in ((3300, 1.0), (4100, 0.0), (11_000, 0.0)):
        pcm = np.sin(2 * np.pi * hertz * times).astype(np.float32)
        made = in_pieces(pcm, 1920, Resampler(24_000, 8000))[800:-800]
        assert np.sqrt(2 * np.mean(made ** 2)) == pytest.approx(level, abs=1e-3)
