"""A service that dies ends its calls with a precise status, and new calls work when it is back."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator

import grpc
import moshimesh
import numpy as np
import numpy.typing as npt
import pytest

from scripts.local_mesh import LocalMesh
from tests.e2e.calls import GREEDY, call, free_slots, pieces

Pcm = npt.NDArray[np.float32]


@pytest.fixture
async def own_mesh(checkpoint: str) -> AsyncIterator[LocalMesh]:
    """A mesh to be broken."""
    async with LocalMesh(checkpoint, slots=2) as mesh:
        yield mesh


async def endless(speech: Pcm) -> AsyncIterator[bytes]:
    while True:
        async for piece in pieces(speech):
            await asyncio.sleep(0.02)
            yield piece


async def restart(mesh: LocalMesh, name: str, port: int) -> None:
    await mesh.start(name, "--port", str(port), "--checkpoint", mesh.checkpoint, "--slots", str(mesh.slots))
    await mesh.wait_ready(name, port)


async def test_a_killed_lm(own_mesh: LocalMesh, speech: Pcm) -> None:
    async with moshimesh.connect(own_mesh.target) as mesh:
        with pytest.raises(moshimesh.MeshError) as caught:
            frames = 0
            async for event in mesh.converse(endless(speech), encoding="f32", pacing="offline"):
                if isinstance(event, moshimesh.Speech):
                    frames += 1
                    if frames == 10:
                        own_mesh.processes["lm"].send(signal.SIGKILL)
                        killed = time.monotonic()
    assert time.monotonic() - killed < 2
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "PEER_LOST")
    assert caught.value.retry_after_s
    await restart(own_mesh, "lm", own_mesh.lm_port)
    assert await free_slots(own_mesh) == (2, 2, 2)
    answer = await call(own_mesh.target, speech[:24_000], **GREEDY)
    assert answer.summary.frames_out == len(answer.speech) > 0


async def test_an_idle_service_drains_at_once(own_mesh: LocalMesh, speech: Pcm) -> None:
    """The gateway's tunnel stays open between calls; it must not hold up a drain."""
    await call(own_mesh.target, speech[:24_000])
    for name, port in (("lm", own_mesh.lm_port), ("codec", own_mesh.codec_port)):
        began = time.monotonic()
        process = own_mesh.processes[name]
        process.send(signal.SIGTERM)
        assert process.child is not None
        assert await process.child.wait() == 0
        assert time.monotonic() - began < 5, "it waited for the tunnel"
        await restart(own_mesh, name, port)
    assert (await call(own_mesh.target, speech[:24_000])).summary.frames_out > 0
