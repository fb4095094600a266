"""Listening to a call that somebody else holds, through whichever gateway it moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import grpc
from moshimesh.events import ConversationEvent, Speech, conversation_event, mesh_error, speech_event
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc

RETRY_S = 0.5


@dataclass(frozen=True)
class Listening:
    """The call is listened to from here on; comes again when it was found at another gateway, or again at this one."""

    session_id: str
    model_id: str
    codec_id: str
    sample_rate_hertz: int
    samples_per_frame: int
    delay_frames: int


@dataclass(frozen=True)
class UserFrame:
    """One frame of the user's audio, as the model hears it."""

    sequence: int
    pcm: bytes

    def __repr__(self) -> str:
        """Short."""
        return f"UserFrame(sequence={self.sequence}, pcm=<{len(self.pcm)} bytes>)"


@dataclass(frozen=True)
class Missed:
    """This listener was too slow: so many messages that would have come here are lost. The call did not notice."""

    messages: int


@dataclass(frozen=True)
class CallOver:
    """The call is over: "completed", or a reason from docs/protocol.md."""

    reason: str


Listened: TypeAlias = "Listening | UserFrame | Speech | ConversationEvent | Missed | CallOver"


async def listen(stubs: Sequence[conversation_pb2_grpc.ConversationServiceStub],
                 request: conversation_pb2.ListenRequest, metadata: Sequence[tuple[str, str]], search_s: float
                 ) -> AsyncGenerator[Listened, None]:
    """What happens in a call, until it is over. Gateways are asked in turn for its whereabouts, `search_s` at the most.

    Raises MeshError.
    """
    now = asyncio.get_running_loop().time
    lost_at, turn = now(), 0
    while True:
        call = stubs[turn % len(stubs)].Listen(request, metadata=metadata)
        try:
            async for response in call:
                yield _listened(response)
                lost_at = now()
            return
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or now() - lost_at >= search_s:
                raise mesh_error(error) from None
        finally:
            call.cancel()
        turn += 1
        if not turn % len(stubs):
            await asyncio.sleep(RETRY_S)


def _listened(response: conversation_pb2.ListenResponse) -> Listened:
    match response.WhichOneof("response"):
        case "user":
            return UserFrame(response.user.sequence, response.user.pcm)
        case "speech":
            return speech_event(response.speech, 0)
        case "event":
            return conversation_event(response.event)
        case "listening":
            facts = response.listening
            return Listening(facts.session_id, facts.model_id, facts.codec_id, facts.sample_rate_hertz,
                             facts.samples_per_frame, facts.delay_frames)
        case "missed":
            return Missed(response.missed.messages)
    return CallOver(response.over.reason)
