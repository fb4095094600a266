"""Histories: bounded, rewound, written to chunks of a journal and read back."""

from __future__ import annotations

import random

import pytest
from moshimesh.journal.v1 import journal_pb2

from services.gateway.sessions.history import BLOCK_STEPS, History


def say(history: History, steps: int, rng: random.Random) -> None:
    for _ in range(steps):
        answered = history.steps >= history.delay_frames
        history.append(history.next_sequence + (rng.random() < 0.1), [rng.randrange(2048) for _ in range(8)],
                       [rng.randrange(32000), *(rng.randrange(2048) for _ in range(8))] if answered else None)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 40, 400, 1200])
def test_a_history_read_from_its_chunk_is_the_same(steps: int) -> None:
    history = History(8, 8, 2, 300)
    say(history, steps, random.Random(steps))
    copy = History(8, 8, 2, 300)
    copy.extend(history.chunk(0))
    assert copy.to_proto() == history.to_proto()
    assert (copy.steps, copy.first_step, copy.next_sequence) == (history.steps, history.first_step,
                                                                 history.next_sequence)
    assert copy.last_own_codes(5) == history.last_own_codes(5)
    assert copy.user_codes_from(0) == history.user_codes_from(0)


def test_chunks_continue_each_other() -> None:
    history, rng = History(8, 8, 2, 300), random.Random(1)
    copy = History(8, 8, 2, 300)
    for steps in (1, 1, 1, 47, 0, 49, 1):
        before = history.steps
        say(history, steps, rng)
        copy.extend(history.chunk(before))
        assert copy.to_proto() == history.to_proto()
    gap = History(8, 8, 2, 300)
    gap.extend(history.chunk(10))
    with pytest.raises(ValueError, match="does not continue"):
        gap.extend(history.chunk(50))


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
    before = history.chunk(0)
    with pytest.raises(ValueError, match="can go back to frame"):
        history.rewind(100)
    assert history.chunk(0) == before


def test_a_frame_number_that_does_not_fit_changes_nothing() -> None:
    history = History(1, 1, 1, 100)
    with pytest.raises(OverflowError):
        history.append(1 << 32, [1], None)
    assert history.chunk(0) == History(1, 1, 1, 100).chunk(0)


def test_frames_that_were_skipped_take_room_only_where_they_were() -> None:
    history = History(1, 1, 1, 100)
    for sequence in (3, 4, 9, 10, 11, 20):
        history.append(sequence, [sequence], [sequence, 100 + sequence] if history.steps else None)
    chunk = history.chunk(0)
    assert [(skip.step, skip.frames) for skip in chunk.skipped] == [(0, 3), (2, 4), (5, 8)]
    copy = History(1, 1, 1, 100)
    copy.extend(chunk)
    copy.rewind(10)
    assert (copy.steps, copy.next_sequence) == (3, 10)
    assert not history.chunk(3).skipped[:-1] and history.chunk(3).first_sequence == 10


def _chunk(**changed: object) -> journal_pb2.Chunk:
    """Three steps that continue a history of three."""
    history = History(2, 2, 1, 100)
    for step in range(6):
        history.append(step, [1, 2], [3, 4, 5] if step else None)
    chunk = history.chunk(3)
    for name, value in changed.items():
        chunk.ClearField(name)
        chunk.MergeFrom(journal_pb2.Chunk(**{name: value}))
    return chunk


@pytest.mark.parametrize("chunk", [
    _chunk(first_step=2), _chunk(first_step=4), _chunk(first_sequence=2), _chunk(first_sequence=2**32 - 2),
    _chunk(user_codes=bytes(11)), _chunk(user_codes=bytes(10)), _chunk(user_codes=bytes(8)), _chunk(tokens=b""),
    _chunk(tokens=bytes(19)), _chunk(skipped=[journal_pb2.SkippedFrames(step=3, frames=1)]),
    _chunk(skipped=[journal_pb2.SkippedFrames(step=step, frames=1) for step in (2, 1)]),
    _chunk(skipped=[journal_pb2.SkippedFrames(step=1, frames=2**32 - 1)])])
def test_a_chunk_that_does_not_fit_changes_nothing(chunk: journal_pb2.Chunk) -> None:
    history = History(2, 2, 1, 100)
    for step in range(3):
        history.append(step, [1, 2], [3, 4, 5] if step else None)
    before = history.chunk(0)
    with pytest.raises(ValueError):
        history.extend(chunk)
    assert (history.chunk(0), history.steps) == (before, 3)
    history.extend(_chunk())
    assert history.steps == 6


def test_chunks_have_one_order_of_bytes() -> None:
    """Gateways on machines of either order share a journal."""
    history = History(1, 1, 0, 100)
    history.append(0, [0x0102], [0x0304, 0x0506])
    assert history.chunk(0).user_codes == b"\x02\x01"
    assert history.chunk(0).tokens == b"\x04\x03\x06\x05"


def test_a_history_begins_with_a_recordings_steps() -> None:
    history = History(1, 1, 1, 100)
    history.begin(5, [7, 8], [1, 2, 3, 4], [])
    assert (history.first_step, history.steps, history.next_sequence) == (5, 7, 7)
    assert [(step, user, tokens) for step, user, tokens, _ in history.kept_steps()] == [
        (5, [7], [1, 2]), (6, [8], [3, 4])]


@pytest.mark.parametrize(("first_step", "user", "tokens"), [
    (5, [7, 1 << 16], [1, 2, 3, 4]), (5, [7, 8], [1, 2, 3, -1]), (5, [7, 8], [1, 2, 3]), (0, [7, 8], [1, 2, 3, 4]),
    (1 << 32, [7], [1, 2]), ((1 << 64) - 1, [7], [1, 2])])
def test_a_recording_that_has_not_its_shape_begins_nothing(first_step: int, user: list[int], tokens: list[int]) -> None:
    history = History(1, 1, 1, 100)
    with pytest.raises(ValueError, match=r"does not continue|2\^32"):
        history.begin(first_step, user, tokens, [])
    assert (history.first_step, history.steps) == (0, 0)
