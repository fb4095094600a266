"""The gRPC edge: ConversationService's messages to the desk's plain values, and back."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from urllib.parse import unquote

from moshimesh.gateway.v1 import conversation_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls import events
from services.gateway.calls.callers import (
    Audio,
    Caller,
    Control,
    Forked,
    Input,
    Interrupt,
    New,
    Opening,
    PastAhead,
    PlayedOut,
    Resumed,
    Say,
    SetSampling,
)
from services.gateway.calls.desk import Desk
from services.gateway.edges import listening, replay
from services.gateway.edges.farewell import Requests, with_farewell
from services.gateway.edges.messages import conversation_event, format_of, speech_frame
from services.gateway.edges.own_rate import hold_at
from services.gateway.edges.pcm import Format, Pieces
from services.gateway.edges.web.credentials import key_or_token
from services.gateway.trust.addresses import counted_as
from services.gateway.trust.gate import Gate
from services.mesh.errors import InvalidRequest
from services.mesh.incoming import Incoming, Sender, read_config_message
from services.mesh.serving import Service

DESCRIPTOR = conversation_pb2.DESCRIPTOR.services_by_name["ConversationService"]


class GrpcEdge:
    """ConversationService over one desk."""

    def __init__(self, desk: Desk, gate: Gate, stall_s: float) -> None:
        self.services = (Service(DESCRIPTOR, {
            "GetInfo": self.get_info, "ListModels": self.list_models, "ListVoices": self.list_voices,
            "Converse": self.converse, "Export": self.export, "Forget": self.forget, "Replay": self.replay,
            "Grant": self.grant, "Listen": self.listen}, stall_s),)
        self._desk, self._gate = desk, gate

    def drain(self) -> None:
        """Take no new calls."""
        self._desk.drain()

    async def close(self) -> None:
        """Give back what the desk holds."""
        await self._desk.close()

    async def get_info(self, request: conversation_pb2.GetInfoRequest, sender: Sender
                       ) -> conversation_pb2.GetInfoResponse:
        """Facts about the mesh, and its room."""
        await self._caller(sender)
        return conversation_pb2.GetInfoResponse(**vars(await self._desk.info()))

    async def list_models(self, request: conversation_pb2.ListModelsRequest, sender: Sender
                          ) -> conversation_pb2.ListModelsResponse:
        """The models that conversations can have, and their room."""
        await self._caller(sender)
        return conversation_pb2.ListModelsResponse(
            models=[conversation_pb2.Model(**vars(info)) for info in await self._desk.models()])

    async def list_voices(self, request: conversation_pb2.ListVoicesRequest, sender: Sender
                          ) -> conversation_pb2.ListVoicesResponse:
        """The voices that conversations can begin with."""
        await self._caller(sender)
        return conversation_pb2.ListVoicesResponse(voices=[
            conversation_pb2.Voice(name=voice.name, duration_ms=voice.duration_ms) for voice in self._desk.voices])

    async def converse(self, requests: Incoming[conversation_pb2.ConverseRequest]
                       ) -> AsyncGenerator[conversation_pb2.ConverseResponse, None]:
        """One conversation, new or resumed."""
        caller = await self._caller(requests.sender)
        async with Requests(requests) as inbox, contextlib.aclosing(
                with_farewell(self._converse(inbox, caller), inbox, "Converse")) as responses:
            async for response in responses:
                yield response

    async def export(self, request: conversation_pb2.ExportRequest, sender: Sender
                     ) -> conversation_pb2.ExportResponse:
        """What is kept of a conversation."""
        return await replay.export(self._desk, await self._caller(sender), request)

    async def forget(self, request: conversation_pb2.ForgetRequest, sender: Sender
                     ) -> conversation_pb2.ForgetResponse:
        """End and erase a conversation."""
        await self._desk.forget(await self._caller(sender), request.resume_handle)
        return conversation_pb2.ForgetResponse()

    async def replay(self, requests: Incoming[conversation_pb2.ReplayRequest]
                     ) -> AsyncGenerator[conversation_pb2.ReplayResponse, None]:
        """A recorded conversation, stepped again."""
        caller = await self._caller(requests.sender)
        async with contextlib.aclosing(replay.replay(self._desk, caller, requests)) as responses:
            async for response in responses:
                yield response

    async def grant(self, request: conversation_pb2.GrantRequest, sender: Sender) -> conversation_pb2.GrantResponse:
        """A grant to listen to a conversation."""
        return await listening.grant(self._desk, await self._caller(sender), request)

    async def listen(self, request: conversation_pb2.ListenRequest, sender: Sender
                     ) -> AsyncGenerator[conversation_pb2.ListenResponse, None]:
        """A live conversation, for who has a grant."""
        caller = await self._caller(sender)
        async with contextlib.aclosing(listening.listen(self._desk, caller, request)) as responses:
            async for response in responses:
                yield response

    async def _caller(self, sender: Sender) -> Caller:
        """Who calls. Raises what the gate raises."""
        return await self._gate.caller(key_or_token(sender.metadata), host_of(sender.peer), "grpc")

    async def _converse(self, requests: Requests, caller: Caller
                        ) -> AsyncGenerator[conversation_pb2.ConverseResponse, None]:
        config: conversation_pb2.ConverseConfig = await read_config_message(requests)
        format = format_of(config.encoding, "config.encoding")
        opening, rate = _opening(config), config.sample_rate_hertz
        pieces = Pieces(format, rate)
        inputs = (_input(request, pieces) async for request in requests)
        async with contextlib.aclosing(hold_at(self._desk, caller, opening, rate, inputs)) as told:
            async for event in told:
                yield _response(event, format)


def host_of(peer: str) -> str:
    """The host, as limits count it, in what gRPC calls a peer: ipv4:127.0.0.1:50050, ipv6:%5B::1%5D:50050,
    unix:/a/path.
    """
    kind, _, rest = unquote(peer).partition(":")
    return counted_as(rest.rpartition(":")[0].strip("[]")) if kind in ("ipv4", "ipv6") else rest


def _opening(config: conversation_pb2.ConverseConfig) -> Opening:
    """What the caller asks for. Raises InvalidRequest."""
    if config.pacing not in conversation_pb2.Pacing.values():
        raise InvalidRequest("BAD_PACING", f"pacing {config.pacing} is not one that this mesh knows",
                             field="config.pacing")
    answered = config.answered_sequence if config.HasField("answered_sequence") else None
    if config.fork_handle:
        if config.resume_handle:
            raise InvalidRequest("BAD_FORK", "a conversation is resumed or copied, not both",
                                 field="config.fork_handle")
        origin: New | Resumed = Forked(config.fork_handle, config.first_sequence, answered, _sampling(config.sampling))
    elif config.resume_handle:
        past = PastAhead(config.past_frames, config.sample_rate_hertz) if config.past_frames else None
        origin = Resumed(config.resume_handle, config.first_sequence, answered, past=past)
    elif config.first_sequence or answered is not None:
        raise InvalidRequest("RESUME_HANDLE_MISSING", "first_sequence and answered_sequence belong to a resume_handle",
                             field="config.resume_handle")
    else:
        origin = New(_sampling(config.sampling), config.model, config.voice, config.text_prompt)
    return Opening(origin, live=config.pacing != conversation_pb2.PACING_OFFLINE, traceparent=config.traceparent)


def _sampling(asked: lm_pb2.Sampling) -> lm_pb2.Sampling:
    """Field by field: fields that this mesh does not know go no further."""
    return lm_pb2.Sampling(**{field.name: value for field, value in asked.ListFields()})


def _input(request: conversation_pb2.ConverseRequest, pieces: Pieces) -> Input:
    """A message after the config. Raises InvalidRequest."""
    kind = request.WhichOneof("request")
    if kind == "audio":
        return Audio(pieces.decode(request.audio.pcm))
    if kind == "control":
        return _control(request.control)
    if kind == "config":
        raise InvalidRequest("CONFIG_TWICE", "the config may be sent only once", field="config")
    raise InvalidRequest("EMPTY_REQUEST", "a message after the config must have audio or control set", field="audio")


def _control(control: conversation_pb2.Control) -> Control:
    """What directs the conversation. Raises InvalidRequest."""
    match control.WhichOneof("control"):
        case "sampling":
            return SetSampling(_sampling(control.sampling))
        case "interrupt":
            return Interrupt(control.interrupt.hold_ms) if control.interrupt.HasField("hold_ms") else Interrupt()
        case "say":
            return Say(control.say.text)
        case "played_out":
            return PlayedOut(control.played_out.sequence)
    raise InvalidRequest("EMPTY_REQUEST", "a control must say what to do", field="control")


def _response(event: events.Event, format: Format) -> conversation_pb2.ConverseResponse:
    """An event as this service's message. Fields that mean the same have the same names in both."""
    Response = conversation_pb2.ConverseResponse
    match event:
        case events.Speech():
            return Response(speech=speech_frame(event, format.encode(event.pcm)))
        case events.Ready():
            ready = {name: value for name, value in vars(event).items() if name != "resume_grace_s"}
            return Response(ready=conversation_pb2.ConverseReady(
                resume_grace_ms=round(event.resume_grace_s * 1000), **ready))
        case events.Queued():
            return Response(queued=conversation_pb2.Queued(**vars(event)))
        case events.GoAway():
            return Response(go_away=conversation_pb2.GoAway(time_left_ms=round(event.time_left_s * 1000)))
        case events.ResumeStatus():
            return Response(resume_status=conversation_pb2.ResumeStatus(available=event.available))
        case events.ConversationEvent():
            return Response(event=conversation_event(event))
        case events.Heard():
            return Response(heard=conversation_pb2.Heard(**vars(event)))
        case events.Summary():
            return Response(summary=conversation_pb2.ConverseSummary(**vars(event)))
    raise TypeError(f"an event that this edge does not know: {event!r}")
