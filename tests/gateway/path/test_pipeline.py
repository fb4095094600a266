"""What ends a call from elsewhere does so at once, whatever its stages are doing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from moshimesh.codec.v1 import codec_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.path.audio import AudioFormat
from services.gateway.path.ingest import Ingest
from services.gateway.path.lease import Lease, Leaser
from services.gateway.path.memory import LmMemory
from services.gateway.path.pipeline import Notice, Pipeline, Rows
from services.gateway.path.turns import Turns
from services.gateway.peers.replicas import STEP, Replicas, lm_facts
from services.gateway.sessions.history import History
from services.mesh.errors import CallTooLong
from tests.gateway.fake_lm import CONTEXT, DELAY, OWN, USER, FakeLm
from tests.gateway.fake_observer import Heard


async def test_a_failure_while_a_row_is_lost_ends_the_call_after_a_notice() -> None:
    lm = FakeLm()
    pool = Replicas("lm", await lm.start(), lm_facts)
    await pool.connect(time.monotonic() + 5)

    async def row() -> Lease[Any, Any]:
        memory = LmMemory("a session", lm_pb2.Sampling(seed=1), History(USER, OWN, DELAY, CONTEXT))
        return await Leaser(pool, STEP, "checksum", memory).lease(lambda: 0)

    # What the other two stages speak does not matter here.
    observer, rows = Heard(), Rows(await row(), await row(), await row())
    pipeline = Pipeline(rows, Ingest(AudioFormat(24_000, 1920), observer, live=True, delay_frames=1), observer,
                        Turns(codec_pb2.EncodeReady(), lm_pb2.StepReady(), History(USER, OWN, DELAY, CONTEXT)),
                        lambda frame: None)
    try:
        conversing = pipeline.converse()
        notice = Notice()
        pipeline.tell(notice)
        assert await anext(conversing) is notice
        await lm.kill()
        asyncio.get_running_loop().call_later(0.5, pipeline.fail, CallTooLong("over"))
        with pytest.raises(CallTooLong):
            await asyncio.wait_for(anext(conversing), 5)
    finally:
        pipeline.close()
        await pool.close()
