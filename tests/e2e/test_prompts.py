"""A voice and a text before the first frame, over real services (tests/lm/test_prompts.py: with moshi's own tokens)."""

from __future__ import annotations

import time
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import moshimesh
import numpy as np
import numpy.typing as npt
import pytest

from harness.local_mesh import LocalMesh
from tests.e2e.calls import SAMPLED, call

Pcm = npt.NDArray[np.float32]
pytestmark = pytest.mark.slow  # a mesh with voices


@pytest.fixture(scope="module")
async def voiced(checkpoint: str, speech: Pcm, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMesh]:
    folder = tmp_path_factory.mktemp("voices")
    with wave.open(str(Path(folder) / "demo.wav"), "wb") as wav:
        wav.setparams((1, 2, 24_000, 0, "NONE", ""))
        wav.writeframes((speech[:24_000 * 5] * 32767).astype("<i2").tobytes())
    async with LocalMesh(checkpoint, slots=4, gateway_flags=("--voices", str(folder))) as mesh:
        yield mesh


async def opened_ms(mesh: LocalMesh, **options: str) -> float:
    """How long a call takes until it is open."""
    async with moshimesh.connect(mesh.target) as client:
        began = time.monotonic()
        events = client.converse(bytes(2 * 1920), **options)
        async for event in events:
            if isinstance(event, moshimesh.Ready):
                return (time.monotonic() - began) * 1000
    raise AssertionError("it never opened")


async def test_a_prompted_call_speaks_and_is_the_same_each_time(voiced: LocalMesh, speech: Pcm) -> None:
    """Sampled, with a voice and a text that the bundled model was not trained with (tests/talker: with those that it
    was)."""
    plain, once, again = [await call(voiced.target, speech, **SAMPLED, **options) for options in (
        {}, {"voice": "demo", "text_prompt": "good evening"}, {"voice": "demo", "text_prompt": "good evening"})]
    assert once.tokens.shape == plain.tokens.shape
    assert np.array_equal(once.tokens, again.tokens)
    assert not np.array_equal(once.tokens, plain.tokens)


async def test_a_known_voice_opens_as_fast_as_none(voiced: LocalMesh) -> None:
    await opened_ms(voiced, voice="demo")
    known = sorted([await opened_ms(voiced, voice="demo") for _ in range(5)])[2]
    none = sorted([await opened_ms(voiced) for _ in range(5)])[2]
    assert known - none < 50
