"""The serving end of a tunnel: many calls of a service over one stream.

A gRPC message costs about 0.1 ms of CPU at each end whatever is in it; 64 callers who are answered by one step would
pay that 64 times. In a tunnel, what all of them have to say at one moment travels in one message. The handlers are the
service's own; they don't know that they are tunnelled.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

import grpc
from moshimesh.tunnel.v1 import tunnel_pb2

from services.mesh.errors import InvalidRequest, MeshError
from services.mesh.incoming import Incoming
from services.mesh.serving import Service, internal_error

DESCRIPTOR = tunnel_pb2.DESCRIPTOR.services_by_name["TunnelService"]
# Requests of one call that may wait for its handler. The gateway has at most 4 frames in flight, but a session that has
# moved here sends again what passed while its row was rebuilt, 10 s of it (OPEN_S in services/gateway/path/stage.py).
WAITING_REQUESTS = 160
# How long what is not urgent may wait for something that is.
LAZY_S = 0.1
# Well under the limit of a message (1 MiB) even if the last item is a large one.
MESSAGE_BYTES = 256 << 10

_CANCELLED: int = grpc.StatusCode.CANCELLED.value[0]

Item = TypeVar("Item", tunnel_pb2.RequestItem, tunnel_pb2.ResponseItem)


class Outbox(list[Item]):
    """Items that wait to be sent together."""

    def __init__(self) -> None:
        super().__init__()
        self._filled = asyncio.Event()
        self._waking: asyncio.TimerHandle | None = None

    def put(self, item: Item) -> None:
        """Send an item with the next message."""
        self.append(item)
        self._filled.set()

    def put_lazily(self, item: Item) -> None:
        """Send an item with the next message, but not a message for it alone within LAZY_S."""
        self.append(item)
        if self._waking is None:
            self._waking = asyncio.get_running_loop().call_later(LAZY_S, self.wake)

    def wake(self) -> None:
        """Let `take` return although there may be nothing to send."""
        self._filled.set()

    async def take(self) -> Iterable[list[Item]]:
        """What has come together, in one or more messages of a bounded size."""
        await self._filled.wait()
        await asyncio.sleep(0)  # whoever was woken by the same event gets to say its part, too
        self._filled.clear()
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        items, size, messages = list(self), 0, [[]]  # type: ignore[var-annotated]
        self.clear()
        for item in items:
            size += len(item.message)
            if size > MESSAGE_BYTES:
                messages.append([])
                size = len(item.message)
            messages[-1].append(item)
        return messages


class TunnelServer:
    """Tunnels to the bidi methods of one service."""

    def __init__(self, service: Service, keep: Callable[[tunnel_pb2.Keep], None] = lambda keep: None) -> None:
        """`keep` hears which frames are to have their spans sent."""
        self.service = Service(DESCRIPTOR, {"Tunnel": self.tunnel}, service.stall_s)
        self.keep = keep
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
        """One tunnel."""
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
                if reader.done():
                    reader.result()  # raises what it has met
        finally:
            self._tunnels.discard(tunnel)
            reader.cancel()
            await tunnel.close()

    def start(self, method: str, requests: AsyncIterator[bytes]) -> AsyncGenerator[Any, None]:
        """Begin a call. Raises InvalidRequest for a method that the service does not have."""
        if method not in self._methods:
            raise InvalidRequest("UNKNOWN_METHOD", f"no bidi method {method} here", field="open")
        handler, parse = self._methods[method]
        return handler(Incoming(requests, parse))


class _Tunnel:
    """One tunnel's calls."""

    def __init__(self, server: TunnelServer) -> None:
        self.outbox: Outbox[tunnel_pb2.ResponseItem] = Outbox()
        self._server = server
        self._half_closed = False
        self._calls: dict[int, tuple[asyncio.Task[tunnel_pb2.CallEnd], asyncio.Queue[bytes | None]]] = {}

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return not self._calls and not self.outbox and (self._half_closed or self._server.draining)

    async def read(self, requests: AsyncIterator[tunnel_pb2.TunnelRequest]) -> None:
        """Hand every item to its call. Raises InvalidRequest at what is no message of a tunnel."""
        try:
            async for request in requests:
                for item in request.items:
                    self._receive(item)
            self._half_closed = True
        finally:
            self.outbox.wake()

    def _receive(self, item: tunnel_pb2.RequestItem) -> None:
        kind = item.WhichOneof("item")
        if kind == "open":
            if item.call in self._calls:
                return  # against the contract; the call that has the number keeps it
            waiting: asyncio.Queue[bytes | None] = asyncio.Queue()
            task = asyncio.create_task(self._run(item.call, item.open, waiting))
            task.add_done_callback(functools.partial(self._end, item.call))
            self._calls[item.call] = task, waiting
            return
        if kind == "keep":
            self._server.keep(item.keep)
            return
        if item.call not in self._calls:
            return  # it has ended, and the caller did not know yet
        task, waiting = self._calls[item.call]
        if kind == "cancel" or waiting.qsize() > WAITING_REQUESTS:
            task.cancel()  # a caller that overruns its own limit can't be answered either
        else:
            waiting.put_nowait(item.message if kind == "message" else None)

    async def _run(self, call: int, method: str, waiting: asyncio.Queue[bytes | None]) -> tunnel_pb2.CallEnd:
        try:
            responses = self._server.start(method, _until_none(waiting))
            try:
                async for response in responses:
                    self.outbox.put(tunnel_pb2.ResponseItem(call=call, message=response.SerializeToString()))
            finally:
                await responses.aclose()
        except MeshError as error:
            return _end_with(error)
        except Exception as error:
            return _end_with(internal_error(method, error))
        return tunnel_pb2.CallEnd()

    def _end(self, call: int, task: asyncio.Task[tunnel_pb2.CallEnd]) -> None:
        """Say how a call ended; not in the task itself, which may have been cancelled before it began."""
        del self._calls[call]
        end = tunnel_pb2.CallEnd(code=_CANCELLED) if task.cancelled() else task.result()
        self.outbox.put(tunnel_pb2.ResponseItem(call=call, end=end))

    async def close(self) -> None:
        """End all calls and wait for their slots to come back."""
        tasks = [task for task, _ in self._calls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _until_none(waiting: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
    while (data := await waiting.get()) is not None:
        yield data


def _end_with(error: MeshError) -> tunnel_pb2.CallEnd:
    details = error.to_status().SerializeToString()
    return tunnel_pb2.CallEnd(code=error.code.value[0], message=error.message, details=details)
