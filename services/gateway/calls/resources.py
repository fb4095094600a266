"""What all conversations of this gateway use."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.gateway.calls.overload import Overload
from services.gateway.calls.voices import Voices
from services.gateway.calls.waiting import WaitingLine
from services.gateway.peers.fleet import Fleet
from services.gateway.sessions.sessions import Sessions


@dataclass(frozen=True)
class Resources:
    """What all conversations of this gateway use."""

    fleet: Fleet
    sessions: Sessions
    line: WaitingLine
    longest_call_s: float
    idle_s: float
    """A caller that sends too little audio for this long loses its slots."""
    stall_s: float
    """So does one that reads the answers this much too late."""
    overload: Overload = field(default_factory=Overload)
    voices: Voices = field(default_factory=lambda: Voices(""))
