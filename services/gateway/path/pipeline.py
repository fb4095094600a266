"""The map of the product: the way of a frame through the mesh, in order.

    caller's audio -> codec.Encode -> lm.Step -> codec.Decode -> Moshi's audio

Each stage is one bidi call, tunnelled with those of all other callers over one stream per replica; when the replica
drains or is lost, the stage moves (see stage.py) and the pipeline does not notice. A stage's answer is the next one's
request, handed on at once, so the frames of a call overlap: while one is decoded, the next is stepped.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.path.ingest import CallerFrame, Ingest
from services.gateway.path.memory import DecoderMemory, EncoderMemory, LmMemory
from services.gateway.path.stage import Change, Next, Stage
from services.gateway.peers.replicas import DECODE, ENCODE, STEP, Replicas
from services.gateway.watching.metering import CallMeter
from services.gateway.watching.tracing import CallTrace
from services.mesh.clock import now_unix_nanos


@dataclass(frozen=True)
class Speech:
    """One frame of the model's speech: audio as little-endian floats, text, and the tokens behind them."""

    context: audio_pb2.FrameContext
    pcm: bytes
    text: str
    text_token: int
    codes: list[int]


class _Nudge:
    """The reader has something else to do."""


class Pipeline:
    """One call's three stages."""

    def __init__(self, session_id: str, model_id: str, codec: Replicas, lm: Replicas, lm_memory: LmMemory,
                 first_sequence: int, priming_frames: int, trace: CallTrace, meter: CallMeter) -> None:
        self._trace, self._meter = trace, meter
        self._ingest: Ingest | None = None
        self._said: deque[lm_pb2.StepFrame] = deque()  # steps whose audio is being decoded; bounded as the next one is
        # Decoded frames, failures, nudges and the end; bounded by ingest's frames in flight, and a few nudges.
        self._out: asyncio.Queue[audio_pb2.PcmFrame | Exception | _Nudge | None] = asyncio.Queue()
        self._decode = Stage(codec, DECODE, model_id, DecoderMemory(session_id, lm_memory.history, priming_frames),
                             Next(self._out.put_nowait, lambda: self._out.put_nowait(None), self.fail),
                             functools.partial(self._moved, "codec"), trace.server_of(audio_pb2.HOP_CODEC_DECODE))
        self._step = Stage(lm, STEP, model_id, lm_memory, Next(self._stepped, self._decode.half_close, self.fail),
                           functools.partial(self._moved, "lm"), trace.server_of(audio_pb2.HOP_LM_STEP))
        self._encode = Stage(codec, ENCODE, model_id, EncoderMemory(session_id, first_sequence),
                             Next(self._encoded, self._step.half_close, self.fail),
                             functools.partial(self._moved, "codec"), trace.server_of(audio_pb2.HOP_CODEC_ENCODE))

    async def open(self) -> tuple[codec_pb2.EncodeReady, lm_pb2.StepReady]:
        """Hold a slot in every service. Raises MeshError when one refuses."""
        opening = [asyncio.ensure_future(stage.open()) for stage in (self._encode, self._step, self._decode)]
        try:
            encode, step, _ = await asyncio.gather(*opening)
        except BaseException:
            for one in opening:  # else they would get their slots when nobody wants them any more
                one.cancel()
            await asyncio.gather(*opening, return_exceptions=True)
            raise
        return encode, step

    async def converse(self, ingest: Ingest) -> AsyncIterator[Speech | None]:
        """Moshi's side of the conversation, frame by frame, and None after a `nudge`."""
        self._ingest = ingest
        ingest.send_to(self)
        while (audio := await self._out.get()) is not None:
            if isinstance(audio, Exception):
                raise audio
            if isinstance(audio, _Nudge):
                yield None
                continue
            step = self._said.popleft()
            received = now_unix_nanos()
            audio.context.hops.add(hop=audio_pb2.HOP_GATEWAY_EMIT, received_unix_nanos=received,
                                   dequeued_unix_nanos=received, started_unix_nanos=received,
                                   finished_unix_nanos=now_unix_nanos(), batch_size=1)
            yield Speech(audio.context, audio.pcm, step.text, step.text_token, list(step.frame.codes))
            self._meter.frame(audio.context, self._trace.end(audio.context))
            ingest.answered()

    def send(self, frame: CallerFrame) -> None:
        """Send a frame on its way. `converse` yields its answer, if there is one, and `Ingest.answered` hears of it."""
        now = now_unix_nanos()
        context = audio_pb2.FrameContext(sequence=frame.sequence, capture_unix_nanos=frame.received,
                                         traceparent=self._trace.begin(frame.sequence))
        context.hops.add(hop=audio_pb2.HOP_GATEWAY_INGEST, received_unix_nanos=frame.received, dequeued_unix_nanos=now,
                         started_unix_nanos=now, finished_unix_nanos=now_unix_nanos(), batch_size=1)
        self._encode.send(codec_pb2.EncodeRequest(frame=audio_pb2.PcmFrame(context=context, pcm=frame.pcm)))

    def end(self) -> None:
        """No more frames come: `converse` ends behind the last answer."""
        self._encode.half_close()

    def fail(self, error: Exception) -> None:
        """Let `converse` raise an error that comes from elsewhere, behind the answers that are there."""
        self._out.put_nowait(error)

    def nudge(self) -> None:
        """Let `converse` yield None soon, whether there is speech or not."""
        self._out.put_nowait(_Nudge())

    def _encoded(self, frame: audio_pb2.CodeFrame) -> None:
        assert self._ingest is not None
        if frame.context.sequence >= self._ingest.next_sequence:
            self._step.send(lm_pb2.StepRequest(frame=frame))
        else:  # the model has heard it before the call was cut: only the codec had to hear it again
            self._ends_here(frame.context)

    def _stepped(self, step: lm_pb2.StepFrame) -> None:
        if step.HasField("text_token"):
            self._said.append(step)
            self._decode.send(codec_pb2.DecodeRequest(frame=step.frame))
        else:  # the delay line fills: nothing to say yet
            self._ends_here(step.frame.context)

    def _ends_here(self, context: audio_pb2.FrameContext) -> None:
        assert self._ingest is not None
        self._trace.end(context)
        self._ingest.answered()

    def close(self) -> None:
        """End what is still open; the services take their slots back."""
        for stage in (self._encode, self._step, self._decode):
            stage.close()

    def _moved(self, service: str, change: Change) -> None:
        self._trace.changed(service, change)
        self._meter.moved(service, change)
