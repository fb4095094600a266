"""Steps of an engine as CUDA graphs: one call launches all that a step launches, without Python."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Replay = Callable[[], Tensor]
"""Runs a step on tensors that it knows."""
FIRST_RUNS = 3
"""Libraries choose and allocate, and Triton compiles, in the first runs, which a graph must not record."""


class CudaCapture:
    """Records what a function launches on a CUDA device; what it answers replays that on the same tensors.

    Graphs run one after the other, so they share one pool of memory: if the largest is captured first, all others fit.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Replay) -> Replay:
        """The answer replays what `run` launches; its tensor is the same each time."""
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(FIRST_RUNS):
                    run()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                output = run()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
