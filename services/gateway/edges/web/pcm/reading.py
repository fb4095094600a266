"""What a caller of `/api/pcm` says in JSON; docs/websocket.md is the contract. Unknown fields are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias, TypeVar

from moshimesh.lm.v1 import lm_pb2
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from services.gateway.calls import callers
from services.mesh.errors import InvalidRequest

MOST_TEXT_CHARACTERS = 1 << 14  # of one message: the longest has a text prompt of 4000
MOST_REASON_CHARACTERS = 300  # of what is wrong with a message: it can repeat a part of it

_Uint32 = Annotated[int, Field(ge=0, lt=1 << 32)]
_Uint64 = Annotated[int, Field(ge=0, lt=1 << 64)]


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Sampling(_Message):
    """How to draw tokens; what is None stays as it is."""

    temperature: float | None = None
    top_k: _Uint32 | None = None
    text_temperature: float | None = None
    text_top_k: _Uint32 | None = None
    padding_bonus: float | None = None
    seed: _Uint64 | None = None

    def to_proto(self) -> lm_pb2.Sampling:
        """The same as the language model's message."""
        return lm_pb2.Sampling(audio_temperature=self.temperature, audio_top_k=self.top_k,
                               text_temperature=self.text_temperature, text_top_k=self.text_top_k,
                               padding_bonus=self.padding_bonus, seed=self.seed)


class Resume(_Message):
    """Which conversation to go on with, and from where."""

    handle: str
    first_sequence: _Uint64 = 0
    answered_sequence: _Uint64 | None = None


class Open(_Message):
    """How the call begins."""

    type: Literal["open"] = "open"
    format: str = "s16le"
    rate: _Uint32 | None = None
    """None: the format's own."""
    model: str = ""
    voice: str = ""
    text_prompt: str = ""
    sampling: Sampling = Sampling()
    frames: bool = False
    """Whether to tell of every frame, and how long each hop took."""
    pacing: Literal["live", "offline"] = "live"
    traceparent: str = ""
    resume: Resume | None = None

    def opening(self) -> callers.Opening:
        """The same for the desk."""
        if self.resume is None:
            origin: callers.New | callers.Resumed = callers.New(
                self.sampling.to_proto(), self.model, self.voice, self.text_prompt)
        else:
            origin = callers.Resumed(self.resume.handle, self.resume.first_sequence, self.resume.answered_sequence)
        return callers.Opening(origin, live=self.pacing == "live", traceparent=self.traceparent)


class Settings(_Message):
    """A change of sampling."""

    type: Literal["settings"]
    sampling: Sampling

    def control(self) -> callers.Control:
        """The same for the desk."""
        return callers.SetSampling(self.sampling.to_proto())


class Interrupt(_Message):
    """Silence the model."""

    type: Literal["interrupt"]
    hold_ms: _Uint32 | None = None

    def control(self) -> callers.Control:
        """The same for the desk."""
        return callers.Interrupt() if self.hold_ms is None else callers.Interrupt(self.hold_ms)


class Say(_Message):
    """Let the model speak a text."""

    type: Literal["say"]
    text: str

    def control(self) -> callers.Control:
        """The same for the desk."""
        return callers.Say(self.text)


class Played(_Message):
    """How far the loudspeaker is."""

    type: Literal["played"]
    sequence: _Uint64

    def control(self) -> callers.Control:
        """The same for the desk."""
        return callers.PlayedOut(self.sequence)


class Ping(_Message):
    """Wants a pong."""

    type: Literal["ping"]
    id: _Uint64


class End(_Message):
    """No more audio comes."""

    type: Literal["end"]


Read = TypeVar("Read")
Told: TypeAlias = Settings | Interrupt | Say | Played | Ping | End

_OPEN: TypeAdapter[Open] = TypeAdapter(Open)
_TOLD: TypeAdapter[Told] = TypeAdapter(Annotated[Told, Field(discriminator="type")])


def read_open(text: str) -> Open:
    """The first message. Raises InvalidRequest."""
    return _read(_OPEN, text)


def read_told(text: str) -> Told:
    """A later message. Raises InvalidRequest."""
    return _read(_TOLD, text)


def read_query(query: Mapping[str, str]) -> Open:
    """What a caller that can't send JSON says in its URL, which has no room for anything private. Raises
    InvalidRequest.
    """
    asked = {name: query[name] for name in ("format", "rate", "model", "voice", "pacing") if name in query}
    try:
        return Open.model_validate(asked, strict=False)
    except ValidationError as error:
        raise _refused(error) from None


def _read(adapter: TypeAdapter[Read], text: str) -> Read:
    if len(text) > MOST_TEXT_CHARACTERS:
        raise InvalidRequest("BAD_MESSAGE", f"a text message may have {MOST_TEXT_CHARACTERS} characters, got "
                             f"{len(text)}", accepted=f"0..{MOST_TEXT_CHARACTERS} characters")
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        raise _refused(error) from None


def _refused(error: ValidationError) -> InvalidRequest:
    """The first thing that is wrong, without the value: it may be private."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(map(str, first["loc"]))
    return InvalidRequest("BAD_MESSAGE", f"{field + ': ' if field else ''}{first['msg']}"[:MOST_REASON_CHARACTERS],
                          field=field)
