"""A fleet under live calls: what is late is counted right, and a node that is cut off costs no call."""

from __future__ import annotations

import pytest

from bench.chaos import Caller
from bench.fleet import late_frames, partition, renders
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
