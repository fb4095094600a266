"""The network's step on a GPU: CUDA graphs, one for each of a few shapes.

A step is some six hundred kernels of a few microseconds each, so launching them one by one would take longer than
running them. A graph replays them with one call, but its shapes are fixed: rows and the filled part of the ring are
rounded up to a bucket. Rows are not gathered (that would copy their keys and values): a step runs rows 0..n, and the
ones that do not take part compute something that is thrown away. The key and value they write go to the slot of
their next position, which their own next step overwrites before it looks at it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from services.lm.delays import Ints
from services.lm.network import Bends, Draws, Network, Shapes
from services.lm.sampling import MOST_PENALISED

Replay = Callable[[], Tensor]
SMALLEST_FILLED = 256
"""20 s of a call. Attention over less costs next to nothing, and every bucket is one more graph."""
SMALLEST_TOP_K = 32


def capture(run: Replay) -> Replay:
    """Record what `run` launches on the current CUDA device; the answer replays it on the same tensors."""
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(2):  # libraries allocate workspaces on first use, which a graph must not record
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def bucket(size: int, smallest: int, largest: int) -> int:
    """The next power of two, but at least `smallest` and at most `largest`."""
    return min(max(1 << (size - 1).bit_length(), smallest), largest)


class GraphedNetwork:
    """The network with every shape captured when it is first met, or beforehand by `prepare`."""

    def __init__(self, network: Network, rings: Tensor, capture: Callable[[Replay], Replay] = capture) -> None:
        """`rings` [layers, 2, slots, kv_heads, context, width] also tells device, slots and context."""
        self._network, self._rings, self._capture = network, rings, capture
        self._slots, self._context = rings.shape[2], rings.shape[4]
        # What a step reads: written before each replay, at addresses that the graphs know.
        self._rows = torch.arange(self._slots, device=rings.device)
        self._tokens = self._rows.new_zeros(self._slots, len(network.temporal.offsets))
        self._positions = torch.zeros_like(self._rows)
        self._draws = Draws(
            torch.zeros(self._slots, 2, device=rings.device), self._rows.new_ones(self._slots, 2),
            torch.zeros_like(self._rows))
        self._bends = Bends(self._rows.new_zeros(self._slots, network.streams.numel()),
                            torch.zeros(self._slots, 1, device=rings.device),
                            torch.ones(self._slots, 1, device=rings.device),
                            self._rows.new_zeros(self._slots, MOST_PENALISED))
        self._graphs: dict[tuple[int, Shapes, bool], Replay] = {}

    def __call__(self, tokens: Ints, rows: Ints, positions: Ints, draws: Draws, bends: Bends | None = None) -> Ints:
        """tokens [n, streams] and bends of rows [n], positions and draws of all slots -> [n, 1 + own_codebooks]."""
        active = bucket(int(rows.max()) + 1, 1, self._slots)
        largest = [int(top_k) for top_k in draws.top_k.amax(dim=0)]
        filled = int(positions[rows].max()) + 1
        with torch.inference_mode():
            inputs = torch.zeros(self._tokens.shape, dtype=torch.int64)
            inputs[torch.from_numpy(rows)] = torch.from_numpy(tokens)
            for ours, theirs in zip((self._tokens, self._positions, *self._draws),
                                    (inputs, torch.from_numpy(positions), *draws), strict=True):
                ours.copy_(theirs)
            if bends is not None:  # what is left of the other rows' bends does no harm: their tokens are thrown away
                for mine, given in zip(self._bends, bends, strict=True):
                    mine[torch.from_numpy(rows).to(mine.device)] = given.to(mine.device)
            generated: Ints = self._graph(active, self._shapes(filled, largest), bends is not None)().cpu().numpy()
        return generated[rows]

    def prepare(self, top_k: Sequence[int]) -> None:
        """Capture every shape that sessions with this top_k (text, audio) will meet."""
        with torch.inference_mode():
            for active in sorted({bucket(n, 1, self._slots) for n in range(1, self._slots + 1)}):
                for filled in sorted({self._shapes(n, top_k) for n in range(1, self._context + 1)}):
                    for bent in (False, True):
                        self._graph(active, filled, bent)

    def _shapes(self, filled: int, top_k: Sequence[int]) -> Shapes:
        text, audio = (bucket(k, SMALLEST_TOP_K, most)
                       for k, most in zip(top_k, self._network.cardinalities, strict=True))
        return Shapes(bucket(filled, SMALLEST_FILLED, self._context), (text, audio))

    def _graph(self, active: int, shapes: Shapes, bent: bool) -> Replay:
        if (active, shapes, bent) not in self._graphs:
            tokens, rows, positions, *draws = (
                values[:active] for values in (self._tokens, self._rows, self._positions, *self._draws))
            bends = Bends(*(values[:active] for values in self._bends)) if bent else None
            self._graphs[active, shapes, bent] = self._capture(
                lambda: self._network(tokens, self._rings, rows, positions, Draws(*draws), shapes, bends))
        return self._graphs[active, shapes, bent]
