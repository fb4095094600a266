"""A fleet, call by call: who gets a slot, when replicas come and go, and which calls move or are lost.

Time is in seconds. One kind of replica stands for the scarce one, which has a GPU; a call takes one slot.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from services.gateway.peers.packing import Load, to_empty

POLL_S = 15.0  # pollingInterval of the autoscaler
DAY_S = 86_400.0


@dataclass(frozen=True)
class Policy:
    """What the manifests say (deploy/k8s/components/autoscaling), and what a cluster is like."""

    slots: int = 8
    threshold: float = 6.0  # calls held and waiting, for each replica
    least: int = 2
    down_window_s: float = 600.0
    down_every_s: float = 120.0
    load_s: float = 180.0
    """From asking for a pod until it takes calls: a GPU's node is there, the weights are on a volume."""
    failover_s: float = 15.0
    patience_s: float = 60.0
    """A caller in line gives up after this long."""
    defragment: bool = True
    move_every_s: float = 2.0
    emptiest: bool = True
    """Whether scale-down takes the emptiest replica, or any."""
    loss_every_s: float = math.inf
    """Mean time between losses of a replica, over the whole fleet."""


@dataclass
class Figures:
    """What came of it."""

    calls: int = 0
    waited: list[float] = field(default_factory=list)
    """Of those that had to: seconds."""
    gave_up: int = 0
    lost: int = 0
    moved_by_drain: int = 0
    moved_by_packing: int = 0
    failed_over: int = 0
    most_moved_at_once: int = 0
    replica_s: float = 0.0
    call_s: float = 0.0
    drain_stuck_s: float = 0.0
    """Of replicas that had to go and found no room for their calls."""
    series: list[tuple[float, int, int, int]] = field(default_factory=list)
    """(time, calls held, replicas that take calls, callers in line)."""

    @property
    def fill(self) -> float:
        """Share of the slots paid for that held a call."""
        return self.call_s / self.replica_s if self.replica_s else 0.0

    @property
    def waited_share(self) -> float:
        """Of all calls, those that waited or gave up."""
        return (len(self.waited) + self.gave_up) / max(self.calls, 1)


class Replica:
    """One of the fleet."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls: set[int] = set()
        self.draining = False


class Fleet:
    """The simulation: a heap of events, each a function to call."""

    def __init__(self, policy: Policy, callers: Callable[[float], float], call_s: float, seed: int, replicas: int
                 ) -> None:
        """`callers` is how many should be talking at a time, on average; `call_s` how long a call is on average."""
        self.policy, self.figures = policy, Figures()
        self._callers, self._call_s, self._chance = callers, call_s, random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.now = 0.0
        self._numbers = itertools.count()
        self.replicas: list[Replica] = [Replica(next(self._numbers)) for _ in range(replicas)]
        self._coming = 0
        self._place: dict[int, Replica] = {}
        self._moved: dict[int, float] = {}
        self._line: deque[tuple[float, int]] = deque()
        self._wanted: deque[tuple[float, int]] = deque()  # the autoscaler's answers within the window
        self._down_at = self._up_at = -math.inf
        self._call_numbers = itertools.count()
        self._emptying: Replica | None = None
        self._counted_at = 0.0
        self._after(0.0, self._arrive)
        self._after(POLL_S, self._scale)
        if self.policy.defragment:
            self._after(self.policy.move_every_s, self._pack)
        if self.policy.loss_every_s < math.inf:
            self._after(self._chance.expovariate(1 / self.policy.loss_every_s), self._lose)

    def run(self, until_s: float) -> Figures:
        """All events until then."""
        while self._events and self._events[0][0] < until_s:
            at, _, event = heapq.heappop(self._events)
            self._count(at)
            self.now = at
            event()
        return self.figures

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def _count(self, at: float) -> None:
        passed = at - self._counted_at
        self.figures.replica_s += passed * (len(self.replicas) + self._coming) * self.policy.slots
        self.figures.call_s += passed * len(self._place)
        self._counted_at = at

    # Calls:

    def _arrive(self) -> None:
        rate = max(self._callers(self.now), 1e-9) / self._call_s
        self._after(self._chance.expovariate(rate), self._arrive)
        call = next(self._call_numbers)
        self.figures.calls += 1
        if self._line or not self._put(call):
            self._line.append((self.now, call))
            self._after(self.policy.patience_s, lambda: self._give_up(call))
        else:
            self._talk(call)

    def _talk(self, call: int) -> None:
        # Calls of people: most are short and some are long.
        length_s = self._chance.lognormvariate(math.log(self._call_s) - 0.5, 1.0)
        self._after(length_s, lambda: self._hang_up(call))

    def _hang_up(self, call: int) -> None:
        replica = self._place.pop(call, None)
        self._moved.pop(call, None)
        if replica is not None:
            replica.calls.discard(call)
            if replica.draining and not replica.calls:
                self._go(replica)
            self._serve_line()

    def _serve_line(self) -> None:
        while self._line and self._put(self._line[0][1]):
            since, call = self._line.popleft()
            self.figures.waited.append(self.now - since)
            self._talk(call)

    def _give_up(self, call: int) -> None:
        before = len(self._line)
        self._line = deque(entry for entry in self._line if entry[1] != call)
        self.figures.gave_up += before - len(self._line)

    def _put(self, call: int, passed_over: Replica | None = None) -> bool:
        """The better of two drawn at random, as Replicas.pick does; a full fleet is looked through."""
        chosen = self._draw(passed_over)
        if chosen is None:
            return False
        chosen.calls.add(call)
        self._place[call] = chosen
        return True

    def _draw(self, passed_over: Replica | None) -> Replica | None:
        def fits(replica: Replica) -> bool:
            return (not replica.draining and len(replica.calls) < self.policy.slots and replica is not passed_over)

        if not self.replicas:
            return None
        drawn = [replica for replica in self._chance.choices(self.replicas, k=6)
                 if fits(replica) and replica is not self._emptying][:2]
        if not drawn:
            drawn = [replica for replica in self.replicas if fits(replica) and replica is not self._emptying] or [
                replica for replica in self.replicas if fits(replica)]
            drawn = self._chance.sample(drawn, min(2, len(drawn)))
        return min(drawn, key=lambda replica: len(replica.calls), default=None)

    # Replicas:

    def _scale(self) -> None:
        self._after(POLL_S, self._scale)
        policy, taking = self.policy, [replica for replica in self.replicas if not replica.draining]
        held = len(self._place)
        self.figures.series.append((self.now, held, len(taking), len(self._line)))
        wanted = max(policy.least, math.ceil((held + len(self._line)) / policy.threshold))
        self._wanted.append((self.now, wanted))
        while self._wanted[0][0] < self.now - policy.down_window_s:
            self._wanted.popleft()
        there = len(taking) + self._coming
        if wanted > there and self.now - self._up_at >= 60.0:
            self._up_at = self.now
            for _ in range(min(wanted - there, max(there, 2))):  # 100 % or 2 pods a minute
                self._coming += 1
                self._after(policy.load_s * self._chance.uniform(0.8, 1.2), self._come)
        elif (max(one for _, one in self._wanted) < len(taking) and not self._coming
              and self.now - self._down_at >= policy.down_every_s):
            self._down_at = self.now
            goes = (min(taking, key=lambda replica: len(replica.calls)) if policy.emptiest
                    else self._chance.choice(taking))
            self._drain(goes)

    def _come(self) -> None:
        self._coming -= 1
        self.replicas.append(Replica(next(self._numbers)))
        self._serve_line()

    def _drain(self, replica: Replica) -> None:
        replica.draining = True
        self.figures.most_moved_at_once = max(self.figures.most_moved_at_once, len(replica.calls))
        self._leave(replica)

    def _leave(self, replica: Replica) -> None:
        for call in list(replica.calls):
            if not self._put(call, replica):
                self.figures.drain_stuck_s += 0.1
                self._after(0.1, lambda: self._leave(replica))
                return
            replica.calls.discard(call)
            self.figures.moved_by_drain += 1
        self._go(replica)

    def _go(self, replica: Replica) -> None:
        if replica in self.replicas:
            self.replicas.remove(replica)

    def _lose(self) -> None:
        self._after(self._chance.expovariate(1 / self.policy.loss_every_s), self._lose)
        if not self.replicas:
            return
        replica = self._chance.choice(self.replicas)
        self.replicas.remove(replica)
        for call in list(replica.calls):
            del self._place[call]
            self._fail_over(call, self.now + self.policy.failover_s)
        # Kubernetes starts another one.
        self._coming += 1
        self._after(self.policy.load_s, self._come)

    def _fail_over(self, call: int, deadline: float) -> None:
        if self._put(call):
            self.figures.failed_over += 1
        elif self.now >= deadline:
            self.figures.lost += 1
        else:
            self._after(0.5, lambda: self._fail_over(call, deadline))

    def _pack(self) -> None:
        self._after(self.policy.move_every_s, self._pack)
        taking = [replica for replica in self.replicas if not replica.draining]
        loads = [Load(f"{replica.number:09}", len(replica.calls), self.policy.slots) for replica in taking]
        address = to_empty(loads, f"{self._emptying.number:09}" if self._emptying else "")
        self._emptying = next((one for one, load in zip(taking, loads, strict=True) if load.address == address), None)
        if self._emptying is None:
            return
        for call in self._emptying.calls:
            if self.now - self._moved.get(call, -60.0) >= 60.0 and self._put(call, self._emptying):
                self._emptying.calls.discard(call)
                self._moved[call] = self.now
                self.figures.moved_by_packing += 1
                return


def steady(callers: int) -> Callable[[float], float]:
    """As many all the time."""
    return lambda _: float(callers)


def day(callers: int, hours: float = 6.0) -> Callable[[float], float]:
    """A day in `hours`: between a tenth and all of them."""
    return lambda now: callers * (0.55 - 0.45 * math.cos(2 * math.pi * now / (hours * 3600)))


def waits_ms(figures: Figures) -> float:
    """p99 of the time in line over all calls, in seconds."""
    zeros = figures.calls - len(figures.waited)
    return float(np.percentile([*figures.waited, *([0.0] * max(zeros, 0))], 99)) if figures.calls else 0.0
