"""A gateway with its HTTP side in this process: the page, the conversations, and a model whose voice is known."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from moshimesh.codec.v1 import codec_pb2_grpc
from moshimesh.lm.v1 import lm_pb2_grpc

from services.codec.server import CodecServer
from services.gateway.calls.desk import Desk
from services.gateway.calls.limits import Limits
from services.gateway.calls.resources import Resources
from services.gateway.calls.voices import Voices
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
from tests.gateway.watching.test_tracing import Spans
from tests.served import Served

GRACE_S = 60.0


class Gateway:
    """`async with` opens it; `url` leads to its page."""

    def __init__(self, slots: int = 4, most_waiting: int = 5, gate: Callable[[Tickets], Gate] = OpenGate,
                 traces: bool = False, voices: str = "", text_prompt_characters: int = 0,
                 beside: Gateway | None = None) -> None:
        """With `traces` each frame has a trace id; `voices` is a folder of them. One `beside` another has the engines
        and the Redis of that one, which must be open.
        """
        self._beside = beside
        self._voices = Voices(voices)
        self._most_waiting, self._gate = most_waiting, gate
        self._tracer = FrameTracer(Spans() if traces else None)
        self.ears = Ears(slots)
        codec: Any = CodecServer(self.ears, Mouth(slots), "speaker", FrameTracer(), 5.0)  # type: ignore[arg-type]
        lm: Any = LmServer(Mind(slots), Words(), Sampling(), "speaker", "speaker",  # type: ignore[arg-type]
                           FrameTracer(), 5.0, text_prompt_characters=text_prompt_characters)
        self._served = (Served("codec", codec, codec_pb2_grpc.CodecServiceStub),
                        Served("lm", lm, lm_pb2_grpc.LmServiceStub))
        self._batchers = (*codec.batchers, *lm.batchers)

    async def __aenter__(self) -> Gateway:
        async with contextlib.AsyncExitStack() as opened:
            if self._beside is None:
                codec, lm = [await opened.enter_async_context(one) for one in self._served]
                redis = RedisServer()
                opened.callback(redis.close)
                self._peers = (codec.address, lm.address, redis.url)
            else:
                self._peers = self._beside._peers
            codec_address, lm_address, redis_url = self._peers
            store = Store(redis_url)
            await store.connect()
            opened.push_async_callback(store.close)
            fleet = Fleet(Replicas("codec", codec_address, codec_facts), Replicas("lm", lm_address, lm_facts))
            for pool in (fleet.codec, fleet.lm):
                await pool.connect(time.monotonic() + 5)
                opened.push_async_callback(pool.close)
                await pool.refresh()
            sessions = Sessions(store, f"gateway {id(self)}", GRACE_S)
            resources = Resources(fleet, sessions, WaitingLine(store, self._most_waiting), longest_call_s=600.0,
                                  idle_s=60.0, stall_s=5.0, voices=self._voices)
            recent, gate = RecentFrames(), self._gate(Tickets(store))
            watch = watcher(self._tracer, GatewayMetrics(Metrics()), recent, resources.overload, 1)
            self.desk = Desk(resources, Limits(store), watch, drain_s=5.0)
            opened.push_async_callback(self.desk.close)
            self.sockets = Sockets(5.0)
            shown = Status(fleet, resources.line, self.desk, recent)
            routes = [*page.routes(), *PcmEdge(self.desk, gate, self.sockets).routes, *tickets.routes(gate),
                      *entry.routes(self.desk, gate), *status.routes(shown.now, gate)]
            self.door = HttpDoor("127.0.0.1", 0, routes, self.sockets, ready=lambda: True)
            await self.door.open()
            opened.push_async_callback(self.door.close)
            self.url = f"http://localhost:{self.door.port}"
            self._opened = opened.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    @property
    def slots_held(self) -> int:
        """Rows that are leased now, in all services."""
        return sum(batcher.total - batcher.free for batcher in self._batchers)

    @property
    def leaks(self) -> int:
        """Rows and sockets that somebody holds."""
        return self.slots_held + sum(self.sockets._by_address.values())
