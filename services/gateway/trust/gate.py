"""Who may call: every door shows what its caller brought to one gate, and gets a Caller or a refusal."""

from __future__ import annotations

from typing import Protocol

from services.gateway.calls.callers import Caller, CallerLimits
from services.gateway.trust.tickets import LIVES_S, PREFIX, Tickets
from services.mesh.errors import TicketsUnavailable


class Gate(Protocol):
    """Finds out who calls."""

    @property
    def closed(self) -> bool:
        """Whether a caller needs a credential."""

    async def caller(self, credential: str, address: str, edge: str) -> Caller:
        """The caller with this credential: an API key, a JWT or a ticket, without any prefix; empty for none.

        `address` is the host that the call comes from, `edge` the door.

        Raises Unauthenticated, PermissionDenied, TicketsUnavailable, IssuerUnavailable, TooManyRefused.
        """

    async def issue(self, caller: Caller, lives_s: float = LIVES_S, *, single_use: bool = True, note: str = ""
                    ) -> tuple[str, float]:
        """A ticket with which others call in this caller's name, and when it expires, in seconds since the Unix epoch.
        Those callers have the note (Caller.ticket_note).

        Raises PermissionDenied, TicketsUnavailable, TooManyTickets.
        """

    async def close(self) -> None:
        """Give back what it holds."""


class OpenGate:
    """Lets everybody in. An API key only names whose calls are counted together."""

    closed = False

    def __init__(self, tickets: Tickets | None = None, limits: CallerLimits | None = None) -> None:
        """Without `tickets` there are none; `limits` are everybody's."""
        self._tickets, self._limits = tickets, limits

    async def caller(self, credential: str, address: str, edge: str) -> Caller:
        """See Gate."""
        if credential.startswith(PREFIX) and self._tickets is not None:
            found = await self._tickets.redeem(credential)
            return Caller(found.name, address, edge, found.limits, ticket_note=found.note)
        return Caller.with_key(credential, address, edge, self._limits)

    async def issue(self, caller: Caller, lives_s: float = LIVES_S, *, single_use: bool = True, note: str = ""
                    ) -> tuple[str, float]:
        """See Gate."""
        if self._tickets is None:
            raise TicketsUnavailable("this gateway has no tickets")
        return await self._tickets.issue(caller, lives_s, single_use=single_use, note=note)

    async def close(self) -> None:
        """See Gate."""
