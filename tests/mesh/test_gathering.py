"""When the encoder steps, in numbers."""

from __future__ import annotations

import pytest

from services.mesh.gathering import LATE_S, LONGEST_WAIT_S, PHASES, WAIT_S_PER_SESSION, Gathering

MS = 1_000_000
FRAME = 80 * MS
NOW = 1_000_000 * MS


@pytest.mark.parametrize(("due_in_ms", "waits_ms"), [
    ((), 0),
    ((40,), 0),  # nobody is due soon
    ((3,), 3 + LATE_S * 1000),
    ((3, 6, 40), 6 + LATE_S * 1000),  # the last of those who are
    ((LONGEST_WAIT_S * 1000 - 1,), LONGEST_WAIT_S * 1000),  # and for nobody longer
    ((LONGEST_WAIT_S * 1000 + 1,), 0),
    ((-1,), LATE_S * 1000 - 1),  # a little late
    ((-LATE_S * 1000 - 1,), 0),  # paused, or gone
])
def test_a_step_waits_for_those_who_are_due_soon(due_in_ms: tuple[float, ...], waits_ms: float) -> None:
    last = [NOW - FRAME + round(due * MS) for due in due_in_ms]
    assert Gathering(FRAME).wait_s(NOW, 100, last) * 1000 == pytest.approx(waits_ms)


def test_few_sessions_wait_for_less() -> None:
    assert Gathering(FRAME).wait_s(NOW, 2, [NOW - FRAME + 9 * MS]) == 0
    assert Gathering(FRAME).wait_s(NOW, 2, [NOW - FRAME]) == pytest.approx(2 * WAIT_S_PER_SESSION)


def test_a_session_that_has_sent_nothing_is_not_waited_for() -> None:
    assert Gathering(FRAME).wait_s(NOW, 100, [0]) == 0


def test_sessions_are_spread_over_the_phases() -> None:
    gathering = Gathering(FRAME)
    taken: list[int] = []
    for _ in range(3 * PHASES):
        taken.append(gathering.least_taken(taken))
    assert sorted(set(taken)) == [FRAME * phase // PHASES for phase in range(PHASES)]
    assert all(taken.count(phase) == 3 for phase in taken)
    taken.remove(FRAME // PHASES)
    assert gathering.least_taken(taken) == FRAME // PHASES
