"""A conversation taken apart afterwards: exported as tokens, saved, and stepped again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format
from moshimesh.gateway.v1 import conversation_pb2
from moshimesh.lm.v1 import lm_pb2

STEPS_PER_MESSAGE = 250


@dataclass(frozen=True)
class Replayed:
    """What one step answered in a replay: text to be appended, the token of that text (None while the delay line
    fills), the model's own codes, and 16 bit samples if audio was asked for.
    """

    step: int
    text: str
    text_token: int | None
    codes: tuple[int, ...]
    pcm: bytes


class Recording:
    """Consecutive steps of a conversation: what the model heard, said and was told, without any audio.

    It holds what was said, as tokens: keep it as you would keep the audio.
    """

    def __init__(self, exported: conversation_pb2.ExportResponse) -> None:
        self._all = exported
        width, steps = exported.own_codebooks + 1, exported.steps
        answered = max(self.next_step - max(steps.first_step, exported.delay_frames), 0)
        if len(steps.user_codes) != len(steps.sequences) * exported.user_codebooks or (
                len(steps.tokens) != answered * width):
            raise ValueError("this recording's codes and tokens don't fit its number of steps")

    @property
    def model_id(self) -> str:
        """The model that it was held with."""
        return str(self._all.model_id)

    @property
    def sampling(self) -> lm_pb2.Sampling:
        """In force at the first step."""
        return self._all.sampling

    @property
    def prompt(self) -> lm_pb2.StepPrompt | None:
        """What came before the conversation's first step."""
        return self._all.prompt if self._all.HasField("prompt") else None

    @property
    def first_step(self) -> int:
        """Of the conversation; 0 if the recording has its begin."""
        return int(self._all.steps.first_step)

    @property
    def next_step(self) -> int:
        """After the last one."""
        return self.first_step + len(self._all.steps.sequences)

    def tokens(self, step: int) -> tuple[int, ...] | None:
        """What a step answered: the text token and the model's own codes; None while the delay line filled."""
        width = self._all.own_codebooks + 1
        row = step - max(self.first_step, self._all.delay_frames)
        return tuple(self._all.steps.tokens[row * width:(row + 1) * width]) if row >= 0 else None

    def extend(self, later: Recording) -> None:
        """Append the steps of a later export of the same conversation. Raises ValueError when some are missing."""
        if later.first_step > self.next_step:
            raise ValueError(f"steps {self.next_step} to {later.first_step - 1} are missing: the mesh keeps the last "
                             f"{self._all.context_frames} steps, so export more often")
        new = later._cut(self.next_step)
        for name in ("sequences", "user_codes", "tokens"):
            getattr(self._all.steps, name).extend(getattr(new, name))
        self._all.steps.controls.extend(new.controls)

    def past(self) -> conversation_pb2.RecordedSteps | None:
        """What a replay takes as the model's past: nothing if the begin is there, else as much as it remembers."""
        if self.first_step == 0:
            return None
        return self._cut(self.first_step, self.first_step + self._all.context_frames)

    def messages(self) -> Iterator[conversation_pb2.RecordedSteps]:
        """The steps after that past, in messages that the mesh takes."""
        first = 0 if self.first_step == 0 else min(self.first_step + self._all.context_frames, self.next_step)
        for begin in range(first, self.next_step, STEPS_PER_MESSAGE):
            yield self._cut(begin, begin + STEPS_PER_MESSAGE)

    def _cut(self, begin: int, end: int | None = None) -> conversation_pb2.RecordedSteps:
        """The steps from `begin` to before `end`, as far as they are there."""
        steps, delay = self._all.steps, self._all.delay_frames
        end = self.next_step if end is None else min(end, self.next_step)
        begin = max(begin, self.first_step)
        users, tokens = self._all.user_codebooks, self._all.own_codebooks + 1

        def row(step: int) -> int:
            return max(step - max(self.first_step, delay), 0) * tokens

        return conversation_pb2.RecordedSteps(
            first_step=begin, sequences=steps.sequences[begin - self.first_step:end - self.first_step],
            user_codes=steps.user_codes[(begin - self.first_step) * users:(end - self.first_step) * users],
            tokens=steps.tokens[row(begin):row(end)],
            controls=[control for control in steps.controls if begin <= control.step < end])

    def save(self, path: Path) -> None:
        """Write it as JSON, for its owner alone."""
        text = json_format.MessageToJson(self._all, indent=None)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read what `save` wrote. Raises ValueError, OSError."""
        try:
            return cls(json_format.Parse(path.read_text(), conversation_pb2.ExportResponse()))
        except (json_format.ParseError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a recording: {error}") from None
