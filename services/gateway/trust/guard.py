"""The gate of a mesh that asks who calls: API keys, JWTs and tickets."""

from __future__ import annotations

import time
from collections.abc import Callable

from services.gateway.calls.callers import Caller, CallerLimits
from services.gateway.calls.rates import Rate
from services.gateway.trust.keys import PREFIX as KEY_PREFIX
from services.gateway.trust.keys import KeyFile
from services.gateway.trust.tickets import LIVES_S, Tickets
from services.gateway.trust.tickets import PREFIX as TICKET_PREFIX
from services.gateway.trust.tokens import Tokens
from services.mesh.errors import MeshError, PermissionDenied, TooManyRefused, Unauthenticated

# Credentials that did not hold, from one address: at once, and per second. A proxy has many callers behind one address,
# and an application whose key was revoked tries it again for each of them.
REFUSED = (50, 5.0)


class Guard:
    """Lets those in who show a credential that holds; see Gate."""

    closed = True

    def __init__(self, keys: KeyFile | None, tokens: Tokens | None, tickets: Tickets, defaults: CallerLimits,
                 now: Callable[[], float] = time.monotonic) -> None:
        """`defaults` are the limits of who has none of its own."""
        self._keys, self._tokens, self._tickets, self._defaults = keys, tokens, tickets, defaults
        self._refused = Rate(*REFUSED, now=now)

    async def caller(self, credential: str, address: str, edge: str) -> Caller:
        """See Gate."""
        # Only where looking costs Redis something: keys and tokens that hold must get in, whoever shares their proxy.
        if credential.startswith(TICKET_PREFIX):
            self._check_refused(address)
        try:
            return await self._find(credential, address, edge)
        except MeshError as error:
            if isinstance(error, Unauthenticated | PermissionDenied):
                self._check_refused(address)
                self._refused.take(address)
            raise

    def _check_refused(self, address: str) -> None:
        if wait_s := self._refused.left(address):
            raise TooManyRefused("too many credentials that don't hold came from this address; wait", wait_s) from None

    async def _find(self, credential: str, address: str, edge: str) -> Caller:
        if not credential:
            raise Unauthenticated("NO_CREDENTIAL", "this mesh asks who calls: send an API key or a token as "
                                  "`authorization: Bearer ...`, or a ticket from a browser")
        if credential.startswith(TICKET_PREFIX):
            ticket = await self._tickets.redeem(credential)
            if not self._holds(ticket.key_hash):
                raise Unauthenticated("KEY_REVOKED", "the key that this ticket was issued for was revoked")
            return Caller(ticket.name, address, edge, ticket.limits, lambda: self._holds(ticket.key_hash),
                          from_ticket=True, ticket_note=ticket.note)
        if credential.startswith(KEY_PREFIX) or self._tokens is None:
            record = self._keys.find(credential) if self._keys is not None else None
            if record is None:
                raise Unauthenticated("UNKNOWN_KEY", "this mesh does not know this API key, or it was revoked")
            return Caller(record.name, address, edge, record.limits(self._defaults), lambda: self._holds(record.sha256),
                          record.sha256)
        name = await self._tokens.check(credential)
        return Caller(name, address, edge, self._defaults)

    async def issue(self, caller: Caller, lives_s: float = LIVES_S, *, single_use: bool = True, note: str = ""
                    ) -> tuple[str, float]:
        """See Gate."""
        if caller.from_ticket:  # else one that leaks would live for ever
            raise PermissionDenied("TICKET_OF_TICKET", "a ticket gives no other ticket; ask with the key")
        return await self._tickets.issue(caller, lives_s, single_use=single_use, note=note)

    async def close(self) -> None:
        """Give back what it holds."""
        if self._tokens is not None:
            await self._tokens.close()

    def _holds(self, key_hash: str) -> bool:
        """Whether the key with this hash is still there; a token's caller has none."""
        return not key_hash or (self._keys is not None and self._keys.holds(key_hash))
