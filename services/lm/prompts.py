"""What a session begins with: a voice and a text, teacher-forced before its first step.

In the order of PersonaPlex (https://github.com/NVIDIA/personaplex): the voice, half a second of silence, the text, one
token a frame, half a second of silence. The model's other streams are padding and silence meanwhile, and so is the
user.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from moshimesh.lm.v1 import lm_pb2

from services.lm.delays import UNGENERATED, Ints
from services.lm.directing import Directed, DirectedAt
from services.lm.past import Past
from services.lm.saying import Tokenizer
from services.mesh.errors import InvalidRequest

if TYPE_CHECKING:  # this file speaks gRPC, that one torch
    from services.lm.engine import LmFacts

MOST_CHARACTERS = 4000
SILENT_FRAMES = 6  # half a second

Row = TypeVar("Row")


@dataclass(frozen=True)
class Prompt:
    """The frames of a prompt."""

    codes: Ints
    """The user's, int64 [frames, user_codebooks]."""
    tokens: Ints
    """Text and own codes, int64 [frames, 1 + own_codebooks]."""
    key: bytes
    """Equal for equal prompts."""

    def before(self, past: Past | None, delay_frames: int) -> Past:
        """The past of a session that began with it."""
        frames = len(self.codes)
        if past is None:
            past = Past(self.codes[:0], self.tokens[:0], 0, [])
        controls = [DirectedAt(at.step + frames, at.directed) for at in past.controls]
        if past.first_step:
            return Past(past.codes, past.tokens, past.first_step + frames, controls)
        # A step answers with the frame that is `delay_frames` older: the prompt's last frames come with the session's
        # first steps, which answered nothing.
        tokens = np.concatenate([np.full((delay_frames, self.tokens.shape[1]), UNGENERATED), self.tokens,
                                 past.tokens[delay_frames:]])
        codes = np.concatenate([self.codes, past.codes])
        return Past(codes, tokens[:len(codes)], 0, [DirectedAt(0, Directed(tokens=self.tokens)), *controls])


def read_prompt(wire: lm_pb2.StepPrompt, facts: LmFacts, tokenizer: Tokenizer) -> Prompt | None:
    """The prompt that a caller sent; None for an empty one. Raises InvalidRequest."""
    if not wire.text and not wire.voice_codes:
        return None
    if len(wire.text) > MOST_CHARACTERS:
        raise _bad("text", f"a text must have at most {MOST_CHARACTERS} characters, got {len(wire.text)}",
                   f"0..{MOST_CHARACTERS}")
    voice_frames, rest = divmod(len(wire.voice_codes), facts.own_codebooks)
    if rest or max(wire.voice_codes, default=0) >= facts.cardinality:
        raise _bad("voice_codes", f"voice_codes must be {facts.own_codebooks} below {facts.cardinality} for each frame",
                   f"a multiple of {facts.own_codebooks}")
    width = max(facts.user_codebooks, facts.own_codebooks)
    if len(wire.silence_codes) != width or max(wire.silence_codes) >= facts.cardinality:
        raise _bad("silence_codes", f"silence_codes must be {width} below {facts.cardinality}", width)
    padding, end_of_padding = facts.silent_text_tokens
    text = [token for token in tokenizer.encode(wire.text) if token not in (padding, end_of_padding)]
    silence = [padding] * SILENT_FRAMES
    texts = [padding] * voice_frames + (silence if voice_frames else []) + (text + silence if text else [])
    most = facts.context_frames // 2
    if len(texts) > most:
        raise _bad("text" if len(text) > voice_frames else "voice_codes", f"a prompt may take half of what the model "
                   f"remembers, {most} frames; this one takes {len(texts)}", f"0..{most} frames")
    codes = np.tile(np.array(wire.silence_codes), (len(texts), 1))
    tokens = np.concatenate([np.array(texts, np.int64)[:, None], codes[:, :facts.own_codebooks]], axis=1)
    tokens[:voice_frames, 1:] = np.array(wire.voice_codes).reshape(voice_frames, facts.own_codebooks)
    key = hashlib.sha256(tokens.tobytes()).digest()
    return Prompt(codes[:, :facts.user_codebooks], tokens, key)


class KeptRows(Generic[Row]):
    """The rows behind the prompts that were used last."""

    def __init__(self, most_frames: int) -> None:
        """`most_frames` of all of them together."""
        self._most_frames = most_frames
        self._rows: OrderedDict[bytes, tuple[Row, int]] = OrderedDict()  # the latest last, each with its frames

    def get(self, prompt: Prompt) -> Row | None:
        """The row behind a prompt, if it is kept."""
        if prompt.key not in self._rows:
            return None
        self._rows.move_to_end(prompt.key)
        return self._rows[prompt.key][0]

    def put(self, prompt: Prompt, row: Row) -> None:
        """Keep a row; the longest unused ones make room."""
        self._rows[prompt.key] = (row, len(prompt.codes))
        while sum(frames for _, frames in self._rows.values()) > self._most_frames:
            self._rows.popitem(last=False)


def _bad(field: str, message: str, accepted: object) -> InvalidRequest:
    return InvalidRequest("BAD_PROMPT", message, field=f"config.prompt.{field}", accepted=accepted)
