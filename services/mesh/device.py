"""The memory of the device that an engine computes on."""

from __future__ import annotations

from collections.abc import Callable

import torch


def device_memory(name: str) -> Callable[[], tuple[int, int]] | None:
    """Asks for used and total bytes of a GPU; None for a device that shares the process's own memory."""
    device = torch.device(name)
    if device.type != "cuda":
        return None

    def ask() -> tuple[int, int]:
        free, total = torch.cuda.mem_get_info(device)
        return total - free, total

    return ask


def claim_memory(device: torch.device, share: float) -> int:
    """The bytes that this process may still take of a GPU's memory, once it is bound to its share: torch's allocator
    then fails instead of taking a neighbour's.
    """
    free, total = torch.cuda.mem_get_info(device)
    if share < 1:
        torch.cuda.set_per_process_memory_fraction(share, device)
    return min(free, int(total * share) - torch.cuda.memory_reserved(device))
