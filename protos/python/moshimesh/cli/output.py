"""What a command prints: text for people, or one JSON object a line."""

from __future__ import annotations

import json
import sys
from typing import Any

from moshimesh.events import (
    ConversationEvent,
    Event,
    Queued,
    Ready,
    Resumed,
    ResumeStatus,
    Speech,
    Summary,
)
from moshimesh.listening import CallOver, Listened, Listening, Missed, UserFrame


class CommandFailed(Exception):
    """What a person can mend; the message says how."""


class Output:
    """Prints the events of a conversation."""

    def __init__(self, as_json: bool, events: bool) -> None:
        """`events` tells whether people want to see the moments of the conversation between the words."""
        self._json, self._events = as_json, events
        self._in_line = False

    def show(self, event: Event | Listened) -> None:
        """Print one."""
        if self._json:
            print(json.dumps(_fields(event)), flush=True)
            return
        match event:
            case Speech(text=text):
                if text:
                    print(text if self._in_line else text.lstrip(), end="", flush=True)
                    self._in_line = True
            case Queued(position=position, estimated_wait_s=wait_s):
                self._line(f"all slots are taken: place {position} in the line" +
                           (f", about {wait_s:.0f} s" if wait_s else ""))
            case Resumed(reason=reason, gap_s=gap_s):
                self._line(f"resumed after {gap_s:.1f} s ({reason})")
            case ResumeStatus(available=available):
                self._line("the conversation can be resumed again" if available else
                           "the mesh can't keep conversations now: this one would be lost if it were cut off")
            case ConversationEvent(kind=kind, at_s=at_s) if self._events:
                self._line(f"{at_s:.2f} s {kind.replace('_', ' ')}")
            case Listening(session_id=session_id):
                self._line(f"listening to {session_id}")
            case Missed(messages=messages):
                self._line(f"too slow: {messages} messages are lost")
            case CallOver(reason=reason):
                self._line(f"the call is over ({reason})")
            case Summary():
                self._line(f"{event.frames_in} frames heard, {event.frames_out} answered, "
                           f"{event.frames_skipped} skipped")

    def _line(self, text: str) -> None:
        if self._in_line:
            print(flush=True)
            self._in_line = False
        print(f"[{text}]", file=sys.stderr, flush=True)


def _fields(event: Event | Listened) -> dict[str, Any]:
    """An event for machines. Audio stays out: `--out` has it."""
    name = type(event).__name__
    match event:
        case Speech():
            return {"event": name, "sequence": event.sequence, "text": event.text, "text_token": event.text_token,
                    "codes": list(event.codes), "frames_skipped": event.frames_skipped,
                    "hops": {hop.hop: {"queue_ms": round(hop.queue_ms, 3), "compute_ms": round(hop.compute_ms, 3),
                                       "batch_size": hop.batch_size} for hop in event.hops}}
        case Ready():
            return {"event": name, **{key: value for key, value in vars(event).items() if key != "resume_handle"}}
        case UserFrame():
            return {"event": name, "sequence": event.sequence}
    return {"event": name, **vars(event)}
