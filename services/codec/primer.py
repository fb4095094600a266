"""Brings a row to where a session was: many of its frames at once, in chunks that others can wait for."""

from __future__ import annotations

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


class Primer:
    """Runs a half of Mimi over stretches of one row."""

    def __init__(self, half: EncoderHalf | DecoderHalf, frame: Tensor) -> None:
        """`frame` is an empty frame of one row, on the model's device."""
        self._half, self._frame = half, frame
        self._spare = len(half.memory) - 1
        self.chunk_frames = 8
        """Until warm_up has measured."""

    def __call__(self, row: int, frames: Tensor) -> Iterator[None]:
        """Hear frames [k, ...]; each item is a chunk of them done."""
        for begin in range(0, len(frames), self.chunk_frames):
            self._advance(row, frames[begin:begin + self.chunk_frames])
            yield

    def warm_up(self, made: str) -> None:
        """Chooses the longest chunk that takes at most CHUNK_S, and looks at what the half `made` of it.

        Raises NotFinite.
        """
        frames, fits = 1, 1
        while frames <= MOST_CHUNK_FRAMES:
            chunk = self._frame.expand(frames, *self._frame.shape)
            check_finite(self._advance(self._spare, chunk), made)  # the first time also pays for what comes only once
            began = time.perf_counter()
            self._advance(self._spare, chunk)
            if time.perf_counter() - began > CHUNK_S:
                break
            fits, frames = frames, 2 * frames
        self.chunk_frames = fits
        self._half.clear(self._spare)

    def _advance(self, row: int, chunk: Tensor) -> Tensor:
        """What became of the chunk's last frame, on the CPU: when it is there, the chunk is done."""
        with torch.inference_mode():
            return self._half.advance(row, chunk.to(self._frame.device))[-1].cpu()
