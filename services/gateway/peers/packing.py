"""Which replica should be emptied, so that it can go: an empty GPU costs as much as a full one.

Every gateway decides by itself, from the same facts by the same rule, so all of them empty the same replica.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.peers.replicas import Replica, Replicas

# Of the other replicas' slots, when this one's calls are there, too. 0.75 is where the autoscaler asks for one replica
# less (6 of 8, deploy/k8s/components/autoscaling); below it begins, so that some callers who come do not turn it back.
BEGIN_SHARE, STOP_SHARE = 0.65, 0.75
LEAST_OTHERS = 2  # as many replicas as an autoscaler keeps


@dataclass(frozen=True)
class Load:
    """How full a replica is."""

    address: str
    used: int
    total: int


def to_empty(loads: Sequence[Load], emptying: str = "") -> str:
    """The address of the replica to empty, the emptiest one; "" for none. `emptying` is the answer before this one."""
    if len(loads) <= LEAST_OTHERS:
        return ""
    emptiest = min(loads, key=lambda load: (load.used, load.address))
    share = STOP_SHARE if emptying == emptiest.address else BEGIN_SHARE
    fits = sum(load.used for load in loads) <= share * sum(load.total for load in loads if load is not emptiest)
    return emptiest.address if fits else ""


def replicas_to_empty(pool: Replicas) -> list[Replica]:
    """One at most for each weights that are served."""
    groups: dict[str, dict[str, Replica]] = defaultdict(dict)
    for replica in pool.answering:
        if replica.facts is not None and not replica.facts.draining:
            groups[replica.facts.weights_id][replica.address] = replica
    before = {replica.address for replica in pool.emptying}
    chosen = []
    for replicas in groups.values():
        loads = [_load(replica) for replica in replicas.values()]
        address = to_empty(loads, next(iter(before & replicas.keys()), ""))
        if address:
            chosen.append(replicas[address])
    return chosen


def _load(replica: Replica) -> Load:
    """By the scarcer of its kinds of slots: a codec has encoders and decoders."""
    assert replica.facts is not None
    total, free = replica.facts.total, replica.facts.free
    return Load(replica.address, max(total[method] - free[method] for method in total), min(total.values()))
