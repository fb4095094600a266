"""The caller, and how a conversation begins: what each edge hands to the desk, whatever its wire format."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from moshimesh.lm.v1 import lm_pb2

from services.gateway.path.audio import Pcm


@dataclass(frozen=True)
class CallerLimits:
    """What those who share a key may do together, over all gateways; 0: no limit."""

    calls: int = 0
    """At once."""
    calls_per_minute: int = 0
    """New ones, and resumed ones."""
    audio_s_per_hour: int = 0
    """Seconds of their audio."""


@dataclass(frozen=True)
class Caller:
    """The caller's identity. The gate finds it out; the desk holds it to its limits."""

    key_id: str
    """Names the caller's key without being one; callers without a key share one."""
    address: str
    """The host that the call comes from, as far as the edge can tell."""
    edge: str
    """Which edge it came through: grpc, chat, realtime, live, pcm."""
    limits: CallerLimits = field(default_factory=CallerLimits)
    valid: Callable[[], bool] = lambda: True
    """Whether its credential still holds; asked every few seconds while it calls."""
    key_hash: str = ""
    """Of its API key, if that is what lets it in; its tickets end with that key."""
    from_ticket: bool = False
    """Whether it has shown a ticket, which gives it less than a key does."""
    ticket_note: str = field(default="", repr=False)
    """What the door that issued the ticket wrote on it, such as how its calls begin."""

    @classmethod
    def with_key(cls, key: str, address: str, edge: str, limits: CallerLimits | None = None) -> Caller:
        """A caller whose key nobody checks; it may be empty. The key itself goes no further."""
        named = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]  # a header may have any bytes
        return cls(named, address, edge, limits or CallerLimits())


@dataclass(frozen=True)
class New:
    """A new conversation."""

    sampling: lm_pb2.Sampling = field(default_factory=lm_pb2.Sampling)
    """How to draw tokens; unset fields take the checkpoint's own. The language model's contract, not a caller's."""
    model_id: str = ""
    """Which model; empty for the one with the most free slots."""
    voice: str = ""
    """The name of a voice that the mesh knows; empty for the model's own."""
    text_prompt: str = ""
    """What the model is told before it hears the first frame."""


@dataclass(frozen=True)
class PastAhead:
    """Audio that a caller sends without waiting until its conversation is open."""

    frames: int
    sample_rate_hertz: int
    """At another one than the mesh's it has to wait."""


@dataclass(frozen=True)
class Resumed:
    """A conversation that was cut off."""

    handle: str
    """The resume handle of its Ready."""
    first_sequence: int = 0
    """Number of the frame at which the audio to come begins."""
    answered_sequence: int | None = None
    """The last frame whose answer has reached the caller; None: continue after the last frame that was heard."""
    past: PastAhead | None = field(default=None, kw_only=True)
    """The audio that comes before the conversation is open, if any does."""


@dataclass(frozen=True)
class Forked(Resumed):
    """A copy of a conversation, whose handle the caller holds."""

    sampling: lm_pb2.Sampling = field(default_factory=lm_pb2.Sampling)
    """How to draw tokens from here on; unset fields as the other one does."""


@dataclass(frozen=True)
class Opening:
    """How a conversation begins."""

    origin: New | Resumed
    live: bool = field(default=True, kw_only=True)
    """Whether the mesh keeps time with the caller, and skips frames when it is late."""
    traceparent: str = field(default="", kw_only=True)
    """W3C trace context, to which the call's trace belongs; may be empty."""

    begins: Callable[[], Awaitable[New]] | None = field(default=None, kw_only=True)
    """Asked for the voice and the text prompt when there is room for a new conversation, after HasRoom, for edges whose
    callers say that only then; must not take long. The rest of what it gives is not looked at.
    """

    @property
    def first_sequence(self) -> int:
        """Number of the frame at which the audio to come begins."""
        return self.origin.first_sequence if isinstance(self.origin, Resumed) else 0


@dataclass(frozen=True)
class Audio:
    """A piece of the caller's audio: float32 [samples] at the mesh's rate, 1 s at most."""

    pcm: Pcm


@dataclass(frozen=True)
class SetSampling:
    """How to draw tokens from the next frame on; unset fields stay as they are."""

    sampling: lm_pb2.Sampling


@dataclass(frozen=True)
class Interrupt:
    """Silence the model from the next frame on."""

    hold_ms: int = 480
    """For how long; at most 10 s."""


@dataclass(frozen=True)
class Say:
    """Let the model speak a text."""

    text: str


@dataclass(frozen=True)
class PlayedOut:
    """The caller's loudspeaker has played the answers up to this frame."""

    sequence: int


Control: TypeAlias = SetSampling | Interrupt | Say | PlayedOut
Input: TypeAlias = Audio | Control
