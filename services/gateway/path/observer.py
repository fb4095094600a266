"""What the path of a frame reports. Telemetry listens here; the path does not know what is done with the reports."""

from __future__ import annotations

import enum
from typing import Protocol

from moshimesh.audio.v1 import audio_pb2

from services.gateway.peers.replicas import Replica
from services.gateway.turns.events import EventKind


class Change(enum.Enum):
    """How a session's row has moved."""

    FAILED_OVER = "failover"  # after its replica was lost
    DRAINED = "drained"  # before its replica stopped
    PACKED = "packed"  # off a replica that others have room for, so that it can go


class Observer(Protocol):
    """Hears what happens to one call, in order. None of this may raise or wait."""

    def opened(self, session_id: str, model_id: str, frame_nanos: int) -> None:
        """The call holds its slots."""

    def resumed(self, next_sequence: int) -> None:
        """It goes on after a cut; the frames before `next_sequence` only bring the codec back to where it was."""

    def heard(self, seconds: float) -> None:
        """A piece of the caller's audio has come, and how long it is."""

    def skipped(self, frames: int) -> None:
        """The model will not hear these frames."""

    def entered(self, sequence: int) -> str:
        """A frame goes into the mesh. Returns its W3C traceparent, empty if it has none."""

    def served_by(self, hop: audio_pb2.Hop, replica: Replica, sequence: int) -> None:
        """From this frame on, another replica answers a hop's frames."""

    def moved(self, service: str, change: Change) -> None:
        """The session has another row of a service."""

    def happened(self, kind: EventKind) -> None:
        """The caller is told of an event of the conversation."""

    def left(self, context: audio_pb2.FrameContext) -> None:
        """A frame has left the mesh. With an answer, if the last of its hops is HOP_GATEWAY_EMIT."""

    def ended(self, reason: str) -> None:
        """The call is over: "completed", "cancelled", or the reason of its error. Also of a call that never opened."""


class Unheard:
    """An observer of what nobody listens to: a replay, whose frames have no deadline."""

    def opened(self, session_id: str, model_id: str, frame_nanos: int) -> None:
        """See Observer."""

    def resumed(self, next_sequence: int) -> None:
        """See Observer."""

    def heard(self, seconds: float) -> None:
        """See Observer."""

    def skipped(self, frames: int) -> None:
        """See Observer."""

    def entered(self, sequence: int) -> str:
        """See Observer."""
        return ""

    def served_by(self, hop: audio_pb2.Hop, replica: Replica, sequence: int) -> None:
        """See Observer."""

    def moved(self, service: str, change: Change) -> None:
        """See Observer."""

    def happened(self, kind: EventKind) -> None:
        """See Observer."""

    def left(self, context: audio_pb2.FrameContext) -> None:
        """See Observer."""

    def ended(self, reason: str) -> None:
        """See Observer."""
