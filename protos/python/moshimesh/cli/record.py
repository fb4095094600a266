"""Recording: export what the mesh keeps of a conversation again and again, until it ends."""

from __future__ import annotations

import asyncio

import grpc
from moshimesh.client import Mesh
from moshimesh.events import MeshError
from moshimesh.recording import Recording

POLL_S = 5.0  # the mesh keeps 20 s of a conversation at the very least, and takes one export a second


class Recorder:
    """Follows one conversation."""

    def __init__(self, mesh: Mesh, handle: str, key: str) -> None:
        self._mesh, self._handle, self._key = mesh, handle, key
        self.recording: Recording | None = None

    async def take(self) -> None:
        """Add what is new. Raises MeshError."""
        from_step = self.recording.next_step if self.recording else 0
        later = await self._mesh.export(self._handle, from_step=from_step, api_key=self._key)
        if self.recording is None:
            self.recording = later
        else:
            self.recording.extend(later)

    async def follow(self) -> None:
        """Until the conversation has ended. Raises MeshError."""
        while True:
            try:
                await self.take()
            except MeshError as error:
                if error.reason == "UNKNOWN_SESSION" and self.recording is not None:
                    return
                if error.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                    raise
            await asyncio.sleep(POLL_S)
