"""Engines that hear the caller and speak a signal that is known to the sample, for a gateway without a model.

The language model's codes say the number of its step, so the voice of frame n is the same however often its row was
moved or rebuilt. It says a word every four frames: `w0 w4 w8 ...`. While tokens are forced, which is what an
interruption does, it is silent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.null_services import NullFacts
from services.lm.directing import Directed, DirectedAt

FACTS = NullFacts()
RATE, FRAME, DELAY = FACTS.sample_rate_hertz, FACTS.samples_per_frame, FACTS.delay_frames
WORD_EVERY = 4
FIRST_WORD_TOKEN = 100
# In the third codebook: how a frame sounds. What is forced and what is not meet softly, so that a click is the page's.
SPOKEN, SILENT, BEGINS, ENDS = range(4)
SOFT = RATE // 100
TONE_HERTZ, LOUDNESS = 440.0, 0.3


def voice(first: int, count: int) -> npt.NDArray[np.float32]:
    """What the model says from this sample on, float32 [count]: a tone for 2 s, soft at both ends, then 1 s of silence.

    Its second difference is at most 0.3 (2 pi 440 / 24000)^2 = 0.004.
    """
    seconds = (first + np.arange(count)) / RATE
    phase = seconds % 3
    gain = np.where(phase < 2, np.clip(np.minimum(phase, 2 - phase) / 0.05, 0, 1), 0)
    return (LOUDNESS * gain * np.sin(2 * np.pi * TONE_HERTZ * seconds)).astype(np.float32)


class _Rows:
    """What all three have: rows that open."""

    facts = FACTS

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def open(self, row: int, sampling: Any = None) -> None:
        pass

    def prime(self, row: int, past: np.ndarray) -> Iterator[None]:
        yield


class Ears(_Rows):
    """The encoder: keeps what each row has heard since it was opened."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.calls: list[list[np.ndarray]] = []
        self._of_row: dict[int, list[np.ndarray]] = defaultdict(list)

    def open(self, row: int, sampling: Any = None) -> None:
        self._of_row[row] = []
        self.calls.append(self._of_row[row])

    def step(self, rows: Sequence[int], frames: np.ndarray) -> np.ndarray:
        for row, frame in zip(rows, frames, strict=True):
            self._of_row[row].append(np.array(frame, np.float32).reshape(-1))
        return np.zeros((len(rows), FACTS.codebooks), np.int64)


class Mind(_Rows):
    """The language model: counts its steps."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self._steps = np.zeros(slots, np.int64)
        self._silent_until = np.zeros(slots, np.int64)
        self._was_silent = np.zeros(slots, bool)

    def open(self, row: int, sampling: Any = None) -> None:
        self._steps[row] = self._silent_until[row] = self._was_silent[row] = 0

    def direct(self, row: int, directed: Directed, step: int | None = None) -> None:
        if directed.tokens is not None and step is None:
            self._silent_until[row] = self._steps[row] + len(directed.tokens)

    def prefill(self, row: int, codes: np.ndarray, tokens: np.ndarray, first_step: int,
                controls: Sequence[DirectedAt]) -> Iterator[None]:
        self._steps[row] = first_step + len(codes)
        yield

    def copy_row(self, row: int) -> int:
        return int(self._steps[row])

    def restore_row(self, row: int, kept: int) -> None:
        self._steps[row] = kept

    def step(self, rows: Sequence[int], frames: np.ndarray) -> np.ndarray:
        index = np.array(rows)
        steps, until = self._steps[index], self._silent_until[index]
        said, silent, was_silent = steps - DELAY, steps < until, self._was_silent[index]
        self._steps[index], self._was_silent[index] = steps + 1, silent
        answers = np.zeros((len(rows), 1 + FACTS.own_codebooks), np.int64)
        answers[:, 0] = np.where(said % WORD_EVERY == 0, FIRST_WORD_TOKEN + said, 3)
        answers[:, 1], answers[:, 2] = said % FACTS.cardinality, said // FACTS.cardinality
        answers[:, 3] = np.where(silent, np.where(was_silent, SILENT, ENDS), np.where(was_silent, BEGINS, SPOKEN))
        return np.where(said[:, None] < 0, -1, answers)


class Mouth(_Rows):
    """The decoder: speaks the frame whose number the codes are."""

    def step(self, rows: Sequence[int], frames: np.ndarray) -> np.ndarray:
        return np.stack([_spoken(*codes[:3]) for codes in np.asarray(frames).reshape(len(rows), -1)])


def _spoken(low: int, high: int, how: int) -> npt.NDArray[np.float32]:
    """A frame as its codes say, float32 [FRAME]."""
    gain, soft = np.ones(FRAME, np.float32), np.linspace(0, 1, SOFT, dtype=np.float32)
    if how == SILENT:
        gain[:] = 0
    elif how == BEGINS:
        gain[:SOFT] = soft
    elif how == ENDS:
        gain[:SOFT], gain[SOFT:] = soft[::-1], 0
    return voice((low + high * FACTS.cardinality) * FRAME, FRAME) * gain


class Words:
    """The tokenizer."""

    def id_to_piece(self, token: int) -> str:
        return f"▁w{token - FIRST_WORD_TOKEN}" if token >= FIRST_WORD_TOKEN else ""

    def encode(self, text: str) -> list[int]:
        return [5] * len(text)
