"""A session's settings: what a client may ask for, and what is true."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from services.gateway.edges import g711
from services.gateway.edges.resampling import RATES_HERTZ
from services.gateway.edges.web.realtime.offer import DEFAULT_VOICE, Offer

# The client's sound: 16 bit PCM or G.711. Telephony speaks the latter, always at 8 kHz.
PCM, MU_LAW, A_LAW = "audio/pcm", "audio/pcmu", "audio/pcma"
OPENAI_HERTZ = 24_000  # OpenAI's only rate of PCM; some clients refuse a session that says another one unasked
_BETA_FORMATS = {"pcm16": PCM, "g711_ulaw": MU_LAW, "g711_alaw": A_LAW}


@dataclass(frozen=True)
class Format:
    """How sound is written."""

    type: str = PCM
    rate: int = OPENAI_HERTZ

    @property
    def sample_bytes(self) -> int:
        """The size of a sample."""
        return 2 if self.type == PCM else 1

    @property
    def shown(self) -> dict[str, Any]:
        """As the protocol has it."""
        return {"type": PCM, "rate": self.rate} if self.type == PCM else {"type": self.type}

    @property
    def beta(self) -> str:
        """As the beta protocol has it."""
        return next(name for name, kind in _BETA_FORMATS.items() if kind == self.type)


@dataclass
class Settings:
    """What is in force. `update` takes over what can be done, and `shown` tells the client what became of the rest."""

    id: str
    model: str
    expires_at: int
    """Unix time in seconds at which the mesh ends the call."""
    offer: Offer = field(default_factory=Offer)
    voice: str = ""
    """One of the mesh's; empty: the model's own."""
    instructions: str = ""
    begun: bool = False
    """Whether the model has heard its voice and its instructions, and they can't change any more."""
    input: Format = Format()
    output: Format = Format()

    def update(self, asked: dict[str, Any]) -> None:
        """Take over what a `session.update` or a client secret asks for, in either dialect."""
        audio = _object(asked.get("audio"))
        self.input = _format(_object(audio.get("input")).get("format"), asked.get("input_audio_format"), self.input)
        output = _object(audio.get("output"))
        self.output = _format(output.get("format"), asked.get("output_audio_format"), self.output)
        if self.begun:
            return
        if (voice := output.get("voice", asked.get("voice"))) is not None:
            self.voice = self.offer.voice(voice)
        if (instructions := asked.get("instructions")) is not None:
            self.instructions = self.offer.instructions(instructions)

    @property
    def shown_voice(self) -> str:
        """The voice's name for the client."""
        return self.voice or DEFAULT_VOICE

    @property
    def shown(self) -> dict[str, Any]:
        """The session object. Without server_vad, clients would cancel responses by themselves."""
        return {
            "type": "realtime", "object": "realtime.session", "id": self.id, "model": self.model,
            "output_modalities": ["audio"], "instructions": self.instructions,
            "audio": {
                "input": {"format": self.input.shown, "transcription": None, "noise_reduction": None,
                          "turn_detection": {"type": "server_vad", "create_response": True,
                                             "interrupt_response": True}},
                "output": {"format": self.output.shown, "voice": self.shown_voice, "speed": 1.0}},
            "tools": [], "tool_choice": "none", "max_output_tokens": "inf", "tracing": None,
            "expires_at": self.expires_at}

    @property
    def of_responses(self) -> dict[str, Any]:
        """The fields of a response that say how it is made."""
        return {"output_modalities": ["audio"], "max_output_tokens": "inf",
                "audio": {"output": {"format": self.output.shown, "voice": self.shown_voice}}}


def _format(asked: Any, beta: Any, now: Format) -> Format:
    """The format that is asked for, if it is one of ours."""
    kind = _BETA_FORMATS.get(beta) if isinstance(beta, str) else None
    if kind is None:
        kind = _object(asked).get("type")
    if kind == PCM:
        rate = _object(asked).get("rate", OPENAI_HERTZ)
        return Format(PCM, rate) if type(rate) is int and rate in RATES_HERTZ else now  # 8000.0 equals 8000
    return Format(kind, g711.RATE_HERTZ) if kind in (MU_LAW, A_LAW) else now


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
