"""Mimi for many callers at once: one row a caller, one step for all rows that have a frame.

numpy at the boundary, so that the files which speak gRPC never import torch. Every method of one engine is called from
one thread; the two engines of build_engines may run on two threads at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from moshi.models.compression import MimiModel

from services.codec.precision import CodecPrecision, lower, set_precision
from services.codec.primer import Primer
from services.codec.runner import Runner
from services.codec.stages import DecoderHalf, EncoderHalf

MOST_PRIMING_FRAMES = 500
"""40 s, four times what a layer of full-size Mimi hears: primed with these, all its codes were equal
(docs/reliability.md)."""

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

    def __init__(self, mimi: MimiModel, slots: int, precision: CodecPrecision = "fp32") -> None:
        self.slots = slots
        with torch.no_grad():
            self._half = EncoderHalf(mimi, slots + 1)
            if precision == "bf16":
                lower(*self._half.products)
        self.facts = _facts(mimi, self._half)
        frame = torch.zeros(self.facts.samples_per_frame, device=_device(mimi))
        self._run = Runner(self._half, slots, frame)
        self._primer = Primer(self._half, frame)

    def open(self, row: int) -> None:
        """Clear the row: its next frame is the first of a call."""
        self._half.clear(row)

    def prime(self, row: int, pcm: PcmArray) -> Iterator[None]:
        """Bring a cleared row to where steps with the frames float32 [frames, samples_per_frame] would bring it.

        Several times as fast, and in chunks, one for each item: other rows may be stepped in between.
        """
        yield from self._primer(row, torch.from_numpy(pcm))

    def step(self, rows: Sequence[int], pcm: PcmArray) -> CodeArray:
        """One frame each, float32 [n, samples_per_frame], of the n named rows; their codes, int64 [n, codebooks].

        Rows that are not named keep their state.
        """
        return self._run(rows, torch.from_numpy(pcm)).numpy()

    def warm_up(self) -> None:
        """Pays every first-time cost, so that no caller waits for it. Rows keep their state.

        Raises NotFinite for a checkpoint that computes nothing.
        """
        self._run.warm_up()
        self._primer.warm_up("the latents that Mimi's encoder makes of silence")


class DecodeEngine:
    """Mimi's decoder half: codes to PCM frames."""

    def __init__(self, mimi: MimiModel, slots: int, precision: CodecPrecision = "fp32") -> None:
        self.slots = slots
        with torch.no_grad():
            self._half = DecoderHalf(mimi, slots + 1)
            if precision == "bf16":
                lower(*self._half.products)
        self.facts = _facts(mimi, self._half)
        empty = torch.zeros(self.facts.codebooks, dtype=torch.int64, device=_device(mimi))
        self._run = Runner(self._half, slots, empty)
        self._primer = Primer(self._half, empty)

    def open(self, row: int) -> None:
        """Clear the row: its next frame is the first of a call."""
        self._half.clear(row)

    def prime(self, row: int, codes: CodeArray) -> Iterator[None]:
        """As EncodeEngine.prime, with codes int64 [frames, codebooks] as in `step`."""
        yield from self._primer(row, torch.from_numpy(self._half.lookup.entries(codes)))

    def step(self, rows: Sequence[int], codes: CodeArray) -> PcmArray:
        """One frame each, int64 [n, codebooks] below cardinality, of the n named rows; float32 [n, samples_per_frame].

        A code of MISSING adds nothing. Rows that are not named keep their state.
        """
        return self._run(rows, torch.from_numpy(self._half.lookup.entries(codes))).numpy()

    def warm_up(self) -> None:
        """As EncodeEngine.warm_up."""
        self._run.warm_up()
        self._primer.warm_up("the samples that Mimi's decoder makes of codes")


def build_engines(mimi: MimiModel, slots: int, precision: CodecPrecision = "fp32"
                  ) -> tuple[EncodeEngine, DecodeEngine]:
    """Both halves of `mimi`, each with its own packed weights and state; `mimi` itself is not needed afterwards.

    `precision` is that of this process from now on; a CPU has fp32 alone.
    """
    set_precision(precision, _device(mimi))
    return EncodeEngine(mimi, slots, precision), DecodeEngine(mimi, slots, precision)


def _facts(mimi: MimiModel, half: EncoderHalf | DecoderHalf) -> CodecFacts:
    return CodecFacts(mimi.sample_rate, mimi.frame_size, mimi.num_codebooks, mimi.cardinality, _priming_frames(half))


def _priming_frames(half: EncoderHalf | DecoderHalf) -> int:
    """How many past frames bring a cleared row to where all of the past would have brought it.

    Nothing of a row's state is older than what the half hears: a convolution keeps (kernel - 1) * dilation + 1 - stride
    of its inputs, and each layer of the transformer looks context - 1 steps further back than the one below. Positions
    count from the first frame that the row got, but rotary embedding only knows their differences, so what is left is
    rounding. Full-size Mimi (8 layers of 250 steps) hears a thousand frames back, the first of them as good as not.
    """
    return min(math.ceil(half.frames), MOST_PRIMING_FRAMES)


def _device(mimi: MimiModel) -> torch.device:
    device: torch.device = next(mimi.parameters()).device
    return device
