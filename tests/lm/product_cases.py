"""`python -m tests.lm.product_cases [cuda]`: the GPU's products of 8 bits beside torch's.

On the named device, or in Triton's interpreter. Prints one JSON line. A process of its own, because Triton decides at
the import whether it interprets.
"""

import json
import os
import sys
from collections.abc import Iterator

os.environ["TRITON_INTERPRET"] = "0" if "cuda" in sys.argv else "1"

import torch

from services.lm.eight_bit import product
from services.lm.linear import EightBitLinear

DEVICE = torch.device("cuda" if "cuda" in sys.argv else "cpu")
# Whole blocks and parts of them, and more rows than a block has.
SHAPES = [(1, 64, 48), (3, 200, 130), (17, 256, 4096), (130, 96, 33)]


def cases() -> Iterator[float]:
    """Of each case the error, as a share of the answer's size."""
    for n, inputs, outputs in SHAPES:
        generator = torch.Generator().manual_seed(n)
        weight = torch.randn(outputs, inputs, generator=generator)
        # Numbers that bfloat16 has: Triton's interpreter cuts digits off where a GPU rounds.
        x, residual = (torch.randn(n, size, generator=generator).bfloat16().float().to(DEVICE)
                       for size in (inputs, outputs))
        for kind in (torch.int8, torch.float8_e4m3fn):
            linear = EightBitLinear(weight, DEVICE, kind)
            unpacked = linear.weight.float() * linear.scale.float()[:, None]
            for added in (None, residual):
                expected = x @ unpacked.t() + (0 if added is None else added)
                found = product(x, linear.weight, linear.scale, added)
                yield float((found - expected).norm() / expected.norm())


if __name__ == "__main__":
    torch.set_num_threads(1)
    errors = list(cases())
    json.dump({"cases": len(errors), "max_error": max(errors)}, sys.stdout)
