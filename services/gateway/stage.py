"""One session on one service, wherever that is: it moves when its replica drains, stalls or is lost.

A move opens the session at another replica with what the row must know (see memory.py), then sends again what is not
answered yet. While the old replica lives it goes on answering until the new one is ready, so a planned move costs no
frame; answers are counted, and one that both give is taken from whoever is first.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import Any, Generic, Protocol

from services.gateway.replicas import Replica, Replicas, movable
from services.gateway.tunnel import Call, Method, RequestMessage, ResponseMessage
from services.mesh.clock import now_unix_nanos
from services.mesh.errors import MeshError, PeerLost
from services.mesh.serving import next_within

log = logging.getLogger(__name__)

OPEN_S = 10.0  # to clear a row, or to rebuild some from minutes of history; a lost replica is noticed at once
# A replica that keeps a frame for this long has stalled: 25 frames, far beyond what a listener forgives, yet more than
# a busy machine takes.
ANSWER_S = 2.0
RETRY_S = 0.1
MOVES_WITHOUT_PROGRESS = 3  # a session that fails at each replica it comes to would take the next ones down with it


class Change(enum.Enum):
    """What happens to a session's row."""

    LOST = "lost"  # it is held up until FAILED_OVER
    FAILED_OVER = "failed over"
    DRAINED = "drained"  # moved away in good time


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


class _Interrupted(Exception):
    """Wakes the reader of a call: something else has happened."""


@dataclass(eq=False)
class _Lease(Generic[RequestMessage, ResponseMessage]):
    """The session's row at one replica; `next` is the number of the answer that comes next."""

    replica: Replica
    call: Call[RequestMessage, ResponseMessage]
    next: int


class Stage(Generic[RequestMessage, ResponseMessage]):
    """One session on one service: opened first, fed later."""

    def __init__(self, pool: Replicas, method: Method[RequestMessage, ResponseMessage], model_id: str,
                 memory: Memory[RequestMessage], on_change: Callable[[Change], None],
                 on_server: Callable[[Replica, int], None]) -> None:
        """`on_change` hears when the session has no row, and when it has moved to another one; `on_server` who answers
        the frames from a number on.
        """
        self._pool, self._method, self._model_id, self._memory = pool, method, model_id, memory
        self._on_change, self._on_server = on_change, on_server
        self._lease: _Lease[RequestMessage, ResponseMessage] | None = None
        # Sent, when, and not answered; bounded by the frames in the mesh.
        self._pending: deque[tuple[RequestMessage, int]] = deque()
        self._answers = 0
        self._failure: Exception | None = None
        self._half_closed = False
        self._pumping: asyncio.Task[None] | None = None
        self._relocating: asyncio.Task[None] | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._progress = 0.0  # when the last answer came, or the first request that waits for one went
        self._moves: tuple[int, int] = (0, 0)  # answers at the last failover, and how many there were without another

    async def open(self) -> Any:
        """The service's ready message: the session holds a slot. Raises MeshError when no replica takes it."""
        self._lease, ready = await self._connect(())
        self._watch()
        return ready

    async def feed(self, requests: AsyncIterator[RequestMessage]) -> AsyncIterator[Any]:
        """Send the requests and yield the answers' frames.

        Raises what this stage or an earlier one failed with: `requests` are an earlier stage's answers.
        """
        self._pumping = asyncio.create_task(self._pump(requests))
        server: Replica | None = None
        while True:
            lease = self._lease
            assert lease is not None
            try:
                response: Any = await lease.call.__anext__()
            except StopAsyncIteration:
                return
            except _Interrupted:
                if self._failure is not None:
                    raise self._failure from None
                continue
            except MeshError as error:
                await self._fail_over(lease, error)
                continue
            kind = response.WhichOneof("response")
            if kind == "summary":
                continue
            number, lease.next = lease.next, lease.next + 1
            if number < self._answers:  # stepped again behind a move
                continue
            request, sent = self._pending.popleft()
            self._answers += 1
            self._progress = _now()
            frame = getattr(response, kind)
            context = frame.frame.context if kind == "step" else frame.context
            lease.replica.clock.stamp(context, sent)
            if server is not lease.replica:
                server = lease.replica
                self._on_server(server, context.sequence)
            self._memory.answered(request, frame)
            yield frame

    def fail(self, error: Exception) -> None:
        """Let `feed` raise an error that comes from elsewhere."""
        self._failure = error
        if self._lease is not None:
            self._lease.call.fail(_Interrupted())

    def close(self) -> None:
        """End the session if it is still open; the service takes its slot back."""
        for task in (self._pumping, self._relocating):
            if task is not None:
                task.cancel()
        if self._watching is not None:
            self._watching.cancel()
        if self._lease is not None:
            self._lease.call.cancel()

    async def _pump(self, requests: AsyncIterator[RequestMessage]) -> None:
        try:
            async for request in requests:
                assert self._lease is not None
                if not self._pending:
                    self._progress = _now()
                self._pending.append((request, now_unix_nanos()))
                self._lease.call.send(request)
            self._half_closed = True
            assert self._lease is not None
            self._lease.call.half_close()
        except Exception as error:
            self.fail(error)

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
                return lease, response.ready
            call.cancel()
            passed.add(replica)

    def _exchange(self, lease: _Lease[RequestMessage, ResponseMessage]) -> None:
        """Go on with another row, behind what has been answered meanwhile."""
        old, self._lease = self._lease, lease
        for request in (*self._memory.since(lease.next), *(request for request, _ in self._pending)):
            lease.call.send(request)
        if self._half_closed:
            lease.call.half_close()
        self._progress = _now()
        if old is not None:
            old.call.cancel()
            old.call.fail(_Interrupted())

    async def _fail_over(self, lost: _Lease[RequestMessage, ResponseMessage], error: MeshError) -> None:
        """Open the session elsewhere after its row was lost. Raises MeshError when that does not help."""
        if self._relocating is not None and not self._relocating.done():
            await asyncio.wait((self._relocating,))
        if self._lease is not lost:
            return
        answers, times = self._moves
        self._moves = (self._answers, times + 1 if answers == self._answers else 1)
        if not movable(error) or self._moves[1] > MOVES_WITHOUT_PROGRESS:
            raise error
        log.warning("a session moves away from the %s replica at %s: %s", lost.replica.role, lost.replica.address,
                    error.message)
        lost.call.cancel()
        self._on_change(Change.LOST)
        lost.replica.facts = None  # nobody goes there before it has answered a poll
        deadline = _now() + self._pool.failover_s
        while True:
            try:
                lease, _ = await self._connect(())
                break
            except MeshError as refusal:
                if not movable(refusal) or _now() > deadline:
                    raise
                await asyncio.sleep(RETRY_S)
        self._exchange(lease)
        self._on_change(Change.FAILED_OVER)

    def _drain(self) -> None:
        """The replica is about to stop: leave it while it still answers."""
        if self._relocating is None or self._relocating.done():
            self._relocating = asyncio.create_task(self._relocate())

    async def _relocate(self) -> None:
        here = self._lease
        assert here is not None
        while self._lease is here:
            with contextlib.suppress(MeshError):  # nobody has room now; the replica serves on until its time is over
                lease, _ = await self._connect((here.replica,))
                if self._lease is not here:  # it was lost meanwhile
                    lease.call.cancel()
                    return
                self._exchange(lease)
                self._on_change(Change.DRAINED)
                return
            await asyncio.sleep(RETRY_S)

    def _watch(self) -> None:
        """Treat a replica that does not answer as lost; it may hang with its connection alive."""
        if self._pending and _now() - self._progress > ANSWER_S and self._lease is not None:
            self._progress = _now()
            self._lease.call.fail(PeerLost(f"the {self._lease.replica.role} replica at {self._lease.replica.address} "
                                           f"kept a frame for {ANSWER_S:.0f} s", peer=self._lease.replica.role))
        self._watching = asyncio.get_running_loop().call_later(ANSWER_S / 8, self._watch)


def _now() -> float:
    return asyncio.get_running_loop().time()
