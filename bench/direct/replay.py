"""A long call that is moved about, recorded while it lasts, and stepped again: are its tokens the same?

The call's replicas are killed and restarted in turns beneath it, and a neighbour comes and goes. What a model remembers
is less than the call (`context`): tokens are promised to be equal only within it after a row was rebuilt, so how many
were equal says how much that matters.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator
from typing import Any

import moshimesh

from harness.load import FRAME_S, read_speech
from harness.local_mesh import ROOT, LocalMesh
from harness.recordings import FRAME_BYTES

EXPORT_S = 5.0
DISTURBED_S = 20.0  # between one loss and the next
WRITTEN_S = 1.5  # until the last steps are in the journal


async def run(seconds: float, checkpoint: str) -> dict[str, Any]:
    """Whether a call of so many seconds is replayed token for token, how many steps were equal, and what happened."""
    async with LocalMesh(checkpoint, slots=4, replicas=2) as mesh, moshimesh.connect(mesh.target) as client:
        ended = asyncio.Event()
        opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        told = {"resumed": 0, "losses": 0}
        talking = asyncio.create_task(_talk(client, round(seconds / FRAME_S), opened, ended, told))
        recording = await client.export(await opened)
        moved = asyncio.create_task(_disturb(mesh, told))
        neighbours = asyncio.create_task(_come_and_go(client))
        while not ended.is_set():
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(ended.wait(), EXPORT_S)
            if ended.is_set():
                await asyncio.sleep(WRITTEN_S)
            with contextlib.suppress(moshimesh.MeshError):  # amid a failover of the gateway; the next export has it
                recording.extend(await client.export(await opened, from_step=recording.next_step))
        for task in (moved, neighbours, talking):
            task.cancel()
        await asyncio.gather(moved, neighbours, talking, return_exceptions=True)
        steps = equal = 0
        async for frame in client.replay(recording):
            if frame.text_token is not None:
                steps += 1
                equal += recording.tokens(frame.step) == (frame.text_token, *frame.codes)
    return {"replay_equal": steps > 0 and equal == steps, "replay_steps": steps, "replay_steps_equal": equal,
            "replay_seconds": seconds, "replay_losses": told["losses"], "replay_resumed": told["resumed"]}


async def _talk(client: moshimesh.Mesh, frames: int, opened: asyncio.Future[str], ended: asyncio.Event,
                told: dict[str, int]) -> None:
    """One live call; it stays open when all is said, since the mesh forgets a call that has ended."""
    speech = b"".join(read_speech(ROOT / "samples"))

    async def voice() -> AsyncIterator[bytes]:
        now = asyncio.get_running_loop().time
        began = now()
        for number in range(frames):
            await asyncio.sleep(max(began + number * FRAME_S - now(), 0))
            at = number * FRAME_BYTES % (len(speech) - FRAME_BYTES)
            yield speech[at:at + FRAME_BYTES]
        ended.set()
        while True:
            await asyncio.sleep(FRAME_S)
            yield bytes(FRAME_BYTES)

    async for event in client.converse(voice(), seed=5):
        if isinstance(event, moshimesh.Ready) and not opened.done():
            opened.set_result(event.resume_handle)
        told["resumed"] += isinstance(event, moshimesh.Resumed)


async def _disturb(mesh: LocalMesh, told: dict[str, int]) -> None:
    """Lose replicas in turns, one at a time."""
    victims = ["lm", "codec", "lm-2", "codec-2"]
    while True:
        for name in victims:
            await asyncio.sleep(DISTURBED_S)
            process = mesh.processes[name]
            process.send(signal.SIGKILL)
            assert process.child is not None
            await process.child.wait()
            told["losses"] += 1
            await mesh.start_replica(name)
            await mesh.wait_ready(name, mesh.ports[name])


async def _come_and_go(client: moshimesh.Mesh) -> None:
    """Neighbours in the batch, a few seconds each."""
    speech = read_speech(ROOT / "samples")
    while True:
        with contextlib.suppress(moshimesh.MeshError):
            async for _ in client.converse(random.choice(speech)[:FRAME_BYTES * 50]):
                pass
