"""Channels to the replicas of a service, in plain text or with TLS."""

from __future__ import annotations

import grpc

from services.mesh.tls import Identity
from services.mesh.transport import CHANNEL_OPTIONS

WHY_S = 1.0
# What gRPC says of a handshake that failed, and what it means.
_MEANINGS = (
    ("Hostname Verification", "its certificate is not for the name that we call it by"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not of the CA in --peer-ca, or has expired"),
    ("WRONG_VERSION_NUMBER", "it speaks in plain text, without --peer-cert"))
_CLOSED = "Socket closed"


def open_channel(address: str, host: str, tls: Identity | None) -> grpc.aio.Channel:
    """A channel to an address that was found under a host's name. Its certificate must have that name: the address of
    a pod is in none.
    """
    if tls is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, tls.channel_credentials(),
                                   options=[*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", host)])


async def why_not(channel: grpc.aio.Channel, tls: bool) -> str:
    """Why nobody answers there, for a message. A call that waits until the channel is ready would only say that its
    time was over, so this one does not.
    """
    try:
        await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=WHY_S)
    except grpc.aio.AioRpcError as error:
        details = str(error.details())
        for said, meaning in _MEANINGS:
            if said in details:
                return meaning
        if _CLOSED in details:
            return ("it hangs up: it may not know the CA of our --peer-cert" if tls else
                    "it hangs up: it may want TLS, see --peer-ca")
        return str(error.code().name)
    return "it answers now"
