"""What callers may do, by key and by address, over all gateways: calls at once, new calls a minute, audio an hour.

While Redis is away each gateway counts its own calls at once, and the rest is not counted: a limit that is too generous
for some seconds is better than callers that are refused though they keep it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable

from services.gateway.calls.callers import Caller, CallerLimits
from services.gateway.store import Request, Store, StoreError
from services.mesh.errors import AudioQuotaUsed, MeshError, TooManyCalls, Unauthenticated

REFRESH_S = 10.0
GONE_S = 30.0  # calls that their gateway has not named again for this long don't count any more
MINUTE_S, HOUR_S = 60, 3600

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

# What was used in a window of time that ends now: the present piece of it, and so much of the one before as the window
# reaches back into it. Returns 1 if there may be so much more (0: no bound), and adds it; what is spent already
# (ARGV[4]) is added in any case.
_USE = """
local time, window = redis.call('TIME'), tonumber(ARGV[1])
local piece = math.floor(time[1] / window)
local into = (time[1] % window) / window
local before = tonumber(redis.call('HGET', KEYS[1], piece - 1) or '0')
local used = tonumber(redis.call('HGET', KEYS[1], piece) or '0') + before * (1 - into)
local over = tonumber(ARGV[3]) > 0 and used + ARGV[2] > tonumber(ARGV[3])
if over and ARGV[4] == '0' then return 0 end
redis.call('HINCRBYFLOAT', KEYS[1], piece, ARGV[2])
redis.call('HDEL', KEYS[1], piece - 2)
redis.call('EXPIRE', KEYS[1], 2 * window)
return over and 0 or 1
"""


class Use:
    """What one call uses up while it lasts."""

    audio_s = 0.0
    """Seconds of the caller's audio that are not charged yet."""


class Limits:
    """Holds callers to their limits."""

    def __init__(self, store: Store, per_address: CallerLimits | None = None, *, refresh_s: float = REFRESH_S,
                 gone_s: float = GONE_S) -> None:
        """`per_address` is for all callers from one address together. Callers without a key share one. A call is named
        again every `refresh_s`; without that it counts for `gone_s`.
        """
        self._store, self._per_address = store, per_address or CallerLimits()
        self._refresh_s, self._gone_s = refresh_s, gone_s
        self._here: dict[str, Counter[str]] = {}  # by Redis key: conversations, and how many calls hold each

    @staticmethod
    def probes(tag: str) -> list[Request]:
        """The scripts that count, for Store.connect."""
        one = _name("key", f"probe-{tag}")
        return [Request(_ENTER, (f"{one}:calls",), ("a call", 1, 1000)),
                Request(_LEAVE, (f"{one}:calls",), ("a call",)), Request(_USE, (f"{one}:new",), (1, 1, 0, 1))]

    @contextlib.asynccontextmanager
    async def admit(self, caller: Caller, conversation: str, end: Callable[[MeshError], None]) -> AsyncIterator[Use]:
        """Count a conversation until the block ends. One that is resumed while its old call lingers counts once.

        `end` ends it, when its key is revoked or its audio used up. Raises TooManyCalls, AudioQuotaUsed.
        """
        use = Use()
        groups = [(name, limits, whose) for name, limits, whose in (
            (_name("key", caller.key_id), caller.limits, "this key"),
            (_name("address", caller.address), self._per_address, "this address")) if limits != CallerLimits()]
        for name, limits, whose in groups:
            await self._open(name, limits, whose)
        async with contextlib.AsyncExitStack() as held:
            for name, limits, whose in groups:
                if limits.calls:
                    await held.enter_async_context(self._count(f"{name}:calls", limits.calls, whose, conversation))
            refreshing = asyncio.create_task(self._refresh(caller, groups, conversation, use, end))
            try:
                yield use
            finally:
                refreshing.cancel()
                for name, limits, _ in groups:
                    if limits.audio_s_per_hour and use.audio_s:
                        self._store.post(Request(_USE, (f"{name}:audio",), (HOUR_S, use.audio_s, 0, 1)))

    async def _open(self, name: str, limits: CallerLimits, whose: str) -> None:
        """Count a new call. Raises TooManyCalls, AudioQuotaUsed."""
        if limits.calls_per_minute and not await self._use(f"{name}:new", MINUTE_S, 1, limits.calls_per_minute):
            raise TooManyCalls(f"{whose} has begun {limits.calls_per_minute} calls within a minute; try again later",
                               limit=limits.calls_per_minute)
        if limits.audio_s_per_hour and not await self._use(f"{name}:audio", HOUR_S, 0.001, limits.audio_s_per_hour):
            raise _quota(whose, limits)

    @contextlib.asynccontextmanager
    async def _count(self, calls: str, most: int, whose: str, conversation: str) -> AsyncIterator[None]:
        """Count a call among those at once. Raises TooManyCalls."""
        here = self._here.setdefault(calls, Counter())
        here[conversation] += 1
        try:
            if len(here) > most or not await self._enter(calls, conversation, most):
                raise TooManyCalls(f"{whose} has {most} calls already; end one, or try again later", limit=most)
            yield
        finally:
            here[conversation] -= 1
            if not here[conversation]:
                del here[conversation]
                self._store.post(Request(_LEAVE, (calls,), (conversation,)))
            if not here:
                self._here.pop(calls, None)

    async def _refresh(self, caller: Caller, groups: list[tuple[str, CallerLimits, str]], conversation: str, use: Use,
                       end: Callable[[MeshError], None]) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            if not caller.valid():
                end(Unauthenticated("KEY_REVOKED", "the key of this call was revoked"))
                return
            audio_s, use.audio_s = use.audio_s, 0.0
            for name, limits, whose in groups:
                if limits.calls:
                    await self._enter(f"{name}:calls", conversation, limits.calls)
                if limits.audio_s_per_hour and not await self._use(f"{name}:audio", HOUR_S, audio_s,
                                                                   limits.audio_s_per_hour, spent=True):
                    end(_quota(whose, limits))
                    return

    async def _enter(self, calls: str, conversation: str, most: int) -> bool:
        return await self._run(Request(_ENTER, (calls,), (conversation, most, round(self._gone_s * 1000))))

    async def _use(self, name: str, window_s: int, amount: float, most: int, *, spent: bool = False) -> bool:
        return await self._run(Request(_USE, (name,), (window_s, amount, most, int(spent))))

    async def _run(self, request: Request) -> bool:
        try:
            return bool(await self._store.run(request))
        except StoreError:
            return True


def _quota(whose: str, limits: CallerLimits) -> AudioQuotaUsed:
    return AudioQuotaUsed(f"{whose} has sent {limits.audio_s_per_hour} s of audio within an hour, which is all it may",
                          limit=limits.audio_s_per_hour)


def _name(kind: str, name: str) -> str:
    """What the Redis keys of a caller's counts begin with. Redis does not learn the name."""
    return f"moshimesh:{{{kind}:{hashlib.sha256(name.encode()).hexdigest()[:32]}}}"
