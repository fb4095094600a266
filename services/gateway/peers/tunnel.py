"""The gateway's end of a tunnel: all calls to one service share one stream (see services/mesh/tunnel.py)."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from moshimesh.tunnel.v1 import tunnel_pb2, tunnel_pb2_grpc

from services.mesh import logs
from services.mesh.errors import InvalidRequest, MeshError, PeerLost, from_rpc_error, from_status
from services.mesh.outbox import ITEM_BYTES, LAZY_S, Outbox

log = logging.getLogger(__name__)

# A service has sent a frame's spans by then, once it has been asked for them: it sends them once a second.
SPANS_SENT_S = LAZY_S + 1.5
# Requests that wait while the service does not read: what 256 sessions bring that move there at once, 500 frames of 16
# bit samples each. A service that hangs is left after 2 s (ANSWER_S in services/gateway/path/stage.py), long before.
OUTBOX_BYTES = 512 << 20
# Frames whose spans a service may not have sent yet: two seconds of 64 calls whose frames are all late.
ASKED_FRAMES = 2048

RequestMessage = TypeVar("RequestMessage", bound=Message)
ResponseMessage = TypeVar("ResponseMessage", bound=Message)


@dataclass(frozen=True)
class Method(Generic[RequestMessage, ResponseMessage]):
    """A bidi method: its full name and its messages."""

    name: str
    request: type[RequestMessage]
    response: type[ResponseMessage]


class Tunnel:
    """Calls to one service. The stream is opened by the first call, and again by the next one after it broke."""

    def __init__(self, peer: str, channel: grpc.aio.Channel, outbox_bytes: int = OUTBOX_BYTES) -> None:
        """`peer` names the service in errors; `outbox_bytes` may wait while it does not read."""
        self._peer, self._outbox_bytes = peer, outbox_bytes
        self._stub = tunnel_pb2_grpc.TunnelServiceStub(channel)
        self._stream: Stream | None = None

    def call(self, method: Method[RequestMessage, ResponseMessage]) -> Call[RequestMessage, ResponseMessage]:
        """Begin a call."""
        if self._stream is None or self._stream.broken:
            self._stream = Stream(self._peer, self._stub, self._outbox_bytes)
        return self._stream.open(method)

    @property
    def busy(self) -> bool:
        """Whether calls are going on here."""
        return self._stream is not None and self._stream.busy

    @property
    def calls(self) -> list[Call[Any, Any]]:
        """Those that are going on here."""
        return [] if self._stream is None or self._stream.broken else self._stream.calls

    @property
    def stream(self) -> Stream | None:
        """The present stream. All its answers come from one process, which remembers what it has answered."""
        return self._stream


class Call(Generic[RequestMessage, ResponseMessage]):
    """One bidi call. Sending never waits: its caller bounds what is in flight."""

    def __init__(self, number: int, outbox: Outbox[tunnel_pb2.RequestItem],
                 method: Method[RequestMessage, ResponseMessage]) -> None:
        self.method = method.name
        self.ended = False
        self._number = number
        self._outbox = outbox
        self._parse = method.response.FromString
        self._inbox: asyncio.Queue[ResponseMessage | MeshError | None] = asyncio.Queue()  # until `deliver_to`
        self._deliver: Callable[[ResponseMessage | MeshError | None], None] = self._inbox.put_nowait
        self.draining = False  # the service will stop soon, and the call with it
        self.on_draining: Callable[[], None] = _ignore
        self._outbox.put(tunnel_pb2.RequestItem(call=number, open=method.name))

    def send(self, request: RequestMessage) -> None:
        """Send a request; does nothing when the call has ended. One that is too large ends the call with an error."""
        if self.ended:
            return
        data = request.SerializeToString()
        if len(data) <= ITEM_BYTES:
            self._outbox.put(tunnel_pb2.RequestItem(call=self._number, message=data))
            return
        self.cancel()
        error = InvalidRequest("PAYLOAD_TOO_LARGE", f"a request may have {ITEM_BYTES} bytes in a tunnel, got "
                               f"{len(data)}", accepted=ITEM_BYTES)
        asyncio.get_running_loop().call_soon(lambda: self._deliver(error))  # not while its sender still runs

    def half_close(self) -> None:
        """Say that no more requests come."""
        if not self.ended:
            self._outbox.put(tunnel_pb2.RequestItem(call=self._number, half_close=tunnel_pb2.Nothing()))

    def cancel(self) -> None:
        """End the call; the service takes its slot back."""
        self.on_draining = _ignore
        if not self.ended:
            self.ended = True
            self._outbox.put(tunnel_pb2.RequestItem(call=self._number, cancel=tunnel_pb2.Nothing()))

    def __aiter__(self) -> Call[RequestMessage, ResponseMessage]:
        return self

    async def __anext__(self) -> ResponseMessage:
        """The next response. Raises MeshError when the call ended badly."""
        item = await self._inbox.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, MeshError):
            raise item
        return item

    def deliver_to(self, deliver: Callable[[ResponseMessage | MeshError | None], None]) -> None:
        """From now on hand over at once what comes: a response, the error that ended the call, or None when it
        ended well. Must not raise.
        """
        self._deliver = deliver
        while not self._inbox.empty():
            deliver(self._inbox.get_nowait())

    def drain(self) -> None:
        """The service is about to stop."""
        self.draining = True
        self.on_draining()

    def lose(self, error: MeshError) -> None:
        """The stream below broke."""
        if not self.ended:
            self.ended = True
            self._deliver(error)

    def receive(self, item: tunnel_pb2.ResponseItem, peer: str) -> None:
        """Take what the service sent."""
        if self.ended:
            return
        if item.WhichOneof("item") == "message":
            try:
                response = self._parse(item.message)
            except DecodeError:
                self.cancel()
                self._deliver(PeerLost(f"{peer} sent what is no answer of its contract", peer=peer))
            else:
                self._deliver(response)
            return
        self.ended = True
        end = item.end
        self._deliver(from_status(end.code, end.message, end.details, peer) if end.code else None)


class Stream:
    """One stream and the calls in it."""

    def __init__(self, peer: str, stub: tunnel_pb2_grpc.TunnelServiceStub, outbox_bytes: int) -> None:
        self.broken = self._draining = False
        self._peer = peer
        self._outbox: Outbox[tunnel_pb2.RequestItem] = Outbox(outbox_bytes, self._on_full)
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call[Any, Any]] = {}
        self._now = asyncio.get_running_loop().time
        self._heard = self._now()  # when something came last
        # Frames whose spans were asked for, when, and what to do should the service be lost before it has sent them.
        self._asked: deque[tuple[float, Callable[[], None]]] = deque(maxlen=ASKED_FRAMES)
        self._failure = f"{peer} closed its tunnel"
        # The stream serves many calls, and outlives the one that happened to open it.
        self._reader = logs.unbound().run(self._start, stub)

    @property
    def busy(self) -> bool:
        """Whether calls are going on in it."""
        return not self.broken and bool(self._calls)

    @property
    def calls(self) -> list[Call[Any, Any]]:
        """Those that are going on in it."""
        return list(self._calls.values())

    def open(self, method: Method[RequestMessage, ResponseMessage]) -> Call[RequestMessage, ResponseMessage]:
        """Begin a call."""
        number = next(self._numbers)
        call = self._calls[number] = Call(number, self._outbox, method)
        call.draining = self._draining
        return call

    def keep(self, keep: tunnel_pb2.Keep, lost: Callable[[], None]) -> None:
        """Ask for the spans of a frame that was answered here. `lost` is called when they will not come: now if the
        service is gone or drains; later if it is lost before it can have sent them.
        """
        if self.broken or self._draining:
            lost()
            return
        self._outbox.put_lazily(tunnel_pb2.RequestItem(keep=keep))
        self._forget_sent()
        self._asked.append((self._now(), lost))

    def _forget_sent(self) -> None:
        while self._asked and self._asked[0][0] < self._heard - SPANS_SENT_S:
            self._asked.popleft()

    def _start(self, stub: tunnel_pb2_grpc.TunnelServiceStub) -> asyncio.Task[None]:
        self._rpc = stub.Tunnel(self._requests())
        return asyncio.create_task(self._read())

    async def _requests(self) -> AsyncIterator[tunnel_pb2.TunnelRequest]:
        while not self.broken:  # gRPC waits for the next one also when the stream has ended
            for items in await self._outbox.take():
                if items:
                    yield tunnel_pb2.TunnelRequest(items=items)

    async def _read(self) -> None:
        """Hand every item to its call. At its end, however it comes, each call is told that the
        service is lost, and may move: if one call was the cause, it can't be known which.
        """
        try:
            async for response in self._rpc:
                self._heard = self._now()
                if response.draining:
                    self._draining = True
                    for call in list(self._calls.values()):
                        call.drain()
                for item in response.items:
                    self._receive(item)
        except grpc.aio.AioRpcError as error:
            self._failure = f"the tunnel to {self._peer} broke: {from_rpc_error(error, self._peer).message}"
            if not self._draining:  # one that drains sends its spans before it ends
                self._forget_sent()
                asked, self._asked = self._asked, deque()
                for _, lost in asked:
                    lost()
        except Exception:
            log.exception("the tunnel to %s failed", self._peer)
        finally:
            self.broken = True
            self._outbox.wake()
            self._rpc.cancel()  # unless it has ended, its calls hold slots
            for call in self._calls.values():
                call.lose(PeerLost(self._failure, peer=self._peer))

    def _receive(self, item: tunnel_pb2.ResponseItem) -> None:
        call = self._calls.get(item.call)
        if call is None:
            return
        call.receive(item, self._peer)
        if item.WhichOneof("item") == "end":
            del self._calls[item.call]

    def _on_full(self) -> None:
        """The service has not read for long."""
        self.broken = True
        self._failure = f"{self._peer} does not read what it is sent"
        self._rpc.cancel()


def _ignore() -> None:
    pass
