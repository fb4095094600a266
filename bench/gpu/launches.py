"""How many kernels a step of Moshi's own 7 B launches: python -m bench.gpu.launches [--rows 8]

Counted on shapes alone (torch's meta device), so no GPU is needed: operators that are no views, and Triton's kernels.
What torch makes of one operator (a top-k is several kernels) counts as one. Prints JSON: by precision and way the
number, and what they are.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from types import ModuleType
from typing import Any

import torch
from moshi.models import loaders
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton import JITFunction

from services.lm import decode_attention, eight_bit, fused_kernels
from services.lm.decode_attention import attend_decode
from services.lm.fused import FusedNetwork
from services.lm.linear import EightBitLinear, Packing, Precision
from services.lm.network import Draws, Network, Shapes
from services.lm.sizing import new_rings

# What launches nothing.
VIEWS = {"view", "_unsafe_view", "select", "slice", "unbind", "split_with_sizes", "split", "transpose", "t", "expand",
         "unsqueeze", "squeeze", "permute", "as_strided", "view_as_real", "view_as_complex", "_reshape_alias", "detach",
         "empty", "new_empty", "empty_like", "alias"}


class Launches(TorchDispatchMode):
    """Counts operators by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.by_kind: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch has it."""
        name = function.overloadpacket.__name__
        if name not in VIEWS:
            self.by_kind[name] += 1
        return function(*args, **kwargs or {})

    def instead_of(self, module: ModuleType) -> None:
        """From now on the module's kernels are counted, and not launched."""
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction | _Counted):
                setattr(module, name, _Counted(name, self))


class _Counted:
    def __init__(self, name: str, launches: Launches) -> None:
        self._name, self._launches = name, launches

    def __getitem__(self, grid: Any) -> Any:
        self._launches.by_kind[f"triton {self._name}"] += 1
        return lambda *args, **kwargs: None


def count(precision: Precision, rows: int) -> dict[str, dict[str, int]]:
    """Of the plain operators with Triton's attention, and of the fused step."""
    meta = torch.device("meta")
    lm: Any = loaders.get_moshi_lm(None, dict(loaders._lm_kwargs), device=meta, dtype=torch.bfloat16)
    network = Network(lm, Packing(meta, precision)).eval()
    for module in network.modules():
        if isinstance(module, EightBitLinear):
            module.product = eight_bit.product
    rings = new_rings(lm, rows, meta, "int8")

    def numbers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device=meta)

    draws = Draws(torch.empty(rows, 2, device=meta), numbers(rows, 2), numbers(rows))
    tokens, positions, fused = numbers(rows, network.temporal.offsets.numel()), numbers(rows), FusedNetwork(network)
    ways = {"torch's operators": lambda: network(tokens, rings, positions, positions, draws,
                                                 Shapes(lm.context, (32, 256)), None, attend_decode),
            "fused": lambda: fused(tokens, rings, positions, draws)}
    found = {}
    for name, run in ways.items():
        launches = Launches()
        for kernels in (decode_attention, eight_bit, fused_kernels):
            launches.instead_of(kernels)
        with torch.no_grad(), launches:
            run()
        found[name] = {"all": launches.by_kind.total(), **dict(launches.by_kind.most_common())}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    options = parser.parse_args()
    kinds: tuple[Precision, ...] = ("bf16", "int8")
    print(json.dumps({kind: count(kind, options.rows) for kind in kinds}))


if __name__ == "__main__":
    main()
