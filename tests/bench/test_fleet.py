"""A fleet under live calls: what is late is counted right, and a node that is cut off costs no call."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import fleet_section
from bench.chaos import Caller
from bench.fleet import late_frames, lateness_ms, partition, renders
from bench.nodes import usable
from harness.load import FRAME_S


def test_frames_are_late_by_the_call_s_own_pace() -> None:
    caller = Caller([])
    caller.at = {sequence: 5.0 + sequence * FRAME_S for sequence in range(100)}
    assert late_frames(caller, since=9.0) == 0
    for sequence in (70, 71, 72):
        caller.at[sequence] += 0.1  # a hole of 100 ms
    caller.at[80] += 0.07  # a player that holds a frame does not notice
    assert late_frames(caller, since=9.0) == 3


def test_lateness_of_a_time_is_beside_the_pace_before() -> None:
    caller = Caller([])
    caller.at = {sequence: 5.0 + sequence * FRAME_S + 0.03 * (sequence >= 40) for sequence in range(100)}
    begin, end = 5.0 + 50 * FRAME_S, 5.0 + 60 * FRAME_S
    late = lateness_ms(caller, begin, end, usual_until=5.0 + 20 * FRAME_S)
    assert len(late) == 10 and late == pytest.approx([30.0] * 10)


def test_the_section_holds_what_was_measured_and_keeps_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "reliability.md"
    page.write_text(f"before\n{fleet_section.BEGIN}\nold\n{fleet_section.END}\nafter\n")
    row = {"calls": 8, "calls_lost": 0, "frames_lost": 2, "frames_late": 3, "frames_late_of_one_call": 1,
           "frames_late_before": 0, "gap_p50_ms": 4, "gap_p95_ms": 5, "gap_max_ms": 6}
    link = {"latency_ms": 10.0, "loss": 0.01, "frames": 700, "frames_skipped": 0, "frames_late": 7, "later_p50_ms": 40,
            "later_p99_ms": 250, "calls_lost": 0}
    found = {"rolling": row, "drain_frames_late": {"gateway": row}, "scale_down": "failed: MeshDown", "links": [link],
             "codec_kill_gap_p95_ms": 400}
    fleet_section.write(found, page)
    fleet_section.write(found, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "MeshDown" not in text
    assert text.count("| 8 | 0 | 2 | 3, 1, 0 | 4 / 5 / 6 |") == 2
    assert "| 10 ms, 1.0% | 700 | 0 | 7 | 40 / 250 | 0 |" in text and "in ms: codec 400." in text


async def test_every_overlay_renders() -> None:
    found = await renders()
    assert set(found.values()) == {"ok"} and "overlays/production" in found


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_node_that_is_cut_off_loses_no_call_and_gives_none_two_owners() -> None:
    if reason := usable():
        pytest.skip(reason)
    found = await partition(calls=2)
    assert not isinstance(found, str)
    assert (found["calls_lost"], found["two_owners"]) == (0, 0), found
