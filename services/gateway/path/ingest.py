"""From the caller's pieces of audio, in any size, to the model's frames.

A live caller that is faster than the mesh must get answers to the present, not to the past: the queue here holds what
one of the caller's pieces brings plus a little slack, and drops the oldest frames beyond that. An offline caller is
held back instead, and loses nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import numpy as np
from moshimesh.lm.v1 import lm_pb2

from services.gateway.path.audio import AudioFormat, Pcm
from services.gateway.path.observer import Observer
from services.gateway.path.pace import Pace
from services.gateway.sessions.controls import merged
from services.mesh.clock import now_unix_nanos

# Frames that may wait beyond those of one piece before a live call skips: 160 ms, about what a listener forgives.
LIVE_SLACK_FRAMES = 2
# Frames beyond those that may wait after a live call was held up by a lost replica, or is resumed and repeats its last
# seconds: 10 s, 1 MB. They are heard faster than they were spoken; after as many frames a call is live again.
CATCH_UP_FRAMES = 125
STALLED_S = 0.4  # less than it takes to fill the queue, and far more than a frame is in a mesh that is only slow
# Frames that may be in the mesh at once. Three hops, each busy with one frame, keep the engines fed; one more covers
# the hand-overs. Beyond that a queue only adds delay.
IN_FLIGHT_FRAMES = 4


@dataclass(frozen=True)
class CallerFrame:
    """One frame as it was cut: its number, its audio [samples_per_frame], when its last sample arrived, and what takes
    effect with it.
    """

    sequence: int
    pcm: bytes
    received_unix_nanos: int
    controls: lm_pb2.StepControls | None = None


class FrameSink(Protocol):
    """Where the frames go."""

    def send(self, frame: CallerFrame) -> None:
        """Take one frame; `Ingest.answered` says that it has left again."""

    def end(self) -> None:
        """No more will come."""

    def fail(self, error: Exception) -> None:
        """The caller's audio can't be used."""


class Ingest:
    """The queue between the caller's audio and the mesh."""

    def __init__(self, audio: AudioFormat, observer: Observer, *, live: bool, delay_frames: int,
                 first_sequence: int = 0, next_sequence: int = 0,
                 ahead: Mapping[int, lm_pb2.StepControls] = MappingProxyType({}),
                 now: Callable[[], float] = time.monotonic) -> None:
        """`first_sequence` is the number of the first frame to come, `next_sequence` of the first that the model has
        not heard yet: a call that is resumed may repeat some, or have missed some. `ahead` are controls that take
        effect at frames to come, by their numbers: the model had heard those, and went back.
        """
        self.next_sequence = next_sequence
        self.frames_skipped = 0
        self.audio, self._observer = audio, observer
        self._live = live
        self._delay_frames = delay_frames
        self._rest: Pcm = np.zeros(0, dtype=np.float32)  # less than a frame
        self._next_cut = first_sequence
        self._now = now
        self._pace = Pace(live, now)
        self._in_mesh = 0  # frames, never more than IN_FLIGHT_FRAMES
        self._progress = now()  # when the last one left it, or the first of these went there
        self._catch_up_until = max(first_sequence, next_sequence) + CATCH_UP_FRAMES if next_sequence else 0
        self._frames: deque[CallerFrame] = deque()
        self._ahead = dict(ahead)
        self._controls: lm_pb2.StepControls | None = None  # for the next frame
        self._largest_piece_frames = 1
        self._ended = False
        self._failure: Exception | None = None
        self._sink: FrameSink | None = None
        self._room = asyncio.Event()
        if first_sequence > next_sequence:
            self._skip(first_sequence - next_sequence)

    @property
    def idle_s(self) -> float:
        """For how long the caller has sent nothing worth its slots, though it could have."""
        return self._pace.idle_s

    @property
    def next_cut(self) -> int:
        """Number of the next frame that is cut from the caller's audio."""
        return self._next_cut

    @property
    def frames_heard(self) -> int:
        """Frames of the caller's own audio that went, or wait to go, to the model."""
        return max(self._next_cut - self.next_sequence, 0) - self.frames_skipped

    async def read(self, pieces: AsyncIterator[Pcm]) -> None:
        """Take the caller's audio, float32 [samples] a piece, until it ends, then add the silence that flushes the
        model's delay line.
        """
        try:
            await self._cut(pieces)
            await self._flush()
        except Exception as error:
            self._failure = error
        self._pace.end()
        self._ended = True
        self._send()

    async def _cut(self, pieces: AsyncIterator[Pcm]) -> None:
        frame = self.audio.samples_per_frame
        self._pace.wait()
        async for piece in pieces:
            self.audio.check(piece)
            seconds = self.audio.seconds(len(piece))
            self._pace.came(seconds)
            self._observer.heard(seconds)
            self._largest_piece_frames = max(self._largest_piece_frames, -(-len(piece) // frame))
            self._rest = np.concatenate((self._rest, piece)) if len(self._rest) else piece
            while len(self._rest) >= frame:
                await self._add(self._rest[:frame])
                self._rest = self._rest[frame:]
            if too_early_s := self._pace.too_early_s:
                await asyncio.sleep(too_early_s)
            self._pace.wait()

    def direct(self, controls: lm_pb2.StepControls) -> None:
        """Let something take effect at the next frame that is cut. A frame that is skipped hands it to the next one;
        one that the model has heard before had it then.
        """
        self._controls = controls if self._controls is None else merged(self._controls, controls)

    def send_to(self, sink: FrameSink) -> None:
        """Hand over the frames that wait and those to come, never more than IN_FLIGHT_FRAMES ahead of `answered`, and
        then the end; or at once what `read` has failed with.
        """
        self._sink = sink
        self._send()

    def answered(self) -> None:
        """One frame has left the mesh."""
        self._look_for_a_stall()
        self._progress = self._now()
        self._in_mesh -= 1
        self._send()

    def _send(self) -> None:
        sink = self._sink
        if sink is None:
            return
        if self._failure is not None:
            self._sink = None
            sink.fail(self._failure)
            return
        while self._frames and self._in_mesh < IN_FLIGHT_FRAMES:
            if not self._in_mesh:
                self._progress = self._now()
            self._in_mesh += 1
            sink.send(self._frames.popleft())
            self._room.set()
        if self._ended and not self._frames:
            self._sink = None
            sink.end()

    def catch_up(self) -> None:
        """Let the next CATCH_UP_FRAMES wait instead of skipping some, however late the mesh is."""
        self._catch_up_until = self._next_cut + CATCH_UP_FRAMES

    def _look_for_a_stall(self) -> None:
        """While frames are in the mesh and none leaves it, a replica is lost or hangs, and its session is moving."""
        if self._in_mesh and self._now() - self._progress > STALLED_S:
            self.catch_up()

    async def _add(self, pcm: Pcm) -> None:
        frame = CallerFrame(self._next_cut, pcm.astype("<f4", copy=False).tobytes(), now_unix_nanos(),
                            self._controls_of(self._next_cut))
        # What the model has heard before must all come, and bring the encoder back to where it was.
        while (not self._live or self._next_cut < self.next_sequence) and len(self._frames) >= IN_FLIGHT_FRAMES:
            self._room.clear()
            await self._room.wait()
        self._next_cut += 1
        self._frames.append(frame)
        most = self._largest_piece_frames + LIVE_SLACK_FRAMES
        self._look_for_a_stall()
        if frame.sequence < self._catch_up_until:
            most += CATCH_UP_FRAMES
        while self._live and len(self._frames) > most and self._frames[0].sequence >= self.next_sequence:
            self._hand_on(self._frames.popleft().controls)
            self._skip(1)
        self._send()

    def _controls_of(self, sequence: int) -> lm_pb2.StepControls | None:
        """What takes effect at the frame of this number."""
        controls, self._controls = self._controls, None
        if sequence < self.next_sequence:
            return None
        for number in sorted(number for number in self._ahead if number <= sequence):
            before = self._ahead.pop(number)
            controls = before if controls is None else merged(before, controls)
        return controls

    def _hand_on(self, controls: lm_pb2.StepControls | None) -> None:
        """A frame is skipped: its controls take effect at the next one, which waits behind it."""
        if controls is not None:
            following = self._frames[0]
            self._frames[0] = replace(following, controls=merged(controls, following.controls)
                                      if following.controls else controls)

    def _skip(self, frames: int) -> None:
        self.frames_skipped += frames
        self._observer.skipped(frames)

    async def _flush(self) -> None:
        """Fill up the last frame, and follow it with as many frames of silence as the delay line is long."""
        if len(self._rest):
            await self._add(np.pad(self._rest, (0, self.audio.samples_per_frame - len(self._rest))))
        if not self._next_cut:
            return
        silence = bytes(4 * self.audio.samples_per_frame)
        for sequence in range(self._next_cut, self._next_cut + self._delay_frames):
            self._frames.append(CallerFrame(sequence, silence, now_unix_nanos(), self._controls_of(sequence)))
