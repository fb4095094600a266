"""What stands between a TCP connection of the HTTP port and aiohttp: bounds that aiohttp does not have.

Some versions of aiohttp look at a message's length when all of it is in memory, and all wait without end for a
request's last byte, and keep as many requests for later as come before an answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from aiohttp import web

from services.gateway.trust.addresses import counted_as

MOST_PER_ADDRESS = 1024  # connections: a proxy's plain requests, besides the WebSockets that it may have
# A plain request must be whole, and its answer taken, so long after the connection was made or the last answer began.
REQUEST_S = 10.0
# What may come of a WebSocket before the first message of it is read, besides the longest message: what aiohttp reads
# ahead, and the pieces in which the kernel hands out bytes.
READ_AHEAD_BYTES = 1 << 20
# What may come of plain requests until an answer begins: a body and its headers, several times. Also of a WebSocket
# until it is one; peers wait for that.
PLAIN_BYTES = 1 << 18
# Requests that may wait for the answers to those before them. Browsers send none ahead, some scripts a few; each takes
# 1 kB here for 20 bytes there.
PIPELINED = 32
_PIECE_BYTES = 1 << 13  # handed on before the requests are counted again


class Connections:
    """All connections of a port, counted by address."""

    def __init__(self, request_s: float = REQUEST_S, most_per_address: int = MOST_PER_ADDRESS) -> None:
        self.request_s, self.most_per_address = request_s, most_per_address
        self.by_address: Counter[str] = Counter()


class Connection(asyncio.Protocol):
    """One of them; hands everything on to aiohttp's own protocol."""

    def __init__(self, handler: asyncio.Protocol, all: Connections) -> None:
        self._handler, self._all = handler, all
        self._handles = False  # whether aiohttp knows of the connection
        self.flooded = False
        """Whether a message was too long: nothing more is read, and the call ends."""
        self._unread_bytes = 0
        self._most_unread_bytes = PLAIN_BYTES
        self._call: asyncio.Task[object] | None = None  # None: no WebSocket yet
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def of(cls, request: web.BaseRequest) -> Connection | None:
        """The connection that a request came on; None when it is lost."""
        protocol = None if request.transport is None else request.transport.get_protocol()
        return protocol if isinstance(protocol, cls) else None

    def answered(self) -> None:
        """The answer to a plain request begins."""
        self._unread_bytes = 0
        self._wait(self._all.request_s)

    def upgraded(self, most_bytes: int) -> None:
        """It is a WebSocket now, with messages of so many bytes at the most; this task holds its call."""
        self._stop_waiting()
        self._call = asyncio.current_task()
        self._unread_bytes, self._most_unread_bytes = 0, most_bytes + READ_AHEAD_BYTES

    def read(self) -> None:
        """A message of the WebSocket has been read."""
        self._unread_bytes = 0

    # What the transport calls:

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._address = counted_as(str((transport.get_extra_info("peername") or ("",))[0]))
        self._all.by_address[self._address] += 1
        if self._all.by_address[self._address] > self._all.most_per_address:
            transport.abort()
            return
        self._handles = True
        self._handler.connection_made(transport)
        self._wait(self._all.request_s)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if not self._handles or self.flooded:
            return
        self._unread_bytes += len(data)
        if self._unread_bytes > self._most_unread_bytes:
            self.flooded = True
            if self._call is None:
                self._transport.abort()
            else:
                self._call.cancel()
        elif self._call is not None:
            self._handler.data_received(data)
        else:
            self._hand_on(data)

    def _hand_on(self, data: bytes) -> None:
        """Plain requests, as long as not too many of them wait."""
        for at in range(0, len(data), _PIECE_BYTES):
            self._handler.data_received(data[at:at + _PIECE_BYTES])
            if len(self._handler._messages) > PIPELINED:  # type: ignore[attr-defined]  # aiohttp has no word for it
                self.flooded = True
                self._transport.abort()
                return

    def eof_received(self) -> bool | None:
        """See asyncio.Protocol."""
        return self._handler.eof_received() if self._handles else None

    def pause_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._handler.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.BaseProtocol."""
        self._stop_waiting()
        self._all.by_address[self._address] -= 1
        if not self._all.by_address[self._address]:
            del self._all.by_address[self._address]
        if self._handles:
            self._handles = False
            self._handler.connection_lost(error)

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._transport.abort)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
