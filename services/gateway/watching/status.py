"""How a gateway is, for its operator: replicas, room, calls, the line, and what the last minute's frames took."""

from __future__ import annotations

import math
import time
from typing import Any

from services import __version__
from services.gateway.calls.desk import Desk
from services.gateway.calls.waiting import WaitingLine
from services.gateway.peers.fleet import Fleet
from services.gateway.peers.models import known_models
from services.gateway.peers.replicas import Replica
from services.gateway.watching.recent import WINDOW_S, RecentFrames


class Status:
    """Puts together what others know. Asks no replica: they are asked every second anyway."""

    def __init__(self, fleet: Fleet, line: WaitingLine, desk: Desk, recent: RecentFrames) -> None:
        self._fleet, self._line, self._desk, self._recent = fleet, line, desk, recent
        self._began = time.monotonic()

    async def now(self) -> dict[str, Any]:
        """The facts; docs/doors.md lists them."""
        fleet, recent = self._fleet, self._recent
        return {
            "gateway": {"version": __version__, "uptime_s": round(time.monotonic() - self._began),
                        "draining": self._desk.draining},
            "models": [{"model": model.model_id, "slots_total": fleet.slots_total(model),
                        "slots_free": fleet.slots_free(model), "waiting": await self._line.length(model.model_id)}
                       for model in known_models(fleet.lm)],
            "calls": {"held": self._desk.calls - self._line.waiting, "waiting": self._line.waiting},
            "replicas": [_replica(replica) for pool in (fleet.codec, fleet.lm) for replica in pool.known],
            "frames": {"window_s": WINDOW_S, "answered": recent.frames, "late": recent.late,
                       "whole": vars(recent.whole()),
                       "hops": {name: vars(quantiles) for name, quantiles in recent.hops().items()}},
            "late": [vars(late) for late in reversed(recent.last_late)],
        }


def _replica(replica: Replica) -> dict[str, Any]:
    age_s = time.monotonic() - replica.answered_at
    known = {"role": replica.role, "address": replica.address, "answers": replica.facts is not None,
             "age_s": round(age_s, 1) if math.isfinite(age_s) else None}
    if replica.facts is None:
        return {**known, "problem": replica.problem}
    facts = replica.facts
    return {**known, "serves": facts.weights_id, "draining": facts.draining, "slots_total": min(facts.total.values()),
            "slots_free": min(facts.free.values())}
