"""Rebuilds a row from a session's past frames: many at once, in chunks short enough for other rows to wait for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from services.codec.stages import DecoderHalf, EncoderHalf
from services.mesh.finite import check_finite

CHUNK_S = 0.03
"""How long a chunk may take, since the other rows' next step waits for it: less than half a frame's time."""
MOST_CHUNK_FRAMES = 64
"""More at once gain nothing, and their attention's scores take memory."""
PRIMING_S = 5.0
"""How long a row's past may take in all: a caller waits for it, and the gateway gives up after twice as long. Only
full-size Mimi on a CPU would need more; then only the last frames, which count most, are used."""


class Primer:
    """Runs a half of Mimi over stretches of one row."""

    def __init__(self, half: EncoderHalf | DecoderHalf, frame: Tensor) -> None:
        """`frame` is an empty frame of one row, on the model's device."""
        self._half, self._frame = half, frame
        self._spare = len(half.memory) - 1
        # Until warm_up has measured:
        self.chunk_frames = 8
        self._most_frames = sys.maxsize

    def __call__(self, row: int, frames: Tensor) -> Iterator[None]:
        """Hear frames [k, ...], or as many of the last ones as time allows; each item is a chunk of them done."""
        for begin in range(max(len(frames) - self._most_frames, 0), len(frames), self.chunk_frames):
            self._advance(row, frames[begin:begin + self.chunk_frames])
            yield

    def warm_up(self, made: str) -> None:
        """Chooses the longest chunk that takes at most CHUNK_S, and looks at what the half `made` of it.

        Raises NotFinite.
        """
        frames = 1
        while frames <= MOST_CHUNK_FRAMES:
            chunk = self._frame.expand(frames, *self._frame.shape)
            check_finite(self._advance(self._spare, chunk), made)  # the first time also pays for what comes only once
            began = time.perf_counter()
            self._advance(self._spare, chunk)
            seconds = time.perf_counter() - began
            if frames > 1 and seconds > CHUNK_S:
                break
            self.chunk_frames, self._most_frames = frames, max(int(PRIMING_S / seconds * frames), 1)
            frames *= 2
        self._half.clear(self._spare)

    def _advance(self, row: int, chunk: Tensor) -> Tensor:
        """What became of the chunk's last frame, on the CPU: when it is there, the chunk is done."""
        with torch.inference_mode():
            return self._half.advance(row, chunk.to(self._frame.device))[-1].cpu()
