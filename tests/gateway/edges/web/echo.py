"""A desk whose model says what it hears: frame by frame, one late, with the frame's number as its text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from types import SimpleNamespace

import numpy as np
from moshimesh.audio.v1 import audio_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.callers import Audio, Caller, Input, Opening
from services.gateway.calls.events import Event, Ready, Speech
from services.mesh.errors import MeshError

RATE, FRAME = 24_000, 1920


class EchoDesk:
    """Stands in for Desk, for tests of what an edge makes of audio and text."""

    def __init__(self, refuse: MeshError | None = None) -> None:
        self.openings: list[Opening] = []
        self.callers: list[Caller] = []
        self._refuse = refuse

    async def info(self) -> SimpleNamespace:
        return SimpleNamespace(sample_rate_hertz=RATE)

    async def hold(self, caller: Caller, opening: Opening, inputs: AsyncIterator[Input]) -> AsyncGenerator[Event, None]:
        self.openings.append(opening)
        self.callers.append(caller)
        if self._refuse is not None:
            raise self._refuse
        sampling = lm_pb2.Sampling(text_temperature=0.7, text_top_k=25, audio_temperature=0.8, audio_top_k=250, seed=1)
        sampling.MergeFrom(getattr(opening.origin, "sampling", lm_pb2.Sampling()))
        yield Ready("session", "echo", "mimi", RATE, FRAME, 8, 1, sampling, "the handle", 60.0, 0, 0, 0)
        rest, number = np.zeros(0, np.float32), 0
        async for given in inputs:
            assert isinstance(given, Audio)
            rest = np.concatenate((rest, given.pcm))
            while len(rest) >= FRAME:
                context = audio_pb2.FrameContext(sequence=number)
                yield Speech(context, rest[:FRAME], f" {number}é" if number % 2 else "", 0, [0] * 8, 0)
                rest, number = rest[FRAME:], number + 1
