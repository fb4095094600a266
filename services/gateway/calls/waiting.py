"""The waiting line: callers that wait for a slot of the mesh, first come, first served over all gateways."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from services.gateway.calls.events import Queued
from services.gateway.store import Request, Store, StoreError
from services.mesh.errors import LineFull

POLL_S = 0.5
GONE_S = 3.0  # a caller whose gateway has not asked for this long leaves the line: the gateway is lost, or cut off from
# Redis
TURNS_KEPT = 16  # when the last callers had their turn: how fast the line moves
EMPTY_TTL_S = 600

# waiting: call -> ticket's number; seen: call -> when it is gone (ms). Returns how many callers are before this one,
# how many had their turn lately and since when (ms); only -1 when the line is full. For no call: how many wait.
# The clock is Redis's own, one for all gateways.
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


class Ticket:
    """One caller in the line."""

    def __init__(self, line: WaitingLine, model_id: str, call_id: str, ahead: bool) -> None:
        self.model_id, self.call_id, self.ahead = model_id, call_id, ahead
        self.served = False  # the caller got a slot, and did not just give up
        self._line = line
        self._told: int | None = None  # the last position that the caller has heard

    async def turns(self, free: Callable[[], int]) -> AsyncIterator[Queued]:
        """The caller's position, whenever it changes. Ends when there are slots for all before this caller and for
        itself, by `free`; call it again when another caller was faster and took the slot. Raises LineFull.
        """
        while True:
            if self._told is not None:
                await asyncio.sleep(self._line.poll_s)
            standing = await self._line.ask(self)
            position = standing.before + 1
            if position != self._told:
                self._told = position
                yield Queued(position, standing.estimated_wait_ms)
            if free() >= position:
                return


@dataclass(frozen=True)
class Standing:
    """Where a caller stands in the line."""

    before: int
    """How many callers are before this one."""
    estimated_wait_ms: int
    """0: not known."""


class WaitingLine:
    """The callers that wait, for each model. While Redis is away, each gateway has a line of its own."""

    def __init__(self, store: Store, most_waiting: int, *, poll_s: float = POLL_S, gone_s: float = GONE_S) -> None:
        """`poll_s`: how often each caller's position is asked for; `gone_s`: how long a gateway may be silent before
        its callers leave the line.
        """
        self.poll_s = poll_s
        self._store, self._most_waiting, self._gone_s = store, most_waiting, gone_s
        self._here: list[Ticket] = []  # of this gateway, in order

    @staticmethod
    def probes(tag: str) -> list[Request]:
        """The scripts that callers in line run, for Store.connect: the first caller leaves, the second is served."""
        keys = _keys(f"probe-{tag}")
        return [Request(_WAIT, keys, ("first", 0, 2, 0, 1)), Request(_WAIT, keys, ("second", 0, 2, 1000, 1)),
                Request(_WAIT, keys, ("", 0, 0, 0, 0)), Request(_LEAVE, keys, ("second", 1, 1, 1))]

    @property
    def waiting(self) -> int:
        """How many callers of this gateway wait."""
        return len(self._here)

    async def length(self, model_id: str) -> int:
        """How many callers wait, at all gateways; while Redis is away, at this one."""
        try:
            (waiting, *_) = await self._store.run(Request(_WAIT, _keys(model_id), ("", 0, 0, 0, 0)))
        except StoreError:
            return sum(ticket.model_id == model_id for ticket in self._here)
        return int(waiting)

    @contextlib.asynccontextmanager
    async def join(self, model_id: str, call_id: str, ahead: bool) -> AsyncIterator[Ticket]:
        """Wait in line until the block ends. `ahead`: before all new callers, since this one's call was cut off."""
        ticket = Ticket(self, model_id, call_id, ahead)
        self._here.append(ticket)
        self._here.sort(key=lambda ticket: not ticket.ahead)  # stable
        try:
            yield ticket
        finally:
            self._here.remove(ticket)
            self._store.post(Request(_LEAVE, _keys(model_id), (call_id, int(ticket.served), TURNS_KEPT, EMPTY_TTL_S)))

    async def ask(self, ticket: Ticket) -> Standing:
        """Where a caller stands now. Raises LineFull."""
        try:
            before, turns, span_ms = await self._store.run(Request(_WAIT, _keys(ticket.model_id), (
                ticket.call_id, int(ticket.ahead), self._most_waiting, round(self._gone_s * 1000), EMPTY_TTL_S)))
        except StoreError:
            before, turns, span_ms = self._before_here(ticket), 0, 0
        if before < 0:
            raise LineFull(f"every slot of the mesh is taken, and {self._most_waiting} callers wait already; try again "
                           "later", waiting=self._most_waiting)
        return Standing(before, round((before + 1) * span_ms / turns) if turns else 0)

    def _before_here(self, ticket: Ticket) -> int:
        """How many callers of this gateway are before this one; -1 when the line is full."""
        before = [other for other in self._here if other.model_id == ticket.model_id].index(ticket)
        return -1 if before >= self._most_waiting and not ticket.ahead else before


def _keys(model_id: str) -> tuple[str, ...]:
    return tuple(f"moshimesh:{{line:{model_id}}}:{part}" for part in ("waiting", "seen", "tickets", "turns"))
