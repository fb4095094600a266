"""A service as a process: one port with health and reflection, a start that says why it fails, a stop that drains."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc

from services.mesh import logs
from services.mesh.config import ServiceConfig
from services.mesh.errors import Draining
from services.mesh.introspection import Health, Reflection
from services.mesh.serving import RunningStreams, Service, register
from services.mesh.tls import Identity
from services.mesh.transport import SERVER_OPTIONS

log = logging.getLogger(__name__)

# After the grace of a drain a service ends its calls itself, and may say so in-band; the rest are ended from here.
FAREWELL_S = 3.0
# Calls that were ended with a reason: this long their last message has to get out.
CUT_S = 1.0
HEALTH_S = 1.0  # health may be this old; a prober waits for several bad answers before it acts
CLEAN_UP_S = 2.0  # for the handlers of calls that have ended to run to their own end; usually milliseconds


class Servable(Protocol):
    """What a process serves."""

    @property
    def services(self) -> Sequence[Service]:
        """Its gRPC services."""

    def drain(self) -> None:
        """Take no new calls, through any door."""

    async def close(self) -> None:
        """Give back what it holds, after the last call has ended."""


class Door(Protocol):
    """Another way to what a process serves than gRPC, on a port of its own."""

    async def open(self) -> None:
        """Listen, and take calls until `close`."""

    async def close(self) -> None:
        """Stop listening, and return when the last call has ended; when cancelled, end the calls that are left."""


class MeshServer:
    """A bound port that becomes ready when its service is."""

    def __init__(self, config: ServiceConfig, program: str, options: Sequence[tuple[str, int]] = (), *,
                 tls: Identity | None = None) -> None:
        """Bind at once, so that a busy port is known before a model is loaded. `options` are gRPC's, besides ours.
        Without `tls` the port is in plain text.
        """
        self.program = program
        self._drain_s = config.drain_s
        self._tls = tls
        _check_free(program, config.host, config.port, "--port")
        self._server = grpc.aio.server(options=[*SERVER_OPTIONS, *options])
        self._health = Health()
        self._reflection = config.reflection
        self._running = RunningStreams()
        host = f"[{config.host}]" if ":" in config.host else config.host
        address = f"{host}:{config.port}"
        self.port: int = (self._server.add_insecure_port(address) if tls is None else
                          self._server.add_secure_port(address, tls.server_credentials()))
        self.address = f"{host}:{self.port}"
        self._health_server: grpc.aio.Server | None = None
        if config.health_port:
            _check_free(program, config.host, config.health_port, "--health-port")
            self._health_server = grpc.aio.server(options=SERVER_OPTIONS)
            self._health_server.add_insecure_port(f"{host}:{config.health_port}")

    async def start(self, served: Servable, alive: Callable[[], bool] = lambda: True,
                    ready: Callable[[], bool] = lambda: True, doors: Sequence[Door] = ()) -> None:
        """Serve, and let health say how it is, as long as it runs.

        Args:
            served: what to serve.
            alive: whether the process makes progress; health of "" says that. Without it a restart should follow.
            ready: whether a new call could be served now; health of each service's name answers that, when alive.
            doors: other ways to it than gRPC; they open after gRPC does, and close with it.
        """
        self._served, self._doors = served, doors
        for service in served.services:
            register(self._server, service, self._running)
        names = [service.name for service in served.services]
        register(self._server, self._health.service, self._running)
        if self._reflection:
            register(self._server, Reflection((*names, self._health.service.name)).service, self._running)
        self._say_health(names, alive=False, ready=False)
        servers = [self._server]
        if self._health_server is not None:
            register(self._health_server, self._health.service, self._running)
            servers.append(self._health_server)
        try:
            for server in servers:
                await server.start()
            for door in doors:
                await door.open()
        except BaseException:  # gRPC puts a traceback behind the reason when a server is left as it is
            for server in servers:
                await server.stop(0)
            raise
        # What is there by now stays. Looking through all of it again, with torch 200 000 objects, would stall every
        # call for 0.1 s about once a minute; from here on only objects made by calls are looked at.
        gc.collect()
        gc.freeze()
        said = alive(), ready()
        self._say_health(names, *said)
        self._watching = asyncio.create_task(self._watch(names, alive, ready, said))

    async def _watch(self, names: Sequence[str], alive: Callable[[], bool], ready: Callable[[], bool],
                     said: tuple[bool, bool]) -> None:
        while True:
            await asyncio.sleep(HEALTH_S)
            if self._tls is not None:
                self._tls.look()
            now = alive(), ready()
            if now == said:
                continue
            said = now
            self._say_health(names, *now)
            if not now[0]:
                log.error("a step does not end; health says so, and this process should be restarted")
            elif not now[1]:
                log.error("no call can be served; health says so until one can")
            else:
                log.info("healthy again")

    def _say_health(self, names: Sequence[str], alive: bool, ready: bool) -> None:
        for name, good in (("", alive), *((name, alive and ready) for name in names)):
            self._health.set(name, good)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, let the running ones end for `grace_s`, then end them."""
        self._served.drain()
        self._watching.cancel()
        self._health.shut_down()
        stopping = asyncio.create_task(self._server.stop(grace_s + FAREWELL_S + CUT_S))
        closing = [asyncio.create_task(_close(door)) for door in self._doors]
        await asyncio.wait((stopping, *closing), timeout=grace_s + FAREWELL_S)
        for task in closing:
            task.cancel()
        self._running.end_with(Draining(f"{self.program} stops now; connect again to reach another replica"))
        await stopping
        if self._health_server is not None:
            await self._health_server.stop(0)
        # gRPC waits for its calls' ends, not for what their handlers do after that: the last record, a span.
        await self._running.ended(CLEAN_UP_S)
        if closing:
            await asyncio.wait(closing, timeout=CLEAN_UP_S)
        await self._served.close()

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


async def _close(door: Door) -> None:
    try:
        await door.close()
    except Exception:  # the process ends all the same, and its last records are written
        log.exception("%s did not close", type(door).__name__)


def _check_free(program: str, host: str, port: int, flag: str) -> None:
    """Ends the process when the port can't be had; gRPC would say it in several lines of its own."""
    try:
        _probe(host, port)
    except OSError as error:
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        other = f"another port with {flag}" if taken else "an address of this machine with --host"
        raise SystemExit(f"{program}: can't listen on {host}:{port} ({error.strerror}); choose {other}") from None


def _probe(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _allow_many_connections() -> None:
    """Each connection takes a descriptor, and many systems allow 1024 unless a process asks for more, as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def run(program: str, config: ServiceConfig, main: Callable[[], Any]) -> None:
    """Run a service's main coroutine with logs set up; known failures end with one line and exit code 1."""
    logs.configure(config, program)
    _allow_many_connections()
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
