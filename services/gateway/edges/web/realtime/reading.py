"""What a backend asks for when it gets a client secret: the settings of the calls that the secret opens."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from services.gateway.calls.voices import LONGEST_TEXT
from services.gateway.edges.resampling import RATES_HERTZ
from services.mesh.errors import InvalidRequest

# Names that mean the model's own voice here (openai.types.realtime and .live).
OPENAI_VOICES = frozenset((
    "alloy", "ash", "ballad", "beacon", "bossa", "cedar", "cinder", "coral", "delta", "echo", "gleam", "marin",
    "meridian", "quartz", "ripple", "sage", "shida", "shimmer", "stone", "tempo", "verse", "vesper", "willow"))
_BetaFormat = Literal["pcm16", "g711_ulaw", "g711_alaw"]


class _Format(BaseModel):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
    rate: int | None = None


class _Voice(BaseModel):
    id: str


class _Input(BaseModel):
    format: _Format | None = None


class _Output(BaseModel):
    format: _Format | None = None
    voice: str | _Voice | None = None


class _Audio(BaseModel):
    input: _Input | None = None
    output: _Output | None = None


class _Session(BaseModel):
    """What the mesh understands of a session, in both dialects."""

    model: str | None = Field(None, max_length=256)
    instructions: str | None = None
    audio: _Audio | None = None
    voice: str | None = None
    input_audio_format: _BetaFormat | None = None
    output_audio_format: _BetaFormat | None = None


def read_session(asked: Any, voices: Collection[str]) -> dict[str, Any]:
    """What is to be kept of a session, for Settings.update: not more than some kilobytes. Raises InvalidRequest."""
    try:
        session = _Session.model_validate(asked)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise _bad(".".join(map(str, first["loc"])), first["msg"]) from None
    audio = session.audio or _Audio()
    heard, spoken = audio.input or _Input(), audio.output or _Output()
    for side, format in (("input", heard.format), ("output", spoken.format)):
        if format and format.type == "audio/pcm" and format.rate not in (None, *RATES_HERTZ):
            raise _bad(f"audio.{side}.format.rate", f"must be one of {', '.join(map(str, RATES_HERTZ))}")
    for where, voice in (("audio.output.voice", spoken.voice), ("voice", session.voice)):
        name = voice.id if isinstance(voice, _Voice) else voice
        if name and name not in OPENAI_VOICES and name not in voices:
            known = ", ".join(list(voices)[:20]) or "none of its own"
            raise _bad(where, f"this mesh has no such voice; it has {known}")
    kept = session.model_dump(exclude_none=True)
    if len(kept.get("instructions", "")) > LONGEST_TEXT:
        del kept["instructions"]  # no model takes as much: see Offer
    return kept


def _bad(field: str, message: str) -> InvalidRequest:
    field = f"session.{field}" if field else "session"
    return InvalidRequest("BAD_SESSION", f"{field}: {message}", field=field)
