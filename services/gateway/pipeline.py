"""The map of the product: the way of a frame through the mesh, in order.

    caller's audio -> codec.Encode -> lm.Step -> codec.Decode -> Moshi's audio

Each stage is one bidi call, tunnelled with those of all other callers over one stream per service. A stage's requests
are the answers of the stage before it, so the frames of a call overlap: while one is decoded, the next is stepped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Generic

from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.ingest import Ingest
from services.gateway.tracing import CallTrace
from services.gateway.tunnel import Method, RequestMessage, ResponseMessage, Tunnel
from services.mesh.clock import now_unix_nanos

ENCODE = Method("/moshimesh.codec.v1.CodecService/Encode", codec_pb2.EncodeRequest, codec_pb2.EncodeResponse)
STEP = Method("/moshimesh.lm.v1.LmService/Step", lm_pb2.StepRequest, lm_pb2.StepResponse)
DECODE = Method("/moshimesh.codec.v1.CodecService/Decode", codec_pb2.DecodeRequest, codec_pb2.DecodeResponse)


@dataclass(frozen=True)
class Speech:
    """One frame of the model's speech: audio as little-endian floats, text, and the tokens behind them."""

    context: audio_pb2.FrameContext
    pcm: bytes
    text: str
    text_token: int
    codes: list[int]


class Stage(Generic[RequestMessage, ResponseMessage]):
    """One session on one service: opened first, fed later."""

    def __init__(self, tunnel: Tunnel, method: Method[RequestMessage, ResponseMessage], config: RequestMessage) -> None:
        self._call = tunnel.call(method)
        self._call.send(config)
        self._responses = self._call.responses()
        self._pumping: asyncio.Task[None] | None = None

    async def open(self) -> Any:
        """The service's ready message: the session holds a slot. Raises MeshError when it refuses or is lost."""
        response: Any = await self._responses.__anext__()
        return response.ready

    async def feed(self, requests: AsyncIterator[RequestMessage]) -> AsyncIterator[Any]:
        """Send the requests and yield the answers' frames.

        Raises what this stage or an earlier one failed with: `requests` are an earlier stage's answers.
        """
        self._pumping = asyncio.create_task(self._pump(requests))
        async for response in self._responses:
            kind = response.WhichOneof("response")
            if kind != "summary":
                yield getattr(response, kind)

    def close(self) -> None:
        """End the session if it is still open; the service takes its slot back."""
        if self._pumping is not None:
            self._pumping.cancel()
        self._call.cancel()

    async def _pump(self, requests: AsyncIterator[RequestMessage]) -> None:
        try:
            async for request in requests:
                self._call.send(request)
            self._call.half_close()
        except Exception as error:
            self._call.fail(error)


class Pipeline:
    """One call's three stages."""

    def __init__(self, session_id: str, codec: Tunnel, lm: Tunnel, sampling: lm_pb2.Sampling) -> None:
        self._encode = Stage(codec, ENCODE, codec_pb2.EncodeRequest(config=codec_pb2.EncodeConfig(
            session_id=session_id, reset_after_first_frame=True)))
        self._step = Stage(lm, STEP, lm_pb2.StepRequest(config=lm_pb2.StepConfig(
            session_id=session_id, sampling=sampling)))
        self._decode = Stage(codec, DECODE, codec_pb2.DecodeRequest(config=codec_pb2.DecodeConfig(
            session_id=session_id)))

    async def open(self) -> tuple[codec_pb2.EncodeReady, lm_pb2.StepReady]:
        """Hold a slot in every service. Raises MeshError when one refuses."""
        encode, step, _ = await asyncio.gather(self._encode.open(), self._step.open(), self._decode.open())
        return encode, step

    async def converse(self, ingest: Ingest, trace: CallTrace) -> AsyncIterator[Speech]:
        """Moshi's side of the conversation, frame by frame."""
        said: deque[lm_pb2.StepFrame] = deque()  # steps whose audio is being decoded; bounded by ingest's in-flight

        async def pcm() -> AsyncIterator[codec_pb2.EncodeRequest]:
            async for frame in ingest.frames():
                now = now_unix_nanos()
                context = audio_pb2.FrameContext(sequence=frame.sequence, capture_unix_nanos=frame.received,
                                                 traceparent=trace.begin(frame.sequence, frame.received))
                context.hops.add(hop=audio_pb2.HOP_GATEWAY_INGEST, received_unix_nanos=frame.received,
                                 dequeued_unix_nanos=now, started_unix_nanos=now,
                                 finished_unix_nanos=now_unix_nanos(), batch_size=1)
                yield codec_pb2.EncodeRequest(frame=audio_pb2.PcmFrame(context=context, pcm=frame.pcm))

        async def own_codes(steps: AsyncIterator[lm_pb2.StepFrame]) -> AsyncIterator[codec_pb2.DecodeRequest]:
            async for step in steps:
                if step.HasField("text_token"):
                    said.append(step)
                    yield codec_pb2.DecodeRequest(frame=step.frame)
                else:  # the delay line fills: nothing to say yet
                    trace.end(step.frame.context)
                    ingest.answered()

        codes = self._encode.feed(pcm())
        steps = self._step.feed(lm_pb2.StepRequest(frame=frame) async for frame in codes)
        async for audio in self._decode.feed(own_codes(steps)):
            step = said.popleft()
            received = now_unix_nanos()
            audio.context.hops.add(hop=audio_pb2.HOP_GATEWAY_EMIT, received_unix_nanos=received,
                                   dequeued_unix_nanos=received, started_unix_nanos=received,
                                   finished_unix_nanos=now_unix_nanos(), batch_size=1)
            yield Speech(audio.context, audio.pcm, step.text, step.text_token, list(step.frame.codes))
            trace.end(audio.context)
            ingest.answered()

    def close(self) -> None:
        """End what is still open; the services take their slots back."""
        for stage in (self._encode, self._step, self._decode):
            stage.close()
