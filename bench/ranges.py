"""Named ranges around the parts of an engine, for a profile: patched in from outside, and gone afterwards.

A range is a clock of its own and a `record_function`, so that torch.profiler can say which operators and which kernels
ran in it. The services contain none of this, so it costs nothing while it is not used.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent


@dataclass(frozen=True)
class Place:
    """A function to name: `owner.name`, where a module's is its `forward`."""

    owner: Any
    name: str
    label: str


class Ranges:
    """How long each label took, without the labels inside of it."""

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def named(self, label: str) -> Iterator[None]:
        """A range; ranges may lie within each other."""
        self._charge()
        self._open.append(label)
        try:
            with torch.autograd.profiler.record_function(label):
                yield
        finally:
            self._charge()
            self._open.pop()

    @contextlib.contextmanager
    def at(self, places: Iterable[Place]) -> Iterator[None]:
        """Every call of these functions is a range while the block runs."""
        with contextlib.ExitStack() as stack:
            for place in places:
                stack.enter_context(self._patched(place))
            yield

    def _charge(self) -> None:
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def _patched(self, place: Place) -> Iterator[None]:
        original, own = getattr(place.owner, place.name), vars(place.owner).get(place.name)

        @functools.wraps(original)
        def ranged(*arguments: Any, **named: Any) -> Any:
            with self.named(place.label):
                return original(*arguments, **named)

        setattr(place.owner, place.name, ranged)
        try:
            yield
        finally:
            if own is None:
                delattr(place.owner, place.name)
            else:
                setattr(place.owner, place.name, own)


@dataclass(frozen=True)
class Operators:
    """What ran within a label: how many operators, and how long the kernels on a GPU were that they launched."""

    count: int
    device_ms: float


def operators(events: Iterable[FunctionEvent], labels: Iterable[str]) -> dict[str, Operators]:
    """Per label, from a profile's events. Operators that others are made of do not count: they were not called."""
    known = set(labels)
    count: Counter[str] = Counter()
    device_us: dict[str, float] = defaultdict(float)
    for event in events:
        if "::" not in event.name or event.device_type != torch.autograd.DeviceType.CPU:
            continue
        label = _label(event, known)
        if label is None:
            continue
        device_us[label] += event.self_device_time_total
        if event.cpu_parent is None or "::" not in event.cpu_parent.name:
            count[label] += 1
    return {label: Operators(count[label], device_us[label] / 1000) for label in {*count, *device_us}}


def device_ms(events: Iterable[FunctionEvent]) -> tuple[float, float]:
    """Milliseconds that a GPU computed, and that it copied, in a profile."""
    kernels = copies = 0.0
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            if event.name.startswith(("Memcpy", "Memset")):
                copies += event.device_time_total
            else:
                kernels += event.device_time_total
    return kernels / 1000, copies / 1000


def _label(event: FunctionEvent | None, known: set[str]) -> str | None:
    while event is not None:
        if event.name in known:
            return str(event.name)
        event = event.cpu_parent
    return None
