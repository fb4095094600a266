"""Weights in 8 bits, as moshi's checkpoints keep them (bitsandbytes' int8): back to the numbers that they stand for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALES = "_scb"
LARGEST = 127
"""int8 of the largest weight of an output, whose size is that output's scale."""


def dequantised(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a checkpoint as `dtype`, with each int8 weight [outputs, inputs] times its scales [outputs].

    Raises KeyError where an int8 weight has no scales.
    """
    plain = {}
    for name, tensor in state.items():
        scales = state.get(name + SCALES)
        if scales is not None:
            tensor = tensor.float() * (scales.float().reshape(-1, 1) / LARGEST)
        elif tensor.dtype == torch.int8:
            raise KeyError(f"{name} has no {name.rpartition('.')[2]}{SCALES}")
        if not name.endswith(SCALES):
            plain[name] = tensor.to(dtype)
    return plain
