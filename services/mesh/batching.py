"""Many sessions, one step: slots, queues and the tick that serves them.

A session leases a slot (a row of the engine's batch). Its frames wait in the slot's queue; whenever the engine is idle
and any slot has a frame, one frame of each such slot goes into one step on the engine's own thread, and each result is
handed to the slot's tenant. Codec and language model share this file: they differ only in what a step does.

A session that comes from another replica brings what its row must know first: the engine takes it in chunks, one
between two steps, so that the others step on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from services.mesh.clock import now_unix_nanos
from services.mesh.errors import Draining, EngineFailed, IdleCaller, NoFreeSlot
from services.mesh.gathering import Gathering
from services.mesh.testhooks import TickDelay
from services.mesh.timings import Timing, Work

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
# A step takes milliseconds, and a chunk of a history at most some seconds, with a large model on a slow CPU.
HANG_S = 30.0
# Steps and chunks that are remembered, to tell afterwards what a frame waited for: 10 s of an engine that never rests.
RECENT_WORK = 1024


class Stepper(Protocol[SettingsIn, PayloadIn, ResultOut]):
    """What a batch needs from an engine. All of its work is done on the engine's thread, never two things at once."""

    slots: int

    def open(self, row: int, settings: SettingsIn) -> Iterator[None]:
        """Clear a row for a session and rebuild what it brings; each item is a chunk of that work done.

        A generator: nothing may happen before its first item is asked for, since the row may still be in a step.
        """

    def step(self, rows: Sequence[int], payloads: Sequence[PayloadIn]) -> Sequence[ResultOut]:
        """One result for each named row, in their order; other rows are untouched."""


@dataclass(frozen=True)
class BatchingOptions:
    """How rows and the engine's thread are looked after."""

    idle_s: float = 300.0
    """A session that has sent no frame for this long loses its row. Much longer than a gateway lets its own
    callers be silent; this is for callers of the service itself."""
    yield_cpu: bool = False
    """The engine's thread runs only when no other one wants to: good in a container of its own, where only the
    service's event loop competes with it. Beside other programs the engine would hardly run."""


USUAL = BatchingOptions()


class _Interval(NamedTuple):
    """From when to when."""

    started_unix_nanos: int
    finished_unix_nanos: int


_NEVER = _Interval(0, 0)
_ALL = object()  # an opening has no more chunks


@dataclass
class _Ticked(Generic[Result]):
    """What the engine's thread did in one turn: a chunk of a row's opening, then a step, or one of the two."""

    opened: bool = False
    """Whether the row is open now."""
    opening_failure: Exception | None = None
    opening: _Interval = _NEVER
    results: Sequence[Result] = ()
    step_failure: Exception | None = None
    step: _Interval = _NEVER


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
        self.leased_unix_nanos = now_unix_nanos()
        self.phase_nanos = 0  # of a frame's time: when its frames should come, see Gathering
        self.last_received_unix_nanos = 0  # when its last frame came
        self.in_step = False  # whether the engine computes a frame of it now
        self.rebuilt = False  # whether the session came with a past
        self.chunks: Iterator[None] | None = None  # of the row's opening, until it is done
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last_delivered_unix_nanos = 0  # when its last answer or failure was delivered
        self._outbox: asyncio.Queue[Answer[Result] | Exception | None] = asyncio.Queue()  # likewise, and an end
        self._room = asyncio.Semaphore(IN_FLIGHT_FRAMES)
        self._wake = wake
        self.holder = asyncio.current_task()
        """Which gives the row back; a slot that outlives it is lost."""

    async def opened(self) -> None:
        """Wait until the row has the state that the session had in its last one. Raises MeshError."""
        await self._opened

    def is_open(self) -> None:
        """Let `opened` return."""
        if not self._opened.done():
            self._opened.set_result(None)

    async def serve(self, payloads: AsyncIterator[Payload]) -> AsyncIterator[Answer[Result]]:
        """Step the row for each payload and yield the answers in order; the failure of either side ends both.

        Not before the row is open: raises what `opened` does.
        """
        await self._opened
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
        self._last_delivered_unix_nanos = now_unix_nanos()
        if isinstance(answer, Exception) and not self._opened.done():
            self._opened.set_exception(answer)
            self._opened.exception()  # mark it as seen: the tenant may have left
            return
        self._outbox.put_nowait(answer)

    @property
    def quiet_since_unix_nanos(self) -> int | None:
        """Since when its session could send frames and has sent none; None while the engine is to do something."""
        if self.chunks is not None or self.waiting or self.in_step:
            return None
        return max(self.leased_unix_nanos, self._last_delivered_unix_nanos)

    async def _read(self, payloads: AsyncIterator[Payload]) -> None:
        try:
            async for payload in payloads:
                self.last_received_unix_nanos = received = now_unix_nanos()
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

    def __init__(self, name: str, stepper: Stepper[Settings, Payload, Result],
                 options: BatchingOptions = USUAL,
                 gathering: Gathering | None = None, now: Callable[[], float] = time.monotonic) -> None:
        """`gathering`: for the first stage of a frame's way only, since frames that are encoded together arrive
        together at the later stages.
        """
        self.name = name
        self._options = options
        self._gathering = gathering
        self.draining = False
        self._stepper = stepper
        self._free = list(range(stepper.slots))  # a heap: low rows first, so that the occupied ones stay together
        self._tenants: dict[int, Slot[Payload, Result]] = {}
        self._opening: deque[Slot[Payload, Result]] = deque()
        self._wake = asyncio.Event()
        self.on_tick: Callable[[float, int], None] = _ignore  # hears how long each step took (s), and of how many rows
        self.on_rebuilt: Callable[[float], None] = _ignore  # hears how long it took (s) until a past was in its row
        self.recent: deque[Work] = deque(maxlen=RECENT_WORK)  # oldest first
        self._ticks = 0
        self._now = now
        self._stepping_since: float | None = None  # None: the engine is idle
        self._delays = TickDelay.of(name)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-engine",
                                          initializer=_give_way if options.yield_cpu else None)
        self._loop_task = asyncio.create_task(self._run())
        self._idle_task = asyncio.create_task(self._end_idle())

    @property
    def total(self) -> int:
        """Slots in all."""
        return self._stepper.slots

    @property
    def used(self) -> int:
        """Slots that sessions hold."""
        return len(self._tenants)

    @property
    def free(self) -> int:
        """Slots that a session could have: none while the replica drains."""
        return 0 if self.draining else len(self._free)

    @property
    def alive(self) -> bool:
        """Whether the engine makes progress. One that hangs in a step (in a driver, say) hangs to the process's end."""
        since = self._stepping_since
        return not self._loop_task.done() and (since is None or self._now() - since < HANG_S)

    def disagreements(self) -> Iterator[str]:
        """What is wrong with the leases, if anything is; see services/mesh/invariants.py."""
        rows = [*self._free, *self._tenants]
        if sorted(rows) != list(range(self.total)):
            yield f"{self.name} has {self.total} rows, of which {len(self._free)} are free and {self.used} are held"
        for slot in self._tenants.values():
            if slot.holder is not None and slot.holder.done():
                yield f"row {slot.row} of {self.name} is held by a call that has ended"

    @contextlib.contextmanager
    def lease(self, tenant: str, settings: Settings) -> Iterator[Slot[Payload, Result]]:
        """Hold a row until the block ends; `Slot.opened` says when it is ready.

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
        if self._gathering:
            slot.phase_nanos = self._gathering.least_taken(other.phase_nanos for other in self._tenants.values())
        self._tenants[slot.row] = slot
        slot.chunks = self._stepper.open(slot.row, settings)
        self._opening.append(slot)
        self._wake.set()
        try:
            yield slot
        finally:
            del self._tenants[slot.row]
            slot.chunks = None
            heapq.heappush(self._free, slot.row)

    async def close(self) -> None:
        """Stop stepping; sessions that are still open get no more answers."""
        for task in (self._loop_task, self._idle_task):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            if self._gathering and not self._rebuilding():
                others = (slot.last_received_unix_nanos for slot in self._tenants.values() if not slot.waiting)
                if wait_s := self._gathering.wait_s(now_unix_nanos(), len(self._tenants), others):
                    await asyncio.sleep(wait_s)
            self._wake.clear()
            opening = self._next_to_open()
            served = [slot for slot in self._tenants.values() if slot.waiting and slot.chunks is None]
            if not served and opening is None:
                continue
            frames = [slot.waiting.popleft() for slot in served]
            for slot in served:
                slot.in_step = True
            dequeued = now_unix_nanos()
            rows = [slot.row for slot in served]
            self._stepping_since = self._now()
            ticked = await loop.run_in_executor(
                self._thread, self._tick, opening.chunks if opening else None, rows, [payload for payload, _ in frames])
            self._stepping_since = None
            for slot in served:
                slot.in_step = False
            if opening is not None:
                self.recent.append(Work(*ticked.opening, 0, (opening.row,), opening.tenant))
                if ticked.opened or ticked.opening_failure is not None:
                    self._end_opening(opening, ticked.opening_failure)
                else:
                    opening.rebuilt = True
            if ticked.step_failure is not None:
                log.error("a step of %s for sessions %s failed", self.name, [slot.tenant for slot in served],
                          exc_info=ticked.step_failure)
                for slot in served:
                    slot.deliver(_failure(self.name, ticked.step_failure))
            else:
                started, finished = ticked.step
                if served:
                    self.recent.append(Work(started, finished, self._ticks, rows))
                    self.on_tick((finished - started) / 1e9, len(served))
                for slot, (_, received), result in zip(served, frames, ticked.results, strict=True):
                    timing = Timing(received, dequeued, started, finished, self._ticks, rows)
                    slot.deliver(Answer(result, timing))
            if self._opening or any(slot.waiting for slot in self._tenants.values()):
                self._wake.set()

    def _rebuilding(self) -> bool:
        """Whether a row is being rebuilt: then steps follow each other without a pause."""
        return bool(self._opening)

    def _next_to_open(self) -> Slot[Payload, Result] | None:
        """The slot whose row is worked on next: each in turn, so that a short history need not wait for a long one."""
        while self._opening:
            slot = self._opening.popleft()
            if slot.chunks is not None:  # else its tenant has left
                self._opening.append(slot)
                return slot
        return None

    def _end_opening(self, slot: Slot[Payload, Result], failure: Exception | None) -> None:
        self._opening.remove(slot)
        if slot.chunks is None:  # its tenant has left meanwhile
            return
        slot.chunks = None
        if failure is not None:
            log.error("opening a row of %s for session %s failed", self.name, slot.tenant, exc_info=failure)
            slot.deliver(_failure(self.name, failure))
        else:
            self._is_open(slot)

    def _is_open(self, slot: Slot[Payload, Result]) -> None:
        slot.is_open()
        if slot.rebuilt:
            self.on_rebuilt((now_unix_nanos() - slot.leased_unix_nanos) / 1e9)

    async def _end_idle(self) -> None:
        """Take the rows of sessions that send no frames."""
        idle_s = self._options.idle_s
        while True:
            await asyncio.sleep(idle_s / 4)
            latest = now_unix_nanos() - round(idle_s * 1e9)
            for slot in self._tenants.values():
                since = slot.quiet_since_unix_nanos
                if since is not None and since < latest:
                    slot.deliver(IdleCaller(f"no frame for {idle_s:.0f} s; open the session again to go on"))

    def _tick(self, chunks: Iterator[None] | None, rows: list[int], payloads: list[Payload]) -> _Ticked[Result]:
        """One chunk of an opening, and one step. On the engine's thread."""
        ticked: _Ticked[Result] = _Ticked()
        if chunks is not None:
            began = now_unix_nanos()
            try:
                ticked.opened = next(chunks, _ALL) is _ALL
            except Exception as error:
                ticked.opening_failure = error
            ticked.opening = _Interval(began, now_unix_nanos())
        if rows:
            self._ticks += 1
            for delay in self._delays:
                delay.at("queue", self._ticks)
            began = now_unix_nanos()
            try:
                for delay in self._delays:
                    delay.at("compute", self._ticks)
                ticked.results = self._stepper.step(rows, payloads)
            except Exception as error:
                ticked.step_failure = error
            ticked.step = _Interval(began, now_unix_nanos())
        return ticked


def _give_way() -> None:
    """Make this thread run only when no other thread of the service wants to.

    A step takes milliseconds, while what the event loop has to do takes microseconds and others wait for it.
    """
    with contextlib.suppress(AttributeError, OSError):  # Linux only, and not in every sandbox
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _ignore(*_: object) -> None:
    pass


def _failure(name: str, error: Exception) -> EngineFailed:
    return EngineFailed(f"a step of {name} failed ({type(error).__name__}); see its log")
