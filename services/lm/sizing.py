"""What a model takes of a device's memory, known before any of it is taken."""

import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from services.lm.linear import Linear, Packing, Precision
from services.lm.network import Network

KvPrecision = Literal["fp32", "bf16", "int8"]
KV_TYPES: dict[KvPrecision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
SPARE_PERCENT = 10
"""Of a CPU's free memory, left for activations, the allocator's own waste, and the rest of the machine."""
GPU_SPARE_BYTES = 1_500_000_000
"""Of a GPU's free memory, for activations, graphs, libraries' workspaces and the allocator's own waste. Reckoned from
shapes (a prefill's scores and its unpacked layer are the most, 0.3 GB of the 7 B model), and not measured yet."""


def usual_precision(device: torch.device) -> Precision:
    """The default precision of weights: what a device computes fastest without loss."""
    return "fp32" if device.type == "cpu" else "bf16"


def usual_kv_precision(packing: Packing) -> KvPrecision:
    """The default precision of keys and values."""
    return "fp32" if packing.device.type == "cpu" or packing.precision == "fp32" else "bf16"


def new_rings(lm: Any, slots: int, device: torch.device, kv_precision: KvPrecision) -> Tensor:
    """Empty rings of a `moshi.models.LMModel` [layers, keys and values, slots, kv_heads, context, width].

    See `attention` for the width.
    """
    if kv_precision not in KV_TYPES:
        raise ValueError(f"kv_precision must be one of {', '.join(get_args(KvPrecision))}, got {kv_precision}")
    attention = lm.transformer.layers[0].self_attn
    kv_heads, head_dim = attention.num_heads // attention.kv_repeat, attention.embed_dim // attention.num_heads
    width = head_dim + 1 if kv_precision == "int8" else head_dim
    return torch.zeros(len(lm.transformer.layers), 2, slots, kv_heads, lm.context, width, device=device,
                       dtype=KV_TYPES[kv_precision])


def weights_bytes(network: nn.Module) -> int:
    """What a packed network keeps on its device, tables included."""
    return sum(buffer.nbytes for buffer in network.buffers())


def streamed_bytes(network: nn.Module) -> int:
    """What every step reads of a packed network: the matrices, but not the tables, of which it looks up single rows."""
    return sum(buffer.nbytes for module in network.modules() if isinstance(module, Linear)
               for buffer in module.buffers(recurse=False))


@dataclass(frozen=True)
class Size:
    """What a model takes in one precision of its weights and one of its keys and values."""

    weights_bytes: int
    streamed_bytes: int
    slot_bytes: int

    def slots_in(self, free_bytes: int, on_gpu: bool) -> int:
        """How many slots fit beside the weights. Raises ValueError if there is not even room for one."""
        # Of a GPU the spare is what a step needs, not a share: the rows' activations are some megabytes however large
        # the memory is. The rows kept of prompts take the memory of one slot more.
        room = (free_bytes - GPU_SPARE_BYTES - self.slot_bytes if on_gpu
                else free_bytes * (100 - SPARE_PERCENT) // 100)
        least = self.weights_bytes + self.slot_bytes
        if room < least:
            needed = (least + GPU_SPARE_BYTES + self.slot_bytes if on_gpu
                      else -(-least * 100 // (100 - SPARE_PERCENT)))
            spare = f"{GPU_SPARE_BYTES + self.slot_bytes} bytes" if on_gpu else f"{SPARE_PERCENT} %"
            raise ValueError(f"one slot needs {needed} bytes ({self.weights_bytes} of weights, {self.slot_bytes} of "
                             f"keys and values, and {spare} to spare), but {free_bytes} are free")
        return (room - self.weights_bytes) // self.slot_bytes

    def floor_s(self, rows: int, bytes_per_s: float) -> float:
        """No step of so many rows with full windows can be faster: what it reads, at the memory's peak bandwidth."""
        return (self.streamed_bytes + rows * self.slot_bytes) / bytes_per_s


def size_of(lm: Any, precision: Precision, kv_precision: KvPrecision) -> Size:
    """The size of a `moshi.models.LMModel`.

    Nothing is allocated: it is packed on torch's meta device, which has shapes and no data.
    """
    nowhere = torch.device("meta")
    shapes = {id(tensor): nn.Parameter(tensor.to(nowhere), requires_grad=False)
              for tensor in (*lm.parameters(), *lm.buffers())}
    with torch.no_grad():
        network = Network(copy.deepcopy(lm, shapes), Packing(nowhere, precision))
    return Size(weights_bytes(network), streamed_bytes(network), new_rings(lm, 1, nowhere, kv_precision).nbytes)
