"""The whole mesh on one machine: Redis, codec, lm and gateway as processes of their own.

Used by `make run`, `make demo`, the tests and the benchmarks, so all of them run the services' real commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness.redis_server import NoRedis, redis_executable

ROOT = Path(__file__).resolve().parent.parent
VOICES = ROOT / "samples" / "voices"
START_S = 120.0  # loading and warming up the small checkpoint takes seconds; a machine under load takes longer
STOP_S = 10.0


class MeshDown(RuntimeError):
    """A process of the mesh did not start, or ended."""


@dataclass
class Process:
    """One process of the mesh and what it printed last."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    on_line: Callable[[str, str], None]
    child: asyncio.subprocess.Process | None = None
    last_line: str = ""
    _pump: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it, and hand on what it prints line by line."""
        self.child = await asyncio.create_subprocess_exec(
            *self.command, cwd=ROOT, env={**os.environ, **self.environment}, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, start_new_session=True)  # Ctrl-C is ours to hand on, in order
        self._pump = asyncio.create_task(self._print())

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.child is not None and self.child.returncode is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self.child is not None:
                self.child.send_signal(number)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL for a process that does not end."""
        if self.child is None or self._pump is None:
            return
        self.send(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.child.wait(), STOP_S)
        except (asyncio.TimeoutError, TimeoutError):
            self.send(signal.SIGKILL)
            await self.child.wait()
        await self._pump

    async def _print(self) -> None:
        assert self.child is not None and self.child.stdout is not None
        async for line in self.child.stdout:
            self.last_line = line.decode(errors="replace").rstrip()
            self.on_line(self.name, self.last_line)


@dataclass
class LocalMesh:
    """Start with `async with`; processes are stopped in the order in which callers should notice."""

    checkpoint: str = "checkpoints/talker"
    device: str = "cpu"
    slots: int = 8
    gateway_port: int = 0
    codec_port: int = 0
    lm_port: int = 0
    http_port: int = 0
    """Of the first gateway's HTTP side."""
    redis_url: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    on_line: Callable[[str, str], None] = lambda name, line: None
    replicas: int = 1
    """Of each service. The second ones are called codec-2, lm-2 and gateway-2, and so on."""
    gateway_host: str = "127.0.0.1"
    gateway_flags: Sequence[str] = ()
    credentials: Mapping[str, grpc.ChannelCredentials] = field(default_factory=dict)
    """What we call a service with, by its name, if its port has TLS; flags or `environment` turn that on."""
    metrics: bool = False
    """Whether each process serves /metrics, at `metrics_ports`."""

    def __post_init__(self) -> None:
        self.gateway_port = self.gateway_port or free_port()
        self.codec_port = self.codec_port or free_port()
        self.lm_port = self.lm_port or free_port()
        self.http_port = self.http_port or free_port()
        firsts = {"codec": self.codec_port, "lm": self.lm_port, "gateway": self.gateway_port}
        self.ports = {name if number == 1 else f"{name}-{number}": port if number == 1 else free_port()
                      for name, port in firsts.items() for number in range(1, self.replicas + 1)}
        self.metrics_ports = {name: free_port() for name in self.ports} if self.metrics else {}
        self.http_ports = {name: self.http_port if name == "gateway" else free_port()
                           for name in self.ports if name.startswith("gateway")}
        self.target = f"localhost:{self.gateway_port}"
        self.url = f"{'https' if 'gateway' in self.credentials else 'http'}://localhost:{self.http_port}"
        self.processes: dict[str, Process] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="moshi-mesh-")

    async def __aenter__(self) -> LocalMesh:
        try:
            for port in (*self.ports.values(), *self.http_ports.values()):
                check_free(port)
            if not self.redis_url:
                await self._start_redis()
            for name in self.ports:
                await self.start_replica(name)
            for name in self.ports:
                await self.wait_ready(name, self.ports[name])
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in reversed(self.processes):
            await self.processes[name].stop()
        self._folder.cleanup()

    async def start_replica(self, name: str) -> None:
        """Start a service's real command, for the first time or again: codec, lm, gateway, codec-2 ..."""
        service = name.partition("-")[0]
        if service == "gateway":
            flags = ["--codec", self.addresses("codec"), "--lm", self.addresses("lm"),
                     "--http-port", str(self.http_ports[name]), *self.gateway_flags]
        else:
            flags = ["--checkpoint", self.checkpoint, "--device", self.device, "--slots", str(self.slots)]
        host = self.gateway_host if service == "gateway" else "127.0.0.1"
        await self.start_process(name, [sys.executable, "-m", f"services.{service}", "--host", host, "--port",
                                        str(self.ports[name]), *flags, *self.metrics_flags(name)])

    async def restart(self, name: str) -> None:
        """Stop a service as a rolling update does, and start it again. Raises MeshDown when it does not drain."""
        process = self.processes[name]
        process.send(signal.SIGTERM)
        assert process.child is not None
        if await process.child.wait() != 0:
            raise MeshDown(f"{name} did not drain: {process.last_line}")
        await self.start_replica(name)
        await self.wait_ready(name, self.ports[name])

    def metrics_flags(self, name: str) -> list[str]:
        """Where a process serves /metrics, if it does."""
        return ["--metrics-port", str(self.metrics_ports[name])] if name in self.metrics_ports else []

    def addresses(self, service: str) -> str:
        """All replicas of a service, separated by commas."""
        return ",".join(f"localhost:{port}" for name, port in self.ports.items() if name.partition("-")[0] == service)

    async def start_process(self, name: str, command: Sequence[str]) -> None:
        """Start any process of the mesh; it is stopped with the others."""
        path = os.pathsep.join([str(ROOT), str(ROOT / "protos" / "python")])
        environment = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        if self.redis_url:
            environment["MOSHIMESH_REDIS_URL"] = self.redis_url  # no flag: `ps` shows flags, with passwords
        self.processes[name] = Process(name, command, environment | self.environment, self.on_line)
        await self.processes[name].start()

    async def wait_ready(self, name: str, port: int) -> None:
        """Wait for a service's health. Raises MeshDown when a process ends or START_S is over."""
        try:
            await asyncio.wait_for(self._poll_health(port, self.credentials.get(name.partition("-")[0])), START_S)
        except (asyncio.TimeoutError, TimeoutError):
            raise MeshDown(f"{name} was not ready after {START_S:.0f} s: {self.processes[name].last_line}") from None

    async def _poll_health(self, port: int, credentials: grpc.ChannelCredentials | None) -> None:
        # Our own processes are never reached through a proxy, whatever http_proxy says.
        address, options = f"localhost:{port}", [("grpc.enable_http_proxy", 0)]
        async with (grpc.aio.secure_channel(address, credentials, options) if credentials else
                    grpc.aio.insecure_channel(address, options)) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                for process in self.processes.values():
                    if not process.running:
                        raise MeshDown(f"{process.name} ended: {process.last_line}")
                with contextlib.suppress(grpc.aio.AioRpcError):
                    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                await asyncio.sleep(0.1)

    async def wait_ended(self) -> Process:
        """The first process that ends."""
        waits = {asyncio.ensure_future(p.child.wait()): p for p in self.processes.values() if p.child is not None}
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()
        return waits[done.pop()]

    async def restart_redis(self) -> None:
        """Start our own Redis again, at the same place and empty, after it was killed."""
        (Path(self._folder.name) / "redis.sock").unlink(missing_ok=True)
        await self._start_redis()

    async def _start_redis(self) -> None:
        socket_path = Path(self._folder.name) / "redis.sock"
        flags = ["--port", "0", "--unixsocket", str(socket_path), "--save", "", "--loglevel", "warning"]
        try:
            server = redis_executable()
        except NoRedis as error:
            raise MeshDown(str(error)) from None
        await self.start_process("redis", [server, *flags])
        for _ in range(100):
            if socket_path.exists():
                self.redis_url = f"unix://{socket_path}"
                return
            await asyncio.sleep(0.05)
        raise MeshDown(f"redis did not start: {self.processes['redis'].last_line}")


def bundled_voices(checkpoint: str) -> tuple[str, ...]:
    """Flags of a gateway that offers the voices of the bundled checkpoint; none for others, which don't know them, and
    none where somebody has named a folder."""
    bundled = (ROOT / checkpoint).resolve() == (ROOT / "checkpoints" / "talker").resolve()
    return ("--voices", str(VOICES)) if bundled and not os.environ.get("MOSHIMESH_VOICES") else ()


def check_free(port: int) -> None:
    """Raise MeshDown when somebody listens on the port: another mesh would be taken for this one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise MeshDown(f"port {port} is taken, perhaps by another mesh; stop it or choose another --port") from None


# Below those that Linux and macOS give to connections: a port that is free now could be such a one by the time when a
# service that has loaded its weights listens on it.
PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A port that is free now."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", PORTS[secrets.randbelow(len(PORTS))]))
            port: int = probe.getsockname()[1]
            return port


@contextlib.asynccontextmanager
async def mesh_at_or_started(target: str, mesh: LocalMesh) -> AsyncIterator[str]:
    """The target if a mesh answers there, else a mesh of our own for as long as the block lasts."""
    import moshimesh

    try:
        async with moshimesh.connect(target) as running:
            await running.info()
    except moshimesh.MeshError:
        async with mesh:
            yield mesh.target
    else:
        yield target
