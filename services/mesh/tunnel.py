"""The serving end of a tunnel: many calls of a service over one stream.

A gRPC message costs about 0.1 ms of CPU at each end whatever is in it; for 64 callers that are answered by one step
that would be 64 times as much. In a tunnel, all that they send at one moment travels in one message. The handlers are
the service's own; they don't know that they are tunnelled.

Calls share the stream, so each is bounded in what it can take from the others. One that goes over a limit of its own
ends with an error of its own; only a peer that breaks the tunnel's contract loses the tunnel.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import grpc
from moshimesh.tunnel.v1 import tunnel_pb2

from services.mesh.errors import InvalidRequest, MeshError, NoFreeSlot, SlowCaller
from services.mesh.incoming import Incoming
from services.mesh.outbox import ITEM_BYTES, ITEMS_PER_MESSAGE, Outbox
from services.mesh.serving import Service, internal_error

DESCRIPTOR = tunnel_pb2.DESCRIPTOR.services_by_name["TunnelService"]
# Calls in one tunnel. An engine has 256 slots at the most and the codec two engines; the rest is for calls that are
# refused because there is no room.
MOST_CALLS = 4096
# Requests of one call that may wait for its handler. The gateway has at most 4 frames in flight, but a session that has
# moved here sends again what passed while its row was rebuilt, 10 s of it (OPEN_S in services/gateway/path/lease.py).
WAITING_REQUESTS = 160
# Bytes of all calls that may wait. Sessions that move here bring up to 4 MB each, but their handlers take it as fast as
# it comes; this is what may come while the event loop is busy. The call that brings more is refused.
WAITING_BYTES = 128 << 20
# Answers that wait while the gateway does not read: 4 frames of 256 sessions, twice.
OUTBOX_BYTES = 16 << 20

_CANCELLED: int = grpc.StatusCode.CANCELLED.value[0]


class TunnelServer:
    """Tunnels to the bidi methods of one service."""

    def __init__(self, service: Service, keep: Callable[[tunnel_pb2.Keep], None] = lambda keep: None, *,
                 most_calls: int = MOST_CALLS, waiting_bytes: int = WAITING_BYTES, outbox_bytes: int = OUTBOX_BYTES
                 ) -> None:
        """`keep` hears which frames are to have their spans sent."""
        self.service = Service(DESCRIPTOR, {"Tunnel": self.tunnel}, service.stall_s)
        self.keep = keep
        self.most_calls, self.waiting_bytes, self.outbox_bytes = most_calls, waiting_bytes, outbox_bytes
        self.draining = False
        self._tunnels: set[_Tunnel] = set()
        self._methods = service.bidi

    def drain(self) -> None:
        """Let each tunnel end with its last call."""
        self.draining = True
        for tunnel in self._tunnels:
            tunnel.outbox.wake()

    async def tunnel(self, requests: Incoming[tunnel_pb2.TunnelRequest]
                     ) -> AsyncGenerator[tunnel_pb2.TunnelResponse, None]:
        """One tunnel. Its calls end with it, and it ends when its requests can't be read any more."""
        tunnel = _Tunnel(self)
        self._tunnels.add(tunnel)
        reader = asyncio.create_task(tunnel.read(requests))
        told = False
        try:
            while not tunnel.finished:
                for items in await tunnel.outbox.take():
                    if self.draining and not told:
                        told = True
                        yield tunnel_pb2.TunnelResponse(draining=True)
                    if items:
                        yield tunnel_pb2.TunnelResponse(items=items)
                if tunnel.outbox.full:
                    raise SlowCaller(f"{self.outbox_bytes} bytes of answers wait and are not read; read the tunnel")
                if reader.done():
                    reader.result()  # raises what it has met
        finally:
            self._tunnels.discard(tunnel)
            reader.cancel()
            await tunnel.close()

    def start(self, method: str, requests: AsyncIterator[bytes]) -> AsyncGenerator[object, None]:
        """Begin a call. Raises InvalidRequest for a method that the service does not have."""
        if method not in self._methods:
            raise InvalidRequest("UNKNOWN_METHOD", f"no bidi method {method[:80]!r} here", field="open")
        handler, parse = self._methods[method]
        return handler(Incoming(requests, parse))


class _Call:
    """One call: what waits for its handler, and how it ends if not by itself."""

    def __init__(self, tunnel: _Tunnel, method: str) -> None:
        self._tunnel, self._method = tunnel, method
        self._waiting: asyncio.Queue[bytes | None] = asyncio.Queue()  # WAITING_REQUESTS and an end, see `take`
        self._failure: MeshError | None = None
        self._half_closed = False
        self.task: asyncio.Task[None]

    def take(self, data: bytes | None) -> None:
        """Hand a request to the handler, or (None) the end of them."""
        if self._failure is not None or self._half_closed:
            return
        if data is None:
            self._half_closed = True
            self._waiting.put_nowait(None)
        elif len(data) > ITEM_BYTES:
            self.fail(InvalidRequest("PAYLOAD_TOO_LARGE", f"a request may have {ITEM_BYTES} bytes in a tunnel, got "
                                     f"{len(data)}", accepted=ITEM_BYTES))
        elif self._waiting.qsize() >= WAITING_REQUESTS or not self._tunnel.make_room(len(data)):
            self.fail(InvalidRequest("TOO_MANY_WAITING", f"more than {WAITING_REQUESTS} requests of this call wait, or "
                                     f"more than {self._tunnel.server.waiting_bytes} bytes of all; send when answers "
                                     "come", accepted=WAITING_REQUESTS))
        else:
            self._waiting.put_nowait(data)

    async def requests(self) -> AsyncIterator[bytes]:
        """What has come, in order."""
        while (data := await self._waiting.get()) is not None:
            self._tunnel.make_room(-len(data))
            yield data

    def fail(self, failure: MeshError) -> None:
        """End the call with an error."""
        self._failure = failure
        self.task.cancel()

    def end(self) -> tunnel_pb2.CallEnd:
        """How it ended, after its task has; requests that still wait are dropped."""
        while not self._waiting.empty():
            self._tunnel.make_room(-len(self._waiting.get_nowait() or b""))
        if self._failure is not None:
            return _end_with(self._failure)
        if self.task.cancelled():
            return tunnel_pb2.CallEnd(code=_CANCELLED)
        error = self.task.exception()
        if error is None:
            return tunnel_pb2.CallEnd()
        return _end_with(error if isinstance(error, MeshError) else internal_error(self._method, error))


class _Tunnel:
    """One tunnel's calls."""

    def __init__(self, server: TunnelServer) -> None:
        self.server = server
        self.outbox: Outbox[tunnel_pb2.ResponseItem] = Outbox(server.outbox_bytes)
        self._half_closed = False
        self._calls: dict[int, _Call] = {}
        self._waiting_bytes = 0

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return not self._calls and self.outbox.empty and (self._half_closed or self.server.draining)

    def make_room(self, size: int) -> bool:
        """Count bytes that begin to wait (or, below 0, no longer do). False, and not counted: there are too many."""
        if size > 0 and self._waiting_bytes + size > self.server.waiting_bytes:
            return False
        self._waiting_bytes += size
        return True

    async def read(self, requests: AsyncIterator[tunnel_pb2.TunnelRequest]) -> None:
        """Hand every item to its call. Raises InvalidRequest at what is no message of a tunnel."""
        try:
            async for request in requests:
                if len(request.items) > ITEMS_PER_MESSAGE:
                    raise InvalidRequest("BAD_MESSAGE", f"a tunnel's message may have {ITEMS_PER_MESSAGE} items, got "
                                         f"{len(request.items)}", field="items", accepted=ITEMS_PER_MESSAGE)
                for item in request.items:
                    self._receive(item)
            self._half_closed = True
        finally:
            self.outbox.wake()

    def _receive(self, item: tunnel_pb2.RequestItem) -> None:
        kind = item.WhichOneof("item")
        if kind == "keep":
            self.server.keep(item.keep)
        elif kind == "open":
            self._open(item)
        elif call := self._calls.get(item.call):  # else it has ended, and the caller did not know yet
            if kind == "cancel":
                call.task.cancel()
            else:
                call.take(item.message if kind == "message" else None)

    def _open(self, item: tunnel_pb2.RequestItem) -> None:
        if item.call in self._calls:
            return  # this breaks the contract; the call that has the number keeps it
        if len(self._calls) >= self.server.most_calls:
            refusal = NoFreeSlot(f"a tunnel carries {self.server.most_calls} calls; try another replica")
            self.outbox.put(tunnel_pb2.ResponseItem(call=item.call, end=_end_with(refusal)))
            return
        call = self._calls[item.call] = _Call(self, item.open)
        call.task = asyncio.create_task(self._run(item.call, item.open, call.requests()))
        call.task.add_done_callback(functools.partial(self._end, item.call))

    async def _run(self, number: int, method: str, requests: AsyncIterator[bytes]) -> None:
        responses = self.server.start(method, requests)
        try:
            async for response in responses:
                data = response.SerializeToString()  # type: ignore[attr-defined]
                self.outbox.put(tunnel_pb2.ResponseItem(call=number, message=data))
        finally:
            await responses.aclose()

    def _end(self, number: int, _: asyncio.Task[None]) -> None:
        """Say how a call ended; not in the task itself, which may have been cancelled before it began."""
        self.outbox.put(tunnel_pb2.ResponseItem(call=number, end=self._calls.pop(number).end()))

    async def close(self) -> None:
        """End all calls and wait for their slots to come back."""
        tasks = [call.task for call in self._calls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _end_with(error: MeshError) -> tunnel_pb2.CallEnd:
    details = error.to_status().SerializeToString()
    return tunnel_pb2.CallEnd(code=error.code.value[0], message=error.message, details=details)
