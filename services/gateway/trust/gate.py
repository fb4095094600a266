"""Who may call: every door shows what its caller brought to one gate, and gets a Caller or a refusal."""

from __future__ import annotations

from typing import Protocol

from services.gateway.calls.callers import Caller


class Gate(Protocol):
    """Finds out who calls."""

    async def caller(self, credential: str, address: str, edge: str) -> Caller:
        """The caller with this credential: an API key, a JWT or a ticket, without any prefix; empty for none.

        `address` is the host that the call comes from, `edge` the door. Raises Unauthenticated, PermissionDenied.
        """


class OpenGate:
    """Lets everybody in. An API key only names whose calls are counted together."""

    async def caller(self, credential: str, address: str, edge: str) -> Caller:
        """See Gate."""
        return Caller.with_key(credential, address, edge)
