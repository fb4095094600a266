"""Matrix products over packed weights, without biases, as Moshi's layers have none.

Activations stay float32 between products in every precision; what changes is how weights are kept and what the
products are computed in. A row's result never depends on the other rows' values: this is why int8 rounds weights
only, and not (as `torch.ao` and fbgemm do) activations to one scale for the whole batch.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

Precision = Literal["fp32", "bf16", "int8"]


class Float32Linear(nn.Module):
    """Exact products. Weights [inputs, outputs]: at a step's few rows, CPUs are fastest on the transposed layout."""

    weight: Tensor

    def __init__(self, weight: Tensor, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("weight", weight.t().contiguous().to(device))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, inputs] -> [n, outputs]."""
        return torch.mm(x, self.weight)

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + self(x)."""
        return torch.addmm(residual, x, self.weight)


class BFloat16Linear(nn.Module):
    """Weights [outputs, inputs] and products in bfloat16, as Moshi's own checkpoints are run."""

    weight: Tensor

    def __init__(self, weight: Tensor, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("weight", weight.bfloat16().to(device))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, inputs] -> [n, outputs]."""
        return functional.linear(x.bfloat16(), self.weight).float()

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + self(x)."""
        return residual + functional.linear(x.bfloat16(), self.weight)


class Int8Linear(nn.Module):
    """Weights [outputs, inputs] as int8 with a scale per output, activations in bfloat16: PyTorch's own kernel."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, device: torch.device) -> None:
        super().__init__()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8).to(device))
        self.register_buffer("scale", scale.bfloat16().to(device))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, inputs] -> [n, outputs]."""
        return torch._weight_int8pack_mm(x.bfloat16(), self.weight, self.scale).float()

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + self(x)."""
        return residual + torch._weight_int8pack_mm(x.bfloat16(), self.weight, self.scale)


Linear = Float32Linear | BFloat16Linear | Int8Linear


@dataclass(frozen=True)
class Packing:
    """Where weights go and in what precision."""

    device: torch.device
    precision: Precision

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision}")

    def linear(self, weight: Tensor) -> Linear:
        """A product with the weight [outputs, inputs]."""
        kinds: dict[Precision, type[Linear]] = {"fp32": Float32Linear, "bf16": BFloat16Linear, "int8": Int8Linear}
        return kinds[self.precision](weight, self.device)

    def table(self, table: Tensor) -> Tensor:
        """Embeddings [tokens, dim]. They are looked up, not multiplied, so nothing is gained below bfloat16."""
        return table.to(self.device, torch.float32 if self.precision == "fp32" else torch.bfloat16)
