"""Live callers: when their frames come, and what their figures mean."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time

import pytest

from harness.load import FRAME_S, Caller, Figures, figures, speak

FRAME = bytes(1920 * 2)
GOOD = Figures(2, 100, 10.0, 20.0, 79.0, 90.0, 1, 0, 0)


def test_figures_are_of_all_frames_after_the_ramp() -> None:
    early = Caller(0, sent={0: 1.0, 1: 2.0}, latency_ms={0: 500.0, 1: 10.0}, skipped=2)
    late = Caller(1, sent={0: 2.5, 1: 3.0, 2: 3.5}, latency_ms={0: 20.0, 1: 81.0}, error="gone")
    found = figures([early, late], since=1.5)
    assert (found.callers, found.frames, found.p50_ms, found.max_ms) == (2, 3, 20.0, 81.0)
    assert (found.late, found.skipped, found.errors) == (1, 2, 1)


def test_callers_without_an_answer_do_not_hold() -> None:
    nobody = figures([Caller(0)])
    assert (nobody.frames, nobody.late) == (0, 0)
    assert nobody.p99_ms == nobody.max_ms == math.inf and not nobody.holds


@pytest.mark.parametrize(("change", "holds"), [({}, True), ({"p99_ms": 80.0}, False), ({"skipped": 1}, False),
                                               ({"errors": 1}, False), ({"late": 30}, True)])
def test_what_holds(change: dict[str, float], holds: bool) -> None:
    assert dataclasses.replace(GOOD, **change).holds is holds  # type: ignore[arg-type]


@pytest.mark.parametrize("piece_s", [FRAME_S, 0.01])
async def test_frames_end_when_the_mesh_would_like_them_to(piece_s: float) -> None:
    """To within half a piece, and never before the call is open."""
    caller = Caller(0)
    due: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    due_at = time.perf_counter() + 0.05
    due.set_result(due_at)
    frames = [frame async for frame in speak(caller, 3 * FRAME, 4, piece_s, due)]
    assert frames == 4 * [FRAME] and sorted(caller.sent) == [0, 1, 2, 3]
    # A machine under load is late, never early, and one of the frames comes in time.
    assert min((at - due_at + piece_s / 2) % FRAME_S for at in caller.sent.values()) < piece_s + 0.01
    assert caller.sent[3] - caller.sent[0] > 3 * FRAME_S - 0.05
