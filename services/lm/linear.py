"""Matrix products over packed weights, without biases, as Moshi's layers have none.

Activations stay float32 between products in every precision; what changes is how weights are kept and what the
products are computed in. A row's result never depends on the other rows' values: this is why int8, fp8 and int4 round
weights only, and not (as `torch.ao` and fbgemm do) activations to one scale for the whole batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

Precision = Literal["fp32", "bf16", "int8", "fp8", "int4"]

FP8_CAPABILITY = (8, 9)
"""The first whose instructions unpack fp8: L4 and L40S. Later ones are H100, H200 and B200."""


class Unavailable(ValueError):
    """The device does not have this precision."""



class Float32Linear(nn.Module):
    """Exact products. Weights [inputs, outputs]: at a step's few rows, CPUs are fastest on the transposed layout."""

    weight: Tensor

    def __init__(self, weight: Tensor, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("weight", weight.t().contiguous().to(device))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, inputs] -> [n, outputs]."""
        return torch.mm(x, self.weight)

    raw = forward

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
        return self.raw(x).float()

    def raw(self, x: Tensor) -> Tensor:
        """As forward, in bfloat16."""
        return functional.linear(x.bfloat16(), self.weight)

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + self(x)."""
        return residual + self.raw(x)


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
        return self.raw(x).float()

    def raw(self, x: Tensor) -> Tensor:
        """As forward, in bfloat16."""
        return torch._weight_int8pack_mm(x.bfloat16(), self.weight, self.scale)

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + self(x)."""
        return residual + self.raw(x)


class EightBitLinear(nn.Module):
    """Weights [outputs, inputs] as int8 or fp8 (e4m3) with a scale per output, products in bfloat16: for GPUs.

    The product unpacks weights in registers (`eight_bit`), once the check at the start has set it; until then, and
    where it is refused, torch unpacks them in memory, which reads and writes three times as much.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, device: torch.device, kind: torch.dtype) -> None:
        super().__init__()
        largest = 127.0 if kind == torch.int8 else torch.finfo(kind).max
        # Rounded first, so that the weights are then rounded to what the product makes of them.
        scale = (weight.abs().amax(dim=1).clamp(min=1e-12) / largest).bfloat16()
        steps = (weight / scale.float()[:, None]).clamp(-largest, largest)
        self.register_buffer("weight", (steps.round() if kind == torch.int8 else steps).to(kind).to(device))
        self.register_buffer("scale", scale.to(device))
        self.product: Product = unpacked_product

    def forward(self, x: Tensor) -> Tensor:
        """x [n, inputs] -> [n, outputs]."""
        return self.product(x, self.weight, self.scale, None)

    raw = forward

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + self(x)."""
        return self.product(x, self.weight, self.scale, residual)


Product = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""x [n, inputs], weight [outputs, inputs], scale [outputs] and what to add [n, outputs], to float32 [n, outputs]."""


def unpacked_product(x: Tensor, weight: Tensor, scale: Tensor, residual: Tensor | None) -> Tensor:
    """By torch's own operators: what the others are compared with."""
    product = functional.linear(x.bfloat16(), weight.bfloat16()).float() * scale
    return product if residual is None else residual + product


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
        return self.raw(x).float()

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + self(x)."""
        return residual + self.raw(x)

    def raw(self, x: Tensor) -> Tensor:
        """As forward, in bfloat16."""
        product = torch._weight_int4pack_mm if self.on_cuda else torch._weight_int4pack_mm_for_cpu
        return product(x.bfloat16(), self.weight, self.GROUP, self.scale)


# Each has `raw`, too: the product in the type that its kernel gives, for who reads it in that type.
Linear = Float32Linear | BFloat16Linear | Int8Linear | EightBitLinear | Int4Linear


@dataclass(frozen=True)
class Packing:
    """Where weights go and in what precision."""

    device: torch.device
    precision: Precision

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision}")
        if self.precision == "fp8" and self.device.type == "cuda":
            have = torch.cuda.get_device_capability(self.device)
            if have < FP8_CAPABILITY:
                raise Unavailable(f"precision fp8 needs a GPU of compute capability 8.9 or newer (L4, L40S, H100 ...), "
                                  f"and {self.device} has {have[0]}.{have[1]}; take int8, which is as small")

    def linear(self, weight: Tensor) -> Linear:
        """A product with the weight [outputs, inputs]; int8 where int4 can't have it."""
        device = self.device
        if self.precision == "fp32":
            return Float32Linear(weight, device)
        if self.precision == "bf16":
            return BFloat16Linear(weight, device)
        if self.precision == "fp8":
            return EightBitLinear(weight, device, torch.float8_e4m3fn)
        if self.precision == "int4" and Int4Linear.fits(weight):
            return Int4Linear(weight, device)
        # PyTorch's kernel for CPUs is fast, and its one for CUDA is not made for batches.
        return Int8Linear(weight, device) if device.type == "cpu" else EightBitLinear(weight, device, torch.int8)

    def table(self, table: Tensor) -> Tensor:
        """Embeddings [tokens, dim]. They are looked up, not multiplied, so nothing is gained below bfloat16."""
        return table.to(self.device, torch.float32 if self.precision == "fp32" else torch.bfloat16)
