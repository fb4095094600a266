"""The gateway's gRPC face: conversations."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator

import grpc
from moshimesh.audio.v1 import audio_pb2
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc

from services.gateway.calls.conversation import Conversation, Mesh
from services.gateway.calls.limits import Limits
from services.gateway.edges.farewell import Requests, with_farewell
from services.gateway.peers.replicas import common_model
from services.gateway.sessions.sealing import Handle
from services.gateway.watching.metering import GatewayMetrics
from services.gateway.watching.tracing import CallTrace
from services.mesh import logs
from services.mesh.errors import Draining, InvalidRequest, MeshError
from services.mesh.serving import Context, read_config_message, read_payloads, stream
from services.mesh.telemetry import FrameTracer

FULL_NAME = conversation_pb2.DESCRIPTOR.services_by_name["ConversationService"].full_name
KEY_HEADER = "x-api-key"
MOST_FRAMES = 1 << 24  # of one conversation, 15 days; the language model's positions go no further


class GatewayServer(conversation_pb2_grpc.ConversationServiceServicer):
    """Converse over all replicas of the codec and of the language model."""

    full_name = FULL_NAME

    def __init__(self, mesh: Mesh, limits: Limits, tracer: FrameTracer, metrics: GatewayMetrics, *,
                 stall_s: float, drain_s: float, trace_one_in: int) -> None:
        self.stall_s = stall_s
        self._drain_s = drain_s
        self._mesh, self._limits = mesh, limits
        self._tracer, self._metrics = tracer, metrics
        self._trace_one_in = trace_one_in
        self._draining = False
        self._conversations: set[Conversation] = set()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the handlers to a server."""
        conversation_pb2_grpc.add_ConversationServiceServicer_to_server(self, server)

    def drain(self) -> None:
        """Take nobody new, and ask those who are here to reconnect: another gateway finds their sessions in Redis."""
        self._draining = True
        for conversation in self._conversations:
            conversation.go_away(self._drain_s)
        asyncio.get_running_loop().call_later(self._drain_s, self._end_all)

    def _end_all(self) -> None:
        for conversation in self._conversations:
            conversation.end(Draining("this gateway stops now; connect again to reach another one"))

    async def close(self) -> None:
        """Write the last records and spans."""
        await self._mesh.sessions.close()
        self._tracer.close()

    async def GetInfo(self, request: conversation_pb2.GetInfoRequest, context: Context
                      ) -> conversation_pb2.GetInfoResponse:
        """Facts about the mesh, and its room."""
        await asyncio.gather(self._mesh.codec.refresh(), self._mesh.lm.refresh())
        try:
            model_id = common_model((self._mesh.codec, self._mesh.lm))
        except MeshError as error:
            await error.abort(context)
        codec = self._mesh.codec.info(model_id)
        slots_total, slots_free = self._mesh.slots(model_id)
        return conversation_pb2.GetInfoResponse(
            model_id=model_id, sample_rate_hertz=codec.sample_rate_hertz, samples_per_frame=codec.samples_per_frame,
            slots_total=slots_total, slots_free=slots_free)

    @stream
    async def Converse(self, requests: AsyncIterator[conversation_pb2.ConverseRequest], context: Context
                       ) -> AsyncIterator[conversation_pb2.ConverseResponse]:
        """One conversation, new or taken up again."""
        async with Requests(requests) as inbox, contextlib.aclosing(
                with_farewell(self._converse(inbox, context), inbox, "Converse")) as responses:
            async for response in responses:
                yield response

    async def _converse(self, requests: AsyncIterator[conversation_pb2.ConverseRequest], context: Context
                        ) -> AsyncGenerator[conversation_pb2.ConverseResponse, None]:
        config: conversation_pb2.ConverseConfig = await read_config_message(requests)
        _check(config)
        if self._draining:
            raise Draining("this gateway is stopping; connect again to reach another one")
        call_id = secrets.token_hex(16)
        trace = CallTrace(self._tracer, call_id, config.traceparent, self._trace_one_in)
        logs.bind(call_id, config.traceparent)
        meter = self._metrics.call(config.pacing != conversation_pb2.PACING_OFFLINE, bool(config.resume_handle))
        handle = Handle(config.resume_handle) if config.resume_handle else Handle.new()
        conversation = Conversation(self._mesh, handle, call_id, config, trace, meter)
        self._conversations.add(conversation)
        try:
            async with meter, self._limits.admit(_key(context), handle.name):
                responses = conversation.hold(chunk.pcm async for chunk in read_payloads(requests, "audio"))
                try:
                    async for response in responses:
                        yield response
                finally:
                    await responses.aclose()
        finally:
            self._conversations.discard(conversation)
            trace.close()


def _key(context: Context) -> str:
    """The caller's API key; empty when there is none."""
    for name, value in context.invocation_metadata() or ():
        if name == KEY_HEADER:
            return str(value)
    return ""


def _check(config: conversation_pb2.ConverseConfig) -> None:
    if config.encoding not in audio_pb2.AudioEncoding.values():
        raise InvalidRequest("BAD_ENCODING", f"encoding {config.encoding} is not one that this mesh knows",
                             field="config.encoding")
    if config.pacing not in conversation_pb2.Pacing.values():
        raise InvalidRequest("BAD_PACING", f"pacing {config.pacing} is not one that this mesh knows",
                             field="config.pacing")
    for field in ("first_sequence", "answered_sequence"):
        if getattr(config, field) > MOST_FRAMES:
            raise InvalidRequest("BAD_SEQUENCE", f"{field} must be at most {MOST_FRAMES}, got {getattr(config, field)}",
                                 field=f"config.{field}", accepted=f"0..{MOST_FRAMES}")
    if not config.resume_handle and (config.first_sequence or config.HasField("answered_sequence")):
        raise InvalidRequest("RESUME_HANDLE_MISSING", "first_sequence and answered_sequence belong to a resume_handle",
                             field="config.resume_handle")
