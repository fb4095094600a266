"""What the desk tells, written in a line: frames of the model with events between them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
from moshimesh.audio.v1 import audio_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.events import ConversationEvent, EventKind, Ready, Speech
from services.gateway.edges.web.realtime.beginning import Beginning
from services.gateway.edges.web.realtime.dialects import Dialect, Ga
from services.gateway.edges.web.realtime.feed import Feed
from services.gateway.edges.web.realtime.ids import Ids
from services.gateway.edges.web.realtime.inbox import Inbox
from services.gateway.edges.web.realtime.items import Items
from services.gateway.edges.web.realtime.session import Session
from services.gateway.edges.web.realtime.settings import Settings
from services.gateway.edges.web.realtime.sound import Mouth, ear_of
from services.gateway.edges.web.realtime.turns import Turns

FRAME_MS, RATE, FRAME = 80, 24_000, 1920
USER_STARTS, USER_STOPS = EventKind.USER_SPEECH_STARTED, EventKind.USER_SPEECH_STOPPED
MODEL_STARTS, MODEL_STOPS = EventKind.MODEL_SPEECH_STARTED, EventKind.MODEL_SPEECH_STOPPED
INTERRUPTED, BACK_CHANNEL = EventKind.INTERRUPTED, EventKind.BACK_CHANNEL

READY = Ready(session_id="s", model_id="moshi", codec_id="mimi", sample_rate_hertz=RATE, samples_per_frame=FRAME,
              codebooks=8, delay_frames=1, sampling=lm_pb2.Sampling(), resume_handle="secret", resume_grace_s=60.0,
              next_sequence=0, priming_frames=0, frame_due_us=0)


def frame(sequence: int, text: str = "") -> Speech:
    """A frame of the model; its samples tell its number."""
    sound = np.full(FRAME, sequence / 1000, np.float32)
    return Speech(audio_pb2.FrameContext(sequence=sequence), sound, text, 0, [], 0)


class Clock:
    """Turned by hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Talk:
    """A session without a wire: the mesh's side is scripted, and what goes out is kept."""

    def __init__(self, dialect: Dialect | None = None, ready: bool = True) -> None:
        self.clock = Clock()
        self.ids, self.items = Ids(), Items()
        self.settings = Settings(self.ids.new("sess"), "moshi", 2_000_000_000)
        self.inbox = Inbox(Feed(ear_of(RATE), FRAME, FRAME_MS / 1000, self.clock))
        self.turns = Turns(self.ids, self.items, Mouth(RATE, lambda: self.settings.output),
                           lambda: self.settings.of_responses, FRAME_MS, self.clock)
        self.dialect = dialect or Ga()
        self.session = Session(self.ids, self.settings, Beginning(self.settings), self.items, self.turns, self.inbox,
                               self.dialect, FRAME_MS)
        self.sequence = itertools.count(1)
        self.now = 0  # the sequence of the last frame
        self.sent: list[dict[str, Any]] = []
        if ready:
            self.session.told(READY)
            self.take()
            self.sent.clear()

    def take(self) -> list[dict[str, Any]]:
        """What has gone out since the last time, as it is on the wire but for the event's own id."""
        out = [written for message in self.session.out if (written := self.dialect.written(message)) is not None]
        self.session.out.clear()
        self.sent += out
        return out

    def frames(self, count: int = 1, text: str = "") -> list[dict[str, Any]]:
        """So many frames of the model come, each with this text."""
        for _ in range(count):
            self.now = next(self.sequence)
            self.clock.seconds += FRAME_MS / 1000
            self.session.told(frame(self.now, text))
        return self.take()

    def event(self, kind: EventKind, sequence: int | None = None) -> list[dict[str, Any]]:
        """Something happened at this frame, by default the next one."""
        at = self.now + 1 if sequence is None else sequence
        self.session.told(ConversationEvent(kind, at, at * FRAME_MS))
        return self.take()

    def stops(self) -> list[dict[str, Any]]:
        """The model falls silent; that it was not interrupted is known by the next frame."""
        assert self.event(MODEL_STOPS) == []
        return self.frames(1)

    def yields(self) -> list[dict[str, Any]]:
        """The model falls silent because the user talks over it: two events of one frame."""
        assert self.event(MODEL_STOPS) == []
        return self.event(INTERRUPTED)

    def ask(self, type: str, **fields: Any) -> list[dict[str, Any]]:
        """The client sends an event; what it is answered."""
        self.session.asked(json.dumps({"type": type, **fields}))
        return self.take()

    @property
    def controls(self) -> list[Any]:
        """What the model was directed to."""
        return list(self.inbox._controls)


def types(messages: list[dict[str, Any]]) -> list[str]:
    """What they are."""
    return [message["type"] for message in messages]
