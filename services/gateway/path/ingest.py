"""From the caller's pieces of audio, in any size, to the model's frames.

A live caller who gets ahead of the mesh must hear the present, not the past: the queue here holds what one of the
caller's pieces brings plus a little slack, and drops the oldest frames beyond that. An offline caller is held back
instead, and loses nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from moshimesh.audio.v1 import audio_pb2

from services.mesh.clock import now_unix_nanos
from services.mesh.errors import InvalidRequest
from services.mesh.samples import check_samples

LONGEST_PIECE_MS = 1000
# Frames that may wait beyond those of one piece before a live call skips: 160 ms, about what a listener forgives.
LIVE_SLACK_FRAMES = 2
# Frames beyond those that may wait after a live call was held up by a lost replica, or is taken up again and repeats
# its last seconds: 10 s, 1 MB. They are heard faster than they were spoken; after as many frames a call is live again.
CATCH_UP_FRAMES = 125
STALLED_S = 0.4  # less than it takes to fill the queue, and far more than a frame is in a mesh that is only slow
# Frames that may be in the mesh at once. Three hops, each busy with one frame, keep the engines fed; one more covers
# the hand-overs. Beyond that a queue only adds delay.
IN_FLIGHT_FRAMES = 4

_SAMPLE_BYTES = {audio_pb2.AUDIO_ENCODING_PCM_F32LE: 4, audio_pb2.AUDIO_ENCODING_PCM_S16LE: 2}
_S16_SCALE = 32768.0

Pcm = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AudioFormat:
    """What the caller sends and gets: rate, layout, and the model's frame."""

    sample_rate_hertz: int
    samples_per_frame: int
    encoding: audio_pb2.AudioEncoding

    @property
    def frame_nanos(self) -> int:
        """Length of a frame."""
        return self.samples_per_frame * 1_000_000_000 // self.sample_rate_hertz

    @property
    def bytes_per_second(self) -> int:
        """Of the caller's audio."""
        return self.sample_rate_hertz * _SAMPLE_BYTES[self.encoding]

    def decode(self, data: bytes) -> Pcm:
        """A piece of the caller's audio as floats [samples].

        Raises:
            InvalidRequest: an odd byte count, NaN or infinity, or a piece that is too long or empty.
        """
        width = _SAMPLE_BYTES[self.encoding]
        if len(data) % width:
            raise InvalidRequest("BAD_PCM", f"a piece must have whole samples of {width} bytes, got {len(data)} bytes",
                                 field="audio.pcm", accepted=f"a multiple of {width} bytes")
        samples = len(data) // width
        longest = self.sample_rate_hertz * LONGEST_PIECE_MS // 1000
        if not 0 < samples <= longest:
            raise InvalidRequest("BAD_PCM", f"a piece must have 1 to {longest} samples ({LONGEST_PIECE_MS} ms), got "
                                 f"{samples}", field="audio.pcm", accepted=f"1..{longest} samples")
        if self.encoding == audio_pb2.AUDIO_ENCODING_PCM_S16LE:
            return np.frombuffer(data, dtype="<i2").astype(np.float32) / np.float32(_S16_SCALE)
        pcm = np.frombuffer(data, dtype="<f4")
        check_samples(pcm, "audio.pcm")
        return pcm

    def encode(self, pcm: bytes) -> bytes:
        """One frame of the model's audio, little-endian floats, in the caller's layout."""
        if self.encoding == audio_pb2.AUDIO_ENCODING_PCM_F32LE:
            return pcm
        scaled = np.rint(np.frombuffer(pcm, dtype="<f4") * np.float32(_S16_SCALE))
        return np.clip(scaled, -_S16_SCALE, _S16_SCALE - 1).astype("<i2").tobytes()


@dataclass(frozen=True)
class CallerFrame:
    """One frame as it was cut: its number, its audio [samples_per_frame], and when its last sample arrived."""

    sequence: int
    pcm: bytes
    received: int


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

    def __init__(self, audio: AudioFormat, live: bool, delay_frames: int, first_sequence: int = 0,
                 next_sequence: int = 0, now: Callable[[], float] = time.monotonic) -> None:
        """`first_sequence` is the number of the first frame to come, `next_sequence` of the first that the model has
        not heard yet: a call that is taken up again may repeat some, or have missed some.
        """
        self.next_sequence = next_sequence
        self.frames_skipped = max(first_sequence - next_sequence, 0)
        self.failure: Exception | None = None
        self._audio = audio
        self._live = live
        self._delay_frames = delay_frames
        self._rest: Pcm = np.zeros(0, dtype=np.float32)  # less than a frame
        self._next_cut = first_sequence
        self._now = now
        self._in_mesh = 0  # frames, never more than IN_FLIGHT_FRAMES
        self._progress = now()  # when the last one left it, or the first of these went there
        self._waits_since: float | None = None  # for the caller's next piece
        self._catch_up_until = max(first_sequence, next_sequence) + CATCH_UP_FRAMES if next_sequence else 0
        self._frames: deque[CallerFrame] = deque()
        self._largest_piece_frames = 1
        self._ended = False
        self._sink: FrameSink | None = None
        self._room = asyncio.Event()

    @property
    def idle_s(self) -> float:
        """For how long the caller has sent nothing, though it could have."""
        return 0.0 if self._waits_since is None else self._now() - self._waits_since

    @property
    def frames_heard(self) -> int:
        """Frames of the caller's own audio that went, or wait to go, to the model."""
        return max(self._next_cut - self.next_sequence, 0) - self.frames_skipped

    async def read(self, pieces: AsyncIterator[bytes]) -> None:
        """Take the caller's audio until it ends, then add the silence that flushes the model's delay line."""
        try:
            self._waits_since = self._now()
            async for data in pieces:
                self._waits_since = None
                piece = self._audio.decode(data)
                frame = self._audio.samples_per_frame
                self._largest_piece_frames = max(self._largest_piece_frames, -(-len(piece) // frame))
                self._rest = np.concatenate((self._rest, piece)) if len(self._rest) else piece
                while len(self._rest) >= frame:
                    await self._add(self._rest[:frame])
                    self._rest = self._rest[frame:]
                self._waits_since = self._now()
            await self._flush()
        except Exception as error:
            self.failure = error
        self._waits_since = None
        self._ended = True
        self._send()

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
        if self.failure is not None:
            self._sink = None
            sink.fail(self.failure)
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

    def _look_for_a_stall(self) -> None:
        """While frames are in the mesh and none leaves it, a replica is lost or hangs, and its session is moving."""
        if self._in_mesh and self._now() - self._progress > STALLED_S:
            self._catch_up_until = self._next_cut + CATCH_UP_FRAMES

    async def _add(self, pcm: Pcm) -> None:
        frame = CallerFrame(self._next_cut, pcm.astype("<f4", copy=False).tobytes(), now_unix_nanos())
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
            self._frames.popleft()
            self.frames_skipped += 1
        self._send()

    async def _flush(self) -> None:
        """Fill up the last frame, and follow it with as many frames of silence as the delay line is long."""
        if len(self._rest):
            await self._add(np.pad(self._rest, (0, self._audio.samples_per_frame - len(self._rest))))
        if not self._next_cut:
            return
        silence = bytes(4 * self._audio.samples_per_frame)
        for sequence in range(self._next_cut, self._next_cut + self._delay_frames):
            self._frames.append(CallerFrame(sequence, silence, now_unix_nanos()))
