"""What a client of `/v1/live/sessions` says: the events of OpenAI's Live protocol that mean something here."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from services.gateway.edges.web.realtime.faults import ClientFault

MOST_REASON_CHARACTERS = 300  # of what is wrong with an event: it can repeat a part of it


class _Event(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    event_id: str | None = Field(default=None, max_length=256)


class AudioFormat(BaseModel):
    """How sound is written, in both directions."""

    model_config = ConfigDict(strict=True, frozen=True)

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: int | None = None


class _CustomVoice(BaseModel):
    id: str


class _Output(BaseModel):
    voice: str | _CustomVoice | None = None


class _Audio(BaseModel):
    format: AudioFormat | None = None
    output: _Output | None = None


class _Config(BaseModel):
    """History, delegation and triggers are not here: the model has none of them."""

    model: str = ""
    instructions: str | None = None
    audio: _Audio | None = None


class Start(_Event):
    """Opens the session."""

    type: Literal["session.start"]
    session: _Config

    @property
    def format(self) -> AudioFormat:
        """What the client asks for, or OpenAI's own."""
        return (self.session.audio.format if self.session.audio else None) or AudioFormat()

    @property
    def voice(self) -> str:
        """The name that the client asks for; empty for none."""
        voice = self.session.audio and self.session.audio.output and self.session.audio.output.voice
        return (voice.id if isinstance(voice, _CustomVoice) else voice) or ""


class Append(_Event):
    """Sound, in base64."""

    type: Literal["session.input_audio.append"]
    audio: str


class Mute(_Event):
    """The model hears silence from now on."""

    type: Literal["session.input_audio.mute"]


class Unmute(_Event):
    """The model hears the client again."""

    type: Literal["session.input_audio.unmute"]


class Update(_Event):
    """Changes delegation or triggers, of which there are none."""

    type: Literal["session.update"]


class Close(_Event):
    """Ends the session well."""

    type: Literal["session.close"]


class Unsupported(_Event):
    """Speaks to parts of OpenAI's service that are not here."""

    type: Literal["session.output_audio.fixture.play", "session.instructions.append", "session.thinking.append",
                  "session.commentary.append", "decision.create", "decision.item.create", "decision.item.delete",
                  "response.item.create", "response.create"]


Told: TypeAlias = Append | Mute | Unmute | Update | Close | Unsupported
Read = TypeVar("Read")

_START: TypeAdapter[Start] = TypeAdapter(Start)
_TOLD: TypeAdapter[Told] = TypeAdapter(Annotated[Told, Field(discriminator="type")])


def read_start(data: str | bytes) -> Start:
    """The first event. Raises ClientFault."""
    return _read(_START, data)


def read_told(data: str | bytes) -> Told:
    """A later event. Raises ClientFault."""
    return _read(_TOLD, data)


def _read(adapter: TypeAdapter[Read], data: str | bytes) -> Read:
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise ClientFault("invalid_event", first["msg"][:MOST_REASON_CHARACTERS],
                          ".".join(map(str, first["loc"])) or None) from None
