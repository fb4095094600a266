"""`python -m tests.lm.attention_cases [cuda]`: the GPU's decode attention beside the CPU's.

On the named device, or in Triton's interpreter. Prints one JSON line. A process of its own, because Triton decides at
the import whether it interprets.
"""

import json
import os
import sys
from collections.abc import Iterator
from itertools import product

os.environ["TRITON_INTERPRET"] = "0" if "cuda" in sys.argv else "1"

import torch
from torch import Tensor

from services.lm.attention import attend_filled, kept, places, recalled
from services.lm.decode_attention import attend_decode

DEVICE = "cuda" if "cuda" in sys.argv else "cpu"
SLOTS = 4
# kv_heads, queries a key-value head, head_dim, context. 128 and 3000 are the 7 B model's, with fewer heads.
SHAPES = [(2, 1, 64, 250), (1, 1, 128, 3000), (2, 3, 32, 130), (1, 4, 80, 700), (2, 2, 16, 24)]
DTYPES = [torch.float32, torch.bfloat16, torch.int8]


def lengths(context: int) -> list[list[int]]:
    """Positions of rows 0..n: of the first step, before, at and after the ring is full, wrapped twice, and mixed."""
    return [[0, context - 2, context - 1], [context, 2 * context + 5, 1], [63, 64, 65], [-1, context // 2, -1]]


def cases() -> Iterator[tuple[float, float, bool]]:
    """Of each case the largest error, the share of kept bytes that differ, and whether other slots are untouched."""
    for (kv_heads, groups, dim, context), dtype in product(SHAPES, DTYPES):
        generator = torch.Generator().manual_seed(context + dim)
        numbers = torch.randn(2 * SLOTS * kv_heads * context, dim, generator=generator)
        filled = kept(numbers, torch.empty(0, dtype=dtype)).view(2, SLOTS, kv_heads, context, -1)
        for positions in lengths(context):
            heads = torch.randn(len(positions), (groups + 2) * kv_heads, dim, generator=generator) * 0.5
            yield compare(heads, filled, torch.tensor(positions))


def compare(heads: Tensor, filled: Tensor, positions: Tensor) -> tuple[float, float, bool]:
    ours, theirs = filled.to(DEVICE, copy=True), filled.clone()
    found = attend_decode(heads.to(DEVICE), ours, positions.to(DEVICE)).cpu()
    ours = ours.cpu()
    rows = (positions >= 0).nonzero().flatten()
    at = places(theirs, rows, positions[rows])
    expected = torch.zeros_like(found)
    expected[rows] = attend_filled(heads[rows], theirs, rows, positions[rows], at)
    written = ours.view(-1, ours.shape[-1])[at]
    new = (recalled(written, heads.shape[2]).float() - recalled(
        theirs.view(-1, ours.shape[-1])[at], heads.shape[2]).float()).abs().max()
    untouched = torch.ones(filled.numel() // filled.shape[-1], dtype=torch.bool)
    untouched[at] = False
    same = torch.equal(ours.view(-1, ours.shape[-1])[untouched], filled.view(-1, ours.shape[-1])[untouched])
    return float((found - expected).abs().max()), float(new), same


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = list(cases())
    json.dump({"cases": len(results), "max_error": max(error for error, _, _ in results),
               "max_new_error": max(new for _, new, _ in results),
               "others_untouched": all(same for *_, same in results)}, sys.stdout)
