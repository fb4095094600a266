"""One session: what the client says and what the mesh says, each turned into messages for the other. Knows no wire."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable
from typing import Any

from services.gateway.calls.callers import Interrupt, PlayedOut
from services.gateway.calls.events import ConversationEvent, Event, GoAway, HasRoom, Queued, Ready, Speech, Summary
from services.gateway.edges.web.realtime import faults
from services.gateway.edges.web.realtime.beginning import Beginning
from services.gateway.edges.web.realtime.dialects import Dialect
from services.gateway.edges.web.realtime.faults import ClientFault
from services.gateway.edges.web.realtime.ids import Ids
from services.gateway.edges.web.realtime.inbox import Inbox
from services.gateway.edges.web.realtime.items import Items, written_by_client
from services.gateway.edges.web.realtime.settings import Settings
from services.gateway.edges.web.realtime.sound import decoded
from services.gateway.edges.web.realtime.turns import Turns
from services.mesh.errors import Draining, MeshError

Message = dict[str, Any]

MOST_EARLY_CHARACTERS = 1 << 20  # of the messages of a client that waits in line: settings, and the items of a call
# that it had before
# A large message is sound: one long string. Parsing megabytes of anything else would keep the neighbours waiting.
LARGE_CHARACTERS = 1 << 16
MOST_PARTS_OF_LARGE = 64
MOST_ID_CHARACTERS = 512
GOING_AWAY, NORMAL, BROKEN = 1012, 1000, 1011


class Session:
    """What goes out waits in `out`; whoever holds the socket sends it, in order."""

    def __init__(self, ids: Ids, settings: Settings, beginning: Beginning, items: Items, turns: Turns, inbox: Inbox,
                 dialect: Dialect, frame_ms: int) -> None:
        self.out: deque[Message] = deque()  # emptied after each message of either side
        self.close_code: int | None = None
        """Set when the session is over, after `out`."""
        self._ids, self._settings, self._items, self._turns, self._inbox = ids, settings, items, turns, inbox
        self._beginning, self._dialect, self._frame_ms = beginning, dialect, frame_ms
        self._created = False
        self._in_line = False
        self._early: list[str | bytes] = []
        self._early_characters = 0
        self._leaving = False
        self._handlers: dict[str, Callable[[Message], None]] = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": lambda _: self.out.extend(self._turns.commit()),
            "input_audio_buffer.clear": self._clear,
            "conversation.item.create": self._create_item,
            "conversation.item.retrieve": self._retrieve_item,
            "conversation.item.delete": self._delete_item,
            "conversation.item.truncate": self._truncate_item,
            "response.create": self._create_response,
            "response.cancel": self._cancel,
            "output_audio_buffer.clear": self._cancel}

    # From the mesh:

    def told(self, event: Event) -> None:
        """Something came from the desk."""
        match event:
            case Speech():
                self.out.extend(self._turns.speech(event))
            case ConversationEvent():
                self.out.extend(self._turns.happened(event))
            case Queued():
                self._in_line = True
                self._inbox.clear()  # it would be old by then
            case HasRoom():
                self._begin()
            case Ready():
                self._settings.model, self._settings.begun = event.model_id, True
                self._begin()
            case GoAway():
                self._leaving = True
            case Summary():
                self.out.extend(self._turns.finish())
                self.close_code = NORMAL
                return
        if self._leaving and not self._turns.responding:
            self.close_code = GOING_AWAY  # what is being said is said to its end

    def failed(self, error: MeshError) -> None:
        """The mesh has ended the call."""
        self.out.extend(self._turns.fail(error.reason.lower(), error.message))
        if isinstance(error, Draining):
            self.close_code = GOING_AWAY
        else:
            self.out.append(faults.shown(error))
            self.close_code = BROKEN

    def _begin(self) -> None:
        """There is a slot for the call, or it has one."""
        self._in_line = False
        if self._created:
            return
        self._created = True
        self._show_settings("session.created")
        early, self._early = self._early, []
        for message in early:
            self.asked(message)

    # From the client:

    def asked(self, text: str | bytes) -> None:
        """A message of the client."""
        event_id = None
        try:
            message = _parsed(text)
            event_id = message.get("event_id")
            kind = _text(message, "type")
            handler = self._handlers.get(kind)
            if handler is None:
                raise ClientFault("unknown_event", f"{kind[:80]!r} is not an event that this mesh knows", "type")
            if self._created:
                handler(message)
            elif kind != "input_audio_buffer.append":  # nobody hears what is said in the line
                self._answer_later(text)
        except ClientFault as fault:
            self.out.append(fault.shown(event_id if isinstance(event_id, str) else None))

    def _answer_later(self, text: str | bytes) -> None:
        """Whoever waits in line gets session.created first."""
        self._early_characters += len(text)
        if self._early_characters > MOST_EARLY_CHARACTERS:
            raise ClientFault("too_many_events", "too many events before session.created")
        self._early.append(text)

    def _show_settings(self, kind: str) -> None:
        self.out.append({"type": kind, "session": self._dialect.session(self._settings)})

    def _update(self, message: Message) -> None:
        asked = _object(message, "session")
        if asked.get("type", "realtime") != "realtime":
            raise ClientFault("invalid_value", "only sessions of type 'realtime' are served here", "session.type")
        self._settings.update(asked)
        self._beginning.updated()
        self._show_settings("session.updated")

    def _append(self, message: Message) -> None:
        if self._in_line:  # again: another caller took the slot
            return
        self._beginning.spoke()
        if not self._inbox.take(decoded(_text(message, "audio")), self._settings.input):
            raise ClientFault("input_audio_buffer_full", "too much audio waits to be heard; send it as it is spoken",
                              "audio")

    def _clear(self, message: Message) -> None:
        self._inbox.clear()
        self.out.append({"type": "input_audio_buffer.cleared"})

    def _create_item(self, message: Message) -> None:
        body = _object(message, "item")
        item_id = _id(body, "id", "item.id") if body.get("id") is not None else self._ids.new("item")
        try:
            item = written_by_client(item_id, body)
        except ValueError as error:
            raise ClientFault("item_too_large", str(error), "item") from None
        after = message.get("previous_item_id")
        before = self._items.add(item, after if isinstance(after, str) else None)
        for kind in ("conversation.item.added", "conversation.item.done"):
            self.out.append({"type": kind, "previous_item_id": before, "item": item.shown()})

    def _retrieve_item(self, message: Message) -> None:
        item = self._items.get(_id(message))
        if item is None:
            raise ClientFault("item_retrieve_invalid_item_id", "there is no such item (any more)", "item_id")
        self.out.append({"type": "conversation.item.retrieved", "item": item.shown()})

    def _delete_item(self, message: Message) -> None:
        item_id = _id(message)
        self._items.remove(item_id)
        self.out.append({"type": "conversation.item.deleted", "item_id": item_id})

    def _truncate_item(self, message: Message) -> None:
        """What the user has heard of an item; what the model remembers of it stays as it is."""
        item_id, asked_ms = _id(message), message.get("audio_end_ms")
        if isinstance(asked_ms, bool) or not isinstance(asked_ms, int | float):
            raise ClientFault("invalid_value", "audio_end_ms must be a number", "audio_end_ms")
        item, heard_ms = self._items.get(item_id), 0
        if item is not None:
            item.heard_ms = heard_ms = round(min(max(asked_ms, 0), item.audio_ms))
            frames = heard_ms // self._frame_ms
            if item.role == "assistant" and frames:
                self._inbox.direct(PlayedOut(item.first_sequence + frames - 1))
        index = message.get("content_index")
        self.out.append({"type": "conversation.item.truncated", "item_id": item_id, "audio_end_ms": heard_ms,
                         "content_index": index if isinstance(index, int) else 0})

    def _create_response(self, message: Message) -> None:
        asked = message.get("response")
        metadata = asked.get("metadata") if isinstance(asked, dict) else None
        self._turns.expect(metadata if _is_metadata(metadata) else None)

    def _cancel(self, message: Message) -> None:
        response_id = message.get("response_id")
        messages, silence_model = self._turns.cancel(response_id if isinstance(response_id, str) else None)
        self.out.extend(messages)
        if silence_model:
            self._inbox.direct(Interrupt())
        if self._leaving and not self._turns.responding:
            self.close_code = GOING_AWAY


def _parsed(text: str | bytes) -> Message:
    if isinstance(text, bytes):
        raise ClientFault("invalid_event", "events are text messages; audio is base64 in input_audio_buffer.append")
    if len(text) > LARGE_CHARACTERS and sum(map(text.count, ",[{")) > MOST_PARTS_OF_LARGE:
        raise ClientFault("event_too_large", f"an event of more than {LARGE_CHARACTERS} characters may have "
                          f"{MOST_PARTS_OF_LARGE} values")
    try:
        message = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError):
        raise ClientFault("invalid_json", "a message must be JSON") from None
    if not isinstance(message, dict):
        raise ClientFault("invalid_event", "a message must be a JSON object", "type")
    return message


def _no_number(name: str) -> None:
    """Python reads NaN and Infinity, which are no JSON: clients that get them back can't."""
    raise ValueError(name)


def _finite(text: str) -> float:
    """Nor what overflows to infinity, such as 1e999."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _object(message: Message, name: str) -> Message:
    value = message.get(name)
    if not isinstance(value, dict):
        raise ClientFault("invalid_value", f"{name} must be an object", name)
    return value


def _text(message: Message, name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str):
        raise ClientFault("invalid_value", f"{name} must be a string", name)
    return value


def _id(message: Message, name: str = "item_id", param: str = "item_id") -> str:
    value = _text(message, name)
    if not 0 < len(value) <= MOST_ID_CHARACTERS:
        raise ClientFault("invalid_value", f"{param} must have 1 to {MOST_ID_CHARACTERS} characters", param)
    return value


def _is_metadata(value: Any) -> bool:
    """OpenAI's bounds: 16 pairs of strings, of 64 and 512 characters."""
    return isinstance(value, dict) and len(value) <= 16 and all(
        len(key) <= 64 and isinstance(text, str) and len(text) <= 512 for key, text in value.items())
