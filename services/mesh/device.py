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
