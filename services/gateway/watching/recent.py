"""What the frames of the last minute took, for who looks at this gateway: a histogram per hop, and the last late ones.

Always on, without any backend. Its size does not depend on how many calls there are, and a frame costs it less than
5 us (tests/gateway/watching/test_recent.py).
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from moshimesh.audio.v1 import audio_pb2

from services.mesh.recorder import HOP_NAMES

WINDOW_S = 60
SLICE_S = 5  # what is forgotten at once
STEPS_PER_OCTAVE = 8  # of the histograms: each value is known to within 5 %
LATE_KEPT = 20


@dataclass(frozen=True)
class Late:
    """A live frame that took longer than it lasts."""

    at_unix_ms: int
    sequence: int
    trace_id: str
    """Empty when traces go nowhere."""
    whole_ms: float
    slowest_hop: str
    slowest_ms: float


@dataclass(frozen=True)
class Quantiles:
    """Of a hop's time, waiting and computing, in milliseconds; None without frames."""

    p50_ms: float | None
    p99_ms: float | None


@dataclass
class _Slice:
    number: int
    frames: int = 0
    late: int = 0
    whole: Counter[int] = field(default_factory=Counter)
    hops: dict[int, Counter[int]] = field(default_factory=lambda: {hop: Counter() for hop in HOP_NAMES})


class RecentFrames:
    """The frames of the last minute."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._slices: deque[_Slice] = deque(maxlen=WINDOW_S // SLICE_S)
        self.last_late: deque[Late] = deque(maxlen=LATE_KEPT)
        """The oldest first."""

    def add(self, context: audio_pb2.FrameContext, deadline_nanos: int | None) -> None:
        """One more answered frame; without a deadline if its caller does not wait for it."""
        slice = self._slice()
        slice.frames += 1
        first = last = 0
        for hop in context.hops:
            received, last = hop.received_unix_nanos, hop.finished_unix_nanos
            first = first or received
            slice.hops[hop.hop][_step(last - received)] += 1
        slice.whole[_step(last - first)] += 1
        if deadline_nanos is not None and last - first > deadline_nanos:
            slice.late += 1
            self.last_late.append(_late(context, last - first))

    @property
    def frames(self) -> int:
        """How many there were."""
        return sum(slice.frames for slice in self._current())

    @property
    def late(self) -> int:
        """How many took longer than they last."""
        return sum(slice.late for slice in self._current())

    def whole(self) -> Quantiles:
        """From a frame's last sample to its answer."""
        return _quantiles([slice.whole for slice in self._current()])

    def hops(self) -> dict[str, Quantiles]:
        """The time at each hop, by its name, in the order of the path."""
        return {name: _quantiles([slice.hops[hop] for slice in self._current()]) for hop, name in HOP_NAMES.items()}

    def _slice(self) -> _Slice:
        number = int(self._now() / SLICE_S)
        if not self._slices or self._slices[-1].number != number:
            self._slices.append(_Slice(number))
        return self._slices[-1]

    def _current(self) -> list[_Slice]:
        oldest = int(self._now() / SLICE_S) - WINDOW_S // SLICE_S
        return [slice for slice in self._slices if slice.number > oldest]


def _step(nanos: int) -> int:
    return round(STEPS_PER_OCTAVE * math.log2(nanos)) if nanos > 0 else 0


def _quantiles(histograms: list[Counter[int]]) -> Quantiles:
    together: Counter[int] = sum(histograms, Counter())
    count, wanted, found = together.total(), [0.5, 0.99], []
    seen = 0
    for step, frames in sorted(together.items()):
        seen += frames
        while wanted and seen >= wanted[0] * count:
            found.append(round(2 ** (step / STEPS_PER_OCTAVE) / 1e6, 3))
            wanted.pop(0)
    return Quantiles(*found) if found else Quantiles(None, None)


def _late(context: audio_pb2.FrameContext, whole_nanos: int) -> Late:
    slowest = max(context.hops, key=_nanos)
    trace_id = context.traceparent.split("-")[1] if context.traceparent else ""
    return Late(context.hops[-1].finished_unix_nanos // 1_000_000, context.sequence, trace_id,
                round(whole_nanos / 1e6, 1), HOP_NAMES[slowest.hop], round(_nanos(slowest) / 1e6, 1))


def _nanos(hop: audio_pb2.HopTiming) -> int:
    return int(hop.finished_unix_nanos - hop.received_unix_nanos)
