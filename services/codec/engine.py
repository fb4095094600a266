"""Mimi for many callers at once: one row a caller, one step for all rows that have a frame.

numpy at the boundary, so that the files which speak gRPC never import torch. Every method of one engine is called from
one thread; the two engines of build_engines may run on two threads at the same time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from moshi.models.compression import MimiModel
from moshi.quantization.core_vq import EuclideanCodebook

PcmArray = npt.NDArray[np.float32]
CodeArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CodecFacts:
    """What the loaded model says about itself; nothing else in the service knows these numbers."""

    sample_rate_hertz: int
    samples_per_frame: int
    codebooks: int
    cardinality: int


class EncodeEngine:
    """Mimi's encoder half: PCM frames to codes."""

    def __init__(self, mimi: MimiModel, slots: int) -> None:
        self.slots = slots
        self.facts = _facts(mimi)
        self._rows = _Rows(mimi, slots)

    def open(self, row: int) -> None:
        """Clear the row: its next frame is the first of a call."""
        self._rows.clear(row)

    def step(self, rows: Sequence[int], pcm: PcmArray) -> CodeArray:
        """One frame each, float32 [n, samples_per_frame], of the n named rows; their codes, int64 [n, codebooks].

        Rows that are not named keep their state.
        """
        frames = self._rows.scatter(rows, torch.from_numpy(pcm)[:, None, :])
        with torch.no_grad():
            codes = self._rows.mimi.encode(frames)
        return codes[list(rows), :, 0].cpu().numpy()

    def warm_up(self) -> None:
        """Pays every first-time cost, so that no caller waits for it. Clears all rows."""
        _warm_up(self, np.zeros((self.slots, self.facts.samples_per_frame), np.float32))


class DecodeEngine:
    """Mimi's decoder half: codes to PCM frames."""

    def __init__(self, mimi: MimiModel, slots: int) -> None:
        self.slots = slots
        self.facts = _facts(mimi)
        self._rows = _Rows(mimi, slots)

    def open(self, row: int) -> None:
        """Clear the row: its next frame is the first of a call."""
        self._rows.clear(row)

    def step(self, rows: Sequence[int], codes: CodeArray) -> PcmArray:
        """One frame each, int64 [n, codebooks] below cardinality, of the n named rows; float32 [n, samples_per_frame].

        Rows that are not named keep their state.
        """
        frames = self._rows.scatter(rows, torch.from_numpy(codes)[:, :, None])
        with torch.no_grad():
            pcm: torch.Tensor = self._rows.mimi.decode(frames)
        return pcm[list(rows), 0].cpu().numpy()

    def warm_up(self) -> None:
        """Pays every first-time cost, so that no caller waits for it. Clears all rows."""
        _warm_up(self, np.zeros((self.slots, self.facts.codebooks), np.int64))


def build_engines(mimi: MimiModel, slots: int) -> tuple[EncodeEngine, DecodeEngine]:
    """Both halves of `mimi`, which they take over. They share its weights but not its streaming state.

    Mimi's encoder and decoder live in one module tree and so have one streaming state; hence two instances.
    """
    for codebook in _codebooks(mimi):
        _ = codebook.embedding  # computed on first use: once here, so that both instances share it
    shared = {id(tensor): tensor for tensor in (*mimi.parameters(), *mimi.buffers())}
    twin = copy.deepcopy(mimi, shared)
    return EncodeEngine(mimi, slots), DecodeEngine(twin, slots)


class _Rows:
    """A Mimi that streams `slots` independent rows."""

    def __init__(self, mimi: MimiModel, slots: int) -> None:
        self.mimi = mimi
        self._device = next(mimi.parameters()).device
        self._active = torch.zeros(slots, dtype=torch.bool)
        mimi.streaming_forever(slots)

    def clear(self, row: int) -> None:
        mask = torch.zeros_like(self._active)
        mask[row] = True
        self.mimi.reset_streaming(mask)

    def scatter(self, rows: Sequence[int], frames: torch.Tensor) -> torch.Tensor:
        """`frames` [n, ...] in their rows [slots, ...], zeros elsewhere; only the named rows will move on."""
        self._active.zero_()
        self._active[list(rows)] = True
        self.mimi.set_exec_mask(self._active)
        batch = frames.new_zeros(len(self._active), *frames.shape[1:])
        batch[list(rows)] = frames
        return batch.to(self._device)


def _facts(mimi: MimiModel) -> CodecFacts:
    return CodecFacts(mimi.sample_rate, mimi.frame_size, mimi.num_codebooks, mimi.cardinality)


def _codebooks(mimi: MimiModel) -> list[EuclideanCodebook]:
    return [module for module in mimi.modules() if isinstance(module, EuclideanCodebook)]


def _warm_up(engine: EncodeEngine | DecodeEngine, frames: npt.NDArray[Any]) -> None:
    for _ in range(2):
        engine.step(range(engine.slots), frames)
    for row in range(engine.slots):
        engine.open(row)
