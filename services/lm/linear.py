"""Matrix products over packed weights, without biases, as Moshi's layers have none."""

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """x [n, inputs] -> [n, outputs], float32 in and out.

    The weight is stored transposed: at the one to thirty-two rows of a step, that is how the CPU's BLAS is fastest.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, device: torch.device) -> None:
        """`weight` is [outputs, inputs], as in `nn.Linear`."""
        super().__init__()
        self.register_buffer("weight", weight.t().contiguous().to(device))

    def forward(self, x: Tensor) -> Tensor:
        """x @ weight."""
        return torch.mm(x, self.weight)

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + self(x), in one product."""
        return torch.addmm(residual, x, self.weight)
