"""The map of the product: the way of a frame through the mesh, in order.

    caller's audio -> codec.Encode -> lm.Step -> codec.Decode -> Moshi's audio

Each stage is one bidi call, tunnelled with those of all other callers over one stream per replica; when the replica
drains or is lost, the stage moves (see stage.py) and the pipeline does not notice. A stage's answer is the next one's
request, handed on at once, so the frames of a call overlap: while one is decoded, the next is stepped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.path.audio import AudioFormat, Pcm
from services.gateway.path.ingest import CallerFrame, Ingest
from services.gateway.path.lease import Lease, Leaser
from services.gateway.path.memory import DecoderMemory, EncoderMemory, LmMemory
from services.gateway.path.observer import Observer
from services.gateway.path.stage import Next, Stage
from services.gateway.path.turns import Turns
from services.gateway.peers.fleet import Fleet
from services.gateway.peers.models import Model
from services.gateway.peers.replicas import DECODE, ENCODE, STEP, Replica
from services.gateway.sessions.history import History
from services.gateway.turns.events import EventKind, Happening
from services.mesh.clock import now_unix_nanos


@dataclass(frozen=True)
class Speech:
    """One frame of the model's speech."""

    context: audio_pb2.FrameContext
    """Number of the caller's frame that this answers, and the timings of its hops."""
    pcm: Pcm
    """Float32 [samples_per_frame]."""
    text: str
    text_token: int
    codes: list[int]
    frames_skipped: int
    """Frames of this call that were skipped so far."""


class Notice:
    """A message for the caller between two frames of speech; see `Pipeline.tell`."""


@dataclass(frozen=True)
class ConversationEvent(Notice):
    """Something that happened in the conversation. Comes right before the speech of the frame at which it was certain,
    so that a caller who resumes from the last speech misses none.
    """

    kind: EventKind
    sequence: int
    """The frame at which it began; may be some frames before the one at which it was certain."""
    at_ms: int
    """That frame's time on the caller's audio clock since the conversation began."""


class _End:
    """Every frame has been answered."""


@dataclass(frozen=True)
class Rows:
    """What a call holds of the mesh: a row in every service."""

    encoder: Lease[codec_pb2.EncodeRequest, codec_pb2.EncodeResponse]
    lm: Lease[lm_pb2.StepRequest, lm_pb2.StepResponse]
    decoder: Lease[codec_pb2.DecodeRequest, codec_pb2.DecodeResponse]

    @classmethod
    async def open(cls, fleet: Fleet, model: Model, session_id: str, sampling: lm_pb2.Sampling, history: History,
                   first_sequence: int, past: Sequence[Pcm] = ()) -> Rows:
        """Hold a row in every service; the encoder's has heard `past`, which begins with the frame first_sequence.

        Raises MeshError when one refuses; the others' rows are free again.
        """
        priming_frames = fleet.codec.info(model.codec_id).priming_frames
        leasers: tuple[Leaser[Any, Any], ...] = (
            Leaser(fleet.codec, ENCODE, model.codec_id, EncoderMemory(
                session_id, first_sequence, history.user_codebooks, past, priming_frames)),
            Leaser(fleet.lm, STEP, model.model_id, LmMemory(session_id, sampling, history)),
            Leaser(fleet.codec, DECODE, model.codec_id, DecoderMemory(session_id, history, priming_frames)))
        opening = [asyncio.ensure_future(leaser.lease(lambda: 0)) for leaser in leasers]
        try:
            leases = await asyncio.gather(*opening)
        except BaseException:
            for one in opening:  # else they would lease rows that no call needs any more
                one.cancel()
            for lease in await asyncio.gather(*opening, return_exceptions=True):
                if isinstance(lease, Lease):
                    lease.call.cancel()
            raise
        return cls(*leases)

    @property
    def codec_ready(self) -> codec_pb2.EncodeReady:
        """The codec's facts."""
        ready: codec_pb2.EncodeReady = self.encoder.ready
        return ready

    @property
    def lm_ready(self) -> lm_pb2.StepReady:
        """The model's facts."""
        ready: lm_pb2.StepReady = self.lm.ready
        return ready

    @property
    def audio(self) -> AudioFormat:
        """The model's rate and frame."""
        return AudioFormat(self.codec_ready.sample_rate_hertz, self.codec_ready.samples_per_frame)

    def close(self) -> None:
        """Give them back, also those that a pipeline has already left."""
        for lease in (self.encoder, self.lm, self.decoder):
            lease.call.cancel()


class Pipeline:
    """One call's three stages."""

    def __init__(self, rows: Rows, ingest: Ingest, observer: Observer, turns: Turns,
                 overheard: Callable[[CallerFrame], None]) -> None:
        """`overheard` gets each frame that the model hears, when it is sent on its way."""
        self._ingest, self._observer, self._turns, self._overheard = ingest, observer, turns, overheard
        self._frame_ms = ingest.audio.frame_nanos / 1_000_000
        self._directed: dict[int, lm_pb2.StepControls] = {}  # while their frames are being encoded, by sequence
        # Codes and controls that are being stepped, and steps whose audio is being decoded, each with what has become
        # certain with it; bounded as the next one is.
        self._heard: deque[tuple[Sequence[int], lm_pb2.StepControls | None]] = deque()
        self._said: deque[tuple[lm_pb2.StepFrame, list[Happening]]] = deque()
        self._happened: list[Happening] = []  # with steps that had no answer; the delay line is short
        # Bounded by ingest's frames in flight, one failure of each source, and a notice for each thing that changes.
        self._out: asyncio.Queue[audio_pb2.PcmFrame | Notice | Exception | _End] = asyncio.Queue()
        self._encode = Stage(rows.encoder, audio_pb2.HOP_CODEC_ENCODE,
                             Next(self._encoded, self._all_encoded, self.fail), observer)
        self._step = Stage(rows.lm, audio_pb2.HOP_LM_STEP,
                           Next(self._stepped, self._all_stepped, self.fail), observer)
        self._decode = Stage(rows.decoder, audio_pb2.HOP_CODEC_DECODE,
                             Next(self._out.put_nowait, self._all_decoded, self.fail), observer)

    async def converse(self) -> AsyncIterator[Speech | Notice]:
        """Moshi's side of the conversation, frame by frame, and what was told meanwhile. Raises MeshError."""
        self._ingest.send_to(self)
        while not isinstance(out := await self._out.get(), _End):
            if isinstance(out, Exception):
                raise out
            if isinstance(out, Notice):
                yield out
                continue
            step, happened = self._said.popleft()
            for one in happened:
                self._observer.happened(one.kind)
                yield ConversationEvent(one.kind, one.sequence, round(one.sequence * self._frame_ms))
            emitted = now_unix_nanos()
            out.context.hops.add(hop=audio_pb2.HOP_GATEWAY_EMIT, received_unix_nanos=emitted,
                                 dequeued_unix_nanos=emitted, started_unix_nanos=emitted,
                                 finished_unix_nanos=now_unix_nanos(), batch_size=1)
            yield Speech(out.context, np.frombuffer(out.pcm, dtype="<f4"), step.text, step.text_token,
                         list(step.frame.codes), self._ingest.frames_skipped)
            self._left(out.context)

    # The way of a frame:

    def send(self, frame: CallerFrame) -> None:
        """Send a frame on its way. `converse` yields its answer, if there is one, and `Ingest.answered` hears of it."""
        sent_unix_nanos = now_unix_nanos()
        context = audio_pb2.FrameContext(sequence=frame.sequence, capture_unix_nanos=frame.received_unix_nanos,
                                         traceparent=self._observer.entered(frame.sequence))
        context.hops.add(hop=audio_pb2.HOP_GATEWAY_INGEST, received_unix_nanos=frame.received_unix_nanos,
                         dequeued_unix_nanos=sent_unix_nanos, started_unix_nanos=sent_unix_nanos,
                         finished_unix_nanos=now_unix_nanos(), batch_size=1)
        if frame.controls is not None:
            self._directed[frame.sequence] = frame.controls
        self._encode.send(codec_pb2.EncodeRequest(frame=audio_pb2.PcmFrame(context=context, pcm=frame.pcm)))
        if frame.sequence >= self._ingest.next_sequence:
            self._overheard(frame)

    def _encoded(self, frame: audio_pb2.CodeFrame) -> None:
        if frame.context.sequence >= self._ingest.next_sequence:
            request = lm_pb2.StepRequest()
            request.step.frame.CopyFrom(frame)
            controls = self._directed.pop(frame.context.sequence, None) if self._directed else None
            if controls is not None:
                request.step.controls.CopyFrom(controls)
            self._heard.append((frame.codes, controls))
            self._step.send(request)
        else:  # the model has heard it before the call was cut: only the codec had to hear it again
            self._left(frame.context)

    def _stepped(self, step: lm_pb2.StepFrame) -> None:
        answered = step.HasField("text_token")
        heard, controls = self._heard.popleft()
        self._happened += self._turns.step(step.frame.context.sequence, heard,
                                           [step.text_token, *step.frame.codes] if answered else None, controls)
        if answered:
            self._said.append((step, self._happened))
            self._happened = []
            self._decode.send(codec_pb2.DecodeRequest(frame=step.frame))
        else:  # the delay line fills: nothing to say yet
            self._left(step.frame.context)

    def _left(self, context: audio_pb2.FrameContext) -> None:
        self._observer.left(context)
        self._ingest.answered()

    # The end of it: each stage ends when the one before has, and all its requests are answered.

    def end(self) -> None:
        """No more frames come: `converse` ends after the last answer."""
        self._encode.half_close()

    def _all_encoded(self) -> None:
        self._step.half_close()

    def _all_stepped(self) -> None:
        self._decode.half_close()

    def _all_decoded(self) -> None:
        self._out.put_nowait(_End())

    # From elsewhere:

    def fail(self, error: Exception) -> None:
        """Let `converse` raise an error, after the answers that are there."""
        self._out.put_nowait(error)

    def tell(self, notice: Notice) -> None:
        """Let `converse` yield a notice soon, whether there is speech or not."""
        self._out.put_nowait(notice)

    def skip_none(self) -> None:
        """Skip no frame for a while, see Ingest.catch_up."""
        self._ingest.catch_up()

    def leave(self, replica: Replica) -> bool:
        """Let the stages that are at a replica try to move. Whether one tries."""
        return any([stage.leave(replica) for stage in (self._encode, self._step, self._decode)])

    def close(self) -> None:
        """End what is still open; the services take their slots back."""
        for stage in (self._encode, self._step, self._decode):
            stage.close()
