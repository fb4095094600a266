"""Client of moshi-mesh: full-duplex conversations with Moshi over gRPC."""

from moshimesh.client import Mesh, connect
from moshimesh.director import Director
from moshimesh.events import (
    ConversationEvent,
    Heard,
    HopTiming,
    MeshError,
    MeshInfo,
    Queued,
    Ready,
    Resumed,
    ResumeStatus,
    Speech,
    Summary,
)
from moshimesh.listening import CallOver, Listening, Missed, UserFrame
from moshimesh.recording import Recording, Replayed

__all__ = [
    "CallOver",
    "ConversationEvent",
    "Director",
    "Heard",
    "HopTiming",
    "Listening",
    "Mesh",
    "MeshError",
    "MeshInfo",
    "Missed",
    "Queued",
    "Ready",
    "Recording",
    "Replayed",
    "ResumeStatus",
    "Resumed",
    "Speech",
    "Summary",
    "UserFrame",
    "connect",
]
