"""The network's step on a CPU: traced once, then run by TorchScript's interpreter."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

from services.lm.delays import Ints
from services.lm.network import Bends, Draws, Network
from services.lm.sampling import MOST_PENALISED


class _Step(nn.Module):
    """The network with nothing but tensors for arguments, as tracing needs."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, rings: Tensor, rows: Tensor, positions: Tensor, *rest: Tensor) -> Tensor:
        """Tokens [n, streams] of rows [n], positions of all slots -> [n, 1 + own_codebooks]. The rest is nothing, or
        draws of all slots, and then nothing or bends of the rows.
        """
        draws, bends = rest[: len(Draws._fields)], rest[len(Draws._fields) :]
        generated: Tensor = self.network(
            tokens, rings, rows, positions.index_select(0, rows),
            Draws(*(values.index_select(0, rows) for values in draws)) if draws else None,
            bends=Bends(*bends) if bends else None)
        return generated


class TracedNetwork:
    """The network as three programs, greedy, sampled and sampled with bends, each for any number of rows.

    Against calling the network from Python this halves the cost of an operator call (a step of a small model is
    little else), and Python's lock is free for the whole step, so the event loop of the process keeps breathing. It
    needs no compiler, unlike torch.compile, and computes bit for bit the same.
    """

    def __init__(self, network: Network, rings: Tensor) -> None:
        """`rings` [layers, 2, slots, kv_heads, context, width]."""
        self._rings = rings
        positions = torch.zeros(rings.shape[2], dtype=torch.int64)
        # Two rows, since a dimension of 1 would broadcast; the same row twice, since there may be only one.
        rows, tokens = positions.new_zeros(2), positions.new_zeros(2, len(network.temporal.offsets))
        draws = Draws(torch.ones(len(positions), 2), torch.ones(len(positions), 2, dtype=torch.int64), positions)
        self._greedy = self._trace(network, tokens, rings, rows, positions)
        self._sampled = self._trace(network, tokens, rings, rows, positions, *draws)
        bends = Bends(tokens[:, : network.streams.numel()], torch.zeros(2, 1), torch.ones(2, 1),
                      rows.new_zeros(2, MOST_PENALISED))
        self._bent = self._trace(network, tokens, rings, rows, positions, *draws, *bends)

    @staticmethod
    @torch.no_grad()
    def _trace(network: Network, *arguments: Tensor) -> Any:
        # check_trace would run the step again and complain that the ring has changed.
        return torch.jit.freeze(torch.jit.trace(_Step(network).eval(), arguments, check_trace=False))

    def __call__(self, tokens: Ints, rows: Ints, positions: Ints, draws: Draws, bends: Bends | None = None) -> Ints:
        """tokens [n, streams] and bends of rows [n], positions and draws of all slots -> [n, 1 + own_codebooks]."""
        arguments = (torch.from_numpy(tokens), self._rings, torch.from_numpy(rows), torch.from_numpy(positions))
        # Without optimisation: TorchScript's is for fusing with a compiler that CPU builds do not have, and it
        # mistakes the sizes of the first calls for those of all.
        with torch.inference_mode(), optimized_execution(False):
            if bends is not None:
                generated = self._bent(*arguments, *draws, *bends)
            elif draws.temperature.numpy()[rows].any():
                generated = self._sampled(*arguments, *draws)
            else:
                generated = self._greedy(*arguments)
        answer: Ints = generated.numpy()
        return answer
