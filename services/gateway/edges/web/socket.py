"""A caller's WebSocket: bounded in what it takes, in what it leaves unread, and in how many one address may open."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

from aiohttp import WSMsgType, web

from services.gateway.edges.web.connection import Connection
from services.gateway.edges.web.credentials import address_of
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
# How often a peer that speaks is asked whether it has read what was sent: the answer stands behind that. Kernels on the
# way hold minutes of Opus, so writes alone would not show that nobody reads.
PROBE_S = 2.0
_PROBE = b"read?"
CLOSE_S = 2.0  # for the peer's half of the closing handshake
# With less than this to write, in characters of up to 4 bytes, a transport does not make its writers wait: it does from
# 64 KiB on, until 16 KiB are left.
NO_WAIT_SIZE = 15_000

# aiohttp's one warning there tells which subprotocols were offered, and a browser's ticket or key is one of them.
logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)

TRY_AGAIN_LATER = 1013  # https://www.iana.org/assignments/websocket/websocket.xhtml


class Closed(Exception):
    """The peer has closed the socket, or its connection is lost."""


class Socket:
    """One WebSocket, open."""

    def __init__(self, response: web.WebSocketResponse, request: web.Request, connection: Connection, stall_s: float,
                 most_bytes: int) -> None:
        self._connection, self._stall_s = connection, stall_s
        self.response = response
        """What the request's handler returns."""
        self._most_bytes = most_bytes
        self.request = request
        self.protocol: str | None = response.ws_protocol
        self._clock = asyncio.get_running_loop().time
        self._messages, self._counted_at = 0.0, self._clock()  # less what may come in the time since
        # While an answer to a probe is due: for how long the socket was read and nothing had come. The time when it is
        # not read does not count, since the answer may wait behind what the peer sends.
        self._probed_at, self._probing = self._clock(), False
        self._hungry_s, self._hungry_since = 0.0, math.inf

    async def receive(self) -> bytes | str:
        """The next message. Raises Closed, and InvalidRequest when there are too many. One of too many bytes closes the
        socket with 1009.
        """
        while True:
            self._hungry_since = self._clock()
            try:
                message = await self.response.receive()
            finally:
                now = self._clock()
                self._hungry_s += now - self._hungry_since
                self._hungry_since = math.inf
            self._connection.read()
            self._count(now)
            if message.type in (WSMsgType.BINARY, WSMsgType.TEXT):
                if now - self._probed_at > PROBE_S and not self._probing:
                    await self._probe(now)
                data: bytes | str = message.data
                if len(data) > self._most_bytes:
                    self._connection.flooded = True
                    raise Closed
                return data
            if message.type is WSMsgType.PING:
                with contextlib.suppress(ConnectionError):  # the next read says so
                    await self.response.pong(message.data)
            elif message.type is WSMsgType.PONG:
                self._probing = self._probing and message.data != _PROBE
            else:
                raise Closed

    async def first(self, within_s: float) -> bytes | str:
        """The first message, as `receive`. Raises SlowCaller when it does not come in time."""
        try:
            async with timeout(within_s):
                return await self.receive()
        except (asyncio.TimeoutError, TimeoutError):
            raise SlowCaller(f"nothing was sent within {within_s:.0f} s") from None

    async def _probe(self, now: float) -> None:
        self._probing, self._probed_at, self._hungry_s = True, now, 0.0
        with contextlib.suppress(ConnectionError):  # the next read says so
            await self.response.ping(_PROBE)

    def _count(self, now: float) -> None:
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
        if self._probing and self._hungry_s + max(self._clock() - self._hungry_since, 0.0) > self._stall_s:
            raise self._slow()
        transport = self.request.transport
        try:
            if transport is not None and transport.get_write_buffer_size() + len(data) < NO_WAIT_SIZE:
                await write(data)  # type: ignore[arg-type]  # the usual case, without a timer
                return
            # wait_for costs a task per message.
            async with timeout(self._stall_s):
                await write(data)  # type: ignore[arg-type]
        except (asyncio.TimeoutError, TimeoutError):
            raise self._slow() from None
        except (ConnectionError, RuntimeError):  # RuntimeError: it is closing
            raise Closed from None

    def _slow(self) -> SlowCaller:
        return SlowCaller(f"answers were not read for {self._stall_s:.0f} s")

    async def refuse(self, error: MeshError, message: bytes | str) -> None:
        """Say why the call ends, in its protocol's words, and close. Never raises."""
        with contextlib.suppress(Closed, MeshError):
            await self.send(message)
        await self.close(close_code(error), error.reason)

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

        Raises web.HTTPTooManyRequests when the address has too many open, web.HTTPBadRequest for no handshake.
        """
        address = address_of(request)
        if self._by_address[address] >= self._most_per_address:
            raise web.HTTPTooManyRequests(text=f"{self._most_per_address} connections come from this address already\n",
                                          headers={"Retry-After": "5"})
        self._by_address[address] += 1
        try:
            # aiohttp's own bound is off: some versions only look when they have the whole message, others hang up
            # without a word that the peer could read.
            response = web.WebSocketResponse(protocols=protocols, heartbeat=PING_S, compress=False,
                                             autoping=False, max_msg_size=0, timeout=CLOSE_S)
            try:
                await response.prepare(request)
            except ValueError:  # what aiohttp makes of a key that is not in ASCII
                raise web.HTTPBadRequest(text="Sec-WebSocket-Key is not 16 bytes in base64\n") from None
            connection = Connection.of(request)
            if connection is None:  # lost meanwhile
                raise asyncio.CancelledError
            connection.upgraded(most_bytes)
            socket = Socket(response, request, connection, self._stall_s, most_bytes)
            try:
                yield socket
            finally:
                await (socket.close(1009, "the message is too long") if connection.flooded else socket.close())
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


async def until_one_ends(*sides: Coroutine[Any, Any, None]) -> list[Exception]:
    """Run both directions of a call until either ends. Returns what failed, other than by the peer's leaving."""
    tasks = [asyncio.create_task(side) for side in sides]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    return [result for result in results if isinstance(result, Exception) and not isinstance(result, Closed)]


def close_code(error: MeshError) -> int:
    """The WebSocket close code for an error: whose fault it was, and whether to try again."""
    return _CLOSE_CODES.get(error.code.name, 1011)


_CLOSE_CODES = {
    "INVALID_ARGUMENT": 1008, "NOT_FOUND": 1008, "UNAUTHENTICATED": 1008, "PERMISSION_DENIED": 1008, "ABORTED": 1008,
    "FAILED_PRECONDITION": 1008, "DEADLINE_EXCEEDED": 1008, "RESOURCE_EXHAUSTED": TRY_AGAIN_LATER, "UNAVAILABLE": 1012,
}
