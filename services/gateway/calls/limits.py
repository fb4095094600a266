"""How many calls one API key may have at once, over all gateways.

While Redis is away each gateway counts its own calls: a limit that is too generous for some seconds is better than
callers that are refused though they keep the limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator

from services.gateway.store import Request, Store, StoreError
from services.mesh.errors import TooManyCalls

REFRESH_S = 10.0
GONE_S = 30.0  # calls that their gateway has not named again for this long don't count any more

# The calls of a key: conversation -> when it is gone (ms). Returns 1 when this one counts among them, 0 when there are
# as many others as there may be.
_ENTER = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""

_LEAVE = "redis.call('ZREM', KEYS[1], ARGV[1])"


class Limits:
    """Counts the calls of each key."""

    def __init__(self, store: Store, calls_per_key: int, *, refresh_s: float = REFRESH_S, gone_s: float = GONE_S
                 ) -> None:
        """`calls_per_key` of 0 means no limit. Callers without a key share one. A call is named again every
        `refresh_s`; without that it counts for `gone_s`.
        """
        self._store, self._calls_per_key = store, calls_per_key
        self._refresh_s, self._gone_s = refresh_s, gone_s
        self._here: dict[str, Counter[str]] = {}  # by Redis key: conversations, and how many calls hold each

    @staticmethod
    def probes(tag: str) -> list[Request]:
        """The scripts that count a key's calls, for Store.connect."""
        calls = _calls_of(f"probe-{tag}")
        return [Request(_ENTER, (calls,), ("a call", 1, 1000)), Request(_LEAVE, (calls,), ("a call",))]

    @contextlib.asynccontextmanager
    async def admit(self, key: str, conversation: str) -> AsyncIterator[None]:
        """Count a conversation until the block ends. One that is resumed while its old call lingers counts once.

        Raises TooManyCalls.
        """
        if not self._calls_per_key:
            yield
            return
        calls = _calls_of(key)
        here = self._here.setdefault(calls, Counter())
        here[conversation] += 1
        refreshing: asyncio.Task[None] | None = None
        try:
            if len(here) > self._calls_per_key or not await self._enter(calls, conversation):
                raise TooManyCalls(f"this key has {self._calls_per_key} calls already; end one, or try again later",
                                   limit=self._calls_per_key)
            refreshing = asyncio.create_task(self._refresh(calls, conversation))
            yield
        finally:
            if refreshing is not None:
                refreshing.cancel()
            here[conversation] -= 1
            if not here[conversation]:
                del here[conversation]
                self._store.post(Request(_LEAVE, (calls,), (conversation,)))
            if not here:
                self._here.pop(calls, None)

    async def _enter(self, calls: str, conversation: str) -> bool:
        try:
            return bool(await self._store.run(Request(_ENTER, (calls,), (
                conversation, self._calls_per_key, round(self._gone_s * 1000)))))
        except StoreError:
            return True

    async def _refresh(self, calls: str, conversation: str) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            await self._enter(calls, conversation)


def _calls_of(key: str) -> str:
    """The Redis key that counts the calls of an API key. Redis does not learn the API key."""
    return f"moshimesh:{{key:{hashlib.sha256(key.encode()).hexdigest()[:32]}}}:calls"
