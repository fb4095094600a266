"""The map of the product: the way of a frame through the mesh, in order.

    caller's audio -> codec.Encode -> lm.Step -> codec.Decode -> Moshi's audio

Each arrow is one bidi stream per call. A stage's requests are the answers of the stage before it, so the frames of a
call overlap: while one is decoded, the next is stepped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from moshimesh.audio.v1 import audio_pb2
from moshimesh.codec.v1 import codec_pb2, codec_pb2_grpc
from moshimesh.lm.v1 import lm_pb2, lm_pb2_grpc

from services.gateway.ingest import Ingest
from services.gateway.tracing import CallTrace
from services.mesh.clock import now_unix_nanos
from services.mesh.errors import MeshError, PeerLost, from_rpc_error

Ready = TypeVar("Ready")
Frame = TypeVar("Frame")


@dataclass(frozen=True)
class Speech:
    """One frame of the model's speech: audio as little-endian floats, text, and the tokens behind them."""

    context: audio_pb2.FrameContext
    pcm: bytes
    text: str
    text_token: int
    codes: list[int]


class Stage(Generic[Ready, Frame]):
    """One session on one service: a bidi call that is opened first and fed later."""

    def __init__(self, peer: str, method: Callable[[AsyncIterator[Any]], Any], config_request: Any) -> None:
        self.peer = peer
        self._source: asyncio.Future[AsyncIterator[Any]] = asyncio.get_running_loop().create_future()
        self.call = method(self._requests(config_request))
        self._responses: AsyncIterator[Any] = self.call.__aiter__()

    async def open(self) -> Ready:
        """The service's ready message: the session holds a slot.

        Raises:
            MeshError: the service refused or is lost.
        """
        try:
            response = await self._responses.__anext__()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.peer) from None
        except StopAsyncIteration:
            raise PeerLost(f"{self.peer} ended the call before it was ready", peer=self.peer) from None
        ready: Ready = response.ready
        return ready

    async def feed(self, requests: AsyncIterator[Any]) -> AsyncIterator[Frame]:
        """Send the requests and yield the answers' frames; ends after the service's summary."""
        self._source.set_result(requests)
        async for response in self._responses:
            kind = response.WhichOneof("response")
            if kind != "summary":
                yield getattr(response, kind)

    async def failure(self) -> MeshError | None:
        """What the service ended the call with; None when it is still open, ended well, or was cancelled."""
        if not self.call.done():
            return None
        code = await self.call.code()
        if code in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
            return None
        error = grpc.aio.AioRpcError(code, await self.call.initial_metadata(), await self.call.trailing_metadata(),
                                     await self.call.details())
        return from_rpc_error(error, self.peer)

    async def _requests(self, config_request: Any) -> AsyncIterator[Any]:
        yield config_request
        async for request in await self._source:
            if self.call.done():  # a write now would hide the status: https://github.com/grpc/grpc/issues/36066
                return
            yield request


class Pipeline:
    """One call's three stages."""

    def __init__(self, session_id: str, codec: codec_pb2_grpc.CodecServiceStub, lm: lm_pb2_grpc.LmServiceStub,
                 sampling: lm_pb2.Sampling) -> None:
        self._encode: Stage[codec_pb2.EncodeReady, audio_pb2.CodeFrame] = Stage(
            "codec", codec.Encode, codec_pb2.EncodeRequest(config=codec_pb2.EncodeConfig(
                session_id=session_id, reset_after_first_frame=True)))
        self._step: Stage[lm_pb2.StepReady, lm_pb2.StepFrame] = Stage(
            "lm", lm.Step, lm_pb2.StepRequest(config=lm_pb2.StepConfig(session_id=session_id, sampling=sampling)))
        self._decode: Stage[codec_pb2.DecodeReady, audio_pb2.PcmFrame] = Stage(
            "codec", codec.Decode, codec_pb2.DecodeRequest(config=codec_pb2.DecodeConfig(session_id=session_id)))

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

    async def failure(self) -> MeshError | None:
        """Why the pipeline broke: the first stage's failure, since a broken stage cancels those behind it."""
        for stage in (self._encode, self._step, self._decode):
            with contextlib.suppress(asyncio.CancelledError):
                failure = await stage.failure()
                if failure:
                    return failure
        return None

    def close(self) -> None:
        """End what is still open; the services take their slots back."""
        for stage in (self._encode, self._step, self._decode):
            stage.call.cancel()
