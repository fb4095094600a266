"""The two dialects of the wire: the generally available one (GA), in which everything here is written, and the beta
one before it. A stream never has both names of a thing: strict clients stop at a name that they don't know.
"""

from __future__ import annotations

from typing import Any, Protocol

from services.gateway.edges.web.realtime.settings import Format, Settings

Message = dict[str, Any]

BETA_HEADER = ("OpenAI-Beta", "realtime=v1")
BETA_SUBPROTOCOL = "openai-beta.realtime-v1"

_BETA_TYPES = {
    "conversation.item.added": "conversation.item.created",
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done"}
_GA_ONLY = ("conversation.item.done",)
_BETA_PARTS = {"output_audio": "audio", "output_text": "text"}


class Dialect(Protocol):
    """How a stream is written."""

    def written(self, message: Message) -> Message | None:
        """A message of GA for the wire; None when the dialect has no such message."""

    def session(self, settings: Settings) -> Message:
        """The session object."""


class Ga:
    """Messages as they are."""

    def written(self, message: Message) -> Message | None:
        """See Dialect."""
        return message

    def session(self, settings: Settings) -> Message:
        """See Dialect."""
        return settings.shown


class Beta:
    """Messages with the names of the beta protocol."""

    def written(self, message: Message) -> Message | None:
        """See Dialect."""
        if message["type"] in _GA_ONLY:
            return None
        beta = {**message, "type": _BETA_TYPES.get(message["type"], message["type"])}
        if "item" in beta:
            beta["item"] = _item(beta["item"])
        if "response" in beta:
            beta["response"] = _response(beta["response"])
        return beta

    def session(self, settings: Settings) -> Message:
        """See Dialect."""
        shown = settings.shown
        heard = shown["audio"]["input"]
        return {
            "id": shown["id"], "object": shown["object"], "model": shown["model"], "modalities": ["audio", "text"],
            "instructions": shown["instructions"], "voice": settings.shown_voice,
            "input_audio_format": settings.input.beta, "output_audio_format": settings.output.beta,
            "input_audio_transcription": None, "input_audio_noise_reduction": None,
            "turn_detection": heard["turn_detection"], "tools": [], "tool_choice": "none", "speed": 1.0,
            "max_response_output_tokens": "inf", "tracing": None, "expires_at": shown["expires_at"]}


def _item(item: Message) -> Message:
    content = item.get("content")
    if not isinstance(content, list):
        return item
    return {**item, "content": [_part(part) for part in content]}


def _part(part: Any) -> Any:
    """A part of an item that the client has made may be anything."""
    kind = part.get("type") if isinstance(part, dict) else None
    return {**part, "type": _BETA_PARTS[kind]} if isinstance(kind, str) and kind in _BETA_PARTS else part


def _response(response: Message) -> Message:
    """GA's nested fields are flat here."""
    shared = {key: value for key, value in response.items()
              if key not in ("output_modalities", "audio", "max_output_tokens")}
    output = response["audio"]["output"]
    return {**shared, "output": [_item(item) for item in response["output"]], "modalities": ["audio", "text"],
            "voice": output["voice"], "max_output_tokens": response["max_output_tokens"],
            "output_audio_format": Format(output["format"]["type"]).beta}
