"""What a gateway lets strangers do, said at the start: a laptop's default is open, which is right on localhost only."""

from __future__ import annotations

import ipaddress


def exposed(host: str, *, tls: bool, keys: bool) -> str:
    """A line for the log when it listens beyond this machine and lacks something; else empty.

    Args:
        host: the address or name to listen on, as in --host.
        tls: whether what callers send is encrypted.
        keys: whether callers must say who they are.
    """
    if (tls and keys) or is_loopback(host):
        return ""
    lacks, means = [], []
    if not tls:
        lacks.append("TLS")
        means.append("whoever is on the way can listen in")
    if not keys:
        lacks.append("keys")
        means.append("whoever can reach it can call")
    return (f"{host} is open to other machines without {' or '.join(lacks)}: {', and '.join(means)} "
            "(docs/security.md)")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a port there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
