"""Products with weights of 8 bits on a GPU, in Triton: unpacked to bfloat16 in registers, before the tensor cores.

A step has at most some hundred rows, so it is bound by the weights that it reads, and those are read once, as they lie
in memory. torch's own ways read them otherwise: `_weight_int8pack_mm` has no tensor cores on CUDA, and `_scaled_mm`
wants activations of 8 bits, too.

Imports Triton, which a CPU's torch does not bring. With TRITON_INTERPRET=1 in the environment when this file is
imported, it runs on a CPU, slowly: for tests. Block sizes are reckoned, and unmeasured.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

LEAST_ROWS, MOST_ROWS = 16, 128
"""Of a block: the tensor cores' least, and as many as the registers hold. More rows read the weights again."""
LOADS = {16: (128, 3), 32: (128, 3), 64: (64, 4), 128: (64, 2)}
"""By rows of a block: inputs at a time, and how many times as much is on its way at once. Together they fill at most
the 99 KB of shared memory that an L4 has."""
KIND = tl.float32 if os.environ.get("TRITON_INTERPRET") == "1" else tl.bfloat16
"""Of the products' operands: the interpreter multiplies bfloat16 by its bits."""
PROGRAMS = 128
"""About as many as an H100 has multiprocessors: with fewer, narrower blocks keep all of them reading."""


def product(x: Tensor, weight: Tensor, scale: Tensor, residual: Tensor | None) -> Tensor:
    """See `linear.Product`."""
    (n, inputs), outputs = x.shape, len(weight)
    rows = min(max(triton.next_power_of_2(n), LEAST_ROWS), MOST_ROWS)
    block = next((size for size in (64, 32) if outputs >= size * PROGRAMS), 16)
    taken, stages = LOADS[rows]
    answer = x.new_empty(n, outputs, dtype=torch.float32)
    _product[(triton.cdiv(outputs, block), triton.cdiv(n, rows))](
        x.contiguous(), weight, scale, answer if residual is None else residual, answer, n, outputs, inputs,
        ADD=residual is not None, ROWS=rows, OUTPUTS=block, INPUTS=taken, KIND=KIND, num_warps=4, num_stages=stages)
    return answer


@triton.jit
def _product(x, weight, scale, residual, answer, n, outputs, inputs, ADD: tl.constexpr, ROWS: tl.constexpr,
             OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, KIND: tl.constexpr):
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    there, ours = row < n, output < outputs
    x_rows = x + row[:, None].to(tl.int64) * inputs
    weight_rows = weight + output[None, :].to(tl.int64) * inputs
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for first in range(0, inputs, INPUTS):
        at = first + tl.arange(0, INPUTS)
        within = at < inputs
        left = tl.load(x_rows + at[None, :], mask=there[:, None] & within[None, :], other=0.0)
        right = tl.load(weight_rows + at[:, None], mask=within[:, None] & ours[None, :], other=0.0)
        total = tl.dot(left.to(KIND), right.to(KIND), total)
    total *= tl.load(scale + output, mask=ours, other=0.0).to(tl.float32)[None, :]
    places = row[:, None].to(tl.int64) * outputs + output[None, :]
    inside = there[:, None] & ours[None, :]
    if ADD:
        total += tl.load(residual + places, mask=inside, other=0.0)
    tl.store(answer + places, total, mask=inside)
