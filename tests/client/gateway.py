"""A gateway that does what a test says, on a real port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
from moshimesh.audio.v1 import audio_pb2
from moshimesh.gateway.v1 import conversation_pb2 as pb
from moshimesh.gateway.v1 import conversation_pb2_grpc

RATE, SAMPLES_PER_FRAME = 24_000, 1920


def ready(**fields: object) -> pb.ConverseResponse:
    return pb.ConverseResponse(ready=pb.ConverseReady(
        session_id="test", sample_rate_hertz=RATE, samples_per_frame=SAMPLES_PER_FRAME, **fields))  # type: ignore


def speech(sequence: int) -> pb.ConverseResponse:
    return pb.ConverseResponse(speech=pb.SpeechFrame(
        context=audio_pb2.FrameContext(sequence=sequence), pcm=bytes(2 * SAMPLES_PER_FRAME), codes=range(8)))


def summary(frames_in: int) -> pb.ConverseResponse:
    return pb.ConverseResponse(summary=pb.ConverseSummary(frames_in=frames_in))


class Gateway(conversation_pb2_grpc.ConversationServiceServicer):
    """Takes the audio, and ends with a summary. Subclasses say what else."""

    def __init__(self, opens_after_s: float = 0.0) -> None:
        self._opens_after_s = opens_after_s
        self.calls = 0
        self.keys: list[str] = []
        self.configs: list[pb.ConverseConfig] = []
        self.pieces: list[bytes] = []
        self.came: list[float] = []
        """When each piece came, by the loop's clock."""
        self.opened = 0.0

    async def GetInfo(self, request: pb.GetInfoRequest, context: grpc.aio.ServicerContext) -> pb.GetInfoResponse:
        return pb.GetInfoResponse(model_id="test", sample_rate_hertz=RATE, samples_per_frame=SAMPLES_PER_FRAME)

    async def ListModels(self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
                         ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[
            pb.Model(model_id=f"test-{number}", codec_id="codec", slots_free=number) for number in (1, 2)])

    async def Converse(self, requests: AsyncIterator[pb.ConverseRequest], context: grpc.aio.ServicerContext
                       ) -> AsyncIterator[pb.ConverseResponse]:
        self.calls += 1
        self.keys += [str(value) for name, value in context.invocation_metadata() or () if name == "x-api-key"]
        self.configs.append((await anext(requests)).config)
        async for response in self.hold(requests, context):
            yield response

    async def hold(self, requests: AsyncIterator[pb.ConverseRequest], context: grpc.aio.ServicerContext
                   ) -> AsyncIterator[pb.ConverseResponse]:
        """The call after its config."""
        await asyncio.sleep(self._opens_after_s)
        self.opened = asyncio.get_running_loop().time()
        yield ready()
        async for request in requests:
            self.pieces.append(request.audio.pcm)
            self.came.append(asyncio.get_running_loop().time())
        yield summary(frames_in=-(-len(b"".join(self.pieces)) // (2 * SAMPLES_PER_FRAME)))


@contextlib.asynccontextmanager
async def serving(gateway: Gateway, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[str]:
    """Its host:port, in plain text unless it has credentials."""
    server = grpc.aio.server()
    conversation_pb2_grpc.add_ConversationServiceServicer_to_server(gateway, server)
    address = "127.0.0.1:0"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
