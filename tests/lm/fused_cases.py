"""`python -m tests.lm.fused_cases [cuda]`: the GPU's fused kernels beside torch's operators, and steps made of them
beside the network's.

On the named device, or in Triton's interpreter. Prints one JSON line. A process of its own, because Triton decides at
the import whether it interprets.
"""

import json
import os
import sys
from collections.abc import Iterator

os.environ["TRITON_INTERPRET"] = "0" if "cuda" in sys.argv else "1"

import torch
from torch import Tensor
from torch.nn import functional

from services.lm import fused_kernels as kernels
from services.lm import sampler
from services.lm.attention import kept, recalled
from services.lm.decode_attention import attend_decode
from services.lm.fused import FusedNetwork
from services.lm.linear import Packing, Precision
from services.lm.network import Bends, Draws, Network, Shapes
from services.lm.sampling import MOST_PENALISED
from services.lm.sizing import KvPrecision, new_rings
from tests.lm.attention_cases import DEVICE
from tests.lm.small_lm import random_lm

CONTEXT = 40
KINDS = (torch.float32, torch.bfloat16)
SIZES = ((1, 1000), (3, 256), (128, 40))
"""Rows, and how wide they are: the interpreter takes its time."""
STEPS: tuple[tuple[Precision, KvPrecision, bool], ...] = (
    ("fp32", "fp32", False), ("fp32", "fp32", True), ("fp32", "bf16", False), ("fp32", "int8", True))
# Rows of other lengths, wrapped ones, and one that takes no part.
POSITIONS = ([0], [5, -1, CONTEXT - 1], [CONTEXT + 7, 1, 90, 39])


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Numbers that bfloat16 has."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float().to(DEVICE)


def off(found: Tensor, right: Tensor) -> float:
    """The largest error, as a share of the largest number."""
    return float((found.float() - right.float()).abs().max() / right.float().abs().max())


def errors(kind: torch.dtype) -> Iterator[float]:
    """Of every kernel that adds, its error."""
    floor = torch.tensor(0.02, device=DEVICE)
    for n, width in SIZES:
        x, update = noise(n, width + 8)[:, 3 : width + 3], noise(n, width, seed=1)
        for norm in (floor, None):
            total, normed = kernels.add_norm(x, update.to(kind), norm, kind)
            right = x + update
            yield off(total, right)
            yield off(normed, right if norm is None else
                      right / torch.hypot(right.norm(dim=-1, keepdim=True), floor))
        table, at = noise(50, width, seed=2).to(kind), torch.arange(n, device=DEVICE)[:, None] * 7 % 50
        yield off(kernels.add_norm(x, table, floor, kind, at)[0], x + table[at[:, 0]])
        tokens = torch.arange(n * 5, device=DEVICE).view(n, 5) % 10
        offsets = torch.arange(5, device=DEVICE) * 10
        total, normed = kernels.embed(tokens, offsets, table, floor, kind)
        right = table.float()[tokens + offsets].sum(1)
        yield off(total, right)
        yield off(normed, right / torch.hypot(right.norm(dim=-1, keepdim=True), floor))
        both = noise(n, 2 * width, seed=3) * 8
        first, second = both.chunk(2, dim=1)
        yield off(kernels.gate(both.to(kind), kind), functional.silu(first) * second)
    for n, heads, dim in ((1, 2, 64), (3, 3, 24)):
        yield from depth_errors(n, heads, dim, kind)


def depth_errors(n: int, heads: int, dim: int, kind: torch.dtype) -> Iterator[float]:
    """Eight positions, one after the other."""
    past, keys, values = torch.full((2, n * heads, 8, dim), torch.nan, device=DEVICE), [], []
    for position in range(8):
        given = noise(n, 3, heads, dim, seed=position)
        keys.append(given[:, 1])
        values.append(given[:, 2])
        found = kernels.depth_attend(
            given[:, 0 if position else 1 :].reshape(n, -1).to(kind).contiguous(), past, position, kind)
        scores = torch.einsum("nhd,nphd->nhp", given[:, 0], torch.stack(keys, 1))
        right = torch.einsum("nhp,nphd->nhd", torch.softmax(scores, -1), torch.stack(values, 1))
        yield off(found, right.flatten(1))


def turned_error() -> float:
    """Of heads that are turned on the way in, over a history in several parts, beside heads that were turned before."""
    heads, ring = noise(2, 4, 32), noise(2, 2, 1, 700, 32)
    positions = torch.tensor([650, 1500], device=DEVICE)
    angle = positions[:, None] * torch.linspace(0, 1, 16, device=DEVICE)
    rotation = torch.polar(torch.ones_like(angle), angle)
    turned = torch.view_as_real(torch.view_as_complex(heads.view(2, 4, 16, 2)) * rotation[:, None]).flatten(2)
    turned[:, -1] = heads[:, -1]
    found, right = (attend_decode(given, ring.clone(), positions, turns)
                    for given, turns in ((heads, torch.view_as_real(rotation)), (turned, None)))
    return off(found, right)


def draws_differ() -> int:
    """How many tokens are not the ones that the sampler draws, from logits that have ties."""
    differ = 0
    for entries, table in ((2048, sampler.gumbel_table(2048).to(DEVICE)), (500, sampler.gumbel_table(500).to(DEVICE))):
        n, most = 16, min(entries, 250)
        logits = (noise(n, entries + 9)[:, 4:-5] * 2).bfloat16()
        seed = torch.arange(n, device=DEVICE) * 2**57 + 3
        positions = torch.arange(n, device=DEVICE) * 50 - 1
        temperature = torch.linspace(0, 2, n, device=DEVICE)[:, None].expand(-1, 2)
        top_k = torch.tensor([1, 2, 25, most], device=DEVICE).repeat(n // 4)[:, None].expand(-1, 2)
        for stream in (0, 1, 8):
            found = kernels.draw(logits, table, seed, positions, temperature[:, :1], top_k[:, :1], stream)
            starts = sampler.window_starts(seed, positions, torch.tensor([stream], device=DEVICE))
            right = sampler.draw_by_threshold(
                logits.float(), sampler.noise(table, starts, entries)[:, 0], temperature[:, :1], top_k[:, :1], most)
            differ += int((found != right).sum())
    return differ


def step(precision: Precision, kv_precision: KvPrecision, positions: list[int], bent: bool) -> tuple[float, float]:
    """The share of tokens that are not the network's, and how far new keys and values are off."""
    lm = random_lm(dim=64, num_heads=2, num_layers=2, context=CONTEXT, card=256, depformer_dim=64,
                   depformer_num_heads=2, depformer_dim_feedforward=264)
    device, n = torch.device(DEVICE), len(positions)
    network = Network(lm, Packing(device, precision)).eval()
    rings = new_rings(lm, n + 1, device, kv_precision)
    dim = rings.shape[5] - (rings.dtype == torch.int8)
    rings.copy_(kept(noise(rings.numel() // rings.shape[5], dim), rings).view_as(rings))
    theirs = rings.clone()
    rows, at = torch.arange(n, device=device), torch.tensor(positions, device=device)
    tokens = torch.randint(0, 256, (n, 17), generator=torch.Generator().manual_seed(n)).to(device)
    draws = Draws(0.8 * (rows[:, None] % 2).expand(-1, 2).float(),
                  torch.full((n, 2), 25, device=device), rows + 5)
    forced = torch.full((n, 9), -1, device=device)
    forced[:, ::3] = 11
    bends = Bends(forced, torch.ones(n, 1, device=device), torch.full((n, 1), 1.3, device=device),
                  torch.arange(MOST_PENALISED, device=device).expand(n, -1)) if bent else None
    found = FusedNetwork(network)(tokens, rings, at, draws, bends)
    there = at >= 0
    right = network(tokens[there], theirs, rows[there], at[there], Draws(*(part[there] for part in draws)),
                    bends=None if bends is None else Bends(*(part[there] for part in bends))
                    ) if DEVICE == "cpu" else network(tokens, theirs, rows, at.clamp(min=0), draws,
                                                      Shapes(CONTEXT, (32, 32)), bends)[there]
    mine, other = (recalled(part, dim).float()[:, :, :-1][:, :, there] for part in (rings, theirs))
    spare = torch.equal(rings[:, :, -1], theirs[:, :, -1])
    return float((found[there] != right).float().mean()), off(mine, other) if spare else torch.inf


@torch.inference_mode()
def main() -> None:
    """Everything, as one line of JSON."""
    steps = [step(precision, kv_precision, positions, bent) for precision, kv_precision, bent in STEPS
             for positions in (POSITIONS if not bent else POSITIONS[1:2])]
    rounded = [step(precision, "bf16", POSITIONS[2], False) for precision in ("bf16", "int8")]
    found = {str(kind).removeprefix("torch."): list(errors(kind)) for kind in KINDS}
    json.dump({"cases": {name: len(values) for name, values in found.items()},
               "max_error": {name: max(values) for name, values in found.items()}, "turned_error": turned_error(),
               "draws_that_differ": draws_differ(),
               "steps": len(steps), "tokens_that_differ": max(share for share, _ in steps),
               "max_new_error": max(new for _, new in steps),
               "rounded_tokens_that_differ": sum(share for share, _ in rounded) / len(rounded),
               "rounded_max_new_error": max(new for _, new in rounded)}, sys.stdout)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
