"""Serves our services over gRPC: handlers are plain functions of messages, and calls end cleanly.

A handler knows neither gRPC's context nor whether its call came through a tunnel (see tunnel.py): it takes parsed
requests, gives responses, and raises MeshError. Here that becomes a call of gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from services.mesh.errors import MeshError, SlowCaller
from services.mesh.incoming import Incoming, Sender, parser

log = logging.getLogger(__name__)

# Those of streams are async generators, so that `finally` gives back what a call holds, however it ends.
BidiHandler: TypeAlias = Callable[[Incoming[Any]], AsyncGenerator[Any, None]]
ServerStreamHandler: TypeAlias = Callable[[Any, Sender], AsyncGenerator[Any, None]]
UnaryHandler: TypeAlias = Callable[[Any, Sender], Awaitable[Any]]
Handler: TypeAlias = BidiHandler | ServerStreamHandler | UnaryHandler
Parse: TypeAlias = Callable[[bytes], Any]
Context: TypeAlias = grpc.aio.ServicerContext


@dataclass(frozen=True)
class Service:
    """A gRPC service: its contract, a handler for each of its methods, and how long answers may stay unread.

    Raises:
        ValueError: the handlers are not those that the contract names.
    """

    descriptor: ServiceDescriptor
    handlers: Mapping[str, Handler]
    stall_s: float

    def __post_init__(self) -> None:
        methods = {method.name for method in self.descriptor.methods}
        if methods != self.handlers.keys():
            raise ValueError(f"{self.name} has the methods {sorted(methods)}, but handlers for {sorted(self.handlers)}")
        if odd := [method.name for method in self.descriptor.methods
                   if method.client_streaming and not method.server_streaming]:
            raise ValueError(f"{self.name}: only {', '.join(odd)}'s requests stream, which nothing here serves")

    @property
    def name(self) -> str:
        """Its full name."""
        name: str = self.descriptor.full_name
        return name

    @property
    def bidi(self) -> Mapping[str, tuple[BidiHandler, Parse]]:
        """The handlers of bidi methods, and what parses their requests, by full name."""
        return {f"/{self.name}/{method.name}": (self.handlers[method.name], _parser(method))  # type: ignore[misc]
                for method in self.descriptor.methods if method.client_streaming}


class RunningStreams:
    """The streams that a server has open."""

    def __init__(self) -> None:
        self._watches: set[_Watch] = set()  # holds their tasks, too: the event loop does not

    def watch(self, watch: _Watch) -> None:
        """Hold one until it has ended."""
        self._watches.add(watch)
        watch.task.add_done_callback(lambda _: self._watches.discard(watch))

    def end_with(self, failure: MeshError) -> None:
        """End all of them, whatever their handlers are doing."""
        for watch in list(self._watches):
            watch.end_with(failure)

    async def ended(self, within_s: float) -> None:
        """Wait until the handlers of all have run to their end, for `within_s` at the most."""
        if left := [watch.task for watch in self._watches]:
            await asyncio.wait(left, timeout=within_s)


def register(server: grpc.aio.Server, service: Service, running: RunningStreams) -> None:
    """Add a service to a server."""
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.name, {
        method.name: _stream(service, method, running) if method.server_streaming else _unary(service, method)
        for method in service.descriptor.methods}),))


def _unary(service: Service, method: MethodDescriptor) -> grpc.RpcMethodHandler:
    handler: Any = service.handlers[method.name]
    parse = _parser(method)

    async def call(data: bytes, context: Context) -> Any:
        try:
            return await handler(parse(data), _sender(context))
        except MeshError as error:
            await error.abort(context)
        except Exception as error:
            await internal_error(method.full_name, error).abort(context)

    return grpc.unary_unary_rpc_method_handler(call, response_serializer=_serialized)


def _stream(service: Service, method: MethodDescriptor, running: RunningStreams) -> grpc.RpcMethodHandler:
    handler: Any = service.handlers[method.name]
    parse = _parser(method)

    def begin(came: Any, context: Context) -> AsyncGenerator[Any, None]:
        sender = _sender(context)
        responses: AsyncGenerator[Any, None] = (
            handler(Incoming(came, parse, sender)) if method.client_streaming else handler(parse(came), sender))
        return responses

    async def call(came: Any, context: Context) -> AsyncIterator[Any]:
        try:
            responses = begin(came, context)
        except MeshError as error:
            await error.abort(context)
        watch = _Watch(service.stall_s, responses, context)
        running.watch(watch)
        try:
            async for response in responses:
                watch.writing_since = watch.now()
                yield response
                watch.writing_since = None
                if watch.failure:  # the watch has closed `responses` and ended the call
                    return
        except MeshError as error:
            await error.abort(context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await internal_error(method.full_name, error).abort(context)

    kind = grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_stream_rpc_method_handler
    return kind(call, response_serializer=_serialized)


def _parser(method: MethodDescriptor) -> Parse:
    return parser(message_factory.GetMessageClass(method.input_type))


def _serialized(response: Any) -> bytes:
    data: bytes = response.SerializeToString()
    return data


def _sender(context: Context) -> Sender:
    """Who calls. Of the metadata the first of each name; binary values (of names that end in -bin) are left out."""
    found: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            found.setdefault(name, value)
    return Sender(found, context.peer())


class _Watch:
    """Looks after one stream from outside; made in the task that runs the handler.

    grpc.aio only drops the generator of a call that was cancelled, and waits without limit for a caller that does not
    read. The generator's `finally` blocks give back slots, so both cases close it here.
    """

    def __init__(self, stall_s: float, responses: AsyncGenerator[Any, None], context: Context) -> None:
        self.failure: MeshError | None = None
        self.writing_since: float | None = None
        self.now = asyncio.get_running_loop().time
        self._stall_s = stall_s
        self._responses = responses
        self._context = context
        self._ended = False
        self._wake = asyncio.Event()
        self._handling = asyncio.current_task()
        self.task = asyncio.create_task(self._close())
        context.add_done_callback(lambda _: self._on_end())

    def end_with(self, failure: MeshError) -> None:
        """End the call with an error, whatever its handler is doing."""
        self.failure = failure
        self._wake.set()

    def _on_end(self) -> None:
        self._ended = True
        self._wake.set()

    async def _close(self) -> None:
        """Close the handler's generator when the call has ended, or when its caller has not read for stall_s."""
        while not self._wake.is_set():
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._stall_s / 4)
            if self.writing_since is not None and self.now() - self.writing_since > self._stall_s:
                self.end_with(SlowCaller(f"no answer was read for {self._stall_s:.0f} s"))
        if self.writing_since is not None:  # the generator is suspended while its answer is written
            await _close(self._responses)
        if self.failure is not None and not self._ended:
            with contextlib.suppress(grpc.aio.AbortError, Exception):
                await self.failure.abort(self._context)  # waits for a write that may never end
        if not await _close(self._responses) and self._handling is not None:
            self._handling.cancel()  # it waits for something other than its caller
            await _close(self._responses)


def internal_error(where: str, error: BaseException) -> MeshError:
    """The error that a caller gets for a bug of ours; the log has the details."""
    log.error("%s failed", where, exc_info=error)
    return MeshError(f"internal error ({type(error).__name__}); the service's log has the details")


async def _close(responses: AsyncGenerator[Any, None]) -> bool:
    """Whether it is closed; not if it still runs after a second."""
    for _ in range(100):  # a cancelled handler may still be in its own `finally`
        try:
            await responses.aclose()
            return True
        except RuntimeError:  # it is running
            await asyncio.sleep(0.01)
    return False
