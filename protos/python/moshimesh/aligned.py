"""A live caller's audio as frames that are complete when the mesh would like to have them.

Pieces as a microphone or a packet stream hands them out are put together to frames, which costs no time: with less than
a frame the mesh can do nothing. Where the first frame begins is free, so a little silence before it lets every frame
end with the piece that comes nearest to the moments that the mesh has named.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from moshimesh.gateway.v1 import conversation_pb2


class Aligned:
    """The frames of `pieces`, which are not asked for before the conversation is open."""

    def __init__(self, pieces: AsyncIterator[bytes], sample_bytes: int, bytes_per_second: int) -> None:
        self._pieces, self._sample_bytes, self._bytes_per_second = pieces, sample_bytes, bytes_per_second
        self._opened: asyncio.Future[tuple[int, float]] = asyncio.get_running_loop().create_future()

    def open(self, ready: conversation_pb2.ConverseReady) -> None:
        """Let the audio flow."""
        if not self._opened.done():
            due = asyncio.get_running_loop().time() + ready.frame_due_us / 1e6
            self._opened.set_result((ready.samples_per_frame * self._sample_bytes, due))

    async def frames(self) -> AsyncIterator[bytes]:
        """One frame or several at a time; what is left at the end comes as it is."""
        frame_bytes, due = await self._opened
        rest = bytearray()
        begun = False
        async for piece in self._pieces:
            if not begun and piece:
                begun = True
                rest += bytes(self._lead_bytes(len(piece), frame_bytes, due))
            rest += piece
            if whole := len(rest) // frame_bytes * frame_bytes:
                yield bytes(rest[:whole])
                del rest[:whole]
        if rest:
            yield bytes(rest)

    def _lead_bytes(self, piece_bytes: int, frame_bytes: int, due: float) -> int:
        """How much silence lets a frame end with the piece that comes nearest to `due`, if the first one comes now."""
        frame_s, piece_s = frame_bytes / self._bytes_per_second, piece_bytes / self._bytes_per_second
        pieces = 1 + round((due - asyncio.get_running_loop().time()) % frame_s / piece_s)
        return -pieces * piece_bytes % frame_bytes
