"""A caller's WebSocket: bounded in what it takes, in what it leaves unread, and in how many one address may open."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence

from aiohttp import WSMsgType, web

from services.mesh.errors import InvalidRequest, MeshError, SlowCaller

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

# One message; a second of float PCM at 48 kHz is 192 kB. Protocols with larger messages give their own bound.
MOST_MESSAGE_BYTES = 1 << 18
# Browsers, proxies and phones drop connections that say nothing; a peer that does not answer within half of it is gone.
PING_S = 20.0
MOST_PER_ADDRESS = 256  # sockets: as many as a proxy or an office may have; a socket costs about 50 kB
# Messages of any kind that are read per second, and at once. Opus in its shortest packets comes at 400; an edge that
# lets audio wait does not read faster than that (services/gateway/path/pace.py), so only a flood comes here.
MESSAGES_PER_S, MESSAGES_BURST = 500, 1000
CLOSE_S = 2.0  # for the peer's half of the closing handshake

TRY_AGAIN_LATER = 1013  # https://www.iana.org/assignments/websocket/websocket.xhtml


class Closed(Exception):
    """The peer has closed the socket, or its connection is lost."""


class Socket:
    """One WebSocket, open."""

    def __init__(self, response: web.WebSocketResponse, request: web.Request, stall_s: float) -> None:
        self.response, self._stall_s = response, stall_s
        """What the request's handler returns."""
        self.request = request
        self.address = request.remote or ""
        self.protocol: str | None = response.ws_protocol
        self._clock = asyncio.get_running_loop().time
        self._messages, self._counted_at = 0.0, self._clock()  # less what may come in the time since

    async def receive(self) -> bytes | str:
        """The next message. Raises Closed, and InvalidRequest when there are too many. One of too many bytes closes the
        socket with 1009.
        """
        while True:
            message = await self.response.receive()
            self._count()
            if message.type in (WSMsgType.BINARY, WSMsgType.TEXT):
                data: bytes | str = message.data
                return data
            if message.type is WSMsgType.PING:
                with contextlib.suppress(ConnectionError):  # the next read says so
                    await self.response.pong(message.data)
            elif message.type is not WSMsgType.PONG:
                raise Closed

    async def first(self, within_s: float) -> bytes | str:
        """The first message, as `receive`. Raises SlowCaller when it does not come in time."""
        try:
            async with timeout(within_s):
                return await self.receive()
        except (asyncio.TimeoutError, TimeoutError):
            raise SlowCaller(f"nothing was sent within {within_s:.0f} s") from None

    def _count(self) -> None:
        now = self._clock()
        self._messages = max(self._messages - (now - self._counted_at) * MESSAGES_PER_S, 0.0) + 1
        self._counted_at = now
        if self._messages > MESSAGES_BURST:
            raise InvalidRequest("TOO_MANY_MESSAGES", f"more than {MESSAGES_PER_S} messages a second; put more in each",
                                 accepted=f"{MESSAGES_PER_S} a second")

    async def send(self, data: bytes | str) -> None:
        """Send a message. Raises Closed, and SlowCaller when the peer reads nothing for `stall_s`."""
        write = self.response.send_bytes if isinstance(data, bytes) else self.response.send_str
        if self.response.closed:
            raise Closed
        try:
            # wait_for costs a task per message; a timer that is cancelled costs 2 us.
            async with timeout(self._stall_s):
                await write(data)  # type: ignore[arg-type]
        except (asyncio.TimeoutError, TimeoutError):
            raise SlowCaller(f"answers were not read for {self._stall_s:.0f} s") from None
        except (ConnectionError, RuntimeError):  # RuntimeError: it is closing
            raise Closed from None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye. Never raises."""
        text = reason.encode()[:123].decode(errors="ignore").encode()  # what a close frame holds
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.response.close(code=code, message=text), CLOSE_S)


class Sockets:
    """All WebSockets of this gateway."""

    def __init__(self, stall_s: float, most_per_address: int = MOST_PER_ADDRESS) -> None:
        self._stall_s, self._most_per_address = stall_s, most_per_address
        self._by_address: Counter[str] = Counter()
        self._changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def open(self, request: web.Request, protocols: Sequence[str] = (),
                   most_bytes: int = MOST_MESSAGE_BYTES) -> AsyncIterator[Socket]:
        """Upgrade a request to a WebSocket. `protocols` are the subprotocols that may be answered.

        Raises web.HTTPTooManyRequests when the address has too many open.
        """
        address = request.remote or ""
        if self._by_address[address] >= self._most_per_address:
            raise web.HTTPTooManyRequests(text=f"{self._most_per_address} connections come from this address already\n",
                                          headers={"Retry-After": "5"})
        self._by_address[address] += 1
        try:
            response = web.WebSocketResponse(protocols=protocols, heartbeat=PING_S, compress=False,
                                             autoping=False, max_msg_size=most_bytes, timeout=CLOSE_S)
            await response.prepare(request)
            socket = Socket(response, request, self._stall_s)
            try:
                yield socket
            finally:
                await socket.close()
        finally:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
            self._changed.set()

    async def all_closed(self) -> None:
        """Wait until none is left."""
        while self._by_address:
            self._changed.clear()
            await self._changed.wait()


def close_code(error: MeshError) -> int:
    """The WebSocket close code for an error: whose fault it was, and whether to try again."""
    return _CLOSE_CODES.get(error.code.name, 1011)


_CLOSE_CODES = {
    "INVALID_ARGUMENT": 1008, "NOT_FOUND": 1008, "UNAUTHENTICATED": 1008, "PERMISSION_DENIED": 1008, "ABORTED": 1008,
    "FAILED_PRECONDITION": 1008, "DEADLINE_EXCEEDED": 1008, "RESOURCE_EXHAUSTED": TRY_AGAIN_LATER, "UNAVAILABLE": 1012,
}
