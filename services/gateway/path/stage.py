"""One session on one service, wherever that is: it moves when its replica drains, stalls or is lost.

A move opens the session at another replica with what the row must know (see memory.py), then sends again what is not
answered yet. While the old replica lives it goes on answering until the new one is ready, so a planned move costs no
frame; answers are counted, and one that both give is taken from whichever is first.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic

from moshimesh.audio.v1 import audio_pb2

from services.gateway.path.lease import Lease
from services.gateway.path.observer import Change, Observer
from services.gateway.peers.replicas import Replica, movable
from services.gateway.peers.tunnel import RequestMessage, ResponseMessage
from services.mesh.clock import now_unix_nanos
from services.mesh.errors import MeshError, PeerLost

log = logging.getLogger(__name__)

# A replica that keeps a frame for this long has stalled: 25 frames, far beyond what a listener forgives, yet more than
# a busy machine takes.
ANSWER_S = 2.0
LOOKS_PER_ANSWER_S = 8  # how often a stage looks for that
RETRY_S = 0.1
MOVES_WITHOUT_PROGRESS = 3  # a session that fails at every replica would bring down the next ones, too


@dataclass(frozen=True)
class Next:
    """What comes after a stage."""

    answered: Callable[[Any], None]  # takes an answer's frame; they come in the order of the requests, each once
    end: Callable[[], None]  # the last request has been answered
    fail: Callable[[Exception], None]  # no more answers will come


@dataclass(frozen=True)
class Sent(Generic[RequestMessage]):
    """A request that waits for its answer, and when it was sent."""

    request: RequestMessage
    unix_nanos: int


class Stage(Generic[RequestMessage, ResponseMessage]):
    """One session on one service. Requests and answers pass through by plain calls; tasks are for moves only."""

    def __init__(self, lease: Lease[RequestMessage, ResponseMessage], hop: audio_pb2.Hop, after: Next,
                 observer: Observer, *, answer_s: float = ANSWER_S) -> None:
        """`lease` is the first row. A replica that keeps a frame for `answer_s` counts as lost."""
        self._leaser, self._memory, self._pool = lease.leaser, lease.leaser.memory, lease.leaser.pool
        self._hop, self._after, self._observer = hop, after, observer
        self._answer_s, self._look_every_s = answer_s, answer_s / LOOKS_PER_ANSWER_S
        self._now = asyncio.get_running_loop().time
        # Sent and not answered; bounded by the frames in the mesh.
        self._pending: deque[Sent[RequestMessage]] = deque()
        self._answers = 0
        self._server: Replica | None = None  # which gave the last one
        self._half_closed = self._closed = False
        self._relocating = self._failing_over = _done()
        # Moves are started where other sessions' answers arrive, too: their log lines must name this session.
        self._context = contextvars.copy_context()
        self._progress = self._now()  # when the last answer came, or the first request that waits for one went
        self._fruitless = _Fruitless()
        self._lease = lease
        self._hold(lease)
        self._next_look = self._now()
        self._look()

    def send(self, request: RequestMessage) -> None:
        """Send a request. Its sender bounds how many are in flight."""
        if not self._pending:
            self._progress = self._now()
        self._pending.append(Sent(request, now_unix_nanos()))
        self._lease.call.send(request)

    def half_close(self) -> None:
        """Say that no more requests come."""
        self._half_closed = True
        self._lease.call.half_close()

    def close(self) -> None:
        """End the session if it is still open; the service takes its slot back."""
        self._closed = True
        self._relocating.cancel()
        self._failing_over.cancel()
        self._looking.cancel()
        self._lease.call.cancel()

    def leave(self, replica: Replica) -> bool:
        """Try once to move off this replica, as for a drain. False: the session is elsewhere, or moves already."""
        if self._lease.replica is not replica or self._closed or not self._relocating.done():
            return False
        self._relocating = self._start(self._relocate(Change.PACKED))
        return True

    def _hold(self, lease: Lease[RequestMessage, ResponseMessage]) -> None:
        self._lease = lease
        lease.call.on_draining = self._drain
        if lease.call.draining:  # it has begun to drain while the row was opened
            asyncio.get_running_loop().call_soon(self._drain)
        lease.call.deliver_to(functools.partial(self._receive, lease))

    def _receive(self, lease: Lease[RequestMessage, ResponseMessage], response: Any) -> None:
        """Take what a call delivers: nothing may be raised here, since other sessions' calls come after it."""
        if lease is not self._lease or self._closed:  # the session has moved on, or is over
            return
        try:
            if response is None:
                self._after.end()
            elif isinstance(response, MeshError):
                self._lost(lease, response)
            else:
                self._take(lease, response)
        except Exception as error:
            self._after.fail(error)

    def _take(self, lease: Lease[RequestMessage, ResponseMessage], response: Any) -> None:
        kind = response.WhichOneof("response")
        if kind == "summary":
            return
        number, lease.next_answer = lease.next_answer, lease.next_answer + 1
        if number < self._answers:  # stepped again after a move
            return
        sent = self._pending.popleft()
        self._answers += 1
        self._progress = self._now()
        frame = getattr(response, kind)
        context = frame.frame.context if kind == "step" else frame.context
        lease.replica.clock.stamp(context, sent.unix_nanos)
        if self._server is not lease.replica:
            self._server = lease.replica
            self._observer.served_by(self._hop, lease.replica, context.sequence)
        self._memory.answered(sent.request, frame)
        self._after.answered(frame)

    def _exchange(self, lease: Lease[RequestMessage, ResponseMessage], change: Change) -> bool:
        """Go on with another row, after what was answered meanwhile. False: more was than is remembered."""
        passed = self._memory.since(lease.next_answer)
        if len(passed) < self._answers - lease.next_answer:
            lease.call.cancel()
            return False
        old = self._lease
        for request in (*passed, *(sent.request for sent in self._pending)):
            lease.call.send(request)
        if self._half_closed:
            lease.call.half_close()
        self._progress = self._now()
        self._hold(lease)
        old.call.cancel()
        self._observer.moved(self._pool.role, change)
        return True

    def _lost(self, lease: Lease[RequestMessage, ResponseMessage], error: MeshError) -> None:
        """The row is lost: open the session elsewhere."""
        lease.lost = error
        if self._failing_over.done():
            self._failing_over = self._start(self._fail_over())

    async def _fail_over(self) -> None:
        try:
            while (lost := self._lease.lost) is not None:
                if not self._relocating.done():
                    await asyncio.wait((self._relocating,))
                else:  # without answers meanwhile, the memory still has all that is needed
                    self._exchange(await self._elsewhere(lost), Change.FAILED_OVER)
        except Exception as failure:
            self._after.fail(failure)

    async def _elsewhere(self, error: MeshError) -> Lease[RequestMessage, ResponseMessage]:
        """A row instead of one that was lost. Raises MeshError when that would not help."""
        here = self._lease
        if not movable(error) or self._fruitless.one_more(self._answers) > MOVES_WITHOUT_PROGRESS:
            raise error
        log.warning("a session moves away from the %s replica at %s: %s", here.replica.role, here.replica.address,
                    error.message)
        here.call.cancel()
        here.replica.facts = None  # no session goes there before it has answered a poll
        deadline = self._now() + self._pool.failover_s
        while True:
            try:
                return await self._leaser.lease(lambda: self._answers)
            except MeshError as refusal:
                if not movable(refusal) or self._now() > deadline:
                    raise
                await asyncio.sleep(RETRY_S)

    def _drain(self) -> None:
        """The replica is about to stop: leave it while it still answers."""
        if self._relocating.done() and not self._closed:
            self._relocating = self._start(self._relocate(Change.DRAINED))

    async def _relocate(self, why: Change) -> None:
        here = self._lease
        while self._lease is here and here.lost is None:
            with contextlib.suppress(MeshError):  # no replica has room now; this one serves until its time is over
                lease = await self._leaser.lease(lambda: self._answers, (here.replica,))
                if self._lease is not here:  # it was lost meanwhile
                    lease.call.cancel()
                    return
                if self._exchange(lease, why):
                    return
            if why is Change.PACKED and not here.call.draining:  # it was only for tidiness
                return
            await asyncio.sleep(RETRY_S)

    def _start(self, move: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._context.run(asyncio.create_task, move)

    def _look(self) -> None:
        """Treat a replica that does not answer as lost; it may hang with its connection alive."""
        now = self._now()
        if now - self._next_look > self._look_every_s:
            self._progress = now  # this process hung, not the replica
        if self._pending and now - self._progress > self._answer_s:
            self._progress = now
            replica = self._lease.replica
            self._receive(self._lease, PeerLost(f"the {replica.role} replica at {replica.address} kept a frame for "
                                                f"{self._answer_s:.1f} s", peer=replica.role))
        self._next_look = now + self._look_every_s
        self._looking = asyncio.get_running_loop().call_later(self._look_every_s, self._look)


class _Fruitless:
    """Counts a stage's failovers between which no frame was answered."""

    def __init__(self) -> None:
        self._answers, self._times = -1, 0

    def one_more(self, answers: int) -> int:
        """How many there were, with this one, at so many answers."""
        self._times = self._times + 1 if answers == self._answers else 1
        self._answers = answers
        return self._times


def _done() -> asyncio.Future[None]:
    """A move that is over."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done
