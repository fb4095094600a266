"""The line: callers who wait because every slot of the mesh is taken, first come first served over all gateways."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from services.gateway.calls.events import Queued
from services.gateway.store import Request, Store, StoreAway
from services.mesh.errors import LineFull

POLL_S = 0.5
GONE_S = 3.0  # a place whose gateway has not asked for this long is free: the gateway is lost, or cut off from Redis
TURNS_KEPT = 16  # the last ones who got their turn: how fast the line moves
EMPTY_TTL_S = 600

# waiting: call -> ticket; seen: call -> when it is gone (ms). Returns the callers before this one, how many got their
# turn of late and since when (ms); only -1 when the line is full. The clock is Redis's own, one for all gateways.
_WAIT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, call in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do
  redis.call('ZREM', KEYS[1], call)
  redis.call('ZREM', KEYS[2], call)
end
if ARGV[1] == '' then return {redis.call('ZCARD', KEYS[1]), 0, 0} end
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  if ARGV[2] == '0' and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then return {-1, 0, 0} end
  local ticket = redis.call('INCR', KEYS[3])
  if ARGV[2] == '1' then ticket = ticket - 1e15 end
  redis.call('ZADD', KEYS[1], ticket, ARGV[1])
end
redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[1])
for key = 1, 3 do redis.call('EXPIRE', KEYS[key], ARGV[5]) end
local oldest = redis.call('LINDEX', KEYS[4], -1)
return {redis.call('ZRANK', KEYS[1], ARGV[1]), redis.call('LLEN', KEYS[4]), oldest and now - oldest or 0}
"""

_LEAVE = """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[2] == '1' then
  local time = redis.call('TIME')
  redis.call('LPUSH', KEYS[4], time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('LTRIM', KEYS[4], 0, ARGV[3] - 1)
  redis.call('EXPIRE', KEYS[4], ARGV[4])
end
"""


class Place:
    """One caller's place."""

    def __init__(self, line: Line, model_id: str, call_id: str, ahead: bool) -> None:
        self.served = False  # it got a slot, and did not just give up
        self._line, self._model_id, self._call_id, self._ahead = line, model_id, call_id, ahead
        self._told = -1

    async def turns(self, free: Callable[[], int]) -> AsyncIterator[Queued]:
        """The place whenever it changes; ends when there are slots for all before this caller and for itself, by
        `free`. A caller whom another one has beaten to the slot calls it again. Raises LineFull.
        """
        again = self._told >= 0
        while True:
            if again:
                await asyncio.sleep(POLL_S)
            again = True
            before, wait_ms = await self._line.wait(self._model_id, self._call_id, self._ahead)
            if before != self._told:
                self._told = before
                yield Queued(position=before + 1, estimated_wait_ms=wait_ms)
            if free() > before:
                return


class Line:
    """All who wait, for each model. While Redis is away each gateway has a line of its own."""

    def __init__(self, store: Store, most_waiting: int) -> None:
        self._store, self._most_waiting = store, most_waiting
        self._here: list[tuple[bool, str, str]] = []  # those of this gateway: not ahead, model, call; in order

    @property
    def waiting(self) -> int:
        """Callers of this gateway who wait."""
        return len(self._here)

    async def anybody_waits(self, model_id: str) -> bool:
        """Whether a new caller would push in."""
        try:
            (waiting, *_) = await self._store.run(Request(_WAIT, _keys(model_id), ("", 0, 0, 0, 0)))
        except StoreAway:
            return any(model == model_id for _, model, _ in self._here)
        return bool(waiting)

    @contextlib.asynccontextmanager
    async def join(self, model_id: str, call_id: str, ahead: bool) -> AsyncIterator[Place]:
        """Wait in line until the block ends. `ahead`: before all who are new, as somebody whose call was cut off."""
        place, entry = Place(self, model_id, call_id, ahead), (not ahead, model_id, call_id)
        self._here.append(entry)
        self._here.sort(key=lambda entry: entry[0])  # stable
        try:
            yield place
        finally:
            self._here.remove(entry)
            self._store.post(Request(_LEAVE, _keys(model_id), (call_id, int(place.served), TURNS_KEPT, EMPTY_TTL_S)))

    async def wait(self, model_id: str, call_id: str, ahead: bool) -> tuple[int, int]:
        """Callers before this one, and how long that may take (ms; 0: not known). Raises LineFull."""
        try:
            before, turns, span_ms = await self._store.run(Request(_WAIT, _keys(model_id), (
                call_id, int(ahead), self._most_waiting, round(GONE_S * 1000), EMPTY_TTL_S)))
        except StoreAway:
            line = [call for _, model, call in self._here if model == model_id]
            before, turns, span_ms = line.index(call_id), 0, 0
            if before >= self._most_waiting and not ahead:
                before = -1
        if before < 0:
            raise LineFull(f"every slot of the mesh is taken, and {self._most_waiting} callers wait already; try again "
                           "later", waiting=self._most_waiting)
        return before, round((before + 1) * span_ms / turns) if turns else 0


def _keys(model_id: str) -> tuple[str, ...]:
    return tuple(f"moshimesh:{{line:{model_id}}}:{part}" for part in ("waiting", "seen", "tickets", "turns"))
