"""What must always agree, compared every few seconds while the product runs: a slot, a call or a session that nobody
holds any more is known at once, and not when the last slot is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from services.mesh.batching import Batcher
from services.mesh.metrics import Metrics

log = logging.getLogger(__name__)

EVERY_S = 5.0


class Violation(NamedTuple):
    """What does not agree."""

    invariant: str
    about: str
    """What it is about, the same at each look; nothing of a caller's."""
    detail: str = ""
    """How it is now."""


Check: TypeAlias = Callable[[], Iterable[Violation]]


class Invariants:
    """Compares until it is closed."""

    def __init__(self, metrics: Metrics, names: Sequence[str], checks: Sequence[Check], every_s: float = EVERY_S
                 ) -> None:
        """`names` are the invariants that the checks tell of: each is counted from 0, so that its first violation is a
        rise.
        """
        self._checks, self._every_s = checks, every_s
        self._violations = metrics.counter("moshimesh.invariant.violations", "{violation}",
                                           "What should agree and did not, each once.")
        for name in names:
            self._violations.add(0, invariant=name)
        self._suspected: set[tuple[str, str]] = set()
        self._told: set[tuple[str, str]] = set()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop comparing."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def look(self) -> list[Violation]:
        """Compare; what has not agreed twice in a row, and was not told yet. Something may be on its way once."""
        found = {violation[:2]: violation for check in self._checks for violation in check()}
        certain = sorted(found.keys() & self._suspected - self._told)
        self._told = (self._told & found.keys()) | set(certain)
        self._suspected = set(found)
        for violation in (found[key] for key in certain):
            self._violations.add(invariant=violation.invariant)
            log.error("invariant %s is violated: %s %s", *violation)
        return [found[key] for key in certain]

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                self.look()
            except Exception:
                log.exception("the invariants could not be compared")


SLOTS = "slots"


def of_slots(batchers: Sequence[Batcher[Any, Any, Any]]) -> Check:
    """Each row is free or one tenant's, and each tenant's call still runs."""
    return lambda: [Violation(SLOTS, about) for batcher in batchers for about in batcher.disagreements()]
