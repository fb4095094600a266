"""The README's first example: a whole recording, at either pacing."""

from __future__ import annotations

from typing import Any, Literal

import moshimesh
import numpy as np
import numpy.typing as npt
import pytest

FRAMES = 38  # 3 s


@pytest.mark.parametrize("pacing", ["live", "offline"])
async def test_a_recording_given_as_a_whole_is_heard(mesh_target: str, speech: npt.NDArray[np.float32],
                                                     pacing: Literal["live", "offline"]) -> None:
    pcm = (speech[:FRAMES * 1920] * 32767).astype("<i2")
    events: list[Any] = []
    async with moshimesh.connect(mesh_target) as mesh:
        async for event in mesh.converse(pcm, pacing=pacing):
            events.append(event)
    # A busy machine may skip some at "live"; when all was sent at once, nearly all were skipped.
    assert events[-1].frames_in >= (FRAMES if pacing == "offline" else FRAMES - 10)
    assert sum(isinstance(event, moshimesh.Speech) for event in events) == events[-1].frames_out > FRAMES - 11
