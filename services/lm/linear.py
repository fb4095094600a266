"""Matrix products over packed weights, without biases, as Moshi's layers have none.

Activations stay float32 between products in every precision; what changes is how weights are kept and what the
products are computed in. A row's result never depends on the other rows' values: this is why int8 and int4 round
weights only, and not (as `torch.ao` and fbgemm do) activations to one scale for the whole batch.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

Precision = Literal["fp32", "bf16", "int8", "int4"]


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


class Int4Linear(nn.Module):
    """Weights as 4 bits, activations in bfloat16: PyTorch's own kernels, of which CPUs and CUDA have one each.

    Every group of inputs of an output has a scale and a middle, bfloat16 [inputs / GROUP, outputs, 2]: a weight is
    (q - 8) * scale + middle with q from 0 to 15.
    """

    GROUP = 32
    """The smallest group that the kernels know, so the most exact: 5 bits a weight with its scale and middle."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, device: torch.device) -> None:
        super().__init__()
        groups = weight.unflatten(1, (-1, self.GROUP))
        low, high = groups.aminmax(dim=2)
        # Rounded first, so that the weights are then rounded to what the kernel makes of them.
        scale = ((high - low).clamp(min=1e-12) / 15).bfloat16()
        middle = (low + 8 * scale.float()).bfloat16()
        steps = (groups - middle.float()[:, :, None]) / scale.float()[:, :, None]
        rounded = (steps.round() + 8).clamp(0, 15).flatten(1).to(device, torch.int32)
        self.on_cuda = device.type == "cuda"
        if self.on_cuda:
            pairs = (rounded[:, ::2] << 4 | rounded[:, 1::2]).to(torch.uint8)
            tiles = next(tiles for tiles in (8, 4, 2) if weight.shape[1] % (16 * tiles) == 0)
            packed = torch._convert_weight_to_int4pack(pairs, tiles)
        else:
            packed = torch._convert_weight_to_int4pack_for_cpu(rounded, 1)  # a CPU has no tiles
        self.register_buffer("weight", packed)
        self.register_buffer("scale", torch.stack((scale, middle), dim=2).transpose(0, 1).contiguous().to(device))

    @classmethod
    def fits(cls, weight: Tensor) -> bool:
        """Whether the kernels take a weight [outputs, inputs]."""
        outputs, inputs = weight.shape
        return outputs % 16 == 0 and inputs % cls.GROUP == 0

    def forward(self, x: Tensor) -> Tensor:
        """x [n, inputs] -> [n, outputs]."""
        return self._product(x).float()

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + self(x)."""
        return residual + self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        product = torch._weight_int4pack_mm if self.on_cuda else torch._weight_int4pack_mm_for_cpu
        return product(x.bfloat16(), self.weight, self.GROUP, self.scale)


Linear = Float32Linear | BFloat16Linear | Int8Linear | Int4Linear


@dataclass(frozen=True)
class Packing:
    """Where weights go and in what precision."""

    device: torch.device
    precision: Precision

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision}")

    def linear(self, weight: Tensor) -> Linear:
        """A product with the weight [outputs, inputs]; int8 where int4 can't have it."""
        kinds: dict[Precision, type[Linear]] = {
            "fp32": Float32Linear, "bf16": BFloat16Linear, "int8": Int8Linear,
            "int4": Int4Linear if Int4Linear.fits(weight) else Int8Linear}
        return kinds[self.precision](weight, self.device)

    def table(self, table: Tensor) -> Tensor:
        """Embeddings [tokens, dim]. They are looked up, not multiplied, so nothing is gained below bfloat16."""
        return table.to(self.device, torch.float32 if self.precision == "fp32" else torch.bfloat16)
