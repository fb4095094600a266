"""Who talks: from the mesh's frames and events to the user's turns and the model's responses.

Moshi hears and speaks at every moment; the protocol has turns. A response is open while the model speaks, never two at
once, and between responses nothing is sent. `speech_started` means "stop playing" to every client, so the user's turn
is held back while a response is open: a short "yes" would cut the model. It is told when the model has yielded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from services.gateway.calls.events import ConversationEvent, EventKind, Speech
from services.gateway.edges.web.realtime.ids import Ids
from services.gateway.edges.web.realtime.items import Item, Items, spoken_by_model, spoken_by_user
from services.gateway.edges.web.realtime.response import (
    CLIENT_CANCELLED,
    COMPLETED,
    TURN_DETECTED,
    Message,
    Response,
    failed,
)
from services.gateway.path.audio import Pcm

# Frames that are kept while nothing is sent: an event may come some frames after the one at which the model began.
ONSET_FRAMES = 12
LEAD_FRAMES = 2  # of silence before the model's first sound, so that no onset is clipped
# LiveKit waits 10 s for a response with the metadata that it sent, and cancels one that comes later.
METADATA_S = 9.0
# Clients send a bare cancel when they hear speech_started, some of them two, and it arrives a round trip later, when
# the next response may be open. Within this time a cancel without an id means the response that is over.
LATE_CANCEL_S = 2.0
# A cancel silences the model within some frames. If it still speaks after as many, it talks on: that is a new response.
TALKS_ON_FRAMES = 10


class Voice(Protocol):
    """The model's sound in the client's format."""

    def encode(self, pcm: Pcm) -> bytes:
        """A frame of a response."""

    def finish(self) -> bytes:
        """The rest of a response."""


@dataclass
class UserTurn:
    """What the user says."""

    item_id: str
    started_ms: int
    told: bool = False
    """Whether the client knows of it."""
    stopped_ms: int | None = None


class Turns:
    """One session's turns. All methods return what to tell the client, in order."""

    def __init__(self, ids: Ids, items: Items, voice: Voice, facts: Callable[[], Message], frame_ms: int,
                 now: Callable[[], float] = time.monotonic) -> None:
        """`facts`: the fields that say how responses are made; a frame of the model has `frame_ms`."""
        self._ids, self._items, self._voice, self._facts, self._now = ids, items, voice, facts, now
        self._frame_ms = frame_ms
        self._response: Response | None = None
        self._user: UserTurn | None = None
        self._model_speaks = False
        self._stopping = False  # the model has fallen silent; whether it was interrupted is told next
        self._frames_since_cancel = 0
        self._kept: deque[Speech] = deque(maxlen=ONSET_FRAMES)
        self._frames_heard = 0
        self._metadata: Mapping[str, Any] | None = None
        self._metadata_until = 0.0
        self._late_cancels_until = float("-inf")

    @property
    def responding(self) -> bool:
        """Whether a response is open."""
        return self._response is not None

    # From the mesh:

    def speech(self, speech: Speech) -> list[Message]:
        """A frame of the model, whether it speaks or not."""
        messages = self._close(COMPLETED) if self._stopping else []
        self._frames_heard += 1
        if self._response is not None:
            return self._frame(self._response, speech)
        if self._model_speaks:  # it was cancelled, and falls silent soon: nobody wants to hear what it still says
            self._frames_since_cancel += 1
            if self._frames_since_cancel <= TALKS_ON_FRAMES:
                return messages
        self._kept.append(speech)
        return messages + self._open(speech.context.sequence + LEAD_FRAMES) if self._model_speaks else messages

    def happened(self, event: ConversationEvent) -> list[Message]:
        """Somebody began or stopped to speak."""
        match event.kind:
            case EventKind.USER_SPEECH_STARTED:
                self._user = UserTurn(self._ids.new("item"), event.at_ms)
                return [] if self.responding else self._tell_user_started()
            case EventKind.USER_SPEECH_STOPPED:
                if self._user is None:
                    return []
                self._user.stopped_ms = event.at_ms
                return self._tell_user_stopped() if self._user.told else []
            case EventKind.MODEL_SPEECH_STARTED:
                messages = self._close(COMPLETED) if self._stopping else []
                self._model_speaks = True
                return messages if self.responding else messages + self._open(event.sequence)
            case EventKind.MODEL_SPEECH_STOPPED:
                self._model_speaks, self._stopping = False, self.responding
            case EventKind.INTERRUPTED:
                self._model_speaks = False
                return self._interrupted()
        return []

    def finish(self) -> list[Message]:
        """The call has ended well."""
        self._user = None
        return self._close(COMPLETED)

    def fail(self, code: str, message: str) -> list[Message]:
        """The mesh ends the call with an error."""
        self._user = None
        return self._close(failed(code, message))

    # From the client:

    def expect(self, metadata: Mapping[str, Any] | None) -> None:
        """The client wants a response, and to know it by this. The model speaks when it wants to."""
        self._metadata, self._metadata_until = metadata, self._now() + METADATA_S

    def cancel(self, response_id: str | None = None) -> tuple[list[Message], bool]:
        """The client does not want to hear the response (any more); and whether the model must be silenced for it."""
        response = self._response
        if response is None or (response_id is not None and response_id != response.id):
            return [], False
        if response_id is None and self._now() < self._late_cancels_until:
            return [], False
        self._late_cancels_until = self._now() + LATE_CANCEL_S
        self._frames_since_cancel = 0
        return self._close(CLIENT_CANCELLED), True

    def commit(self) -> list[Message]:
        """The client says that its user's turn is over. Moshi does not wait for that."""
        return self._list_user_item(self._ids.new("item"))

    def _open(self, sequence: int) -> list[Message]:
        """A response, whose sound begins at this frame."""
        first = sequence - LEAD_FRAMES
        item = spoken_by_model(self._ids.new("item"), max(first, 0))
        before = self._items.add(item)
        metadata = self._metadata if self._now() < self._metadata_until else None
        self._metadata = None
        self._response = response = Response(self._ids.new("resp"), item, before, metadata, self._facts())
        messages = response.begin()
        early_text = ""
        for speech in self._kept:
            if speech.context.sequence < first:
                early_text += speech.text  # text runs ahead of the sound
            else:
                messages += self._frame(response, speech, early_text)
                early_text = ""
        self._kept.clear()
        return messages

    def _frame(self, response: Response, speech: Speech, early_text: str = "") -> list[Message]:
        return response.frame(self._voice.encode(speech.pcm), early_text + speech.text, self._frame_ms)

    def _close(self, status: tuple[str, Message | None]) -> list[Message]:
        """End the response, if one is open. A user who still talks is heard of now."""
        messages = self._end_response(status)
        if self._user is not None and not self._user.told:
            if self._user.stopped_ms is None:
                messages += self._tell_user_started()
            else:
                self._user = None  # said something while the model went on
        return messages

    def _interrupted(self) -> list[Message]:
        """The model has yielded: to the user, if it was talked over."""
        if self._response is None:
            return []
        if self._user is None or self._user.told:
            return self._end_response(TURN_DETECTED)
        messages = self._tell_user_started() + self._end_response(TURN_DETECTED)
        return messages + (self._tell_user_stopped() if self._user.stopped_ms is not None else [])

    def _end_response(self, status: tuple[str, Message | None]) -> list[Message]:
        response, self._response, self._stopping = self._response, None, False
        if response is None:
            return []
        heard, self._frames_heard = self._frames_heard, 0
        return response.end(*status, self._voice.finish(), heard)

    def _tell_user_started(self) -> list[Message]:
        user = self._user
        assert user is not None
        user.told = True
        self._late_cancels_until = self._now() + LATE_CANCEL_S
        return [{"type": "input_audio_buffer.speech_started", "audio_start_ms": user.started_ms,
                 "item_id": user.item_id}]

    def _tell_user_stopped(self) -> list[Message]:
        user, self._user = self._user, None
        assert user is not None
        return [{"type": "input_audio_buffer.speech_stopped", "audio_end_ms": user.stopped_ms,
                 "item_id": user.item_id}, *self._list_user_item(user.item_id)]

    def _list_user_item(self, item_id: str) -> list[Message]:
        item: Item = spoken_by_user(item_id)
        before = self._items.add(item)
        shown = item.shown()
        return [{"type": "input_audio_buffer.committed", "previous_item_id": before, "item_id": item_id},
                {"type": "conversation.item.added", "previous_item_id": before, "item": shown},
                {"type": "conversation.item.done", "previous_item_id": before, "item": shown}]
