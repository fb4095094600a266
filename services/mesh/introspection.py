"""What every client may ask a process: its health, and the contracts that it serves.

Both are streams that any client could keep open for ever, so only a few of each are served. Health is our own because
gRPC's servicer waits for its watchers to read before it takes a new status: one that does not read would hold up a
drain.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from services.mesh.errors import MeshError, SlowCaller
from services.mesh.incoming import Incoming, Sender, next_within
from services.mesh.serving import Service

SERVING, NOT_SERVING, UNKNOWN = (health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING,
                                 health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)

# A kubelet and each gateway's channel; a client of gRPC watches once per connection if it is told to.
MOST_WATCHES = 64
# A tool asks a few questions and leaves.
MOST_REFLECTIONS = 16
REFLECTION_S = 30.0  # without a question
STALL_S = 10.0


class UnknownService(MeshError):
    """Health is asked of a service that is not served here."""

    code, reason = grpc.StatusCode.NOT_FOUND, "UNKNOWN_SERVICE"


class TooManyStreams(MeshError):
    """As many streams of this kind are open as may be."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS"
    retry_after_s = 5.0


class Health:
    """grpc.health.v1: the status of each service by name, and of the process as ""."""

    def __init__(self, most_watches: int = MOST_WATCHES) -> None:
        self.service = Service(health_pb2.DESCRIPTOR.services_by_name["Health"],
                               {"Check": self.check, "List": self.list, "Watch": self.watch}, STALL_S)
        self._few = _Few(most_watches)
        self._status: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._shut_down = False

    def set(self, name: str, good: bool) -> None:
        """Say how a service is; not after `shut_down`."""
        if not self._shut_down:
            self._set(name, SERVING if good else NOT_SERVING)

    def shut_down(self) -> None:
        """No service takes calls any more."""
        self._shut_down = True
        for name in self._status:
            self._set(name, NOT_SERVING)

    def _set(self, name: str, status: int) -> None:
        self._status[name] = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def check(self, request: health_pb2.HealthCheckRequest, sender: Sender) -> health_pb2.HealthCheckResponse:
        """How a service is now. Raises UnknownService."""
        if request.service not in self._status:
            raise UnknownService("no such service here; leave the name empty to ask about the process")
        return health_pb2.HealthCheckResponse(status=self._status[request.service])

    async def list(self, request: health_pb2.HealthListRequest, sender: Sender) -> health_pb2.HealthListResponse:
        """How all are now."""
        return health_pb2.HealthListResponse(statuses={
            name: health_pb2.HealthCheckResponse(status=status) for name, status in self._status.items()})

    async def watch(self, request: health_pb2.HealthCheckRequest, sender: Sender
                    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """How a service is, and again whenever that changes. Raises TooManyStreams."""
        said: int | None = None
        with self._few.one():
            while True:
                changed, status = self._changed, self._status.get(request.service, UNKNOWN)
                if status != said:
                    said = status
                    yield health_pb2.HealthCheckResponse(status=status)
                if self._shut_down:  # else a watcher would hold up the end of the process
                    return
                await changed.wait()


class Reflection:
    """grpc.reflection.v1alpha: which services are served, and their contracts."""

    def __init__(self, names: Sequence[str], most_streams: int = MOST_REFLECTIONS, idle_s: float = REFLECTION_S
                 ) -> None:
        """`names` of the services, besides this one."""
        self.service = Service(reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
                               {"ServerReflectionInfo": self.answer}, STALL_S)
        self._servicer = reflection.aio.ReflectionServicer((*names, reflection.SERVICE_NAME))
        self._few = _Few(most_streams)
        self._idle_s = idle_s

    async def answer(self, requests: Incoming[reflection_pb2.ServerReflectionRequest]
                     ) -> AsyncGenerator[reflection_pb2.ServerReflectionResponse, None]:
        """An answer to each question. Raises TooManyStreams, SlowCaller."""
        with self._few.one():
            async for response in self._servicer.ServerReflectionInfo(self._in_time(requests), None):
                yield response

    async def _in_time(self, requests: Incoming[reflection_pb2.ServerReflectionRequest]
                       ) -> AsyncGenerator[reflection_pb2.ServerReflectionRequest, None]:
        while True:
            try:
                yield await next_within(requests, self._idle_s)
            except StopAsyncIteration:
                return
            except (asyncio.TimeoutError, TimeoutError):
                raise SlowCaller(f"no question for {self._idle_s:.0f} s") from None


class _Few:
    """Counts streams of one kind."""

    def __init__(self, most: int) -> None:
        self._left = most

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Count one until the block ends. Raises TooManyStreams."""
        if not self._left:
            raise TooManyStreams("as many such streams are open as may be; end one, or try again later")
        self._left -= 1
        try:
            yield
        finally:
            self._left += 1
