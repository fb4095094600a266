"""An observer that writes down what it hears."""

from __future__ import annotations

from typing import Any

from moshimesh.audio.v1 import audio_pb2

from services.gateway.path.observer import Change
from services.gateway.turns.events import EventKind


class Heard:
    """What the path told, by kind."""

    def __init__(self) -> None:
        self.facts: list[tuple[Any, ...]] = []  # of opened, resumed and ended, in order
        self.seconds = 0.0  # of the caller's audio
        self.frames_skipped = 0
        self.sequences: list[int] = []  # that entered the mesh
        self.servers: list[tuple[Any, int]] = []
        self.changes: list[Change] = []
        self.events: list[EventKind] = []
        self.contexts: list[audio_pb2.FrameContext] = []  # that left it

    def opened(self, session_id: str, model_id: str, frame_nanos: int) -> None:
        self.facts.append(("opened", session_id, model_id, frame_nanos))

    def resumed(self, next_sequence: int) -> None:
        self.facts.append(("resumed", next_sequence))

    def heard(self, seconds: float) -> None:
        self.seconds += seconds

    def skipped(self, frames: int) -> None:
        self.frames_skipped += frames

    def entered(self, sequence: int) -> str:
        self.sequences.append(sequence)
        return ""

    def served_by(self, hop: audio_pb2.Hop, replica: Any, sequence: int) -> None:
        self.servers.append((replica, sequence))

    def moved(self, service: str, change: Change) -> None:
        self.changes.append(change)

    def happened(self, kind: EventKind) -> None:
        self.events.append(kind)

    def left(self, context: audio_pb2.FrameContext) -> None:
        self.contexts.append(context)

    def ended(self, reason: str) -> None:
        self.facts.append(("ended", reason))
