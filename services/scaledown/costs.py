"""What deleting a pod costs: the calls that would have to move."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import defaultdict

import aiohttp

from services.scaledown.kube import Kube, Pod

log = logging.getLogger(__name__)

SCRAPES = 32  # at once
SCRAPE_S = 2.0
# Of one round: each is a write to the API server's store, and its documentation asks for few of them. What is left has
# its turn in the next round; the largest changes come first.
MOST_WRITES = 50
_SAMPLE = re.compile(r"^moshimesh_(slots|calls)(?:\{([^}]*)\})? ([0-9.e+]+)", re.M)
_BATCHER = re.compile(r'batcher="(\w+)"')


def calls_of(page: str) -> int | None:
    """Calls that a process holds, by its page of metrics; None when it does not say.

    A codec has encoders and decoders: a call takes one of each.
    """
    held: dict[str, float] = defaultdict(float)
    for name, labels, value in _SAMPLE.findall(page):
        batcher = _BATCHER.search(labels)
        if name == "calls":
            held["gateway"] += float(value)
        elif 'state="used"' in labels and batcher:
            held[batcher[1]] += float(value)
    return round(max(held.values())) if held else None


class Costs:
    """Keeps the pods' deletion costs what they are."""

    def __init__(self, kube: Kube, session: aiohttp.ClientSession, selector: str) -> None:
        self._kube, self._session, self._selector = kube, session, selector
        self._turns = asyncio.Semaphore(SCRAPES)

    async def round(self) -> int:
        """Count the calls of every pod, and write what has changed. Returns how many were written.

        Raises aiohttp.ClientError and asyncio.TimeoutError when Kubernetes' API does not do as it is asked.
        """
        pods = [pod async for pod in self._kube.pods(self._selector)]
        held = await asyncio.gather(*(self._held(pod) for pod in pods))
        # A pod without the annotation counts as 0 with Kubernetes, too.
        changed = [(abs(calls - (pod.cost or 0)), pod, calls) for pod, calls in zip(pods, held, strict=True)
                   if calls is not None and calls != (pod.cost or 0)]
        changed.sort(key=lambda change: -change[0])
        for _, pod, calls in changed[:MOST_WRITES]:
            await self._kube.set_cost(pod, calls)
        return min(len(changed), MOST_WRITES)

    async def _held(self, pod: Pod) -> int | None:
        """None: it does not answer, and keeps the cost that it has."""
        async with self._turns:
            try:
                async with self._session.get(f"http://{pod.address}:{pod.metrics_port}/metrics", raise_for_status=True,
                                             timeout=aiohttp.ClientTimeout(total=SCRAPE_S)) as answer:
                    return calls_of(await answer.text())
            except (aiohttp.ClientError, asyncio.TimeoutError, TimeoutError) as error:
                log.warning("%s does not say how many calls it holds: %s", pod.name, error or type(error).__name__)
                return None
