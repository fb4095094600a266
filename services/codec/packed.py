"""Matrix products and convolutions with weights laid out once for the device, on channels-last [n, steps, channels].

On x86 CPUs oneDNN's blocked layout is 1.1 to 2.5 times as fast as plain weights, and without it every convolution lays
out its weights anew each time; but each of its calls costs some 20 us more, so small products stay plain. The choice is
made for each shape when a step is recorded. Elsewhere the plain operators run.
"""

from __future__ import annotations

import math
import platform
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

# Measured on an AVX-512 core, in multiply-adds: below these, a plain product beats oneDNN's.
LARGE_PRODUCT = 4_000_000
LARGE_CONVOLUTION = 1_500_000
# Weights of this many numbers fill the nearer caches, and then their layout counts even for a single row.
LARGE_WEIGHT = 1 << 17
# Side by side, more inputs than this cost more to copy than oneDNN's convolution costs to call.
WIDE_WINDOWS = 50_000
# With fewer output steps oneDNN's convolution has too little work to spread (14 instead of 70 GFLOP/s at 2).
FEWEST_CONVOLVED_STEPS = 4
# Packing asks for the number of rows to lay out for; the layout serves all that a step can have.
PACKED_FOR_ROWS = 16
# With fewer numbers than this, five passes over them cost more than raising them once.
SMALL_ELU = 4096
LOG2_E = 1 / math.log(2)


def packs(weight: Tensor) -> bool:
    """Whether oneDNN's blocked layouts serve this weight."""
    return (weight.device.type == "cpu" and weight.dtype == torch.float32
            and torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64"))


class Linear(nn.Module):
    """x W^T + b for x [..., inputs], optionally followed by an activation or added to a residual."""

    bias: Tensor | None
    plain: Tensor
    packed: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> None:
        super().__init__()
        self._outputs, self._gelu = weight.shape[0], gelu
        self._packs, self._large = packs(weight), weight.numel() >= LARGE_WEIGHT
        self._bfloat16 = False
        self.register_buffer("bias", bias)
        if self._packs:
            layout = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR_ROWS)
            self.register_buffer("packed", layout)
        if not (self._packs and self._large):
            self.register_buffer("plain", weight.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] to [..., outputs]."""
        if self._use_packed(x):
            return cast(Tensor, packed_linear(x, self.packed, self.bias, "gelu" if self._gelu else "none"))
        if self._bfloat16:
            y = functional.linear(x.bfloat16(), self.plain, self.bias).float()
        else:
            y = functional.linear(x, self.plain, self.bias)
        return functional.gelu(y) if self._gelu else y

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + x W^T + b, in one pass where it can be."""
        if self._use_packed(x):
            return cast(Tensor, packed_linear_add(x, residual, self.packed, self.bias))
        return self.forward(x).add_(residual)

    def to_bfloat16(self) -> None:
        """From now on computes in bfloat16, where its weights are not packed."""
        self._bfloat16 = not self._packs
        if self._bfloat16:
            self.plain = self.plain.bfloat16()
            self.bias = None if self.bias is None else self.bias.bfloat16()

    def _use_packed(self, x: Tensor) -> bool:
        return self._packs and (self._large or static_shape(x).numel() * self._outputs >= LARGE_PRODUCT)


class Convolution(nn.Module):
    """A causal convolution of [n, past + steps, inputs] to [n, steps / stride, outputs].

    `past` steps of earlier input must come first. weight is [outputs, inputs, kernel], as in torch. It is laid out for
    `steps`; more, as many frames at once have, go through the plain operator, whose own laying out they can afford.
    """

    bias: Tensor | None
    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, steps: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self._plain = weight, bias
        self._packs, self._bfloat16 = packs(weight), False
        outputs, self.inputs, self._kernel = weight.shape
        self._stride, self._dilation = stride, dilation
        self.past = (self._kernel - 1) * dilation + 1 - stride
        self.input_steps, self._steps = steps, steps // stride
        self._row_cost = self._steps * weight.numel()
        self._few_steps = dilation == 1 and (self._kernel == 1 or self._steps < FEWEST_CONVOLVED_STEPS)
        self.linear = None
        if self._few_steps or (dilation == 1 and weight.numel() < LARGE_WEIGHT):
            self.linear = Linear(weight.transpose(1, 2).reshape(outputs, -1), bias)
        if self._few_steps:
            return
        image = weight[:, :, None, :].contiguous(memory_format=torch.channels_last)
        if self._packs:
            image = torch.ops.mkldnn._reorder_convolution_weight(
                image, [0, 0], [1, stride], [1, dilation], 1, [1, self.inputs, 1, self.past + steps])
        self.register_buffer("weight", image)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, past + steps, inputs] to [n, steps / stride, outputs]."""
        if static_shape(x)[1] != self.past + self.input_steps:
            weight, bias = self._plain
            y = functional.conv1d(x.to(weight.dtype).transpose(1, 2), weight, bias, self._stride, 0, self._dilation)
            return y.transpose(1, 2).float()
        if self.linear is not None and (self._few_steps or self._is_small(static_shape(x)[0])):
            return cast(Tensor, self.linear(self._windows(x)))
        image = x.unsqueeze(1).permute(0, 3, 1, 2)
        if self._packs:
            y = packed_convolution(image, self.weight, self.bias, self._stride, self._dilation)
        elif self._bfloat16:
            y = functional.conv2d(
                image.bfloat16(), self.weight, self.bias, (1, self._stride), 0, (1, self._dilation)).float()
        else:
            y = functional.conv2d(image, self.weight, self.bias, (1, self._stride), 0, (1, self._dilation))
        return y.permute(0, 2, 3, 1).squeeze(1)

    def to_bfloat16(self) -> None:
        """From now on computes in bfloat16, where its weights are not packed; `linear` is a module of its own."""
        self._bfloat16 = not self._packs
        if not self._bfloat16:
            return
        weight, bias = self._plain
        self._plain = weight.bfloat16(), None if bias is None else bias.bfloat16()
        if not self._few_steps:
            self.weight = self.weight.bfloat16()
            self.bias = self._plain[1]

    def _is_small(self, n: int) -> bool:
        return (n * self._row_cost < LARGE_CONVOLUTION
                and n * self._steps * self._kernel * self.inputs <= WIDE_WINDOWS)

    def _windows(self, x: Tensor) -> Tensor:
        """Each output step's inputs side by side, [n, steps / stride, kernel * inputs]; copies unless kernel is 1."""
        if self._kernel == 1:
            return x
        n, steps, inputs = static_shape(x)
        windows = x.as_strided((n, self._steps, self._kernel * inputs), (steps * inputs, self._stride * inputs, 1))
        return windows.contiguous()


def elu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """max(x, e^x - 1), into `out` where given.

    torch's own spends 1.3 ns a number, most of it in e^x; its 2^x takes a third of that.
    """
    if static_shape(x).numel() >= SMALL_ELU:
        return torch.maximum(x, (x * LOG2_E).clamp_(max=0).exp2_().sub_(1), out=out)
    activated = functional.elu(x)
    return activated if out is None else out.copy_(activated)


def static_shape(x: Tensor) -> torch.Size:
    """The shape as numbers: a step is recorded per number of rows, and so may decide by its shapes."""
    return torch.Size([int(size) for size in x.shape])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")
    return y


def _linear_add(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, residual, weight, bias, "add")
    return y


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int) -> Tensor:
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, [0, 0], [1, stride], [1, dilation], 1, "none", [], "")
    return y


# Scripted, because torch.jit.trace cannot record these operators itself.
packed_linear = torch.jit.script(_linear)
packed_linear_add = torch.jit.script(_linear_add)
packed_convolution = torch.jit.script(_convolution)
