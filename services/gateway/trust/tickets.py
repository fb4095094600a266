"""Tickets: what a browser shows instead of a key.

A backend with a key asks for one; it lives for a minute and opens one call, at any gateway. OpenAI's clients call them
client secrets; those may be used until they expire.

Redis has the hash of a ticket and what its callers may do. Without Redis there are no tickets, unlike limits: a ticket
that can't be checked is refused.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass

from services.gateway.calls.callers import Caller, CallerLimits
from services.gateway.store import Request, Store, StoreError
from services.gateway.trust.keys import hash_of
from services.mesh.errors import TicketsUnavailable, Unauthenticated

PREFIX = "ek_"  # OpenAI's clients look for it in browsers
LIVES_S = 60.0
LONGEST_S = 7200.0  # of a ticket that may be used again and again

_ISSUE = "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])"
# Returns what is known of it, and takes it away if it opens one call only.
_REDEEM = """
local found = redis.call('GET', KEYS[1])
if found and string.sub(found, 1, 1) == '1' then redis.call('DEL', KEYS[1]) end
return found
"""


@dataclass(frozen=True)
class Ticket:
    """What is known of one."""

    name: str
    """As whose its callers count."""
    key_hash: str
    """Of the API key that it was issued for; empty if that was none."""
    limits: CallerLimits


class Tickets:
    """The tickets of a mesh."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @staticmethod
    def probes(tag: str) -> list[Request]:
        """What is done to tickets, for Store.connect."""
        key = _key_of(f"probe-{tag}")
        return [Request(_ISSUE, (key,), ("0", 1000)), Request(_REDEEM, (key,))]

    async def issue(self, caller: Caller, lives_s: float = LIVES_S, *, single_use: bool = True) -> tuple[str, float]:
        """A ticket for callers that count as this one, and when it expires, in seconds since the Unix epoch.

        Raises TicketsUnavailable.
        """
        lives_s = min(max(lives_s, 1.0), LONGEST_S)
        ticket = PREFIX + secrets.token_urlsafe(32)
        known = f"{int(single_use)}{json.dumps([caller.key_id, caller.key_hash, *vars(caller.limits).values()])}"
        try:
            await self._store.run(Request(_ISSUE, (_key_of(ticket),), (known, round(lives_s * 1000))))
        except StoreError:
            raise TicketsUnavailable("tickets are kept in Redis, which does not answer; retry") from None
        return ticket, time.time() + lives_s

    async def redeem(self, ticket: str) -> Ticket:
        """What is known of it. Raises Unauthenticated, TicketsUnavailable."""
        try:
            known = await self._store.run(Request(_REDEEM, (_key_of(ticket),)))
        except StoreError:
            raise TicketsUnavailable("tickets are kept in Redis, which does not answer; retry") from None
        if known is None:
            raise Unauthenticated("BAD_TICKET", "this ticket has expired, or was used before; get another one")
        name, key_hash, *limits = json.loads(known[1:])
        return Ticket(name, key_hash, CallerLimits(*limits))


def _key_of(ticket: str) -> str:
    """The Redis key. Redis does not learn the ticket."""
    return f"moshimesh:{{ticket:{hash_of(ticket)}}}"
