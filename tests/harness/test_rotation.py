"""Certificates that are replaced under live calls, with real processes."""

from __future__ import annotations

import pytest

from harness.rotation import FRAMES_BETWEEN, measure_rotation


@pytest.mark.slow
async def test_no_call_and_no_frame_is_lost() -> None:
    found = await measure_rotation()
    assert (found.calls, found.calls_lost, found.frames_lost) == (8, 0, 0)
    assert found.frames >= 8 * 3 * FRAMES_BETWEEN
