"""A session on its socket: two directions, one order in which messages are sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from services.gateway.calls.events import Event
from services.gateway.calls.rates import Rate
from services.gateway.edges.web.realtime.dialects import Dialect
from services.gateway.edges.web.realtime.ids import Ids
from services.gateway.edges.web.realtime.session import Session
from services.gateway.edges.web.socket import MESSAGES_BURST, MESSAGES_PER_S, Closed, Socket, until_one_ends
from services.mesh.errors import MeshError
from services.mesh.serving import internal_error

# Messages of a client, at once and per second: sound in pieces of 5 ms is 200. Scripts send a file in small pieces as
# fast as they can: they are read no faster than the socket takes for a flood (edges/web/socket.py).
MESSAGES = (MESSAGES_BURST // 2, MESSAGES_PER_S * 0.8)
# A large message counts as several: parsing 1 MiB takes 4 ms, in which no other call of this gateway gets on.
MESSAGE_CHARACTERS = 1 << 14


class Connection:
    """Holds a session until either side ends it."""

    def __init__(self, socket: Socket, session: Session, dialect: Dialect, ids: Ids) -> None:
        self._socket, self._session, self._dialect, self._ids = socket, session, dialect, ids
        self._sending = asyncio.Lock()
        self._rate = Rate(*MESSAGES)

    async def hold(self, told: AsyncIterator[Event]) -> None:
        """Carry what the desk tells to the client and what the client says to the session, until the end."""
        for error in await until_one_ends(self._tell(told), self._listen()):
            await self._fail(error)

    async def _tell(self, told: AsyncIterator[Event]) -> None:
        async for event in told:
            self._session.told(event)
            await self._send()  # the desk sees by this whether the client keeps up
            if await self._over():
                return

    async def _listen(self) -> None:
        while True:
            message = await self._socket.receive()
            self._session.asked(message)
            await self._send()
            if await self._over():
                return
            if wait_s := max(self._rate.take("") for _ in range(1 + len(message) // MESSAGE_CHARACTERS)):
                await asyncio.sleep(wait_s)

    async def _send(self) -> None:
        """Both sides' messages, in the order in which they were made."""
        async with self._sending:
            while self._session.out:
                message = self._dialect.written(self._session.out.popleft())
                if message is not None:
                    await self._socket.send(json.dumps({"event_id": self._ids.new("event"), **message}))

    async def _over(self) -> bool:
        if self._session.close_code is None:
            return False
        await self._socket.close(self._session.close_code)
        return True

    async def _fail(self, error: Exception) -> None:
        failure = error if isinstance(error, MeshError) else internal_error("/v1/realtime", error)
        self._session.failed(failure)
        with contextlib.suppress(Closed, MeshError):
            await self._send()
        await self._socket.close(self._session.close_code or 1011, failure.reason)
