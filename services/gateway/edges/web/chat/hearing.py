"""The caller's side of a call on `/api/chat`: its messages to audio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

import numpy as np

from services.gateway.calls.callers import Audio
from services.gateway.edges.ogg import OggOpusReader
from services.gateway.edges.opus import packet_ms
from services.gateway.edges.web.chat.messages import AUDIO
from services.gateway.edges.web.socket import Socket
from services.gateway.path.audio import Pcm
from services.mesh.errors import InvalidRequest

# What is kept of what a caller says before the call is open: Moshi's clients begin to speak at once. A caller who
# waited in line would hear the answers to all of it at once, and Moshi's clients never catch up again.
KEPT_MS, KEPT_IN_LINE_MS = 1000.0, 160.0
# How far ahead of the clock a caller's audio may be; the desk hears 45 s of it faster than it was spoken, which is for
# calls that were cut off. The socket is always read, so that a hang-up is noticed whatever was sent before it.
MOST_AHEAD_MS = 60_000.0
# Shortest and longest piece for the desk: less costs it as much, and more is refused.
SHORTEST_MS, LONGEST_MS = 10.0, 800.0
_HEADERS = (b"OpusHead", b"OpusTags")


class Hearing:
    """Reads a socket from the begin of a call to its end, so that a hang-up is noticed at any time."""

    def __init__(self, socket: Socket, sample_rate_hertz: int) -> None:
        self._socket = socket
        self._reader = OggOpusReader(sample_rate_hertz)
        self._packets: deque[tuple[bytes, float]] = deque()
        self._waiting_ms = 0.0  # of all packets
        self._kept_ms: float | None = KEPT_MS  # None: the call is open, and all is heard
        self._failure: InvalidRequest | None = None
        self._changed = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._ahead_ms, self._ahead_at = 0.0, self._clock()  # of all audio that came, less the time since

    def in_line(self) -> None:
        """The caller waits for a slot."""
        self._kept_ms = KEPT_IN_LINE_MS
        self._let_go()

    def open(self) -> None:
        """From now on all is heard."""
        self._kept_ms = None

    async def listen(self) -> None:
        """Take the caller's messages. Raises Closed when it leaves; before `open` also InvalidRequest, which `inputs`
        raises after that.
        """
        try:
            while True:
                message = await self._socket.receive()
                # Moshi's servers have no use for any other kind: control is not for full duplex, the rest unknown.
                if isinstance(message, bytes) and message.startswith(AUDIO):
                    for packet in self._reader.packets(message[1:]):
                        self._add(packet)
        except InvalidRequest as error:
            if self._kept_ms is not None:
                raise
            self._failure = error
            self._changed.set()
            await asyncio.Event().wait()  # the call ends with it

    def _add(self, packet: bytes) -> None:
        if packet.startswith(_HEADERS):
            self._reader.decode(packet)
            return
        length_ms, now = packet_ms(packet), self._clock()
        self._ahead_ms = max(self._ahead_ms - (now - self._ahead_at) * 1000, 0.0) + length_ms
        self._ahead_at = now
        if self._ahead_ms > MOST_AHEAD_MS:
            raise InvalidRequest("TOO_MUCH_AUDIO", f"audio is {MOST_AHEAD_MS / 1000:.0f} s ahead of the clock; send it "
                                 "at the speed of speech", field="audio")
        self._packets.append((packet, length_ms))
        self._waiting_ms += length_ms
        self._let_go()
        self._changed.set()

    def _let_go(self) -> None:
        """Of what is older than is kept."""
        while self._kept_ms is not None and self._waiting_ms > self._kept_ms and len(self._packets) > 1:
            self._waiting_ms -= self._packets.popleft()[1]

    async def inputs(self) -> AsyncGenerator[Audio, None]:
        """What is heard. Never ends: a call ends when the caller leaves. Raises InvalidRequest."""
        pieces: list[Pcm] = []
        piece_ms = 0.0
        while True:
            while not self._packets:
                if self._failure is not None:
                    raise self._failure
                self._changed.clear()
                await self._changed.wait()
            while self._packets and piece_ms < LONGEST_MS:
                packet, length_ms = self._packets.popleft()
                self._waiting_ms -= length_ms
                piece_ms += length_ms
                if (pcm := self._reader.decode(packet)) is not None:
                    pieces.append(pcm)
            if piece_ms >= SHORTEST_MS and pieces:
                yield Audio(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
                pieces, piece_ms = [], 0.0
                if self._packets:
                    await asyncio.sleep(0)  # let others have a turn
