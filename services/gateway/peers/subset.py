"""Which replicas of a large fleet a gateway knows.

Each gateway has a tunnel to every replica that it knows, and asks it every second: with 1500 gateways and 10 000
replicas that would be 15 million tunnels. By rendezvous hashing every gateway takes the replicas that rank highest for
it. Nobody has to agree with anybody, and a replica that comes or goes changes one place of a few gateways.
https://en.wikipedia.org/wiki/Rendezvous_hashing
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection


def subset(addresses: Collection[str], gateway: str, most: int) -> set[str]:
    """At most so many of the addresses, those of this gateway; all of them for 0."""
    if not most or len(addresses) <= most:
        return set(addresses)
    return set(sorted(addresses, key=lambda address: _rank(gateway, address))[:most])


def _rank(gateway: str, address: str) -> bytes:
    return hashlib.blake2b(f"{gateway} {address}".encode(), digest_size=8).digest()
