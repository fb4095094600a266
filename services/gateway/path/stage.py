"""One session on one service, wherever that is: it moves when its replica drains, stalls or is lost.

A move opens the session at another replica with what the row must know (see memory.py), then sends again what is not
answered yet. While the old replica lives it goes on answering until the new one is ready, so a planned move costs no
frame; answers are counted, and one that both give is taken from whoever is first.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import enum
import functools
import logging
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Generic, Protocol

from services.gateway.peers.replicas import Replica, Replicas, movable
from services.gateway.peers.tunnel import Call, Method, RequestMessage, ResponseMessage
from services.mesh.clock import now_unix_nanos
from services.mesh.errors import MeshError, PeerLost
from services.mesh.serving import next_within

log = logging.getLogger(__name__)

OPEN_S = 10.0  # to clear a row, or to rebuild some from minutes of history; a lost replica is noticed at once
# A replica that keeps a frame for this long has stalled: 25 frames, far beyond what a listener forgives, yet more than
# a busy machine takes.
ANSWER_S = 2.0
WATCH_EVERY_S = 0.25
RETRY_S = 0.1
MOVES_WITHOUT_PROGRESS = 3  # a session that fails at each replica it comes to would take the next ones down with it


class Change(enum.Enum):
    """How a session's row has moved."""

    FAILED_OVER = "failover"  # after its replica was lost
    DRAINED = "drained"  # in good time


class Memory(Protocol[RequestMessage]):
    """What must be known about a session to open it at another replica."""

    def opening(self) -> RequestMessage:
        """The config for a row that goes on behind the last answer."""

    def opened(self, ready: Any) -> None:
        """Take the facts of a replica's ready message."""

    def answered(self, request: RequestMessage, frame: Any) -> None:
        """Remember one more answer."""

    def since(self, answers: int) -> list[RequestMessage]:
        """The requests answered after the first `answers` ones, to be sent again."""


@dataclass(frozen=True)
class Next:
    """What is behind a stage."""

    answered: Callable[[Any], None]  # takes an answer's frame; they come in the order of the requests, each once
    end: Callable[[], None]  # the last request has been answered
    fail: Callable[[Exception], None]  # no more answers will come


@dataclass(eq=False)
class _Lease(Generic[RequestMessage, ResponseMessage]):
    """The session's row at one replica; `next` is the number of the answer that comes next, `lost` why none will."""

    replica: Replica
    call: Call[RequestMessage, ResponseMessage]
    next: int
    lost: MeshError | None = None


class Stage(Generic[RequestMessage, ResponseMessage]):
    """One session on one service. Requests and answers pass through by plain calls; tasks are for moves only."""

    def __init__(self, pool: Replicas, method: Method[RequestMessage, ResponseMessage], model_id: str,
                 memory: Memory[RequestMessage], behind: Next, on_change: Callable[[Change], None],
                 on_server: Callable[[Replica, int], None]) -> None:
        """`behind` gets the answers; `on_change` hears when the session has moved to another row; `on_server` who
        answers the frames from a number on.
        """
        self._pool, self._method, self._model_id, self._memory = pool, method, model_id, memory
        self._behind, self._on_change, self._on_server = behind, on_change, on_server
        # A move begins where a replica's loss is noticed, in a task that all calls share; its log lines are this call's.
        self._context = contextvars.copy_context()
        self._lease: _Lease[RequestMessage, ResponseMessage] | None = None
        # Sent, when, and not answered; bounded by the frames in the mesh.
        self._pending: deque[tuple[RequestMessage, int]] = deque()
        self._answers = 0
        self._server: Replica | None = None  # who gave the last one
        self._half_closed = False
        self._relocating: asyncio.Task[None] | None = None
        self._failing_over: asyncio.Task[None] | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._next_watch = 0.0
        self._progress = 0.0  # when the last answer came, or the first request that waits for one went
        self._moves: tuple[int, int] = (0, 0)  # answers at the last failover, and how many there were without another

    async def open(self) -> Any:
        """The service's ready message: the session holds a slot. Raises MeshError when no replica takes it."""
        lease, ready = await self._connect(())
        self._hold(lease)
        self._next_watch = _now()
        self._watch()
        return ready

    def send(self, request: RequestMessage) -> None:
        """Send a request. Its sender bounds how many are in flight."""
        assert self._lease is not None
        if not self._pending:
            self._progress = _now()
        self._pending.append((request, now_unix_nanos()))
        self._lease.call.send(request)

    def half_close(self) -> None:
        """Say that no more requests come."""
        assert self._lease is not None
        self._half_closed = True
        self._lease.call.half_close()

    def close(self) -> None:
        """End the session if it is still open; the service takes its slot back."""
        for task in (self._relocating, self._failing_over):
            if task is not None:
                task.cancel()
        if self._watching is not None:
            self._watching.cancel()
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.call.cancel()

    def _hold(self, lease: _Lease[RequestMessage, ResponseMessage]) -> None:
        self._lease = lease
        lease.call.deliver_to(functools.partial(self._receive, lease))

    def _receive(self, lease: _Lease[RequestMessage, ResponseMessage], response: Any) -> None:
        """Take what a call delivers: nothing may be raised here, since other sessions' calls are behind it."""
        if lease is not self._lease:  # the session has moved on, or is over
            return
        try:
            if response is None:
                self._behind.end()
            elif isinstance(response, MeshError):
                self._lost(lease, response)
            else:
                self._take(lease, response)
        except Exception as error:
            self._behind.fail(error)

    def _take(self, lease: _Lease[RequestMessage, ResponseMessage], response: Any) -> None:
        kind = response.WhichOneof("response")
        if kind == "summary":
            return
        number, lease.next = lease.next, lease.next + 1
        if number < self._answers:  # stepped again behind a move
            return
        request, sent = self._pending.popleft()
        self._answers += 1
        self._progress = _now()
        frame = getattr(response, kind)
        context = frame.frame.context if kind == "step" else frame.context
        lease.replica.clock.stamp(context, sent)
        if self._server is not lease.replica:
            self._server = lease.replica
            self._on_server(lease.replica, context.sequence)
        self._memory.answered(request, frame)
        self._behind.answered(frame)

    async def _connect(self, passed_over: Collection[Replica]
                       ) -> tuple[_Lease[RequestMessage, ResponseMessage], Any]:
        """A row at the best replica that takes the session. Raises what the last one of them refused it with."""
        passed = set(passed_over)
        refusal: MeshError | None = None
        while True:
            try:
                replica = await self._pool.pick(self._method.name, self._model_id, passed)
            except MeshError as error:
                raise refusal or error from None
            call = replica.tunnel.call(self._method)
            lease = _Lease(replica, call, self._answers)
            call.send(self._memory.opening())
            try:
                response: Any = await next_within(call, OPEN_S)
                self._memory.opened(response.ready)
            except (StopAsyncIteration, asyncio.TimeoutError, TimeoutError):
                refusal = PeerLost(f"the {replica.role} replica at {replica.address} did not open a session within "
                                   f"{OPEN_S:.0f} s", peer=replica.role)
            except MeshError as error:
                if not movable(error):
                    raise
                refusal = error
            except BaseException:
                call.cancel()
                raise
            else:
                call.on_draining = self._drain
                if call.draining:  # it has begun to drain while the row was opened
                    asyncio.get_running_loop().call_soon(self._drain)
                return lease, response.ready
            call.cancel()
            passed.add(replica)

    def _exchange(self, lease: _Lease[RequestMessage, ResponseMessage]) -> bool:
        """Go on with another row, behind what was answered meanwhile. False: more was than is remembered."""
        passed = self._memory.since(lease.next)
        if len(passed) < self._answers - lease.next:
            lease.call.cancel()
            return False
        old = self._lease
        for request in (*passed, *(request for request, _ in self._pending)):
            lease.call.send(request)
        if self._half_closed:
            lease.call.half_close()
        self._progress = _now()
        self._hold(lease)
        if old is not None:
            old.call.cancel()
        return True

    def _lost(self, lease: _Lease[RequestMessage, ResponseMessage], error: MeshError) -> None:
        """The row is lost: open the session elsewhere."""
        lease.lost = error
        if self._failing_over is None or self._failing_over.done():
            self._failing_over = self._context.run(asyncio.create_task, self._fail_over())

    async def _fail_over(self) -> None:
        try:
            while (lease := self._lease) is not None and lease.lost is not None:
                if self._relocating is not None and not self._relocating.done():
                    await asyncio.wait((self._relocating,))
                else:
                    self._exchange(await self._elsewhere(lease, lease.lost))  # nothing can have passed
                    self._on_change(Change.FAILED_OVER)
        except Exception as failure:
            self._behind.fail(failure)

    async def _elsewhere(self, lost: _Lease[RequestMessage, ResponseMessage], error: MeshError
                         ) -> _Lease[RequestMessage, ResponseMessage]:
        """A row instead of one that was lost. Raises MeshError when that would not help."""
        answers, times = self._moves
        self._moves = (self._answers, times + 1 if answers == self._answers else 1)
        if not movable(error) or self._moves[1] > MOVES_WITHOUT_PROGRESS:
            raise error
        log.warning("a session moves away from the %s replica at %s: %s", lost.replica.role, lost.replica.address,
                    error.message)
        lost.call.cancel()
        lost.replica.facts = None  # nobody goes there before it has answered a poll
        deadline = _now() + self._pool.failover_s
        while True:
            try:
                lease, _ = await self._connect(())
                return lease
            except MeshError as refusal:
                if not movable(refusal) or _now() > deadline:
                    raise
                await asyncio.sleep(RETRY_S)

    def _drain(self) -> None:
        """The replica is about to stop: leave it while it still answers."""
        if self._relocating is None or self._relocating.done():
            self._relocating = self._context.run(asyncio.create_task, self._relocate())

    async def _relocate(self) -> None:
        here = self._lease
        assert here is not None
        while self._lease is here and here.lost is None:
            with contextlib.suppress(MeshError):  # nobody has room now; the replica serves on until its time is over
                lease, _ = await self._connect((here.replica,))
                if self._lease is not here:  # it was lost meanwhile
                    lease.call.cancel()
                    return
                if self._exchange(lease):
                    self._on_change(Change.DRAINED)
                    return
            await asyncio.sleep(RETRY_S)

    def _watch(self) -> None:
        """Treat a replica that does not answer as lost; it may hang with its connection alive."""
        if _now() - self._next_watch > WATCH_EVERY_S:
            self._progress = _now()  # it was this process that hung
        if self._pending and _now() - self._progress > ANSWER_S and self._lease is not None:
            self._progress = _now()
            replica = self._lease.replica
            self._receive(self._lease, PeerLost(f"the {replica.role} replica at {replica.address} kept a frame for "
                                                f"{ANSWER_S:.0f} s", peer=replica.role))
        self._next_watch = _now() + WATCH_EVERY_S
        self._watching = asyncio.get_running_loop().call_later(WATCH_EVERY_S, self._watch)


def _now() -> float:
    return asyncio.get_running_loop().time()
