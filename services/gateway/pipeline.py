"""The map of the product: the way of a frame through the mesh, in order.

    caller's audio -> codec.Encode -> lm.Step -> codec.Decode -> Moshi's audio

Each stage is one bidi call, tunnelled with those of all other callers over one stream per replica; when the replica
drains or is lost, the stage moves (see stage.py) and the pipeline does not notice. A stage's requests are the answers
of the stage before it, so the frames of a call overlap: while one is decoded, the next is stepped.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.ingest import Ingest
from services.gateway.memory import DecoderMemory, EncoderMemory, LmMemory
from services.gateway.replicas import DECODE, ENCODE, STEP, Replicas
from services.gateway.stage import Change, Stage
from services.gateway.tracing import CallTrace
from services.mesh.clock import now_unix_nanos
from services.mesh.errors import MeshError


@dataclass(frozen=True)
class Speech:
    """One frame of the model's speech: audio as little-endian floats, text, and the tokens behind them."""

    context: audio_pb2.FrameContext
    pcm: bytes
    text: str
    text_token: int
    codes: list[int]


class Pipeline:
    """One call's three stages."""

    def __init__(self, session_id: str, model_id: str, codec: Replicas, lm: Replicas, lm_memory: LmMemory,
                 first_sequence: int, priming_frames: int, on_change: Callable[[str, Change], None],
                 trace: CallTrace) -> None:
        """`on_change` hears on which service a row was lost or has moved."""
        self._trace = trace
        self._encode = Stage(codec, ENCODE, model_id, EncoderMemory(session_id, first_sequence),
                             functools.partial(on_change, "codec"),
                             trace.server_of(audio_pb2.HOP_CODEC_ENCODE))
        self._step = Stage(lm, STEP, model_id, lm_memory, functools.partial(on_change, "lm"),
                           trace.server_of(audio_pb2.HOP_LM_STEP))
        self._decode = Stage(codec, DECODE, model_id, DecoderMemory(session_id, lm_memory.history, priming_frames),
                             functools.partial(on_change, "codec"),
                             trace.server_of(audio_pb2.HOP_CODEC_DECODE))

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

    async def converse(self, ingest: Ingest) -> AsyncIterator[Speech]:
        """Moshi's side of the conversation, frame by frame."""
        trace = self._trace
        said: deque[lm_pb2.StepFrame] = deque()  # steps whose audio is being decoded; bounded by ingest's in-flight

        async def pcm() -> AsyncIterator[codec_pb2.EncodeRequest]:
            async for frame in ingest.frames():
                now = now_unix_nanos()
                context = audio_pb2.FrameContext(sequence=frame.sequence, capture_unix_nanos=frame.received,
                                                 traceparent=trace.begin(frame.sequence))
                context.hops.add(hop=audio_pb2.HOP_GATEWAY_INGEST, received_unix_nanos=frame.received,
                                 dequeued_unix_nanos=now, started_unix_nanos=now,
                                 finished_unix_nanos=now_unix_nanos(), batch_size=1)
                yield codec_pb2.EncodeRequest(frame=audio_pb2.PcmFrame(context=context, pcm=frame.pcm))

        async def user_codes(frames: AsyncIterator[audio_pb2.CodeFrame]) -> AsyncIterator[lm_pb2.StepRequest]:
            async for frame in frames:
                if frame.context.sequence >= ingest.next_sequence:
                    yield lm_pb2.StepRequest(frame=frame)
                else:  # the model has heard it before the call was cut: only the codec had to hear it again
                    trace.end(frame.context)
                    ingest.answered()

        async def own_codes(steps: AsyncIterator[lm_pb2.StepFrame]) -> AsyncIterator[codec_pb2.DecodeRequest]:
            async for step in steps:
                if step.HasField("text_token"):
                    said.append(step)
                    yield codec_pb2.DecodeRequest(frame=step.frame)
                else:  # the delay line fills: nothing to say yet
                    trace.end(step.frame.context)
                    ingest.answered()

        steps = self._step.feed(user_codes(self._encode.feed(pcm())))
        async for audio in self._decode.feed(own_codes(steps)):
            step = said.popleft()
            received = now_unix_nanos()
            audio.context.hops.add(hop=audio_pb2.HOP_GATEWAY_EMIT, received_unix_nanos=received,
                                   dequeued_unix_nanos=received, started_unix_nanos=received,
                                   finished_unix_nanos=now_unix_nanos(), batch_size=1)
            yield Speech(audio.context, audio.pcm, step.text, step.text_token, list(step.frame.codes))
            trace.end(audio.context)
            ingest.answered()

    def fail(self, error: MeshError) -> None:
        """Let `converse` raise an error that comes from elsewhere."""
        self._decode.fail(error)

    def close(self) -> None:
        """End what is still open; the services take their slots back."""
        for stage in (self._encode, self._step, self._decode):
            stage.close()
