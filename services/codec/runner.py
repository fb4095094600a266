"""Runs a step for any rows, at a few fixed sizes, each recorded once so that Python takes no part in it.

Recorded, a step is one call that gives the interpreter's lock back until it ends, so that the event loop of the same
process keeps running.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from services.mesh.cuda_graphs import CudaCapture

log = logging.getLogger(__name__)

FIRST_CALLS = 3  # the first two runs of a traced step still profile and optimise it
# More rows at once would no longer fit the caches: full-size Mimi at 32 rows costs 17.6 ms a row, at 16 it costs 14.9.
MOST_CPU_ROWS = 16
# From glibc's malloc.h; it accepts at most 32 MiB for the second.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, LARGEST_KEPT_BYTES = 1 << 30, 32 << 20

Step = Callable[[Tensor, Tensor], Tensor]


def row_buckets(most: int) -> list[int]:
    """The numbers of rows that a step is recorded for: 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on to `most`.

    Fewer would waste more on rows that are padding (a third at most), more would cost start-up time and oneDNN's cache.
    """
    sizes = sorted({2 ** power * top // 2 for power in range(1, most.bit_length() + 1) for top in (2, 3)} | {1})
    return [size for size in sizes if size < most] + [most]


def gpu_buckets(most: int) -> list[int]:
    """1, 4, 16, 64 and `most`. A GPU's step of few rows hardly depends on their number, and each graph costs a second.
    """
    return [size for size in (1, 4, 16, 64) if size < most] + [most]


class Runner:
    """A half of Mimi whose state has one row more than there are slots, for padding."""

    def __init__(self, half: nn.Module, slots: int, frame: Tensor) -> None:
        """`frame` is an empty frame of one row, on the model's device."""
        self._half, self._spare, self._frame = half.eval(), slots, frame
        self._buckets = gpu_buckets(slots) if frame.is_cuda else row_buckets(min(slots, MOST_CPU_ROWS))
        self._capture = CudaCapture(frame.device) if frame.is_cuda else None
        self._steps: dict[int, Step] = {}
        keep_freed_memory()

    def __call__(self, rows: Sequence[int], frames: Tensor) -> Tensor:
        """One frame of each of `rows`: frames [n, ...] to the half's answer [n, ...], on the CPU."""
        most = self._buckets[-1]
        with torch.inference_mode():
            return torch.cat([self._step(rows[start:start + most], frames[start:start + most])
                              for start in range(0, len(rows), most)])

    def _step(self, rows: Sequence[int], frames: Tensor) -> Tensor:
        n = len(rows)
        size = next(bucket for bucket in self._buckets if bucket >= n)
        if size not in self._steps:
            self._steps[size] = self._record(size)
        indices, batch = self._padding(size)
        indices[:n] = torch.tensor(rows)
        batch[:n] = frames
        return self._steps[size](indices, batch)[:n].cpu()

    def warm_up(self) -> None:
        """Records every size, the largest first: on a GPU the others fit into its memory."""
        for size in reversed(self._buckets):
            self([self._spare] * size, self._frame.expand(size, *self._frame.shape).cpu())

    def _padding(self, size: int) -> tuple[Tensor, Tensor]:
        """Spare rows and their empty frames."""
        device = self._frame.device
        return (torch.full((size,), self._spare, device=device),
                self._frame.new_zeros(size, *self._frame.shape))

    def _record(self, size: int) -> Step:
        """The step of `size` rows. Recording it runs it, so it is done on the spare row."""
        example = self._padding(size)
        if self._capture is not None:
            try:
                return self._captured(self._capture, *example)
            except RuntimeError as error:  # a driver or a card that we have never met
                log.warning("a step of %d rows is not captured, and is slower: %s", size,
                            (str(error).strip() or type(error).__name__).splitlines()[0])
                return cast(Step, self._half)
        with warnings.catch_warnings():
            # That the numbers of rows and steps become constants is the point.
            warnings.filterwarnings("ignore", "Converting a tensor to a Python")
            step: Step = torch.jit.trace(self._half, example, check_trace=False).forward
        for _ in range(FIRST_CALLS):
            step(*example)
        return step

    def _captured(self, capture: CudaCapture, rows: Tensor, frames: Tensor) -> Step:
        """The step with these shapes as a CUDA graph, which reads and keeps inputs of its own."""
        replay = capture(lambda: cast(Tensor, self._half(rows, frames)))

        def step(new_rows: Tensor, new_frames: Tensor) -> Tensor:
            rows.copy_(new_rows)
            frames.copy_(new_frames)
            return replay()

        return step


def keep_freed_memory() -> None:
    """Tells glibc to keep what a step frees for the next one, instead of handing it back to the kernel.

    A step of many rows frees and asks for hundreds of MB; a fresh page costs 2 us here, a tenth of the step altogether.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
