"""A response: one stretch of the model's speech, from its first sound until it is silent, interrupted or cancelled."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from services.gateway.edges.web.realtime.items import Item

Message = dict[str, Any]

COMPLETED: tuple[str, Message | None] = ("completed", None)
TURN_DETECTED: tuple[str, Message | None] = ("cancelled", {"type": "cancelled", "reason": "turn_detected"})
CLIENT_CANCELLED: tuple[str, Message | None] = ("cancelled", {"type": "cancelled", "reason": "client_cancelled"})


class Response:
    """Its messages, in the order in which clients need them: LiveKit loses a sound whose item it does not know yet."""

    def __init__(self, response_id: str, item: Item, previous_item_id: str | None, metadata: Mapping[str, Any] | None,
                 facts: Message) -> None:
        """`facts`: the fields that say how this session's responses are made."""
        self.id, self.item = response_id, item
        self._previous_item_id, self._metadata, self._facts = previous_item_id, metadata, facts
        self._where = {"response_id": self.id, "item_id": item.id, "output_index": 0, "content_index": 0}
        self.frames = 0
        self._pieces = 0  # of text

    def begin(self) -> list[Message]:
        """What announces it."""
        return [
            {"type": "response.created", "response": self._shown("in_progress", None, [], None)},
            {"type": "response.output_item.added", "response_id": self.id, "output_index": 0,
             "item": self.item.shown(with_content=False)},
            {"type": "conversation.item.added", "previous_item_id": self._previous_item_id,
             "item": self.item.shown(with_content=False)},
            {"type": "response.content_part.added", **self._where, "part": {"type": "audio", "transcript": ""}}]

    def frame(self, sound: bytes, text: str, frame_ms: int) -> list[Message]:
        """A frame of it: its sound in the client's format, and the text that the model says with it."""
        messages: list[Message] = [self._sound(sound)] if sound else []
        if not self.item.words:
            text = text.lstrip()  # a piece of text begins with the space before it
        if text:
            # start_time is in seconds of this item's sound: LiveKit shows captions by it.
            messages.append({"type": "response.output_audio_transcript.delta", **self._where, "delta": text,
                             "start_time": self.item.audio_ms / 1000})
            self.item.words.append((self.item.audio_ms, text))
            self._pieces += 1
        self.item.audio_ms += frame_ms
        self.frames += 1
        return messages

    def end(self, status: str, details: Message | None, sound: bytes, frames_heard: int) -> list[Message]:
        """What ends it. `sound` is what the output's resampler still owes; `frames_heard` are the frames of the user's
        sound since the last response.
        """
        self.item.status = "completed" if status == "completed" else "incomplete"
        transcript, item = self.item.transcript, self.item.shown()
        return [
            *([self._sound(sound)] if sound else []),
            {"type": "response.output_audio.done", **self._where},
            {"type": "response.output_audio_transcript.done", **self._where, "transcript": transcript},
            {"type": "response.content_part.done", **self._where, "part": {"type": "audio", "transcript": transcript}},
            {"type": "response.output_item.done", "response_id": self.id, "output_index": 0, "item": item},
            {"type": "conversation.item.done", "previous_item_id": self._previous_item_id, "item": item},
            {"type": "response.done", "response": self._shown(status, details, [item], self._usage(frames_heard))}]

    def _sound(self, sound: bytes) -> Message:
        return {"type": "response.output_audio.delta", **self._where, "delta": base64.b64encode(sound).decode()}

    def _shown(self, status: str, details: Message | None, output: list[Message], usage: Message | None) -> Message:
        return {"id": self.id, "object": "realtime.response", "status": status, "status_details": details,
                "output": output, "metadata": self._metadata, "usage": usage, **self._facts}

    def _usage(self, frames_heard: int) -> Message:
        """A frame of sound counts as a token of audio, a piece of text as a token of text."""
        said = self.frames + self._pieces
        return {
            "total_tokens": frames_heard + said, "input_tokens": frames_heard, "output_tokens": said,
            "input_token_details": {
                "text_tokens": 0, "audio_tokens": frames_heard, "image_tokens": 0, "cached_tokens": 0,
                "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0}},
            "output_token_details": {"text_tokens": self._pieces, "audio_tokens": self.frames}}


def failed(code: str, message: str) -> tuple[str, Message]:
    """The status of a response that an error of the mesh ended."""
    return "failed", {"type": "failed", "error": {"type": "server_error", "code": code, "message": message}}
