"""A service that dies takes no call with it if it comes back in time, and ends them with a precise status if not."""

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

from harness.local_mesh import LocalMesh
from tests.e2e.calls import GREEDY, call, pieces, slots_are_free

Pcm = npt.NDArray[np.float32]
pytestmark = pytest.mark.slow  # each test breaks a mesh of its own


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


async def test_a_killed_lm_that_comes_back(own_mesh: LocalMesh, speech: Pcm) -> None:
    """One replica of each service: the call waits for the restart and goes on."""
    killed = 0.0
    after = 0
    async with moshimesh.connect(own_mesh.target) as mesh:
        frames = 0
        async for event in mesh.converse(endless(speech), encoding="f32", pacing="offline"):
            if isinstance(event, moshimesh.Speech):
                frames += 1
                after += bool(killed)
                if frames == 10:
                    own_mesh.processes["lm"].send(signal.SIGKILL)
                    killed = time.monotonic()
                    restarting = asyncio.ensure_future(own_mesh.start_replica("lm"))
                if after > 20:
                    break
    assert after > 20, "the call ended"
    await restarting
    assert await slots_are_free(own_mesh)


async def test_a_killed_lm_that_does_not(checkpoint: str, speech: Pcm) -> None:
    async with LocalMesh(checkpoint, slots=2, gateway_flags=["--failover-s", "1"]) as own_mesh:
        async with moshimesh.connect(own_mesh.target) as mesh:
            with pytest.raises(moshimesh.MeshError) as caught:
                frames = 0
                async for event in mesh.converse(endless(speech), encoding="f32", pacing="offline", resume_s=0):
                    if isinstance(event, moshimesh.Speech):
                        frames += 1
                        if frames == 10:
                            own_mesh.processes["lm"].send(signal.SIGKILL)
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "PEER_LOST")
        assert caught.value.retry_after_s


async def test_an_idle_service_drains_at_once(own_mesh: LocalMesh, speech: Pcm) -> None:
    """The gateway's tunnel stays open between calls; it must not hold up a drain."""
    await call(own_mesh.target, speech[:24_000])
    for name in ("lm", "codec"):
        began = time.monotonic()
        process = own_mesh.processes[name]
        process.send(signal.SIGTERM)
        assert process.child is not None
        assert await process.child.wait() == 0
        assert time.monotonic() - began < 15, "it waited for the tunnel"
        await own_mesh.start_replica(name)
        await own_mesh.wait_ready(name, own_mesh.ports[name])
    assert (await call(own_mesh.target, speech[:24_000], **GREEDY)).summary.frames_out > 0
