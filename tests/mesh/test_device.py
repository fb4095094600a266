"""A process's share of a GPU's memory; torch's answers are given, since a GPU is not here."""

import pytest
import torch

from services.mesh.device import claim_memory

GPU = torch.device("cuda")


@pytest.mark.parametrize(("free", "share", "ours", "bound"), [
    (70_000, 1.0, 70_000, []),         # all that is free
    (70_000, 0.8, 63_000, [0.8]),      # of 80 000 less 1 000 that torch has
    (40_000, 0.8, 40_000, [0.8]),      # a neighbour has been faster
], ids=["alone", "beside another", "beside one that took more"])
def test_what_is_ours_is_free_and_within_the_share(monkeypatch: pytest.MonkeyPatch, free: int, share: float, ours: int,
                                                   bound: list[float]) -> None:
    set_to: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1_000)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: set_to.append(part))
    assert claim_memory(GPU, share) == ours
    assert set_to == bound
