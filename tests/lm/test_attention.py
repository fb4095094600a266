"""The two ways to attend agree, before and after the ring is full."""

import pytest
import torch

from services.lm.attention import attend_each, attend_together

SLOTS, KV_HEADS, CONTEXT, DIM = 5, 2, 24, 8


@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize("positions", [[0, 0, 0], [3, 0, 11], [23, 24, 100]], ids=str)
def test_each_and_together_agree(positions: list[int], repeat: int) -> None:
    generator = torch.Generator().manual_seed(1)
    ring = torch.randn(SLOTS, 2, KV_HEADS, CONTEXT, DIM, generator=generator)
    heads = torch.randn(3, (repeat + 2) * KV_HEADS, DIM, generator=generator)
    together, each = ring.clone(), ring.clone()
    filled = min(max(positions) + 1, CONTEXT)
    expected = attend_together(heads, together, torch.tensor(positions), filled)
    found = attend_each(heads, each, torch.arange(3), torch.tensor(positions))
    torch.testing.assert_close(found, expected)
    assert torch.equal(each, together)
    assert torch.equal(each[3:], ring[3:])


def test_rows_may_be_any() -> None:
    ring = torch.randn(SLOTS, 2, KV_HEADS, CONTEXT, DIM, generator=torch.Generator().manual_seed(1))
    heads = torch.randn(2, 3 * KV_HEADS, DIM, generator=torch.Generator().manual_seed(2))
    moved = ring[[4, 1]].contiguous()
    found = attend_each(heads, ring, torch.tensor([4, 1]), torch.tensor([7, 30]))
    assert torch.equal(found, attend_each(heads, moved, torch.arange(2), torch.tensor([7, 30])))
