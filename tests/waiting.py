"""Tests wait until something is so, not for a time in which it ought to happen: machines are shared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

EVERY_S = 0.02


async def until(is_so: Callable[[], Awaitable[bool]], within_s: float = 20.0) -> bool:
    """Whether it was so within the time, which is only as long as that for a test that fails."""
    deadline = time.monotonic() + within_s
    while not await is_so():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(EVERY_S)
    return True
