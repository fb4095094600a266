"""Writes what this gateway knows of the replicas to Redis, for operators, dashboards and autoscalers.

Placement does not read it: each gateway asks the replicas themselves, so that calls are placed while Redis is away.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from services.gateway.peers.replicas import Replicas
from services.gateway.store import Request, Store, StoreError

EVERY_S = 1.0
GONE_S = 5.0

_PUBLISH = """
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""


class Registry:
    """Keeps `moshimesh:{replica:<role>:<address>}` fresh for each replica that answers."""

    def __init__(self, store: Store, pools: Sequence[Replicas]) -> None:
        self._store, self._pools = store, pools
        self._task = asyncio.create_task(self._publish_forever())

    @staticmethod
    def probes(tag: str) -> list[Request]:
        """What is published, for Store.connect."""
        return [Request(_PUBLISH, (f"moshimesh:{{replica:probe:{tag}}}",), (1000, "model", "none"))]

    async def close(self) -> None:
        """Stop; the entries expire."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _publish_forever(self) -> None:
        while True:
            with contextlib.suppress(StoreError):
                await self._store.run_all(self._requests())
            await asyncio.sleep(EVERY_S)

    def _requests(self) -> list[Request]:
        return [Request(_PUBLISH, (f"moshimesh:{{replica:{pool.role}:{replica.address}}}",), (
                    round(GONE_S * 1000), "model", facts.weights_id, "draining", int(facts.draining),
                    "slots_total", min(facts.total.values()), "slots_free", min(facts.free.values())))
                for pool in self._pools for replica in pool.answering if (facts := replica.facts) is not None]
