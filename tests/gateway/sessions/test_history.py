"""Histories: bounded, rewound, packed and unpacked."""

from __future__ import annotations

import random

import pytest

from services.gateway.sessions.history import BLOCK_STEPS, History


def say(history: History, steps: int, rng: random.Random) -> None:
    for _ in range(steps):
        answered = history.steps >= history.delay_frames
        history.append(history.next_sequence + (rng.random() < 0.1), [rng.randrange(2048) for _ in range(8)],
                       [rng.randrange(32000), *(rng.randrange(2048) for _ in range(8))] if answered else None)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 40, 400, 1200])
def test_a_packed_history_is_the_same(steps: int) -> None:
    history = History(8, 8, 2, 300)
    say(history, steps, random.Random(steps))
    copy = History.from_shape(history.pack_shape())
    copy.unpack(history.pack(0))
    assert copy.to_proto() == history.to_proto()
    assert (copy.steps, copy.first_step, copy.next_sequence) == (history.steps, history.first_step,
                                                                 history.next_sequence)
    assert copy.last_own_codes(5) == history.last_own_codes(5)
    assert copy.user_codes_from(0) == history.user_codes_from(0)


def test_chunks_continue_each_other() -> None:
    history, rng = History(8, 8, 2, 300), random.Random(1)
    copy = History.from_shape(history.pack_shape())
    for steps in (1, 1, 1, 47, 0, 49, 1):
        before = history.steps
        say(history, steps, rng)
        copy.unpack(history.pack(before))
        assert copy.to_proto() == history.to_proto()
    gap = History(8, 8, 2, 300)
    gap.unpack(history.pack(10))
    with pytest.raises(ValueError, match="does not continue"):
        gap.unpack(history.pack(50))


def test_the_oldest_leave() -> None:
    history = History(8, 8, 2, 300)
    say(history, 5000, random.Random(2))
    assert history.most_kept <= history.steps - history.first_step <= history.most_kept + BLOCK_STEPS
    proto = history.to_proto()
    assert (proto.first_step, len(proto.user_codes), len(proto.tokens)) == (4698, 302 * 8, 302 * 9)
    assert len(history.user_codes_from(4990)) == 10


def test_rewinding_forgets_what_came_after() -> None:
    history = History(1, 1, 1, 100)
    for sequence in (0, 1, 5, 6):
        history.append(sequence, [sequence], [sequence, 100 + sequence] if history.steps else None)
    history.rewind(9)
    assert (history.steps, history.rewinds) == (4, 0)
    history.rewind(3)
    assert (history.steps, history.next_sequence) == (2, 2)
    assert history.last_own_codes(9) == [[101]]
    history.append(7, [7], [7, 107])
    assert history.user_codes_from(1) == [[1], [7]]
    history.rewind(0)
    assert (history.steps, history.next_sequence, history.last_own_codes(9)) == (0, 0, [])
    history.append(0, [3], None)


def test_a_step_of_another_shape_is_refused() -> None:
    history = History(2, 2, 1, 100)
    for codes, tokens in (([1], None), ([1, 2], [1, 2, 3])):
        with pytest.raises(ValueError, match="does not continue"):
            history.append(0, codes, tokens)


def test_going_back_to_what_is_forgotten_is_refused() -> None:
    history = History(8, 8, 2, 300)
    say(history, 5000, random.Random(2))
    packed = history.pack(0)
    with pytest.raises(ValueError, match="can go back to frame"):
        history.rewind(100)
    assert history.pack(0) == packed


def test_a_frame_number_that_does_not_fit_changes_nothing() -> None:
    history = History(1, 1, 1, 100)
    with pytest.raises(OverflowError):
        history.append(1 << 32, [1], None)
    assert history.pack(0) == History(1, 1, 1, 100).pack(0)
