"""Whose limits a caller from somewhere counts under."""

from __future__ import annotations

import ipaddress

NETWORK_BITS = 64  # of IPv6: what providers give to one host or household, which may use any address in it


def counted_as(host: str) -> str:
    """The name that an address is counted by: its network for IPv6, else the host itself."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, NETWORK_BITS), strict=False))
