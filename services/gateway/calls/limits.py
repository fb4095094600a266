"""How many calls one API key may have at once, over all gateways.

While Redis is away each gateway counts its own: a limit that fails open for some seconds is better than callers who are
refused for a reason that is not theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator

from services.gateway.store import Request, Store, StoreAway
from services.mesh.errors import TooManyCalls

REFRESH_S = 10.0
GONE_S = 30.0  # calls of a gateway that has not said so for this long don't count any more

# A key's calls: conversation -> when it is gone (ms). Returns 0 when there are enough without this one.
_ENTER = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""


class Limits:
    """Counts the calls of each key."""

    def __init__(self, store: Store, calls_per_key: int) -> None:
        """`calls_per_key` of 0 means no limit. Callers without a key share one."""
        self._store, self._calls_per_key = store, calls_per_key
        self._here: dict[str, Counter[str]] = {}  # by key: its conversations, and in how many calls each is held

    @contextlib.asynccontextmanager
    async def admit(self, key: str, conversation: str) -> AsyncIterator[None]:
        """Count a conversation until the block ends; one that is taken up again, while its old call lingers, only once.

        Raises TooManyCalls.
        """
        if not self._calls_per_key:
            yield
            return
        place = _place(key)
        here = self._here.setdefault(place, Counter())
        here[conversation] += 1
        refreshing: asyncio.Task[None] | None = None
        try:
            if len(here) > self._calls_per_key or not await self._enter(place, conversation):
                raise TooManyCalls(f"this key has {self._calls_per_key} calls already; end one, or try again later",
                                   limit=self._calls_per_key)
            refreshing = asyncio.create_task(self._refresh(place, conversation))
            yield
        finally:
            if refreshing is not None:
                refreshing.cancel()
            here[conversation] -= 1
            if not here[conversation]:
                del here[conversation]
                self._store.post(Request("redis.call('ZREM', KEYS[1], ARGV[1])", (place,), (conversation,)))
            if not here:
                self._here.pop(place, None)

    async def _enter(self, place: str, conversation: str) -> bool:
        try:
            return bool(await self._store.run(Request(_ENTER, (place,), (
                conversation, self._calls_per_key, round(GONE_S * 1000)))))
        except StoreAway:
            return True

    async def _refresh(self, place: str, conversation: str) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            await self._enter(place, conversation)


def _place(key: str) -> str:
    """Where a key's calls are counted; Redis does not learn the key."""
    return f"moshimesh:{{key:{hashlib.sha256(key.encode()).hexdigest()[:32]}}}:calls"
