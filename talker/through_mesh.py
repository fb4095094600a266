"""The evaluation's `converse` through the mesh: real processes, real gRPC, the same `Answer`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType

import moshimesh
import numpy as np

from harness.local_mesh import LocalMesh
from talker.config import FRAME_SAMPLES, PAD
from talker.loop import Answer

SLOTS = 16
GREEDY = {"text_temperature": 0.0, "audio_temperature": 0.0}


class ThroughMesh:
    """A mesh of its own for as long as the `with` block lasts; greedy, or sampled with the model's defaults."""

    def __init__(self, checkpoint: Path, greedy: bool = True, seed: int = 0, voices: Path | None = None) -> None:
        self._options = GREEDY if greedy else {"seed": seed}
        flags = ("--voices", str(voices)) if voices else ()
        self._mesh = LocalMesh(str(checkpoint), slots=SLOTS, gateway_flags=flags)
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> ThroughMesh:
        self._loop.run_until_complete(self._mesh.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._loop.run_until_complete(self._mesh.__aexit__())
        self._loop.close()

    def __call__(self, pcm: np.ndarray) -> Answer:
        """One call."""
        return self.batch([pcm])[0]

    def batch(self, pcms: list[np.ndarray]) -> list[Answer]:
        """Several calls at once; one seed for all, as a batch of the reference loop has."""
        return self.calls([(pcm, {}) for pcm in pcms])

    def calls(self, asked: list[tuple[np.ndarray, dict[str, str]]]) -> list[Answer]:
        """Several calls at once, each with a voice or a text prompt of its own."""
        async def all_calls() -> list[Answer]:
            async with moshimesh.connect(self._mesh.target) as mesh:
                return await asyncio.gather(*(self._call(mesh, pcm, prompt) for pcm, prompt in asked))

        return self._loop.run_until_complete(all_calls())

    async def _call(self, mesh: moshimesh.Mesh, pcm: np.ndarray, prompt: dict[str, str]) -> Answer:
        frames = -(-len(pcm) // FRAME_SAMPLES)
        said = np.zeros((frames, FRAME_SAMPLES), np.float32)
        tokens, text = [PAD] * frames, ""
        audio = mesh.converse(pcm.astype("<f4").tobytes(), encoding="f32", pacing="offline", **self._options,
                              **prompt)
        async for event in audio:
            if isinstance(event, moshimesh.Speech) and event.sequence < frames:
                said[event.sequence] = np.frombuffer(event.pcm, "<f4")
                tokens[event.sequence] = event.text_token
                text += event.text
        return Answer(said.reshape(-1), text, tokens)
