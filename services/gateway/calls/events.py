"""What a caller hears of a conversation, in this order: Queued as long as it waits, HasRoom if its edge is to say how
it begins, Ready, then Speech with notices in between, and Summary. Each edge turns these into its own wire format. How
a conversation failed is a MeshError.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from moshimesh.lm.v1 import lm_pb2

from services.gateway.path.pipeline import ConversationEvent, Notice, Speech
from services.gateway.turns.events import EventKind

__all__ = ["ConversationEvent", "Event", "EventKind", "GoAway", "HasRoom", "Heard", "Notice", "Queued", "Ready",
           "ResumeStatus", "Speech", "Summary"]


@dataclass(frozen=True)
class Queued:
    """Every slot is taken: the call waits in line. Comes whenever its position changes."""

    position: int
    """From 1."""
    estimated_wait_ms: int
    """0: not known."""


@dataclass(frozen=True)
class HasRoom:
    """There is a slot for the call. It is taken once the caller has said how it begins (Opening.begins); if another one
    is faster, the call waits in line.
    """


@dataclass(frozen=True)
class Ready:
    """The conversation is open."""

    session_id: str
    model_id: str
    codec_id: str
    sample_rate_hertz: int
    samples_per_frame: int
    codebooks: int
    """Own codebooks of the model."""
    delay_frames: int
    """How many frames the answers are late."""
    sampling: lm_pb2.Sampling
    """What is in force, all fields set."""
    resume_handle: str
    resume_grace_s: float
    """How long after a cut the conversation can be resumed."""
    next_sequence: int
    """Number of the next frame that the model will hear."""
    priming_frames: int
    """How many frames before that one to send again after a cut."""
    frame_due_us: int
    """When frames should be complete, to share steps with others': this long from now, then once per frame."""


@dataclass(frozen=True)
class ResumeStatus(Notice):
    """Whether the conversation could be resumed if it were cut off now. Comes when that changes."""

    available: bool


@dataclass(frozen=True)
class GoAway(Notice):
    """This gateway stops: resume the conversation at another one before the time is over."""

    time_left_s: float


@dataclass(frozen=True)
class Heard(Notice):
    """What a PlayedOut means for the transcript."""

    sequence: int
    """The last answer that was played; never beyond what was sent."""
    text: str
    """What was heard since the last of these, up to a whole word."""
    unheard: str
    """What was said, and not heard so far. After an interruption it never will be."""


@dataclass(frozen=True)
class Summary:
    """The conversation has ended well."""

    frames_in: int
    """Frames of the caller's audio that the model heard."""
    frames_out: int
    """Frames that it answered."""
    frames_skipped: int


Event: TypeAlias = Queued | HasRoom | Ready | Speech | Notice | Summary
