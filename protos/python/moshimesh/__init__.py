"""Client of moshi-mesh: full-duplex conversations with Moshi over gRPC."""

from moshimesh.client import Mesh, connect
from moshimesh.events import (
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

__all__ = [
    "HopTiming",
    "Mesh",
    "MeshError",
    "MeshInfo",
    "Queued",
    "Ready",
    "ResumeStatus",
    "Resumed",
    "Speech",
    "Summary",
    "connect",
]
