"""Many sessions, one step: slots, queues and the tick that serves them.

A session leases a slot (a row of the engine's batch). Its frames wait in the slot's queue; whenever the engine is idle
and any slot has a frame, one frame of each such slot goes into one step on the engine's own thread, and each result is
handed to the slot's tenant. Codec and language model share this file: they differ only in what a step does.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.mesh.clock import now_unix_nanos
from services.mesh.errors import Draining, EngineFailed, NoFreeSlot

log = logging.getLogger(__name__)

Settings = TypeVar("Settings")
Payload = TypeVar("Payload")
Result = TypeVar("Result")
SettingsIn = TypeVar("SettingsIn", contravariant=True)
PayloadIn = TypeVar("PayloadIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)

# Frames of one session that may be on their way through a service: 320 ms of audio. More would only hide a backlog;
# the caller's stream is held back instead.
IN_FLIGHT_FRAMES = 4

# How long the first stage waits for other sessions' frames. A step of many costs little more than a step of few, and
# what is done together also travels together; but a lone session must not wait, and nobody for long. docs/decisions.md
# has the measurements.
GATHER_S_PER_SESSION = 0.0005
LONGEST_GATHER_S = 0.010


class Stepper(Protocol[SettingsIn, PayloadIn, ResultOut]):
    """What a batch needs from an engine. Its methods are called on the engine's thread, never two at once."""

    slots: int

    def open(self, row: int, settings: SettingsIn) -> None:
        """Clear a row for a new session."""

    def step(self, rows: Sequence[int], payloads: Sequence[PayloadIn]) -> Sequence[ResultOut]:
        """One result for each named row, in their order; other rows are untouched."""


@dataclass(frozen=True)
class Timing:
    """When a frame was where, in Unix nanoseconds, and the batch that served it."""

    received: int
    dequeued: int
    started: int
    finished: int
    batch_size: int
    tick: int


@dataclass(frozen=True)
class Answer(Generic[Result]):
    """What the engine made of one frame."""

    result: Result
    timing: Timing


class Slot(Generic[Payload, Result]):
    """One session's lease of a row. A new tenant gets a new Slot, so late results can't reach the wrong one."""

    def __init__(self, row: int, tenant: str, wake: asyncio.Event) -> None:
        self.row = row
        self.tenant = tenant
        self.waiting: deque[tuple[Payload, int]] = deque()  # at most IN_FLIGHT_FRAMES, by _room
        self._outbox: asyncio.Queue[Answer[Result] | Exception | None] = asyncio.Queue()  # likewise, and an end
        self._room = asyncio.Semaphore(IN_FLIGHT_FRAMES)
        self._wake = wake

    async def serve(self, payloads: AsyncIterator[Payload]) -> AsyncIterator[Answer[Result]]:
        """Step the row for each payload and yield the answers in order; the failure of either side ends both."""
        reader = asyncio.create_task(self._read(payloads))
        try:
            while (answer := await self._outbox.get()) is not None:
                if isinstance(answer, Exception):
                    raise answer
                self._room.release()
                yield answer
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    def deliver(self, answer: Answer[Result] | Exception) -> None:
        """Hand over a result, or what the step failed with."""
        self._outbox.put_nowait(answer)

    async def _read(self, payloads: AsyncIterator[Payload]) -> None:
        try:
            async for payload in payloads:
                received = now_unix_nanos()
                await self._room.acquire()
                self.waiting.append((payload, received))
                self._wake.set()
            for _ in range(IN_FLIGHT_FRAMES):  # all of them: every frame has been answered and taken
                await self._room.acquire()
            self._outbox.put_nowait(None)
        except Exception as error:
            self._outbox.put_nowait(error)


class Batcher(Generic[Settings, Payload, Result]):
    """Leases the rows of one engine and runs its steps."""

    def __init__(self, name: str, stepper: Stepper[Settings, Payload, Result], gather: bool = False) -> None:
        """`gather`: wait a little for other sessions before a step.

        For the first stage of a frame's way only: those who are encoded together arrive together at the stages behind.
        """
        self.name = name
        self._gather = gather
        self.draining = False
        self._stepper = stepper
        self._free = list(range(stepper.slots))  # a heap: low rows first, so that the occupied ones stay together
        self._tenants: dict[int, Slot[Payload, Result]] = {}
        self._opening: list[tuple[Slot[Payload, Result], Settings]] = []
        self._wake = asyncio.Event()
        self._ticks = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-engine")
        self._loop_task = asyncio.create_task(self._run())

    @property
    def total(self) -> int:
        """Slots in all."""
        return self._stepper.slots

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return len(self._free)

    @contextlib.contextmanager
    def lease(self, tenant: str, settings: Settings) -> Iterator[Slot[Payload, Result]]:
        """Hold a cleared row until the block ends.

        Raises:
            NoFreeSlot: all are held.
            Draining: the replica is about to stop.
        """
        if self.draining:
            raise Draining(f"this {self.name} replica is stopping; connect to another one")
        if not self._free:
            raise NoFreeSlot(f"all {self.total} slots of this {self.name} replica are taken; try another replica or "
                             "again later", slots=self.total)
        slot: Slot[Payload, Result] = Slot(heapq.heappop(self._free), tenant, self._wake)
        self._tenants[slot.row] = slot
        self._opening.append((slot, settings))
        self._wake.set()
        try:
            yield slot
        finally:
            del self._tenants[slot.row]
            heapq.heappush(self._free, slot.row)

    async def close(self) -> None:
        """Stop stepping; sessions that are still open get no more answers."""
        self._loop_task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._loop_task
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            if self._gather and len(self._tenants) > 1:
                await asyncio.sleep(min(GATHER_S_PER_SESSION * len(self._tenants), LONGEST_GATHER_S))
            self._wake.clear()
            opening, self._opening = self._opening, []
            served = [slot for slot in self._tenants.values() if slot.waiting]
            if not served and not opening:
                continue
            frames = [slot.waiting.popleft() for slot in served]
            if any(slot.waiting for slot in served):
                self._wake.set()
            dequeued = now_unix_nanos()
            try:
                results, started, finished = await loop.run_in_executor(
                    self._thread, self._tick, opening, [slot.row for slot in served], [p for p, _ in frames])
            except Exception as error:
                log.exception("a step of %s for sessions %s failed", self.name, [slot.tenant for slot in served])
                failure = EngineFailed(f"a step of {self.name} failed ({type(error).__name__}); see its log")
                for slot in {*served, *(slot for slot, _ in opening)}:
                    slot.deliver(failure)
                continue
            for slot, (_, received), result in zip(served, frames, results, strict=True):
                timing = Timing(received, dequeued, started, finished, len(served), self._ticks)
                slot.deliver(Answer(result, timing))

    def _tick(self, opening: list[tuple[Slot[Payload, Result], Settings]], rows: list[int],
              payloads: list[Payload]) -> tuple[Sequence[Result], int, int]:
        for slot, settings in opening:
            self._stepper.open(slot.row, settings)
        if not rows:
            return [], 0, 0
        self._ticks += 1
        started = now_unix_nanos()
        results = self._stepper.step(rows, payloads)
        return results, started, now_unix_nanos()
