"""What ends a call from elsewhere does so at once, whatever its stages are doing."""

from __future__ import annotations

import asyncio
import time

import pytest
from moshimesh.audio.v1 import audio_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.path.ingest import AudioFormat, Ingest
from services.gateway.path.memory import LmMemory
from services.gateway.path.pipeline import Pipeline
from services.gateway.peers.replicas import Replicas, codec_facts, lm_facts
from services.gateway.sessions.history import History
from services.gateway.watching.metering import GatewayMetrics
from services.gateway.watching.tracing import CallTrace
from services.mesh.errors import CallTooLong
from services.mesh.metrics import Metrics
from services.mesh.telemetry import FrameTracer
from tests.gateway.fake_lm import FakeLm

FORMAT = AudioFormat(24_000, 1920, audio_pb2.AUDIO_ENCODING_PCM_F32LE)


async def test_a_failure_while_a_row_is_lost_ends_the_call_behind_a_nudge() -> None:
    lm = FakeLm()
    pool = Replicas("lm", await lm.start(), lm_facts)
    await pool.connect(time.monotonic() + 5)
    memory = LmMemory("a session", lm_pb2.Sampling(seed=1), None, lambda ready: History(
        ready.user_codebooks, ready.own_codebooks, ready.delay_frames, ready.context_frames))
    pipeline = Pipeline("a session", "checksum", Replicas("codec", "", codec_facts), pool, memory, 0, 0,
                        CallTrace(FrameTracer(), "a session", "", 100), GatewayMetrics(Metrics()).call(True, False))
    try:
        await pipeline._step.open()
        conversing = pipeline.converse(Ingest(FORMAT, live=True, delay_frames=1))
        pipeline.nudge()
        assert await anext(conversing) is None
        await lm.kill()
        asyncio.get_running_loop().call_later(0.5, pipeline.fail, CallTooLong("over"))
        with pytest.raises(CallTooLong):
            await asyncio.wait_for(anext(conversing), 5)
    finally:
        pipeline.close()
        await pool.close()
