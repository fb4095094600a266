"""The events of a conversation."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class EventKind(enum.Enum):
    """What happened in a conversation; conversation.proto says what each means."""

    USER_SPEECH_STARTED = "user_speech_started"
    USER_SPEECH_STOPPED = "user_speech_stopped"
    MODEL_SPEECH_STARTED = "model_speech_started"
    MODEL_SPEECH_STOPPED = "model_speech_stopped"
    OVERLAP_BEGUN = "overlap_begun"
    OVERLAP_ENDED = "overlap_ended"
    INTERRUPTED = "interrupted"
    BACK_CHANNEL = "back_channel"


@dataclass(frozen=True)
class Happening:
    """Something happened at a frame of the caller's."""

    kind: EventKind
    sequence: int
    """The frame at which it began."""
