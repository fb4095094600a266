"""The client's sound on its way to the mesh, on our clock.

Moshi steps once a frame, whether anybody speaks or not. Clients with a microphone send as they hear; muted ones and
those with a push-to-talk key stop sending, and get silence from here; some send a whole file at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from services.gateway.edges.web.realtime.settings import Format
from services.gateway.path.audio import LONGEST_PIECE_MS, Pcm

# What may wait. A client that sends a file in one go has this much of it heard at the speed of speech: 87 s of PCM at
# 24 kHz, 9 minutes of G.711.
MOST_WAITING_BYTES = 1 << 22
SHORTEST_MS = 20  # of what is handed on: some browsers send 5 ms at a time, and each piece costs the same
# A microphone's sound is handed on at once, and when it comes late, a live call skips to the present. Whoever is this
# much faster than speech (Pipecat's bursts are 0.5 s) sends a recording, which is handed on a little faster than it was
# spoken, so that a microphone that was taken for one catches up. A network may have kept this much back before.
BURST_S, KEPT_BACK_S = 0.75, 1.0
RECORDING_SPEED = 1.25
AHEAD_S = 0.24  # of a recording; a live call has room for about three frames
# A client that has sent nothing for this long is taken for muted. One that sends in bursts (Pipecat: every 0.5 s) shows
# by its first pauses how long it must be waited for.
PATIENCE_S = 0.3
MOST_PAUSE_S = 1.0  # a longer one is no pause between bursts
# After this long without any sound nothing more is fed, and the desk's own limit for idle callers ends the call: a
# client that has forgotten its call must not hold a slot for an hour. Pipecat ends a call after 300 s itself.
MUTED_S = 300.0


class Ear(Protocol):
    """Reads a client's sound."""

    def decode(self, data: bytes) -> Pcm:
        """Whole samples as float32 [samples] at the mesh's rate."""


class Feed:
    """What to hand to the mesh, and when."""

    def __init__(self, ear: Callable[[Format], Ear], samples_per_frame: int, frame_s: float,
                 now: Callable[[], float] = time.monotonic) -> None:
        """The mesh's frames have so many samples and seconds."""
        self._make_ear, self._frame_s, self._now = ear, frame_s, now
        self._silence: Pcm = np.zeros(samples_per_frame, np.float32)
        self._format = Format()
        self._ear = ear(self._format)
        self._waiting = bytearray()
        self._recording = False
        self._surplus_s = 0.0  # sound, less the time since it came
        self._patience_s = PATIENCE_S
        self._began = False
        self._came_at = now()  # when the last sound came, or this was made
        self._lasts_until = now()  # if the sound that was handed on had been spoken without a pause

    def start(self) -> None:
        """The mesh listens from now on."""
        self._came_at = self._lasts_until = self._now()

    def take(self, data: bytes, format: Format) -> bool:
        """Sound from the client. Returns False, and takes nothing, when too much waits already."""
        if len(self._waiting) + len(data) > MOST_WAITING_BYTES:
            return False
        if format != self._format:
            self.clear()
            self._format, self._ear = format, self._make_ear(format)
        now = self._now()
        pause_s = now - self._came_at
        if self._began and pause_s <= MOST_PAUSE_S:
            self._patience_s = max(self._patience_s, 1.25 * pause_s)
        if self._began:
            self._surplus_s = max(self._surplus_s - pause_s, -KEPT_BACK_S)
        self._surplus_s += len(data) / self._bytes(1000)
        self._began, self._came_at = True, now
        self._waiting += data
        self._recording = self._recording or self._surplus_s > BURST_S
        return True

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()
        self._recording = False

    def next(self) -> Pcm | float:
        """A piece to hand on now; or in how many seconds there will be one, if nothing comes meanwhile."""
        now = self._now()
        if len(self._waiting) >= self._bytes(SHORTEST_MS):
            if self._recording and self._lasts_until > now + AHEAD_S:
                return self._lasts_until - now - AHEAD_S
            return self._piece(now)
        quiet_from = max(self._came_at + self._patience_s, self._lasts_until)
        if now < quiet_from:
            return quiet_from - now
        if now - self._came_at > MUTED_S:
            return MUTED_S
        self._lasts_until = max(self._lasts_until, now - AHEAD_S) + self._frame_s
        return self._silence

    def _piece(self, now: float) -> Pcm | float:
        longest_ms = round(1000 * AHEAD_S) if self._recording else LONGEST_PIECE_MS
        size = min(len(self._waiting) - len(self._waiting) % self._format.sample_bytes, self._bytes(longest_ms))
        data = bytes(self._waiting[:size])
        del self._waiting[:size]
        speed = RECORDING_SPEED if self._recording else 1.0
        self._lasts_until = max(self._lasts_until, now) + size / self._bytes(1000) / speed
        if len(self._waiting) < self._bytes(SHORTEST_MS):
            self._recording = False
        piece = self._ear.decode(data)
        return piece if len(piece) else 0.0

    def _bytes(self, ms: int) -> int:
        return self._format.rate * ms // 1000 * self._format.sample_bytes

