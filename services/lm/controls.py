"""What a caller of the service decides about a session's steps, checked and as the engine takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from moshimesh.lm.v1 import lm_pb2

from services.lm.delays import Ints
from services.lm.directing import DRAWN, Directed, DirectedAt
from services.lm.sampling import Sampling
from services.lm.saying import Tokenizer, paced
from services.mesh.errors import InvalidRequest

if TYPE_CHECKING:  # this file speaks gRPC, that one torch
    from services.lm.engine import LmFacts

MOST_FORCED_FRAMES = 1000  # 80 s; the gateway forces 10 s at the most
MOST_SAID_CHARACTERS, MOST_SAID_BYTES = 1000, 4000


class ControlReader:
    """Reads the controls of one session, in the order of its steps."""

    def __init__(self, facts: LmFacts, tokenizer: Tokenizer, sampling: Sampling) -> None:
        self.sampling = sampling  # in force after what was read so far
        self._facts, self._tokenizer = facts, tokenizer

    def read(self, wire: lm_pb2.StepControls, field: str) -> Directed:
        """The controls of one step, which a message has in `field`. Raises InvalidRequest."""
        sampling = tokens = None
        if wire.HasField("sampling"):
            sampling = self._changed(wire.sampling, f"{field}.sampling")
        if wire.HasField("forced"):
            tokens = self._forced(wire.forced, f"{field}.forced")
        elif wire.HasField("say"):
            tokens = self._said(wire.say.text, f"{field}.say.text")
        return Directed(sampling, tokens)

    def read_all(self, wire: Sequence[lm_pb2.StepControlsAt], steps: int) -> list[DirectedAt]:
        """Those of a history of a session with so many steps. Raises InvalidRequest."""
        field, read = "config.history.controls", list[DirectedAt]()
        for number, at in enumerate(wire):
            if at.step >= steps or (read and at.step <= read[-1].step):
                raise InvalidRequest("BAD_HISTORY", "controls must be in the order of their steps and of steps of the "
                                     f"history, got step {at.step}", field=f"{field}[{number}].step",
                                     accepted=f"0..{steps - 1}")
            read.append(DirectedAt(at.step, self.read(at.controls, f"{field}[{number}].controls")))
        return read

    def _changed(self, wire: lm_pb2.Sampling, field: str) -> Sampling:
        if wire.HasField("seed") and wire.seed != self.sampling.seed:
            raise InvalidRequest("BAD_SAMPLING", "a session keeps its seed", field=f"{field}.seed",
                                 accepted=self.sampling.seed)
        self.sampling = sampled(self.sampling, wire, field)
        return self.sampling

    def _forced(self, wire: lm_pb2.ForcedTokens, field: str) -> Ints:
        facts, frames = self._facts, wire.frames or 1
        if frames > MOST_FORCED_FRAMES:
            raise _bad(f"{field}.frames", f"frames must be at most {MOST_FORCED_FRAMES}, got {frames}",
                       f"0..{MOST_FORCED_FRAMES}")
        if wire.text_token >= facts.text_cardinality:
            raise _bad(f"{field}.text_token", f"text_token must be below {facts.text_cardinality}, got "
                       f"{wire.text_token}", f"0..{facts.text_cardinality - 1}")
        if len(wire.codes) not in (0, facts.own_codebooks) or max(wire.codes, default=0) >= facts.cardinality:
            raise _bad(f"{field}.codes", f"codes must be {facts.own_codebooks} below {facts.cardinality}, or none",
                       f"{facts.own_codebooks} of 0..{facts.cardinality - 1}")
        frame = np.full(1 + facts.own_codebooks, DRAWN, np.int64)
        if wire.HasField("text_token"):
            frame[0] = wire.text_token
        if wire.codes:
            frame[1:] = wire.codes
        return np.tile(frame, (frames, 1))

    def _said(self, text: str, field: str) -> Ints:
        if len(text) > MOST_SAID_CHARACTERS or len(text.encode()) > MOST_SAID_BYTES:
            raise _bad(field, f"a text must have at most {MOST_SAID_CHARACTERS} characters and {MOST_SAID_BYTES} "
                       f"bytes, got {len(text)} and {len(text.encode())}", f"1..{MOST_SAID_CHARACTERS}")
        words = paced(text, self._tokenizer, *self._facts.silent_text_tokens)
        if not words:
            raise _bad(field, "the model has no tokens for any of this text", "words of the model's language")
        tokens = np.full((len(words), 1 + self._facts.own_codebooks), DRAWN, np.int64)
        tokens[:, 0] = words
        return tokens


def sampled(before: Sampling, wire: lm_pb2.Sampling, field: str) -> Sampling:
    """The sampling with what a caller has set. Raises InvalidRequest."""
    asked: dict[str, Any] = {each.name: value for each, value in wire.ListFields()}
    try:
        return replace(before, **asked)
    except ValueError as error:
        raise InvalidRequest("BAD_SAMPLING", str(error), field=field) from None


def _bad(field: str, message: str, accepted: object) -> InvalidRequest:
    return InvalidRequest("BAD_CONTROL", message, field=field, accepted=accepted)
