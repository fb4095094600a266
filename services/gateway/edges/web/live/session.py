"""One session of `/v1/live/sessions`: what the client says to inputs, what the desk tells to events."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import numpy as np

from services.gateway.calls import events
from services.gateway.calls.callers import Input, New
from services.gateway.calls.desk import ModelInfo
from services.gateway.edges.g711 import RATE_HERTZ as TELEPHONE_HERTZ
from services.gateway.edges.resampling import RATES_HERTZ
from services.gateway.edges.web.live.reading import (
    Append,
    AudioFormat,
    Close,
    Mute,
    Start,
    Told,
    Unmute,
    Unsupported,
    Update,
    read_told,
)
from services.gateway.edges.web.realtime import faults
from services.gateway.edges.web.realtime.faults import ClientFault
from services.gateway.edges.web.realtime.feed import Feed
from services.gateway.edges.web.realtime.ids import Ids
from services.gateway.edges.web.realtime.inbox import Inbox
from services.gateway.edges.web.realtime.offer import DEFAULT_VOICE, Offer
from services.gateway.edges.web.realtime.settings import OPENAI_HERTZ, PCM, Format
from services.gateway.edges.web.realtime.sound import Mouth, decoded, ear_of
from services.gateway.path.audio import Pcm
from services.mesh.errors import MeshError

# LiveKit takes whatever is louder than 0.0006 for speech. What the model gives while it says nothing is a faint noise;
# below this root mean square, 60 dB under full scale, it is sent as zeros.
SILENCE_RMS = 0.001

Message = dict[str, Any]


class Session:
    """Translates both ways, and knows no wire."""

    def __init__(self, start: Start, model: ModelInfo, offer: Offer, expires_at: int) -> None:
        """`expires_at` in seconds since the Unix epoch. Raises ClientFault."""
        self._ids = Ids()
        self.new = New(model_id=model.model_id, voice=offer.voice(start.voice),
                       text_prompt=offer.instructions(start.session.instructions))
        """How the conversation begins."""
        sample_rate_hertz, samples_per_frame = model.sample_rate_hertz, model.samples_per_frame
        self._start, self._expires_at = start, expires_at
        self._format = _format(start.format)
        self._frame_s = samples_per_frame / sample_rate_hertz
        self._inbox = Inbox(Feed(ear_of(sample_rate_hertz), samples_per_frame, self._frame_s))
        self._mouth = Mouth(sample_rate_hertz, lambda: self._format)
        self._muted = self._waited = False
        self._id = ""
        self._frames = 0
        self._close_event_id: str | None = None

    def inputs(self) -> AsyncIterator[Input]:
        """What the client says, and silence while it says nothing, until it closes the session."""
        return self._inbox.inputs()

    def asked(self, data: str | bytes) -> Iterator[str]:
        """The answers to a message of the client."""
        told: Told | None = None
        try:
            told = read_told(data)
            for answer in self._asked(told):
                yield json.dumps(answer)
        except ClientFault as fault:
            yield json.dumps(_error(self._ids, fault.shown(None), told.event_id if told else None))

    def _asked(self, told: Told) -> Iterator[Message]:
        match told:
            case Append():
                if not self._muted and not self._inbox.take(decoded(told.audio), self._format):
                    raise ClientFault("buffer_full", "too much sound waits; send it as it is spoken", "audio")
            case Mute() | Unmute():
                self._muted = isinstance(told, Mute)
                if self._muted:
                    self._inbox.clear()
                yield self._event(f"session.input_audio.{'muted' if self._muted else 'unmuted'}", told.event_id)
            case Update():
                yield self._event("session.updated", told.event_id, session=self._shown())
            case Close():
                self._close_event_id = told.event_id
                self._inbox.end()
            case Unsupported():
                raise ClientFault("unsupported_event", f"{told.type} is not served here: the model hears sound only",
                                  "type")

    def told(self, event: events.Event) -> Iterator[str]:
        """What the client hears of an event, as JSON. The dialect has neither turns nor a waiting line."""
        match event:
            case events.Queued():
                self._waited = True
            case events.Ready():
                if self._waited:
                    self._inbox.clear()  # it is old by now
                self._id = event.session_id
                yield json.dumps(self._event("session.started", self._start.event_id, session=self._shown()))
            case events.Speech():
                self._frames += 1
                yield _audio(self._mouth.encode(_quiet(event.pcm)))
                if event.text:
                    start_s = event.context.sequence * self._frame_s
                    yield json.dumps(self._event(
                        "session.output_transcript.delta", None, delta=event.text, start_ms=round(1000 * start_s),
                        end_ms=round(1000 * (start_s + self._frame_s))))
            case events.GoAway():
                yield json.dumps(self._event(
                    "info", None, code="going_away",
                    message=f"this server stops in {event.time_left_s:.0f} s; start a new session"))
            case events.Summary():
                if rest := self._mouth.finish():
                    yield _audio(rest)
                yield json.dumps(self._closed("close_requested"))

    def failed(self, error: MeshError) -> str:
        """What the client hears of the error that ends its session."""
        if error.reason == "CALL_TOO_LONG":
            return json.dumps(self._closed("expired"))
        return json.dumps(_error(self._ids, faults.shown(error), None))

    def _event(self, type: str, client_event_id: str | None, **fields: Any) -> Message:
        return _event(self._ids, type, client_event_id, **fields)

    def _closed(self, reason: str) -> Message:
        return self._event("session.closed", self._close_event_id, reason=reason, session=self._shown(),
                           usage={"seconds": round(self._frames * self._frame_s)})

    def _shown(self) -> Message:
        """The session as it is, whatever was asked for."""
        return {"id": self._id, "model": self.new.model_id, "expires_at": self._expires_at, "status": "active",
                "instructions": self.new.text_prompt or None,
                "audio": {"format": {"type": self._format.type, "rate": self._format.rate},
                          "output": {"voice": self.new.voice or DEFAULT_VOICE}}}


def refused(error: ClientFault | MeshError) -> str:
    """What a client hears whose session does not begin."""
    shown = error.shown(None) if isinstance(error, ClientFault) else faults.shown(error)
    return json.dumps(_error(Ids(), shown, None))


def _event(ids: Ids, type: str, client_event_id: str | None, **fields: Any) -> Message:
    event: Message = {"type": type, "event_id": ids.new("event"), **fields}
    return event if client_event_id is None else event | {"client_event_id": client_event_id}


def _error(ids: Ids, shown: Message, client_event_id: str | None) -> Message:
    """An error of `/v1/realtime` in this dialect."""
    error = {name: shown["error"][name] for name in ("type", "code", "message", "param")
             if shown["error"][name] is not None}
    if client_event_id is not None:
        error["client_event_id"] = client_event_id
    return _event(ids, "error", client_event_id, error=error)


def _format(asked: AudioFormat) -> Format:
    """Raises ClientFault."""
    accepted: Sequence[int] = RATES_HERTZ if asked.type == PCM else (TELEPHONE_HERTZ,)
    rate = (OPENAI_HERTZ if asked.type == PCM else TELEPHONE_HERTZ) if asked.rate is None else asked.rate
    if rate not in accepted:
        raise ClientFault("invalid_value", f"the rate must be one of {', '.join(map(str, accepted))}, got {rate}",
                          "session.audio.format.rate")
    return Format(asked.type, rate)


def _audio(data: bytes) -> str:
    return f'{{"type": "session.output_audio.delta", "delta": "{base64.b64encode(data).decode()}"}}'


def _quiet(pcm: Pcm) -> Pcm:
    """Zeros for what is as good as silent."""
    return pcm if np.dot(pcm, pcm) > SILENCE_RMS ** 2 * len(pcm) else np.zeros_like(pcm)
