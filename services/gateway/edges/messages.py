"""What several methods of ConversationService say with the same messages."""

from __future__ import annotations

from moshimesh.audio.v1 import audio_pb2
from moshimesh.gateway.v1 import conversation_pb2

from services.gateway.calls.events import ConversationEvent, Speech
from services.gateway.edges.pcm import F32LE, S16LE, Format
from services.mesh.errors import InvalidRequest

_FORMATS = {audio_pb2.AUDIO_ENCODING_UNSPECIFIED: F32LE, audio_pb2.AUDIO_ENCODING_PCM_F32LE: F32LE,
            audio_pb2.AUDIO_ENCODING_PCM_S16LE: S16LE}


def format_of(encoding: audio_pb2.AudioEncoding, field: str) -> Format:
    """How its samples are laid out. Raises InvalidRequest, which names the field."""
    if encoding not in _FORMATS:
        raise InvalidRequest("BAD_ENCODING", f"encoding {encoding} is not one that this mesh knows", field=field)
    return _FORMATS[encoding]


def speech_frame(speech: Speech, pcm: bytes) -> conversation_pb2.SpeechFrame:
    """A frame of the model's speech with its samples."""
    return conversation_pb2.SpeechFrame(context=speech.context, pcm=pcm, text=speech.text, text_token=speech.text_token,
                                        codes=speech.codes, frames_skipped=speech.frames_skipped)


def conversation_event(event: ConversationEvent) -> conversation_pb2.ConversationEvent:
    """An event of the conversation."""
    return conversation_pb2.ConversationEvent(kind=f"EVENT_KIND_{event.kind.name}", sequence=event.sequence,
                                              at_ms=event.at_ms)
