"""What a model takes of a device's memory, known before any of it is taken."""

import copy
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from services.lm.linear import Packing, Precision
from services.lm.network import Network

KvPrecision = Literal["fp32", "bf16", "int8"]
KV_TYPES: dict[KvPrecision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
SPARE_PERCENT = 10
"""Of free memory, left for activations, graphs and the allocator's own waste."""


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


def slots_that_fit(lm: Any, free_bytes: int, precision: Precision, kv_precision: KvPrecision) -> int:
    """How many slots an engine may have in `free_bytes`, which its weights have to share with the slots' rings.

    Nothing is allocated: the `moshi.models.LMModel` is packed on torch's meta device, which has shapes and no data.
    Raises ValueError if there is not even room for one.
    """
    nowhere = torch.device("meta")
    shapes = {id(tensor): nn.Parameter(tensor.to(nowhere), requires_grad=False)
              for tensor in (*lm.parameters(), *lm.buffers())}
    with torch.no_grad():
        weights = weights_bytes(Network(copy.deepcopy(lm, shapes), Packing(nowhere, precision)))
    slot = new_rings(lm, 1, nowhere, kv_precision).nbytes
    room = free_bytes * (100 - SPARE_PERCENT) // 100
    if room < weights + slot:
        needed = -(-(weights + slot) * 100 // (100 - SPARE_PERCENT))
        raise ValueError(f"one slot needs {needed} bytes ({weights} of weights, {slot} of keys and values, and "
                         f"{SPARE_PERCENT} % to spare), but {free_bytes} are free")
    return (room - weights) // slot
