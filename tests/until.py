"""Wait for a condition instead of a time: machines are shared."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], within_s: float = 20.0) -> None:
    """Return when the condition holds; it may be a coroutine function.

    Fails the test when it does not in time, which a busy machine needs more of.
    """
    deadline = time.monotonic() + within_s
    while True:
        holds = condition()
        if await holds if inspect.isawaitable(holds) else holds:
            return
        assert time.monotonic() < deadline, f"did not come within {within_s} s"
        await asyncio.sleep(0.005)


async def settled() -> None:
    """Let every task run that waits for its turn only, and for no clock and no other thread."""
    for _ in range(100):
        await asyncio.sleep(0)
