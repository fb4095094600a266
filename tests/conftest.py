"""What the tests share: the small checkpoint, speech, and a mesh of real processes."""

from __future__ import annotations

import os
import sys
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from harness.local_mesh import LocalMesh

ROOT = Path(__file__).resolve().parent.parent
SLOTS = 8

if sys.version_info >= (3, 14):  # where torch can't compile, which moshi's own loop asks for
    os.environ.setdefault("NO_TORCH_COMPILE", "1")


@pytest.fixture(scope="session")
def checkpoint() -> str:
    """The small checkpoint that the project ships."""
    return str(ROOT / "checkpoints" / "talker")


@pytest.fixture(scope="session")
def speech() -> npt.NDArray[np.float32]:
    """Held-out speech at 24 kHz, float32 [samples]."""
    with wave.open(str(ROOT / "samples" / "demo.wav")) as wav:
        assert (wav.getframerate(), wav.getnchannels(), wav.getsampwidth()) == (24_000, 1, 2)
        return np.frombuffer(wav.readframes(wav.getnframes()), dtype="<i2").astype(np.float32) / 32768


@pytest.fixture(scope="session")
async def mesh(checkpoint: str) -> AsyncIterator[LocalMesh]:
    """Redis, codec, lm and gateway, started by their real commands, shared by all tests that leave no trace."""
    lines: list[str] = []
    async with LocalMesh(checkpoint, slots=SLOTS, on_line=lambda name, line: lines.append(f"{name} | {line}"),
                         environment={"MOSHIMESH_STALL_S": "3"}) as running:
        yield running
    sys.stderr.write("\n".join([*lines[-100:], ""]))  # shown by pytest with what failed


@pytest.fixture(scope="session")
def mesh_target(mesh: LocalMesh) -> str:
    """The gateway's host:port."""
    return mesh.target
