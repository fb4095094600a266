"""What a call can begin with: the mesh's voices, and a text for a model that was trained to follow one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.gateway.calls.desk import Desk, ModelInfo

DEFAULT_VOICE = "default"  # how the model's own is called here


@dataclass(frozen=True)
class Offer:
    """What there is for calls with one model. Nothing is refused: a session says what is in force."""

    voices: frozenset[str] = frozenset()
    text_prompt_characters: int = 0

    @classmethod
    def of(cls, desk: Desk, model: ModelInfo) -> Offer:
        """What a desk has for a model."""
        return cls(frozenset(voice.name for voice in desk.voices), model.text_prompt_characters)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to choose."""
        return not self.voices and not self.text_prompt_characters

    def voice(self, asked: Any) -> str:
        """The voice of this name; empty, for the model's own, if there is none, as for OpenAI's names."""
        name = asked.get("id") if isinstance(asked, dict) else asked
        return name if isinstance(name, str) and name in self.voices else ""

    def instructions(self, asked: Any) -> str:
        """The instructions, if they are of a length that the model was trained with, else none. openai-agents and
        LiveKit always send some, made for a model that reads pages; one that can't would speak them, or drift.
        """
        return asked if isinstance(asked, str) and len(asked) <= self.text_prompt_characters else ""
