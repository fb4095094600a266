"""How every service speaks gRPC: one server with health and reflection, streams that open with a config, clean ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.mesh import logs
from services.mesh.config import ServiceConfig
from services.mesh.errors import Draining, InvalidRequest, MeshError, SlowCaller

log = logging.getLogger(__name__)

# One second of float audio at 48 kHz is 192 kB; nothing in the contracts is larger than a few of those.
MAX_MESSAGE_BYTES = 1 << 20
# A caller that opens a stream sends its config with it; this only has to cover a slow network.
CONFIG_WAIT_S = 10.0
# After the grace of a drain a service ends its calls itself, and may say so in-band; the rest are ended from here.
FAREWELL_S = 1.0
# Calls that were ended with a reason: this long their last message has to get out.
CUT_S = 1.0
CLEAN_UP_S = 2.0  # for the handlers of calls that have ended to run to their own end; usually milliseconds

SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a busy port must be an error, not a silent split of the callers
    # A caller whose network vanished without a goodbye is noticed after 15 s at the most, and its slot comes back.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # without it, the one above counts for nothing and a minute passes
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # lets clients ping as often
    ("grpc.keepalive_permit_without_calls", 1),
]
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.enable_http_proxy", 0),  # a proxy's way leads out; no_proxy has names, and these channels go to addresses
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # without it, the one above counts for nothing and a minute passes
    ("grpc.http2.max_pings_without_data", 0),
    # A replica that was restarted is found again within a second; gRPC's own back-off grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

Item = TypeVar("Item")
Request = TypeVar("Request")
Response = TypeVar("Response")
Context: TypeAlias = grpc.aio.ServicerContext


class Servable(Protocol):
    """A gRPC service of ours."""

    full_name: str
    stall_s: float

    def register(self, server: grpc.aio.Server) -> None:
        """Add the handlers to a server."""

    def drain(self) -> None:
        """Take nobody new."""

    async def close(self) -> None:
        """Give back what the service holds, after the last call has ended."""


def stream(handler: Callable[[Any, AsyncIterator[Request], Context], AsyncIterator[Response]]
           ) -> Callable[[Any, AsyncIterator[Request], Context], AsyncIterator[Response]]:
    """Turn errors of a bidi handler (an async generator) into statuses, and end it when its call ends or stalls.

    grpc.aio only drops the generator of a call that was cancelled, and waits without limit for a caller that does not
    read. The generator's `finally` blocks give back slots, so both cases close it here.
    """

    @functools.wraps(handler)
    async def wrapped(self: Any, requests: AsyncIterator[Request], context: Context) -> AsyncIterator[Response]:
        responses = handler(self, requests, context)
        watch = _Watch(self.stall_s, responses, context)
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
            await internal_error(handler.__qualname__, error).abort(context)

    return wrapped


class _Watch:
    """Looks after one call from outside."""

    running: ClassVar[set[_Watch]] = set()

    def __init__(self, stall_s: float, responses: AsyncIterator[Any], context: Context) -> None:
        self.failure: MeshError | None = None
        self.writing_since: float | None = None
        self.now = asyncio.get_running_loop().time
        self._stall_s = stall_s
        self._responses = responses
        self._context = context
        self._ended = False
        self._wake = asyncio.Event()
        self.task = asyncio.create_task(self._close())  # kept alive by `running`: the event loop does not
        self.task.add_done_callback(lambda _: self.running.discard(self))
        self.running.add(self)
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
        if self.writing_since is not None:  # the generator rests while its answer is written
            await _close(self._responses)
        if self.failure is not None and not self._ended:
            with contextlib.suppress(grpc.aio.AbortError, Exception):
                await self.failure.abort(self._context)  # waits for a write that may never end
        await _close(self._responses)


def internal_error(where: str, error: Exception) -> MeshError:
    """What a caller is told about a bug of ours; the log has the rest."""
    log.error("%s failed", where, exc_info=error)
    return MeshError(f"internal error ({type(error).__name__}); the service's log has the details")


async def _close(responses: AsyncIterator[Any]) -> None:
    for _ in range(100):  # 1 s: a cancelled handler may still be in its own `finally`
        try:
            await responses.aclose()  # type: ignore[attr-defined]
            return
        except RuntimeError:  # it is running
            await asyncio.sleep(0.01)


async def next_within(items: AsyncIterator[Item], seconds: float) -> Item:
    """The next item. Raises TimeoutError when it does not come in time, StopAsyncIteration at the end.

    Not `asyncio.wait_for`: before Python 3.12 that swallows a cancellation which arrives together with the item, and a
    call that was hung up would go on without its caller (https://github.com/python/cpython/issues/86296).
    """
    coming = asyncio.ensure_future(items.__anext__())
    try:
        await asyncio.wait((coming,), timeout=seconds)
        if not coming.done():
            raise TimeoutError
        return coming.result()
    finally:
        coming.cancel()


async def read_config_message(requests: AsyncIterator[Any]) -> Any:
    """The first message's config.

    Raises:
        InvalidRequest: something else came first, or nothing.
        SlowCaller: nothing came for CONFIG_WAIT_S.
    """
    try:
        first = await next_within(requests, CONFIG_WAIT_S)
    except StopAsyncIteration:
        raise InvalidRequest("CONFIG_MISSING", "the stream ended before its config; send the config first") from None
    except (asyncio.TimeoutError, TimeoutError):
        raise SlowCaller(f"no config within {CONFIG_WAIT_S:.0f} s; send it with the first message") from None
    if first.WhichOneof("request") != "config":
        raise InvalidRequest("CONFIG_MISSING", "the first message must be the config", field="config")
    return first.config


async def read_payloads(requests: AsyncIterator[Any], field: str) -> AsyncIterator[Any]:
    """The messages after the config, each of which must have `field` set."""
    async for request in requests:
        kind = request.WhichOneof("request")
        if kind == "config":
            raise InvalidRequest("CONFIG_TWICE", "the config may be sent only once", field="config")
        if kind != field:
            raise InvalidRequest("EMPTY_REQUEST", f"a message after the config must have {field} set", field=field)
        yield getattr(request, field)


def check_session_id(session_id: str) -> str:
    """Refuse an id that would not do in a log line or a key."""
    if not 1 <= len(session_id) <= 128 or not session_id.isprintable():
        raise InvalidRequest("BAD_SESSION_ID", "session_id must have 1 to 128 printable characters, got "
                             f"{len(session_id)}", field="config.session_id")
    return session_id


class MeshServer:
    """A bound port that becomes ready when its service is."""

    def __init__(self, config: ServiceConfig, program: str) -> None:
        """Bind at once, so that a busy port is known before a model is loaded."""
        self.program = program
        self._drain_s = config.drain_s
        try:
            _probe(config.host, config.port)  # gRPC would say it in several lines of its own
        except OSError as error:
            raise SystemExit(f"{program}: can't listen on {config.host}:{config.port} ({error.strerror}); choose "
                             "another port with --port") from None
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self._health = health.aio.HealthServicer()
        host = f"[{config.host}]" if ":" in config.host else config.host
        self.port: int = self._server.add_insecure_port(f"{host}:{config.port}")
        self.address = f"{host}:{self.port}"

    async def start(self, service: Servable) -> None:
        """Serve, and say that it is ready."""
        self._service = service
        service.register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((service.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME),
                                            self._server)
        await self._server.start()
        # What is there by now stays. Looking through all of it again, with torch 200 000 objects, would stall every
        # call for 0.1 s about once a minute; from here on only what calls leave behind is looked at.
        gc.collect()
        gc.freeze()
        for name in ("", service.full_name):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float) -> None:
        """Take nobody new, let running calls end for `grace_s`, then end them."""
        self._service.drain()
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._server.stop(grace_s + FAREWELL_S + CUT_S))
        await asyncio.wait((stopping,), timeout=grace_s + FAREWELL_S)
        for watch in list(_Watch.running):
            watch.end_with(Draining(f"{self.program} stops now; connect again to reach another replica"))
        await stopping
        # gRPC waits for its calls' ends, not for what their handlers still have to say: the last record, a span.
        if left := [watch.task for watch in _Watch.running]:
            await asyncio.wait(left, timeout=CLEAN_UP_S)
        await self._service.close()

    async def run_until_signal(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()

        def on_signal() -> None:
            if stop.is_set():
                os._exit(1)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        await stop.wait()
        log.info("draining for at most %.0f s; a second signal ends at once", self._drain_s)
        await self.stop(self._drain_s)
        log.info("stopped")


def _probe(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def run(program: str, config: ServiceConfig, main: Callable[[], Any]) -> None:
    """Run a service's main coroutine with logs set up; known failures end with one line and exit code 1."""
    logs.configure(config, program)
    # Until run_until_signal takes over: as process 1 of a container, SIGTERM would be ignored while a model loads.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"{program}: stopped while it was starting"))
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(main())
        except Exception as error:
            log.debug("ended by an error", exc_info=True)  # --log-level debug shows it
            lines = str(error).strip().splitlines() or [type(error).__name__]
            if config.log_format == "json":
                log.error("%s", lines[0])
                raise SystemExit(1) from None
            raise SystemExit(f"{program}: {lines[0]}") from None


def check_frame_codes(codes: Sequence[int], codebooks: int, cardinality: int, field: str = "frame.codes") -> None:
    """Refuse a frame of codes that the model can't take."""
    if len(codes) != codebooks:
        raise InvalidRequest("BAD_CODES", f"a frame must have {codebooks} codes, got {len(codes)}",
                             field=field, accepted=codebooks)
    if max(codes) >= cardinality:
        raise InvalidRequest("BAD_CODES", f"codes must be between 0 and {cardinality - 1}, got {max(codes)}",
                             field=field, accepted=f"0..{cardinality - 1}")
