"""The short form of `make chaos`: what must hold for every fault, with few callers and little history."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from bench.chaos import run
from harness.local_mesh import LocalMesh

# How long a gap each may leave at most (ms). The bounds of `make chaos` are tighter: CI machines are shared, and a
# replica that starts beside the calls takes a core of theirs. One that hangs is noticed after two seconds.
FAULTS = {"lm_killed": 2000, "codec_killed": 2000, "gateway_killed": 4000, "lm_frozen": 5000, "redis_restarted": 1000,
          "lm_drained": 1000, "codec_drained": 1000, "gateway_drained": 2000}


@pytest.fixture(scope="module")
async def whole_mesh(checkpoint: str) -> AsyncIterator[LocalMesh]:
    async with LocalMesh(checkpoint, slots=3, replicas=2) as mesh:
        yield mesh


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.timeout(180)
async def test_calls_survive(whole_mesh: LocalMesh, fault: str) -> None:
    row = await run(whole_mesh, fault, callers=3, history_s=6.0, after_s=4.0)
    assert row["calls_lost"] == 0, row
    assert row["gap_max_ms"] < FAULTS[fault], row
    if fault == "lm_frozen":  # before anybody can know that it hangs, a call may skip a frame to keep time
        assert row["frames_lost"] <= row["calls"], row
        return
    assert row["frames_lost"] == 0, row
    # No frame was lost, and all of the call is within the model's context: the tokens are those of a call where nothing
    # happened.
    assert row["tokens_equal_after"] == 1.0, row
