"""A session's row at one replica of a service, and how it is opened there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Generic, Protocol

from services.gateway.peers.replicas import Replica, Replicas, movable
from services.gateway.peers.tunnel import Call, Method, RequestMessage, ResponseMessage
from services.mesh.errors import MeshError, PeerLost
from services.mesh.incoming import next_within

OPEN_S = 10.0  # to clear a row, or to rebuild some from minutes of history; a lost replica is noticed at once


class Memory(Protocol[RequestMessage]):
    """What must be known about a session to open it at another replica."""

    def opening(self) -> list[RequestMessage]:
        """What opens a row that continues after the last answer: the config, and what it announces."""

    def opened(self, ready: Any) -> None:
        """Take the facts of a replica's ready message."""

    def answered(self, request: RequestMessage, frame: Any) -> None:
        """Remember one more answer."""

    def since(self, answers: int) -> list[RequestMessage]:
        """The requests answered after the first `answers` ones, to be sent again."""


@dataclass(eq=False)
class Lease(Generic[RequestMessage, ResponseMessage]):
    """The session's row at one replica."""

    leaser: Leaser[RequestMessage, ResponseMessage]
    """Opens the session's next row, when this one is lost."""
    replica: Replica
    call: Call[RequestMessage, ResponseMessage]
    ready: Any
    """The service's ready message."""
    next_answer: int
    """Number of the answer that comes next, from 0 in this stage's life."""
    lost: MeshError | None = None
    """Why no answer will come, when that is so."""


class Leaser(Generic[RequestMessage, ResponseMessage]):
    """Opens a session's rows at one service."""

    def __init__(self, pool: Replicas, method: Method[RequestMessage, ResponseMessage], weights_id: str,
                 memory: Memory[RequestMessage]) -> None:
        self.pool, self.memory = pool, memory
        self._method, self._weights_id = method, weights_id

    async def lease(self, answers: Callable[[], int], passed_over: Collection[Replica] = ()
                    ) -> Lease[RequestMessage, ResponseMessage]:
        """A row at the best replica that takes the session. `answers` tells how many the session has had; it is asked
        when the row's past is taken from the memory, since an old row may go on answering meanwhile.

        Raises MeshError: what the last replica refused the session with.
        """
        passed = set(passed_over)
        refusal: MeshError | None = None
        while True:
            try:
                replica = await self.pool.pick(self._method.name, self._weights_id, passed)
            except MeshError as error:
                raise refusal or error from None
            try:
                return await self._open(replica, answers)
            except MeshError as error:
                if not movable(error):
                    raise
                refusal = error
            passed.add(replica)

    async def _open(self, replica: Replica, answers: Callable[[], int]) -> Lease[RequestMessage, ResponseMessage]:
        call = replica.tunnel.call(self._method)
        try:
            next_answer = answers()
            for message in self.memory.opening():
                call.send(message)
            response: Any = await next_within(call, OPEN_S)
            self.memory.opened(response.ready)
        except (StopAsyncIteration, asyncio.TimeoutError, TimeoutError):
            call.cancel()
            raise PeerLost(f"the {replica.role} replica at {replica.address} did not open a session within "
                           f"{OPEN_S:.0f} s", peer=replica.role) from None
        except BaseException:
            call.cancel()
            raise
        return Lease(self, replica, call, response.ready, next_answer)
