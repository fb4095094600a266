"""A gateway with its HTTP side in this process: the page, the conversations, and a model whose voice is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from moshimesh.codec.v1 import codec_pb2_grpc
from moshimesh.lm.v1 import lm_pb2_grpc

from services.codec.server import CodecServer
from services.gateway.calls.desk import Desk
from services.gateway.calls.limits import Limits
from services.gateway.calls.resources import Resources
from services.gateway.calls.waiting import WaitingLine
from services.gateway.edges.web import entry, page, status, tickets
from services.gateway.edges.web.door import HttpDoor
from services.gateway.edges.web.pcm.edge import PcmEdge
from services.gateway.edges.web.socket import Sockets
from services.gateway.peers.fleet import Fleet
from services.gateway.peers.replicas import Replicas, codec_facts, lm_facts
from services.gateway.sessions.sessions import Sessions
from services.gateway.store import Store
from services.gateway.trust.gate import Gate, OpenGate
from services.gateway.trust.tickets import Tickets
from services.gateway.watching.metering import GatewayMetrics
from services.gateway.watching.recent import RecentFrames
from services.gateway.watching.status import Status
from services.gateway.watching.watcher import watcher
from services.lm.sampling import Sampling
from services.lm.server import LmServer
from services.mesh.metrics import Metrics
from services.mesh.telemetry import FrameTracer
from tests.browser.speaker import Ears, Mind, Mouth, Words
from tests.gateway.redis_server import RedisServer
from tests.served import Served

GRACE_S = 60.0


class Gateway:
    """`async with` opens it; `url` leads to its page."""

    def __init__(self, slots: int = 4, most_waiting: int = 5, gate: Callable[[Tickets], Gate] = OpenGate) -> None:
        self._most_waiting, self._gate = most_waiting, gate
        self.ears = Ears(slots)
        codec: Any = CodecServer(self.ears, Mouth(slots), "speaker", FrameTracer(), 5.0)  # type: ignore[arg-type]
        lm: Any = LmServer(Mind(slots), Words(), Sampling(), "speaker", "speaker",  # type: ignore[arg-type]
                           FrameTracer(), 5.0)
        self._served = (Served("codec", codec, codec_pb2_grpc.CodecServiceStub),
                        Served("lm", lm, lm_pb2_grpc.LmServiceStub))
        self._batchers = (*codec.batchers, *lm.batchers)

    async def __aenter__(self) -> Gateway:
        for one in self._served:
            await one.__aenter__()
        self._redis = RedisServer()
        self._store = Store(self._redis.url)
        await self._store.connect()
        codec, lm = self._served
        self.fleet = Fleet(Replicas("codec", codec.address, codec_facts), Replicas("lm", lm.address, lm_facts))
        for pool in (self.fleet.codec, self.fleet.lm):
            await pool.connect(time.monotonic() + 5)
            await pool.refresh()
        self.sessions = Sessions(self._store, "here", GRACE_S)
        resources = Resources(self.fleet, self.sessions, WaitingLine(self._store, self._most_waiting),
                              longest_call_s=600.0, idle_s=60.0, stall_s=5.0)
        recent = RecentFrames()
        watch = watcher(FrameTracer(), GatewayMetrics(Metrics()), recent, 1)
        self.desk = Desk(resources, Limits(self._store), watch, drain_s=5.0)
        self.sockets = Sockets(5.0)
        gate = self._gate(Tickets(self._store))
        shown = Status(self.fleet, resources.line, self.desk, recent)
        routes = [*page.routes(), *PcmEdge(self.desk, gate, self.sockets).routes, *tickets.routes(gate),
                  *entry.routes(self.desk, gate), *status.routes(shown, gate)]
        self.door = HttpDoor("127.0.0.1", 0, routes, self.sockets, ready=lambda: True)
        await self.door.open()
        self.url = f"http://localhost:{self.door.port}"
        return self

    @property
    def slots_held(self) -> int:
        """Rows that are leased now, in all services."""
        return sum(batcher.total - batcher.free for batcher in self._batchers)

    @property
    def leaks(self) -> int:
        """Rows and sockets that somebody holds."""
        return self.slots_held + sum(self.sockets._by_address.values())

    async def __aexit__(self, *_: object) -> None:
        await self.desk.close()
        await self.door.close()
        await self.fleet.codec.close()
        await self.fleet.lm.close()
        await self._store.close()
        self._redis.close()
        for one in self._served:
            await one.__aexit__()
