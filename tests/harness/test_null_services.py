"""The engines that compute nothing answer as real ones do."""

from __future__ import annotations

import numpy as np

from harness.null_services import NullEngine


def test_the_delay_line_fills_for_each_session_anew() -> None:
    engine = NullEngine(3, np.zeros(9, np.int64), delay_frames=2)
    for row in range(3):
        engine.open(row)
    frames = np.zeros((2, 8), np.int64)
    answers = [engine.step([0, 2], frames)[:, 0].tolist() for _ in range(3)]
    assert answers == [[-1, -1], [-1, -1], [0, 0]]
    engine.open(2)
    assert engine.step([0, 2], frames)[:, 0].tolist() == [0, -1]


def test_a_session_with_a_history_is_beyond_the_delay() -> None:
    engine = NullEngine(1, np.zeros(9, np.int64), delay_frames=2)
    engine.open(0)
    assert len(list(engine.prefill(0, np.zeros((1, 8)), np.zeros((1, 9)), 4))) == 1  # chunk
    assert engine.step([0], np.zeros((1, 8)))[0].tolist() == 9 * [0]


def test_one_answer_for_each_row() -> None:
    engine = NullEngine(4, np.zeros(1920, np.float32))
    assert engine.step([1, 3], np.zeros((2, 8))).shape == (2, 1920)
