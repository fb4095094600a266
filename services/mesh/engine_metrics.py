"""The metrics of codec and lm: their steps, their slots, and their device's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from services.mesh.batching import Batcher
from services.mesh.metrics import Histogram, Metrics, Reading

STEP_BOUNDS_S = (.001, .002, .005, .01, .015, .02, .025, .03, .04, .05, .06, .07, .08, .1, .12, .16, .32, 1.)
FILL_BOUNDS = (.0625, .125, .25, .375, .5, .625, .75, .875, 1.)
PREFILL_BOUNDS_S = (.005, .01, .02, .05, .1, .2, .5, 1., 2., 5., 10.)


def watch(metrics: Metrics, batchers: Sequence[Batcher[Any, Any, Any]],
          device_memory: Callable[[], tuple[int, int]] | None = None) -> None:
    """Measure these batchers. `device_memory` gives used and total bytes of a device that has its own."""
    ticks = metrics.histogram("moshimesh.tick.duration", "s", "What one step of the engine took.", STEP_BOUNDS_S)
    fill = metrics.histogram("moshimesh.batch.fill", "1", "Rows that a step served, by slots.", FILL_BOUNDS)
    prefill = metrics.histogram("moshimesh.prefill.duration", "s", "Until a session that came with a past had its row, "
                                "waiting for other steps included.", PREFILL_BOUNDS_S)
    for batcher in batchers:
        _listen(batcher, ticks, fill, prefill)
    metrics.amount("moshimesh.slots", "{slot}", "Slots of the engine.",
                   lambda: [reading for batcher in batchers for reading in _slots(batcher)])
    if device_memory is not None:
        used_and_total = device_memory
        # https://opentelemetry.io/docs/specs/semconv/hardware/gpu/
        metrics.amount("hw.gpu.memory.usage", "By", "Memory of the GPU in use.", lambda: [({}, used_and_total()[0])])
        metrics.amount("hw.gpu.memory.limit", "By", "Memory of the GPU.", lambda: [({}, used_and_total()[1])])


def _listen(batcher: Batcher[Any, Any, Any], ticks: Histogram, fill: Histogram, prefill: Histogram) -> None:
    tick_series, fill_series = ticks.series(batcher=batcher.name), fill.series(batcher=batcher.name)

    def on_tick(seconds: float, rows: int) -> None:
        tick_series.record(seconds)
        fill_series.record(rows / batcher.total)

    batcher.on_tick = on_tick
    batcher.on_rebuilt = prefill.series(batcher=batcher.name).record


def _slots(batcher: Batcher[Any, Any, Any]) -> list[Reading]:
    """While a replica drains, none are free."""
    return [({"batcher": batcher.name, "state": "free"}, batcher.free),
            ({"batcher": batcher.name, "state": "used"}, batcher.used)]
