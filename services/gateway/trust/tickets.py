"""Tickets: what a browser shows instead of a key.

A backend with a key asks for one; it lives for a minute and opens one call, at any gateway. OpenAI's clients call them
client secrets; those may be used until they expire.

Redis has the hash of a ticket, what its callers may do, and a note of the door that asked for it, sealed with the
ticket. Without Redis there are no tickets, unlike limits: a ticket that can't be checked is refused.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass

from services.gateway.calls.callers import Caller, CallerLimits
from services.gateway.calls.rates import Rate
from services.gateway.sessions.sealing import Handle
from services.gateway.store import Request, Store, StoreError
from services.gateway.trust.keys import hash_of
from services.mesh.errors import TicketsUnavailable, TooManyTickets, Unauthenticated

PREFIX = "ek_"  # OpenAI's clients look for it in browsers
LIVES_S = 60.0
LONGEST_S = 7200.0  # of a ticket that may be used again and again
# For one address: at once, and per second. Redis keeps each until it expires, with up to 24 kB of settings.
ISSUED = (256, 4.0)

# The note has a key of its own: gateways of an older version don't look for it.
_ISSUE = """
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if ARGV[3] ~= '' then redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2]) end
"""
# Returns what is known of it and its note, and takes both away if it opens one call only.
_REDEEM = """
local found, note = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
if found and string.sub(found, 1, 1) == '1' then redis.call('DEL', KEYS[1], KEYS[2]) end
return {found, note}
"""


@dataclass(frozen=True)
class Ticket:
    """What is known of one."""

    name: str
    """As whose its callers count."""
    key_hash: str
    """Of the API key that it was issued for; empty if that was none."""
    limits: CallerLimits
    note: str
    """What the door that asked for it wrote on it."""


class Tickets:
    """The tickets of a mesh."""

    def __init__(self, store: Store) -> None:
        self._store, self._issued = store, Rate(*ISSUED)

    @staticmethod
    def probes(tag: str) -> list[Request]:
        """What is done to tickets, for Store.connect."""
        keys = _keys_of(f"probe-{tag}")
        return [Request(_ISSUE, keys, ("0", 1000, "note")), Request(_REDEEM, keys)]

    async def issue(self, caller: Caller, lives_s: float = LIVES_S, *, single_use: bool = True, note: str = ""
                    ) -> tuple[str, float]:
        """A ticket for callers that count as this one, and when it expires, in seconds since the Unix epoch.

        Raises TicketsUnavailable, TooManyTickets.
        """
        if wait_s := self._issued.take(caller.address):
            raise TooManyTickets("this address asks for too many tickets; wait", wait_s)
        lives_s = min(max(lives_s, 1.0), LONGEST_S)
        ticket = PREFIX + secrets.token_urlsafe(32)
        known = f"{int(single_use)}{json.dumps([caller.key_id, caller.key_hash, *vars(caller.limits).values()])}"
        sealed = _seal_of(ticket).seal(note.encode(), _NOTE) if note else b""
        try:
            await self._store.run(Request(_ISSUE, _keys_of(ticket), (known, round(lives_s * 1000), sealed)))
        except StoreError:
            raise TicketsUnavailable("tickets are kept in Redis, which does not answer; retry") from None
        return ticket, time.time() + lives_s

    async def redeem(self, ticket: str) -> Ticket:
        """What is known of it. Raises Unauthenticated, TicketsUnavailable."""
        try:
            known, sealed = await self._store.run(Request(_REDEEM, _keys_of(ticket)))
        except StoreError:
            raise TicketsUnavailable("tickets are kept in Redis, which does not answer; retry") from None
        if known is None:
            raise Unauthenticated("BAD_TICKET", "this ticket has expired, or was used before; get another one")
        name, key_hash, *limits = json.loads(known[1:])
        note = "" if sealed is None else _seal_of(ticket).open(sealed, _NOTE).decode()
        return Ticket(name, key_hash, CallerLimits(*limits), note)


_NOTE = b"ticket"  # part of the seal


def _seal_of(ticket: str) -> Handle:
    """What seals a note: as with a conversation's handle, only who has the ticket can read it."""
    return Handle(ticket.removeprefix(PREFIX))


def _keys_of(ticket: str) -> tuple[str, str]:
    """The Redis keys of a ticket and of its note. Redis does not learn the ticket."""
    key = f"moshimesh:{{ticket:{hash_of(ticket)}}}"
    return key, f"{key}:note"
