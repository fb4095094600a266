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
from moshimesh.recording import Recording, Replayed

__all__ = [
    "ConversationEvent",
    "Director",
    "Heard",
    "HopTiming",
    "Mesh",
    "MeshError",
    "MeshInfo",
    "Queued",
    "Ready",
    "Recording",
    "Replayed",
    "ResumeStatus",
    "Resumed",
    "Speech",
    "Summary",
    "connect",
]
