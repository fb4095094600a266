"""Mimi for many callers at once: one row a caller, one step for all rows that have a frame.

numpy at the boundary, so that the files which speak gRPC never import torch. Every method of one engine is called from
one thread; the two engines of build_engines may run on two threads at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from moshi.models.compression import MimiModel

from services.codec.runner import Runner
from services.codec.stages import DecoderHalf, EncoderHalf

MOST_PRIMING_FRAMES = 64
"""5 s of audio: 0.3 s of an encoder's time, and half of what a message may be long."""

PcmArray = npt.NDArray[np.float32]
CodeArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CodecFacts:
    """What the loaded model says about itself; nothing else in the service knows these numbers."""

    sample_rate_hertz: int
    samples_per_frame: int
    codebooks: int
    cardinality: int
    priming_frames: int


class EncodeEngine:
    """Mimi's encoder half: PCM frames to codes."""

    def __init__(self, mimi: MimiModel, slots: int) -> None:
        self.slots = slots
        with torch.no_grad():
            self._half = EncoderHalf(mimi, slots + 1)
        self.facts = _facts(mimi, self._half)
        self._run = Runner(self._half, slots, torch.zeros(self.facts.samples_per_frame, device=_device(mimi)))

    def open(self, row: int) -> None:
        """Clear the row: its next frame is the first of a call."""
        self._half.clear(row)

    def step(self, rows: Sequence[int], pcm: PcmArray) -> CodeArray:
        """One frame each, float32 [n, samples_per_frame], of the n named rows; their codes, int64 [n, codebooks].

        Rows that are not named keep their state.
        """
        return self._run(rows, torch.from_numpy(pcm)).numpy()

    def warm_up(self) -> None:
        """Pays every first-time cost, so that no caller waits for it. Rows keep their state."""
        self._run.warm_up()


class DecodeEngine:
    """Mimi's decoder half: codes to PCM frames."""

    def __init__(self, mimi: MimiModel, slots: int) -> None:
        self.slots = slots
        with torch.no_grad():
            self._half = DecoderHalf(mimi, slots + 1)
        self.facts = _facts(mimi, self._half)
        empty = torch.zeros(self.facts.codebooks, dtype=torch.int64, device=_device(mimi))
        self._run = Runner(self._half, slots, empty)

    def open(self, row: int) -> None:
        """Clear the row: its next frame is the first of a call."""
        self._half.clear(row)

    def step(self, rows: Sequence[int], codes: CodeArray) -> PcmArray:
        """One frame each, int64 [n, codebooks] below cardinality, of the n named rows; float32 [n, samples_per_frame].

        Rows that are not named keep their state.
        """
        return self._run(rows, torch.from_numpy(codes)).numpy()

    def warm_up(self) -> None:
        """Pays every first-time cost, so that no caller waits for it. Rows keep their state."""
        self._run.warm_up()


def build_engines(mimi: MimiModel, slots: int) -> tuple[EncodeEngine, DecodeEngine]:
    """Both halves of `mimi`, each with its own packed weights and state; `mimi` itself is not needed afterwards."""
    return EncodeEngine(mimi, slots), DecodeEngine(mimi, slots)


def _facts(mimi: MimiModel, half: EncoderHalf | DecoderHalf) -> CodecFacts:
    return CodecFacts(mimi.sample_rate, mimi.frame_size, mimi.num_codebooks, mimi.cardinality, _priming_frames(half))


def _priming_frames(half: EncoderHalf | DecoderHalf) -> int:
    """How many past frames bring a cleared row to where all of the past would have brought it.

    Nothing of a row's state is older than what the half hears: a convolution keeps (kernel - 1) * dilation + 1 - stride
    of its inputs, and each layer of the transformer looks context - 1 steps further back than the one below. Positions
    count from the first frame that the row got, but rotary embedding only knows their differences, so what is left is
    rounding. Full-size Mimi (8 layers of 250 steps) hears a thousand frames back, though hardly anything of it, so
    there is a limit.
    """
    return min(math.ceil(half.frames), MOST_PRIMING_FRAMES)


def _device(mimi: MimiModel) -> torch.device:
    device: torch.device = next(mimi.parameters()).device
    return device
