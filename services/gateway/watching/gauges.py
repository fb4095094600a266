"""Gauges whose values other objects hold: the line, the journals, Redis, the replicas. Read at every scrape or push."""

from __future__ import annotations

from collections.abc import Sequence

from services.gateway.calls.resources import Resources
from services.gateway.peers.replicas import Replicas
from services.mesh.metrics import Metrics, Reading

REDIS_BOUNDS_S = (.0002, .0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1., 2.)


def watch(metrics: Metrics, pools: Sequence[Replicas], resources: Resources) -> None:
    """Register all of them."""
    sessions, line, overload = resources.sessions, resources.line, resources.overload
    store = sessions.store
    metrics.amount("moshimesh.line.waiting", "{call}", "Callers of this gateway that wait for a slot.",
                   lambda: [({}, line.waiting)])
    metrics.gauge("moshimesh.overload.level", "", "What is spared while frames are late: 0 nothing, 1 traces, 2 and "
                  "prefill, 3 and new calls.", lambda: [({}, overload.level)])
    metrics.gauge("moshimesh.journal.lag", "s", "How old the last write of a session is that has something new; the "
                  "oldest one's.", lambda: [({}, sessions.lag_s)])
    metrics.gauge("moshimesh.redis.available", "", "Whether Redis answers: 1 or 0.",
                  lambda: [({}, int(store.available))])
    metrics.gauge("moshimesh.replica.slots", "{slot}", "Slots of a replica, as of the last poll.",
                  lambda: [reading for pool in pools for reading in _slots(pool)])
    metrics.gauge("moshimesh.replica.up", "", "Whether a replica answers: 1 or 0.", lambda: [
        ({"service": pool.role, "address": replica.address}, int(replica.facts is not None))
        for pool in pools for replica in pool.known])
    redis = metrics.histogram("moshimesh.redis.duration", "s", "Time that Redis took to answer.", REDIS_BOUNDS_S)
    store.on_answer = redis.series().record


def _slots(pool: Replicas) -> list[Reading]:
    """The scarcer of a replica's kinds of slots: a codec has encoders and decoders."""
    readings: list[Reading] = []
    for replica in pool.known:
        if (facts := replica.facts) is not None:
            total, free = min(facts.total.values()), min(facts.free.values())
            place = {"service": pool.role, "address": replica.address}
            readings += [(place | {"state": "free"}, free), (place | {"state": "used"}, total - free)]
    return readings
