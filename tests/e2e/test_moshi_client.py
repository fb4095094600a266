"""Callers of `/api/chat` against a real mesh: Moshi's own client, and one of each dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from harness.chat_clients import RATE, hold, hold_moshi_client
from harness.local_mesh import LocalMesh

SAID = Path("samples/question-1.wav")
FRAME = 1920


def said() -> np.ndarray:
    pcm, rate = soundfile.read(SAID, dtype="float32")
    assert rate == RATE
    return np.asarray(pcm[:RATE * 4], np.float32)


@pytest.mark.slow
async def test_moshis_own_client_connects_unchanged(mesh: LocalMesh) -> None:
    held = await hold_moshi_client(mesh.url, said())
    assert not held.error and np.abs(held.audio).max() > 0.001
    assert np.count_nonzero(held.audio) > RATE  # its loudspeaker is silent until the first answer


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["python", "rust"])
async def test_a_caller_of_each_dialect_is_answered(mesh: LocalMesh, dialect: Any) -> None:
    held = await hold(mesh.url, said(), dialect, query={"seed": "1"})
    assert not held.error
    assert len(held.audio) > 45 * FRAME and np.abs(held.audio).max() > 0.001
