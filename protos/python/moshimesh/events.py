"""What a conversation tells its caller, and what can end it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
from moshimesh.audio.v1 import audio_pb2
from moshimesh.gateway.v1 import conversation_pb2

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class MeshError(Exception):
    """A call that the mesh ended: gRPC code, reason from docs/protocol.md, and when to try again if that helps.

    `metadata` may name the field that is at fault and what is accepted.
    """

    def __init__(self, code: grpc.StatusCode, reason: str, message: str, retry_after_s: float | None,
                 metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{code.name} {reason}: {message}" if reason else f"{code.name}: {message}")
        self.code, self.reason, self.message, self.retry_after_s = code, reason, message, retry_after_s
        self.metadata = dict(metadata or {})


@dataclass(frozen=True)
class MeshInfo:
    """A model that the mesh serves, the codec that it is served with, and the room for conversations with it."""

    model_id: str
    codec_id: str
    sample_rate_hertz: int
    samples_per_frame: int
    slots_total: int
    slots_free: int


@dataclass(frozen=True)
class HopTiming:
    """How long one hop kept one frame, in milliseconds, and how many frames shared its step."""

    hop: str
    queue_ms: float
    compute_ms: float
    batch_size: int
    received_unix_nanos: int
    finished_unix_nanos: int


@dataclass(frozen=True)
class Ready:
    """The conversation is open. A live caller's frames should be complete `frame_due_s` from now, and every frame's
    length after that. `resume_handle` is the key to what is said, for `Mesh.export`: keep it secret.
    """

    session_id: str
    model_id: str
    codec_id: str
    sample_rate_hertz: int
    samples_per_frame: int
    delay_frames: int
    seed: int
    frame_due_s: float
    resume_handle: str = field(default="", repr=False)


@dataclass(frozen=True)
class Queued:
    """All slots are taken: the place in the line, from 1, and how long it may take (0: not known)."""

    position: int
    estimated_wait_s: float


@dataclass(frozen=True)
class Resumed:
    """The conversation was cut off and goes on: why, and how long the caller was without the mesh."""

    reason: str
    gap_s: float


@dataclass(frozen=True)
class ResumeStatus:
    """Whether the conversation could go on now if it were cut off."""

    available: bool


@dataclass(frozen=True)
class Speech:
    """One frame of Moshi's speech: audio in the encoding of the call, text to be appended, and its timings."""

    sequence: int
    pcm: bytes
    text: str
    text_token: int
    codes: Sequence[int]
    frames_skipped: int
    capture_unix_nanos: int
    hops: Sequence[HopTiming]

    def __repr__(self) -> str:
        """Short: a frame's audio, codes and timings would fill a screen."""
        return (f"Speech(sequence={self.sequence}, text={self.text!r}, text_token={self.text_token}, "
                f"pcm=<{len(self.pcm)} bytes>, codes=<{len(self.codes)}>, frames_skipped={self.frames_skipped})")


@dataclass(frozen=True)
class ConversationEvent:
    """Something happened: user_speech_started, user_speech_stopped, model_speech_started, model_speech_stopped,
    overlap_begun, overlap_ended, interrupted or back_channel (docs/protocol.md), with the number of the frame at which
    it began and that frame's time since the conversation began.
    """

    kind: str
    sequence: int
    at_s: float


@dataclass(frozen=True)
class Heard:
    """What a `played_out` means for the transcript: the last frame that was played, the text that was heard since the
    last of these, and what was said but not heard so far. After an interruption it never will be.
    """

    sequence: int
    text: str
    unheard: str


@dataclass(frozen=True)
class Summary:
    """The conversation ended well: frames of the caller's audio that were heard, frames of speech that came, frames
    that were skipped to keep time, and bytes of an unfinished sample at the end of the audio, which were left out.
    """

    frames_in: int
    frames_out: int
    frames_skipped: int
    bytes_dropped: int = 0


Event: TypeAlias = "Queued | Ready | Speech | ConversationEvent | Heard | Resumed | ResumeStatus | Summary"


def speech_event(speech: conversation_pb2.SpeechFrame, skipped_before: int) -> Speech:
    """A frame of speech, with the frames that were skipped before the conversation was resumed."""
    hops = [HopTiming(audio_pb2.Hop.Name(hop.hop).removeprefix("HOP_").lower().replace("_", ".", 1),
                      (hop.started_unix_nanos - hop.received_unix_nanos) / 1e6,
                      (hop.finished_unix_nanos - hop.started_unix_nanos) / 1e6, hop.batch_size,
                      hop.received_unix_nanos, hop.finished_unix_nanos) for hop in speech.context.hops]
    return Speech(speech.context.sequence, speech.pcm, speech.text, speech.text_token, speech.codes,
                  speech.frames_skipped + skipped_before, speech.context.capture_unix_nanos, hops)


def conversation_event(event: conversation_pb2.ConversationEvent) -> ConversationEvent:
    """An event of the conversation."""
    kind = conversation_pb2.EventKind.Name(event.kind).removeprefix("EVENT_KIND_").lower()
    return ConversationEvent(kind, event.sequence, event.at_ms / 1000)


def mesh_error(error: grpc.aio.AioRpcError) -> MeshError:
    """A failed call, with the mesh's own reason if it gave one."""
    trailers = {key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)}
    retry_after_ms = trailers.get("moshimesh-retry-after-ms")
    return MeshError(error.code(), trailers.get("moshimesh-reason", ""), error.details() or "",
                     float(retry_after_ms) / 1000 if retry_after_ms else None)


def ended_error(ended: conversation_pb2.CallEnded) -> MeshError:
    """What the mesh has said before it ends the call."""
    return MeshError(_CODES.get(ended.code, grpc.StatusCode.UNKNOWN), ended.reason, ended.message,
                     ended.retry_after_ms / 1000 if ended.HasField("retry_after_ms") else None, ended.metadata)
