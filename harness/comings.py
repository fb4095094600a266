"""Callers that come and go at every door of a mesh, while replicas of its engines are killed and started again."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable

import moshimesh
import numpy as np
import numpy.typing as npt

from harness import door_calls, pcm_client
from harness.local_mesh import LocalMesh
from services.mesh.samples import to_s16

FAULT_S = 20.0  # from a replica's being ready again until the next one is killed
_SECRET = "x" * 24  # where everybody may call any credential is one


class Comings:
    """`until` runs them; `calls` and `failures` say what became of them, by door."""

    def __init__(self, mesh: LocalMesh, pcm: npt.NDArray[np.float32]) -> None:
        """`pcm` float32 [samples] at 24 kHz is what each caller says; `mesh` has two replicas of each engine."""
        self._mesh, self._pcm = mesh, pcm
        self.calls: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.kills = 0

    async def until(self, over: asyncio.Event) -> None:
        """Call until it is over; calls that are on then are held to their end."""
        doors: dict[str, Callable[[], Awaitable[object]]] = {
            "Converse": self._converse, "/api/pcm": lambda: pcm_client.hold(self._mesh.url, self._pcm),
            "/api/chat": lambda: door_calls.chat(self._mesh.url, self._pcm, _SECRET),
            "/v1/realtime": lambda: door_calls.realtime(self._mesh.url, self._pcm, _SECRET),
            "/v1/live/sessions": lambda: door_calls.live(self._mesh.url, self._pcm, _SECRET)}
        await asyncio.gather(self._faults(over), *(self._repeated(name, call, over) for name, call in doors.items()))

    async def _repeated(self, name: str, call: Callable[[], Awaitable[object]], over: asyncio.Event) -> None:
        while not over.is_set():
            self.calls[name] += 1
            try:
                await call()
            except Exception as error:
                self.failures[f"{name}: {type(error).__name__}"] += 1
                await asyncio.sleep(0.1)

    async def _converse(self) -> None:
        async with moshimesh.connect(self._mesh.target) as client:
            async for _ in client.converse(np.frombuffer(to_s16(self._pcm), np.int16), pacing="offline"):
                pass

    async def _faults(self, over: asyncio.Event) -> None:
        while not over.is_set():
            for name in ("lm-2", "codec-2"):
                process = self._mesh.processes[name]
                process.send(signal.SIGKILL)
                self.kills += 1
                await process.stop()
                await self._mesh.start_replica(name)
                await self._mesh.wait_ready(name, self._mesh.ports[name])
                try:
                    await asyncio.wait_for(over.wait(), FAULT_S)
                    return
                except (asyncio.TimeoutError, TimeoutError):
                    pass
