"""Grant and Listen of ConversationService: who holds a conversation's handle lets others listen to it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from moshimesh.gateway.v1 import conversation_pb2

from services.gateway.calls.callers import Caller
from services.gateway.calls.desk import Desk
from services.gateway.calls.events import ConversationEvent, Speech
from services.gateway.calls.listening import CallOver, Listened, Listening, Missed, UserFrame
from services.gateway.edges.messages import conversation_event, format_of, speech_frame
from services.gateway.edges.pcm import Format
from services.mesh.errors import InvalidRequest

LIVES_MS = 900_000  # long enough to hand it to somebody, and to listen again after the call has moved
SHORTEST_MS, LONGEST_MS = 1_000, 7_200_000  # the longest is that of tickets


async def grant(desk: Desk, caller: Caller, request: conversation_pb2.GrantRequest) -> conversation_pb2.GrantResponse:
    """A grant to listen to a conversation. Raises UnknownSession, ResumeUnavailable, TooManyResumes, InvalidRequest."""
    lives_ms = request.lives_ms if request.HasField("lives_ms") else LIVES_MS
    if not SHORTEST_MS <= lives_ms <= LONGEST_MS:
        raise InvalidRequest("BAD_GRANT_TIME", f"lives_ms must be between {SHORTEST_MS} and {LONGEST_MS}, got "
                             f"{lives_ms}", field="lives_ms", accepted=f"{SHORTEST_MS}..{LONGEST_MS}")
    text, expires_unix_ms = await desk.grant(caller, request.resume_handle, lives_ms / 1000)
    return conversation_pb2.GrantResponse(grant=text, expires_unix_ms=expires_unix_ms)


async def listen(desk: Desk, caller: Caller, request: conversation_pb2.ListenRequest
                 ) -> AsyncGenerator[conversation_pb2.ListenResponse, None]:
    """A live conversation, from now on. Raises MeshError."""
    format = format_of(request.encoding, "encoding")
    async with contextlib.aclosing(desk.listen(caller, request.grant)) as told:
        async for item in told:
            if not (request.without_audio and isinstance(item, UserFrame)):
                yield _response(item, None if request.without_audio else format)


def _response(item: Listened, format: Format | None) -> conversation_pb2.ListenResponse:
    """What a listener hears as a message, without audio if there is no format."""
    Response = conversation_pb2.ListenResponse
    match item:
        case UserFrame():
            assert format is not None
            return Response(user=conversation_pb2.UserFrame(sequence=item.sequence, pcm=format.encode(item.pcm)))
        case Speech():
            return Response(speech=speech_frame(item, b"" if format is None else format.encode(item.pcm)))
        case ConversationEvent():
            return Response(event=conversation_event(item))
        case Listening():
            return Response(listening=conversation_pb2.Listening(**vars(item)))
        case Missed():
            return Response(missed=conversation_pb2.Missed(messages=item.messages))
        case CallOver():
            return Response(over=conversation_pb2.CallOver(reason=item.reason))
