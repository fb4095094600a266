"""The network's step on a GPU: CUDA graphs, one for each of a few shapes.

A step is many hundred kernels of a few microseconds each, so launching them one by one would take longer than
running them. A graph replays them with one call, but its shapes are fixed: rows are rounded up to a bucket. Rows are
not gathered (that would copy their keys and values): a step runs rows 0..n, and the ones that do not take part compute
something that is thrown away.

With torch's attention the filled part of the ring is rounded up to a bucket, too, and a row that does not take part
writes a key and a value to the slot of its next position, which its own next step overwrites before it looks at it.
With `decode_attention` the device reads how much each row has filled, one graph serves every length, and rows that do
not take part cost next to nothing, so that fewer buckets of rows are enough. So does `fused`, with fewer kernels.

A step's inputs are one copy from pinned memory and its answer is one copy back, which is all that it waits for.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from services.lm.delays import Ints
from services.lm.network import Bends, Decode, Draws, Network, Shapes
from services.lm.sampling import MOST_PENALISED
from services.mesh.cuda_graphs import CudaCapture, Replay

log = logging.getLogger(__name__)

SMALLEST_FILLED = 256
"""20 s of a call. Attention over less costs next to nothing, and every bucket is one more graph."""
SMALLEST_TOP_K = 32
Fused = Callable[[Tensor, Tensor, Tensor, Draws, Bends | None], Tensor]
"""Tokens, rings, positions, draws and bends of rows 0..n, to the next tokens: see `fused`."""


def uncaptured(run: Replay) -> Replay:
    """Instead of a capture: the same shapes, kernel by kernel. The plain path, that the others are compared with."""
    return run


class Inputs:
    """What a step reads, in one piece of memory on the host and one on the device.

    Written on the host before each step, at addresses that the graphs know on the device.
    """

    def __init__(self, network: Network, slots: int, device: torch.device) -> None:
        own = network.streams.numel()
        whole, real = torch.int64, torch.float32
        fields = [(whole, len(network.temporal.offsets)), (whole, 1), (real, 2), (whole, 2), (whole, 1),
                  (whole, own), (real, 1), (real, 1), (whole, MOST_PENALISED)]
        sizes = [-(-kind.itemsize * width * slots // 16) * 16 for kind, width in fields]  # each begins at 16 bytes
        self._host = torch.zeros(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = self._host.to(device, copy=True)
        (self.tokens, self.positions, *draws), (self._tokens, self._positions, *given) = (
            [part[: kind.itemsize * width * slots].view(kind).view(slots, width)
             for part, (kind, width) in zip(memory.split(sizes), fields, strict=True)]
            for memory in (self._device, self._host))
        self.positions, self._positions = self.positions[:, 0], self._positions[:, 0]
        self.draws, self._draws = (Draws(temperature, top_k, seed[:, 0])
                                   for temperature, top_k, seed in (draws[:3], given[:3]))
        self.bends, self._bends = Bends(*draws[3:]), Bends(*given[3:])
        for bends in (self.bends, self._bends):
            bends.penalty.fill_(1)

    def send(self, tokens: Ints, rows: Ints, positions: Ints, draws: Draws, bends: Bends | None) -> None:
        """tokens [n, streams] and bends of rows [n], positions and draws of all slots: on their way to the device.

        The last step must be over. What is left of other rows' tokens and bends does no harm: they are thrown away.
        """
        at = torch.from_numpy(rows)
        self._tokens[at] = torch.from_numpy(tokens)
        self._positions.copy_(torch.from_numpy(positions))
        for ours, theirs in zip(self._draws, draws, strict=True):
            ours.copy_(theirs)
        if bends is not None:
            for mine, given in zip(self._bends, bends, strict=True):
                mine[at] = given
        self._device.copy_(self._host, non_blocking=True)


def bucket(size: int, smallest: int, largest: int) -> int:
    """The next power of two, but at least `smallest` and at most `largest`."""
    return min(max(1 << (size - 1).bit_length(), smallest), largest)


class GraphedNetwork:
    """The network with every shape captured when it is first met, or beforehand by `prepare`."""

    def __init__(self, network: Network, rings: Tensor, capture: Callable[[Replay], Replay] | None = None,
                 decode: Decode | None = None, fused: Fused | None = None) -> None:
        """`rings` [layers, 2, slots, kv_heads, context, width] also tells device, slots and context. `decode` is the
        attention that reads on the device how much each row has filled; without it torch's is used. `fused` is a whole
        step that does so.
        """
        self._network, self._rings, self._decode, self._fused = network, rings, decode, fused
        self._reads_lengths = decode is not None or fused is not None
        self._capture = capture or CudaCapture(rings.device)
        self._slots, self._context = rings.shape[2], rings.shape[4]
        self._rows = torch.arange(self._slots, device=rings.device)
        self._inputs = Inputs(network, self._slots, rings.device)
        self._answer = torch.zeros(self._slots, network.streams.numel(), dtype=torch.int64,
                                   pin_memory=rings.device.type == "cuda")
        self._graphs: dict[tuple[int, Shapes, bool], Replay] = {}

    def __call__(self, tokens: Ints, rows: Ints, positions: Ints, draws: Draws, bends: Bends | None = None) -> Ints:
        """tokens [n, streams] and bends of rows [n], positions and draws of all slots -> [n, 1 + own_codebooks]."""
        active = self._bucket(int(rows.max()) + 1)
        largest = [int(top_k) for top_k in draws.top_k.amax(dim=0)]
        filled = int(positions[rows].max()) + 1
        if self._reads_lengths:
            taking_part = np.full_like(positions, -1)
            taking_part[rows] = positions[rows]
            positions = taking_part
        with torch.inference_mode():
            graph = self._graph(active, self._shapes(filled, largest), bends is not None)
            self._inputs.send(tokens, rows, positions, draws, bends)
            answer = self._answer[:active]
            answer.copy_(graph(), non_blocking=True)
            if self._rings.device.type == "cuda":
                torch.cuda.current_stream(self._rings.device).synchronize()
        generated: Ints = answer.numpy()[rows]
        return generated

    def prepare(self, top_k: Sequence[int]) -> None:
        """Capture every shape that sessions with this top_k (text, audio) will meet, the largest first."""
        began, free = time.monotonic(), self._free_bytes()
        with torch.inference_mode():
            for active in sorted({self._bucket(n) for n in range(1, self._slots + 1)}, reverse=True):
                for shapes in sorted({self._shapes(n, top_k) for n in range(1, self._context + 1)}, reverse=True):
                    for bent in (True, False):
                        self._graph(active, shapes, bent)
        log.info("%d graphs in %.1f s and %.2f GB", len(self._graphs), time.monotonic() - began,
                 (free - self._free_bytes()) / 1e9)

    def _free_bytes(self) -> int:
        device = self._rings.device
        return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0

    def _bucket(self, rows: int) -> int:
        if not self._reads_lengths:
            return bucket(rows, 1, self._slots)
        # 1, 4, 16, 64: rows that do not take part read no keys, and weights are read once for all.
        return min(1 << 2 * math.ceil(math.log2(rows) / 2), self._slots)

    def _shapes(self, filled: int, top_k: Sequence[int]) -> Shapes:
        text, audio = (bucket(k, SMALLEST_TOP_K, most)
                       for k, most in zip(top_k, self._network.cardinalities, strict=True))
        if self._fused is not None:  # top-k is read on the device, too
            return Shapes(self._context, self._network.cardinalities)
        return Shapes(self._context if self._reads_lengths else bucket(filled, SMALLEST_FILLED, self._context),
                      (text, audio))

    def _graph(self, active: int, shapes: Shapes, bent: bool) -> Replay:
        if (active, shapes, bent) not in self._graphs:
            inputs = self._inputs
            rows, tokens, positions = (values[:active] for values in (self._rows, inputs.tokens, inputs.positions))
            draws = Draws(*(values[:active] for values in inputs.draws))
            bends = Bends(*(values[:active] for values in inputs.bends)) if bent else None

            def run() -> Tensor:
                if self._fused is not None:
                    return self._fused(tokens, self._rings, positions, draws, bends)
                found: Tensor = self._network(
                    tokens, self._rings, rows, positions, draws, shapes, bends, self._decode)
                return found

            self._graphs[active, shapes, bent] = self._capture(run)
        return self._graphs[active, shapes, bent]
