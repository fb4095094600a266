"""`python -m services.gateway`: find the services that it needs, then serve callers."""

from __future__ import annotations

import logging
import secrets
import socket
import time

from services.gateway.calls.callers import CallerLimits
from services.gateway.calls.defragmentation import Defragmentation
from services.gateway.calls.desk import INVARIANTS, Desk
from services.gateway.calls.limits import Limits
from services.gateway.calls.overload import Watch
from services.gateway.calls.resources import Resources
from services.gateway.calls.voices import Voices
from services.gateway.calls.waiting import WaitingLine
from services.gateway.config import GatewayConfig
from services.gateway.dev_certificate import cache_folder, dev_certificate
from services.gateway.edges.grpc import GrpcEdge
from services.gateway.edges.web import entry, page, status, tickets
from services.gateway.edges.web.chat.edge import ChatEdge
from services.gateway.edges.web.door import HttpDoor
from services.gateway.edges.web.live.edge import LiveEdge
from services.gateway.edges.web.pcm.edge import PcmEdge
from services.gateway.edges.web.realtime.edge import RealtimeEdge
from services.gateway.edges.web.socket import Sockets
from services.gateway.exposure import exposed
from services.gateway.peers.fleet import Fleet
from services.gateway.peers.models import served_models
from services.gateway.peers.registry import Registry
from services.gateway.peers.replicas import Replicas, codec_facts, lm_facts
from services.gateway.sessions.sessions import Sessions
from services.gateway.store import Store
from services.gateway.trust.gates import make_gate
from services.gateway.trust.tickets import Tickets
from services.gateway.watching.gauges import watch
from services.gateway.watching.metering import GatewayMetrics
from services.gateway.watching.recent import RecentFrames
from services.gateway.watching.status import Status
from services.gateway.watching.watcher import watcher
from services.mesh.config import read_config
from services.mesh.invariants import Invariants
from services.mesh.metrics import Metrics
from services.mesh.process import MeshServer, run
from services.mesh.telemetry import FrameTracer
from services.mesh.tls import Identity, peer_identity
from services.mesh.transport import CALLER_OPTIONS

log = logging.getLogger("gateway")


async def main(config: GatewayConfig) -> None:
    """Serve until a signal."""
    tls, us = _edge_identity(config), peer_identity(config)
    server = MeshServer(config, "gateway", CALLER_OPTIONS, tls=tls)
    store = Store(config.redis_url)
    gate = make_gate(config, Tickets(store))
    if message := exposed(config.host, tls=tls is not None, keys=gate.closed):
        log.warning("%s", message)
    metrics = Metrics.start(config, "gateway")
    began = time.monotonic()
    voices = Voices(config.voices)
    await store.connect(Sessions.probes, WaitingLine.probes, Limits.probes, Tickets.probes, Registry.probes)
    place = f"{socket.gethostname()}:{config.port}"
    codec = Replicas("codec", config.codec, codec_facts, config.failover_s, us,
                     most=config.most_replicas, gateway=place)
    lm = Replicas("lm", config.lm, lm_facts, config.failover_s, us, most=config.most_replicas, gateway=place)
    await codec.connect(began + config.peers_wait_s)
    await lm.connect(began + config.peers_wait_s)
    models = ", ".join(model.model_id for model in served_models(codec, lm))
    sessions = Sessions(store, f"{socket.gethostname()}-{secrets.token_hex(4)}", config.grace_s)
    registry = Registry(store, (codec, lm))
    fleet, recent = Fleet(codec, lm), RecentFrames()
    resources = Resources(fleet, sessions, WaitingLine(store, config.most_waiting),
                          longest_call_s=config.longest_call_s, idle_s=config.idle_s, stall_s=config.stall_s,
                          voices=voices)
    overload = resources.overload
    watch(metrics, (codec, lm), resources)
    tracer = FrameTracer.export_to(config.otlp_endpoint, "gateway")
    per_address = CallerLimits(config.calls_per_address, config.calls_per_minute_per_address,
                               config.audio_s_per_hour_per_address)
    desk = Desk(resources, Limits(store, per_address),
                watcher(tracer, GatewayMetrics(metrics), recent, overload, config.trace_one_in), drain_s=config.drain_s)
    overloading = Watch(overload)
    defragmentation = Defragmentation(
        fleet, lambda: [] if overload.spares_prefill else desk.conversations) if config.defragment else None
    sockets = Sockets(config.stall_s)

    def ready() -> bool:
        return codec.usable and lm.usable

    routes = [
        *tickets.routes(gate),
        *entry.routes(desk, gate),
        *status.routes(Status(fleet, resources.line, desk, recent).now, gate),
        *page.routes(),
        *PcmEdge(desk, gate, sockets).routes,
        *ChatEdge(desk, gate, sockets).routes,
        *RealtimeEdge(desk, gate, sockets, config.longest_call_s).routes,
        *LiveEdge(desk, gate, sockets, config.longest_call_s).routes,
    ]
    doors = [HttpDoor(config.host, config.http_port, routes, sockets, ready=ready,
                      tls=None if tls is None else tls.server_context())] if config.http_port else []
    invariants = Invariants(metrics, INVARIANTS, [desk.disagreements])
    await server.start(GrpcEdge(desk, gate, config.stall_s), ready=ready, doors=doors)
    log.info("ready on %s after %.1f s: %s", server.address, time.monotonic() - began, models)
    await server.run_until_signal()
    if defragmentation is not None:
        await defragmentation.close()
    await invariants.close()
    await overloading.close()
    await gate.close()
    await registry.close()
    await store.close()
    await codec.close()
    await lm.close()
    tracer.close()
    metrics.close()


def _edge_identity(config: GatewayConfig) -> Identity | None:
    """The certificate of both ports; None: they are in plain text. Raises ValueError."""
    if config.dev_tls:
        files = dev_certificate(cache_folder())
        log.info("serving with a certificate of our own CA; let clients trust %s", files.ca)
        return Identity("--tls", str(files.certificate), str(files.key), for_http=True)
    return Identity("--tls", config.tls_cert, config.tls_key, for_http=True) if config.tls_cert else None


if __name__ == "__main__":
    settings = read_config(GatewayConfig, "gateway")
    run("gateway", settings, lambda: main(settings))
