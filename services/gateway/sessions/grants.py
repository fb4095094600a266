"""Grants: with one, somebody who does not hold a call's handle may listen to it.

A grant is the session's name, when it expires, and a signature of that which is derived from the handle. Nothing of it
is kept: the gateway that holds the call has the handle, and so can check it, also after a move, and while Redis is
away. It leads neither to the handle nor to what was said before.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass

from services.gateway.sessions.sealing import Handle
from services.mesh.errors import PermissionDenied

PREFIX = "lg_"
_NAME_BYTES, _EXPIRES_BYTES, _SIGNATURE_BYTES = 16, 8, 32


@dataclass(frozen=True)
class Grant:
    """One that somebody shows; `check` says whether it holds."""

    name: str
    """Of the session; see Handle."""
    expires_unix_ms: int
    _signature: bytes

    @classmethod
    def read(cls, text: str, now_unix_ms: int) -> Grant:
        """What a text says, which may be anything. Raises PermissionDenied."""
        try:
            data = base64.b64decode(text.removeprefix(PREFIX), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if len(data) != _NAME_BYTES + _EXPIRES_BYTES + _SIGNATURE_BYTES or not text.startswith(PREFIX):
            raise _bad()
        name, rest = data[:_NAME_BYTES], data[_NAME_BYTES:]
        grant = cls(name.hex(), int.from_bytes(rest[:_EXPIRES_BYTES], "big"), rest[_EXPIRES_BYTES:])
        if grant.expires_unix_ms <= now_unix_ms:
            raise PermissionDenied("GRANT_EXPIRED", "this grant has expired; who holds the call's handle can give "
                                   "another one")
        return grant

    def check(self, handle: Handle) -> None:
        """Raises PermissionDenied if it was not made from this handle."""
        if not hmac.compare_digest(_sign(handle, self.expires_unix_ms), self._signature):
            raise _bad()


def make_grant(handle: Handle, expires_unix_ms: int) -> str:
    """A grant to listen to this handle's conversation."""
    data = bytes.fromhex(handle.name) + expires_unix_ms.to_bytes(_EXPIRES_BYTES, "big") + _sign(handle, expires_unix_ms)
    return PREFIX + base64.urlsafe_b64encode(data).decode()


def _sign(handle: Handle, expires_unix_ms: int) -> bytes:
    return handle.sign(expires_unix_ms.to_bytes(_EXPIRES_BYTES, "big"), b"grant")


def _bad() -> PermissionDenied:
    return PermissionDenied("BAD_GRANT", "this is no grant to listen to a call; Grant makes one from its resume handle")
