"""Both ways to attend give what plain attention over the last `context` keys gives."""

import pytest
import torch
from torch import Tensor

from services.lm.attention import attend_filled, attend_prefix, kept, places

SLOTS, KV_HEADS, CONTEXT = 6, 2, 24


def inputs(n: int, repeat: int, dim: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ring = torch.randn(2, SLOTS, KV_HEADS, CONTEXT, dim, generator=generator)
    return torch.randn(n, (repeat + 2) * KV_HEADS, dim, generator=generator), ring


def plain(heads: Tensor, ring: Tensor, rows: list[int], positions: list[int]) -> Tensor:
    """One row and one head after the other."""
    answer = []
    for head, row, position in zip(heads, rows, positions, strict=True):
        queries, key, value = head[: -2 * KV_HEADS], head[-2 * KV_HEADS : -KV_HEADS], head[-KV_HEADS:]
        keys, values = ring[0, row].clone(), ring[1, row].clone()
        keys[:, position % CONTEXT], values[:, position % CONTEXT] = key, value
        filled = min(position + 1, CONTEXT)
        for i, query in enumerate(queries):
            kv = i * KV_HEADS // len(queries)
            answer.append(torch.softmax(keys[kv, :filled] @ query, 0) @ values[kv, :filled])
    return torch.cat(answer).view(len(heads), -1)


@pytest.mark.parametrize("dim", [8, 512], ids=["cheap padding", "dear padding"])
@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize("positions", [[0, 0, 0], [3, 0, 11], [23, 24, 100], [5000, 1, 0]], ids=str)
@pytest.mark.parametrize("rows", [[0, 1, 2], [1, 2, 3], [0, 3, 5]], ids=str)
def test_filled(rows: list[int], positions: list[int], repeat: int, dim: int) -> None:
    heads, ring = inputs(3, repeat, dim)
    before = ring.clone()
    at = torch.tensor(rows), torch.tensor(positions)
    found = attend_filled(heads, ring, *at, places(ring, *at))
    torch.testing.assert_close(found, plain(heads, before, rows, positions))
    others = [row for row in range(SLOTS) if row not in rows]
    assert torch.equal(ring[:, others], before[:, others])


@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize("positions", [[0, 0, 0], [3, 0, 11], [23, 24, 100]], ids=str)
def test_prefix(positions: list[int], repeat: int) -> None:
    heads, ring = inputs(3, repeat, 8)
    before = ring.clone()
    at = places(ring, torch.arange(3), torch.tensor(positions))
    found = attend_prefix(heads, ring, torch.tensor(positions), at, min(max(positions) + 1, CONTEXT))
    torch.testing.assert_close(found, plain(heads, before, [0, 1, 2], positions))
    assert torch.equal(ring[:, 3:], before[:, 3:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_a_ring_of_less_than_float32_gives_nearly_the_same(dtype: torch.dtype) -> None:
    heads, ring = inputs(3, 3, 8)
    packed = kept(ring.view(-1, 8), torch.empty(0, dtype=dtype)).view(*ring.shape[:-1], -1)
    rows, positions = [0, 1, 2], [3, 0, 100]
    at = torch.tensor(rows), torch.tensor(positions)
    expected = plain(heads, ring, rows, positions)
    filled = attend_filled(heads, packed.clone(), *at, places(packed, *at))
    prefix = attend_prefix(heads, packed, at[1], places(packed, *at), CONTEXT)
    for found in (filled, prefix):
        assert float((found - expected).norm() / expected.norm()) < 0.02
