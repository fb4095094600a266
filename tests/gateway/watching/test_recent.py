"""What is known of the last minute's frames."""

from __future__ import annotations

import time

import pytest

from services.gateway.watching.recent import LATE_KEPT, SLICE_S, WINDOW_S, RecentFrames
from tests.gateway.watching.test_metering import MS, context

FRAME = 80 * MS
TRACEPARENT = f"00-{'ab' * 16}-{'cd' * 8}-00"


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def test_nothing_is_known_of_no_frames() -> None:
    recent = RecentFrames()
    assert (recent.frames, recent.late, list(recent.last_late)) == (0, 0, [])
    assert recent.whole().p50_ms is None and recent.hops()["lm.step"].p99_ms is None


def test_medians_and_the_slowest_hundredth_are_within_five_percent() -> None:
    recent = RecentFrames()
    for sequence in range(1000):
        recent.add(context(sequence, late_ms=40 if sequence % 50 == 0 else 0), FRAME)
    step = recent.hops()["lm.step"]
    assert step.p50_ms == pytest.approx(5, rel=0.05) and step.p99_ms == pytest.approx(45, rel=0.05)
    assert recent.hops()["codec.encode"].p99_ms == pytest.approx(5, rel=0.05)
    assert recent.whole().p50_ms == pytest.approx(20, rel=0.1)
    assert (recent.frames, recent.late) == (1000, 0)


def test_frames_are_forgotten_after_a_minute() -> None:
    clock = Clock()
    recent = RecentFrames(clock)
    recent.add(context(0, late_ms=100), FRAME)
    clock.s += WINDOW_S - SLICE_S
    recent.add(context(1), FRAME)
    assert (recent.frames, recent.late) == (2, 1)
    clock.s += SLICE_S
    assert (recent.frames, recent.late) == (1, 0)
    clock.s += 10 * WINDOW_S
    assert recent.frames == 0 and recent.whole().p50_ms is None
    assert len(recent.last_late) == 1  # these stay


def test_a_late_frame_is_named_with_its_trace_and_its_slowest_hop() -> None:
    recent = RecentFrames()
    late = context(7, late_ms=100)
    late.traceparent = TRACEPARENT
    recent.add(late, FRAME)
    (named,) = recent.last_late
    assert (named.sequence, named.trace_id, named.slowest_hop) == (7, "ab" * 16, "lm.step")
    assert named.slowest_ms == 105 and named.whole_ms > 115
    assert abs(named.at_unix_ms - late.hops[-1].finished_unix_nanos / MS) <= 1


def test_a_frame_that_nobody_waits_for_is_never_late() -> None:
    recent = RecentFrames()
    recent.add(context(0, late_ms=1000), None)
    assert (recent.frames, recent.late, len(recent.last_late)) == (1, 0, 0)


def test_what_is_kept_does_not_grow() -> None:
    clock = Clock()
    recent = RecentFrames(clock)
    for sequence in range(2000):
        clock.s += 1
        recent.add(context(sequence, late_ms=sequence), FRAME)
    assert len(recent.last_late) == LATE_KEPT and recent.last_late[-1].sequence == 1999
    assert len(recent._slices) == WINDOW_S // SLICE_S


def test_a_frame_costs_little() -> None:
    recent, frame = RecentFrames(), context()
    best_s = 1.0
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(100):
            recent.add(frame, FRAME)
        best_s = min(best_s, (time.perf_counter() - began) / 100)
    assert best_s < 20e-6  # 3 to 6 us; a frame costs the gateway 700
