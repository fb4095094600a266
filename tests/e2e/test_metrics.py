"""Metrics of real processes under load: what they say is so, and all that dashboards, rules and docs name is there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import shutil
import signal
import time
import urllib.parse
import urllib.request
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import moshimesh
import numpy as np
import pytest
import yaml
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from harness.load import FRAME_S, Caller, Figures, load, read_speech
from harness.local_mesh import free_port
from harness.null_mesh import NullMesh
from harness.scraping import Samples, scrape, value
from services.mesh.metrics import FRAME_BOUNDS_S
from tests.deploy.observability import NAME, OBSERVABILITY, documented_names, names_used, queries
from tests.e2e.calls import pieces
from tests.until import until

ROOT = Path(__file__).resolve().parent.parent.parent
SPEECH = read_speech(ROOT / "samples")
pytestmark = pytest.mark.slow  # each mesh is kept under load for some seconds
GPU_ONLY = {"hw_gpu_memory_usage_bytes", "hw_gpu_memory_limit_bytes",
            "moshimesh_engine_refused_ways_total"}  # no process here has one


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the ids of all traces that it gets a frame's span of."""

    def __init__(self) -> None:
        self.frames: set[bytes] = set()

    async def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.aio.ServicerContext
                     ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.frames |= {span.trace_id for resource in request.resource_spans for scope in resource.scope_spans
                        for span in scope.spans if span.name == "frame"}
        return trace_service_pb2.ExportTraceServiceResponse()


class Receiver(metrics_service_pb2_grpc.MetricsServiceServicer):
    """An OTLP receiver that keeps the last state of every metric: process (instance id) -> metric name -> Metric."""

    def __init__(self) -> None:
        self.metrics: dict[str, dict[str, object]] = defaultdict(dict)
        self.pushes: Counter[str] = Counter()
        self.traces = Traces()

    async def Export(self, request: metrics_service_pb2.ExportMetricsServiceRequest, context: grpc.aio.ServicerContext
                     ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        for resource in request.resource_metrics:
            process = {a.key: a.value.string_value for a in resource.resource.attributes}["service.instance.id"]
            for scope in resource.scope_metrics:
                self.metrics[process] |= {metric.name: metric for metric in scope.metrics}
            self.pushes[process] += 1
        return metrics_service_pb2.ExportMetricsServiceResponse()

    async def news(self, process: str) -> None:
        """Wait for what a process says from now on: the first push to come may have been read before."""
        before = self.pushes[process]
        await until(lambda: self.pushes[process] >= before + 2)


@dataclass
class Run:
    """A mesh that has been under load, and what came of it."""

    mesh: NullMesh
    people: list[Caller]
    figures: Figures
    receiver: Receiver
    after_load: Samples = field(default_factory=dict)  # when only `people` had called
    lines: list[str] = field(default_factory=list)

    async def scrape(self, name: str) -> Samples:
        """What a process serves at /metrics."""
        return await scrape(self.mesh, name)


@contextlib.asynccontextmanager
async def collector(add_services: Callable[[grpc.aio.Server], None]) -> AsyncIterator[str]:
    """The endpoint of a server with some of OTLP's services."""
    server = grpc.aio.server()
    add_services(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop(0)  # one that is not stopped keeps Python from ending


@pytest.fixture(scope="module")
async def run() -> AsyncIterator[Run]:
    """Eight live callers, one offline call, and a lost replica of codec and lm."""
    receiver, lines = Receiver(), list[str]()

    def add_services(server: grpc.aio.Server) -> None:
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver.traces, server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(receiver, server)

    async with collector(add_services) as endpoint, NullMesh(
            slots=16, replicas=2, metrics=True,
            environment={"MOSHIMESH_OTLP_ENDPOINT": endpoint, "OTEL_METRIC_EXPORT_INTERVAL": "500",
                         "MOSHIMESH_LOG_FORMAT": "json", "MOSHIMESH_TRACE_ONE_IN": "5"},
            on_line=lambda name, line: lines.append(line) if name == "gateway" else None) as mesh:
        run = Run(mesh, *await load(mesh.target, 8, 0.5, 6.0, SPEECH), receiver)
        run.after_load = await run.scrape("gateway")
        async with moshimesh.connect(mesh.target) as client:
            async for _ in client.converse(pieces(np.zeros(24_000, np.float32)), pacing="offline", encoding="f32"):
                pass
            cut = asyncio.create_task(load(mesh.target, 4, 0.1, 4.0, SPEECH))
            spoken = value(run.after_load, "moshimesh_frames_total", pacing="live")

            async def have_a_past() -> bool:
                return value(await run.scrape("gateway"), "moshimesh_frames_total", pacing="live") > spoken + 4 * 12

            await until(have_a_past)
            mesh.processes["codec-2"].send(signal.SIGKILL)
            await cut
            await until(lambda: reads(mesh, "moshimesh_replica_up", 1, service="codec"))
            await until(lambda: reads(mesh, "moshimesh_calls", 0))
            for name in ("gateway", "codec"):
                await receiver.news(instance(await run.scrape(name)))
        run.lines = lines
        yield run


async def reads(mesh: NullMesh, name: str, number: float, **labels: str) -> bool:
    """Whether a metric of the gateway is this now."""
    return value(await scrape(mesh, "gateway"), name, **labels) == number


def instance(samples: Samples) -> str:
    """Which process a scrape was of, as its pushed metrics name it."""
    (labels,) = samples["target_info"]
    return dict(labels)["service_instance_id"]


async def test_frames_are_as_long_as_their_callers_say(run: Run) -> None:
    assert value(await run.scrape("gateway"), "moshimesh_frames_total", pacing="offline") == 13  # 12.5, and the delay
    samples = run.after_load
    assert value(samples, "moshimesh_frames_total", pacing="live") >= run.figures.frames
    assert value(samples, "moshimesh_frame_duration_seconds_count", pacing="live") == value(
        samples, "moshimesh_frames_total", pacing="live")
    # The caller's clock starts before the audio is on the wire and stops when the answer was read: the gateway's part
    # can't be longer. On one machine it is nearly all of it, unless the caller has to wait for the processor; the
    # quarter of the frames that came soonest did not.
    caller_ms = [ms for caller in run.people for ms in caller.latency_ms.values()]
    for share in (0.25, 0.5, 0.9):
        ours_ms = quantile(samples, "moshimesh_frame_duration_seconds_bucket", share, pacing="live") * 1000
        theirs_ms = float(np.quantile(caller_ms, share))
        above = next(bound for bound in (*FRAME_BOUNDS_S, math.inf) if bound * 1000 >= ours_ms) * 1000
        assert ours_ms < max(theirs_ms, above), (share, ours_ms, theirs_ms)
        assert share > 0.25 or ours_ms > theirs_ms / 3, (share, ours_ms, theirs_ms)


async def test_the_hops_are_all_of_a_frame(run: Run) -> None:
    samples = await run.scrape("gateway")
    parts = value(samples, "moshimesh_hop_duration_seconds_sum")
    assert parts == pytest.approx(value(samples, "moshimesh_frame_duration_seconds_sum"), rel=0.02)


async def test_the_histogram_agrees_with_the_timings_that_callers_get(run: Run) -> None:
    """The same frames, by what each answer says of its hops: the caller can check the operator."""
    samples = run.after_load
    frames = [hops for caller in run.people for hops in caller.hops.values()]
    seconds = [(hops[-1].finished_unix_nanos - hops[0].received_unix_nanos) / 1e9 for hops in frames]
    buckets = sorted((float(dict(key)["le"]), count) for key, count in
                     samples["moshimesh_frame_duration_seconds_bucket"].items() if ("pacing", "live") in key)
    for bound, count in buckets:  # each caller's last answer is that of the delay line's silence, which it did not send
        assert 0 <= count - sum(duration <= bound for duration in seconds) <= len(run.people), (bound, count)
    queue_ms = [hop.queue_ms for hops in frames for hop in hops if hop.hop == "codec.encode"]
    count = value(samples, "moshimesh_hop_duration_seconds_count", hop="codec.encode", part="queue")
    assert count == len(queue_ms) + len(run.people)
    seconds_more = value(samples, "moshimesh_hop_duration_seconds_sum", hop="codec.encode", part="queue") - sum(
        queue_ms) / 1000
    assert -0.001 <= seconds_more <= FRAME_S * len(run.people), seconds_more  # those last answers waited, too


async def test_a_lost_replica_is_counted(run: Run) -> None:
    samples = await run.scrape("gateway")
    lost = {service: value(samples, "moshimesh_failovers_total", service=service, kind="lost")
            for service in ("codec", "lm")}
    assert lost["codec"] > 0 and lost["lm"] > 0, lost
    down = f"127.0.0.1:{run.mesh.ports['codec-2']}"
    assert value(samples, "moshimesh_replica_up", service="codec", address=down) == 0
    assert value(samples, "moshimesh_replica_up", service="codec") == 1
    assert not any(dict(key)["address"] == down for key in samples["moshimesh_replica_slots"])
    engines = await run.scrape("codec")
    assert value(engines, "moshimesh_prefill_duration_seconds_count") >= lost["lm"]
    assert value(engines, "moshimesh_slots", batcher="lm") == run.mesh.slots
    assert value(engines, "moshimesh_tick_duration_seconds_count", batcher="encode") > 0
    fill = (value(engines, "moshimesh_batch_fill_sum", batcher="lm")
            / value(engines, "moshimesh_batch_fill_count", batcher="lm"))
    assert 1 / run.mesh.slots <= fill <= 12 / run.mesh.slots


async def test_everything_that_is_named_is_emitted(run: Run) -> None:
    scraped = set(await run.scrape("gateway")) | set(await run.scrape("codec"))
    named = dict(names_used())
    assert len(named) > 25
    for name, where in named.items():
        if name not in GPU_ONLY:
            assert name in scraped, f"{where} names {name}, which nobody emits"


async def test_everything_that_is_emitted_is_documented_and_pushed(run: Run) -> None:
    documented, every = dict(documented_names()), set()
    for name in ("gateway", "codec"):
        scraped = await run.scrape(name)
        pushed = run.receiver.metrics[instance(scraped)].keys()
        assert pushed <= documented.keys(), pushed - documented.keys()
        for metric in pushed:
            assert any(sample.startswith(documented[metric]) for sample in scraped), (metric, documented[metric])
        every |= pushed
    assert {metric for metric, name in documented.items() if name not in GPU_ONLY} == every


async def test_otlp_says_the_same_as_prometheus(run: Run) -> None:
    samples = await run.scrape("gateway")
    await run.receiver.news(instance(samples))
    metric = run.receiver.metrics[instance(samples)]["moshimesh.frame.duration"]
    points = {point.attributes[0].value.string_value: point
              for point in metric.histogram.data_points}  # type: ignore[attr-defined]
    assert points["live"].count == value(samples, "moshimesh_frame_duration_seconds_count", pacing="live")
    assert points["live"].sum == pytest.approx(value(samples, "moshimesh_frame_duration_seconds_sum", pacing="live"))
    assert 0.08 in points["live"].explicit_bounds and points["live"].start_time_unix_nano


async def test_exemplars_name_traces_that_were_sent(run: Run) -> None:
    samples = await run.scrape("gateway")
    metrics = run.receiver.metrics[instance(samples)]
    for name in ("moshimesh.frame.duration", "moshimesh.hop.duration"):
        for point in metrics[name].histogram.data_points:  # type: ignore[attr-defined]
            if point.count and point.attributes[0].value.string_value != "offline":
                assert point.exemplars, (name, point.attributes)
                assert all(exemplar.trace_id in run.receiver.traces.frames for exemplar in point.exemplars)
    request = urllib.request.Request(f"http://127.0.0.1:{run.mesh.metrics_ports['gateway']}/metrics",
                                     headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(request).read().decode())
    named = {bytes.fromhex(trace_id) for trace_id in re.findall('trace_id="([0-9a-f]{32})"', text)}
    assert named and named <= run.receiver.traces.frames


async def test_logs_are_objects_with_sessions_and_without_words(run: Run) -> None:
    lines = [json.loads(line) for line in run.lines]
    assert lines and all({"time", "level", "logger", "message", "service"} <= line.keys() for line in lines)
    moved = [line for line in lines if "a session moves away" in line["message"]]
    assert moved and all(re.fullmatch("[0-9a-f]{32}", line["session"]) for line in moved)


async def test_a_collector_that_takes_no_metrics_is_left_alone() -> None:
    """As Jaeger does: it implements the trace service only."""
    lines: list[str] = []
    async with collector(lambda server: None) as endpoint, NullMesh(
            slots=2, environment={"MOSHIMESH_OTLP_ENDPOINT": endpoint, "OTEL_METRIC_EXPORT_INTERVAL": "200"},
            on_line=lambda name, line: lines.append(line) if name == "gateway" else None):
        await until(lambda: any("takes no metrics" in line for line in lines))
        await asyncio.sleep(5 * 0.2)  # it would push as often again
    assert len([line for line in lines if "takes no metrics" in line]) == 1, lines
    assert not any("ERROR" in line for line in lines), lines


@pytest.mark.timeout(120)
async def test_two_hundred_sessions_make_no_more_series_than_one() -> None:
    async with NullMesh(slots=50, metrics=True) as mesh:
        run = Run(mesh, [], Figures(0, 0, 0, 0, 0, 0, 0, 0, 0), Receiver())

        async def one(client: moshimesh.Mesh) -> None:
            async for _ in client.converse(pieces(np.zeros(5 * 1920, np.float32)), pacing="offline", encoding="f32"):
                pass

        async def series() -> int:
            scraped = [await run.scrape(name) for name in ("gateway", "codec")]
            return sum(len(labels) for samples in scraped for labels in samples.values())

        async with moshimesh.connect(mesh.target) as client:
            await one(client)
            # Its last frames are counted, and the gateway has asked its replicas.
            await until(lambda: reads(mesh, "moshimesh_calls_ended_total", 1, reason="completed"))
            await until(lambda: reads(mesh, "moshimesh_replica_slots", mesh.slots, service="lm", state="free"))
            few = await series()
            for _ in range(20):
                await asyncio.gather(*(one(client) for _ in range(10)))
            samples = await run.scrape("gateway")
            assert value(samples, "moshimesh_calls_ended_total", reason="completed") == 201
            assert value(samples, "moshimesh_calls") == 0
            assert await series() == few


async def test_redis_that_is_away_is_seen() -> None:
    async with NullMesh(slots=4, metrics=True) as mesh:
        run = Run(mesh, [], Figures(0, 0, 0, 0, 0, 0, 0, 0, 0), Receiver())
        assert value(await run.scrape("gateway"), "moshimesh_redis_available") == 1
        talking = asyncio.create_task(load(mesh.target, 2, 0.1, 60.0, SPEECH))
        await until(lambda: reads(mesh, "moshimesh_calls", 2))
        mesh.processes["redis"].send(signal.SIGKILL)
        away = time.monotonic()

        async def is_late() -> bool:
            return value(await run.scrape("gateway"), "moshimesh_journal_lag_seconds") > 2

        await until(is_late)
        samples = await run.scrape("gateway")
        assert value(samples, "moshimesh_redis_available") == 0
        since_s = time.monotonic() - away + 2  # the last write was shortly before
        assert value(samples, "moshimesh_journal_lag_seconds") < since_s
        assert value(samples, "moshimesh_redis_duration_seconds_count") > 0
        assert value(samples, "moshimesh_calls") == 2, "it goes on without Redis"
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus on the PATH; apt has one")
@pytest.mark.timeout(120)
async def test_every_panel_shows_something(tmp_path: Path) -> None:
    """The whole way: services, a real Prometheus with our configuration and rules, and what each panel asks it."""
    config = yaml.safe_load((OBSERVABILITY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    shutil.copy(OBSERVABILITY / "prometheus" / "rules.yml", tmp_path)
    at = free_port()
    async with NullMesh(slots=16, metrics=True) as mesh:
        for scraped, name in zip(config["scrape_configs"][0]["static_configs"][:2], ("gateway", "codec"), strict=True):
            scraped["targets"] = [f"127.0.0.1:{mesh.metrics_ports[name]}"]
        del config["scrape_configs"][0]["static_configs"][2]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        await mesh.start_process("prometheus", [
            "prometheus", "--config.file", str(tmp_path / "prometheus.yml"), "--storage.tsdb.path",
            str(tmp_path / "data"), "--web.listen-address", f"127.0.0.1:{at}", "--enable-feature=exemplar-storage"])
        await load(mesh.target, 8, 0.5, 9.0, SPEECH)

        def ask(query: str) -> list[object]:
            url = f"http://127.0.0.1:{at}/api/v1/query?" + urllib.parse.urlencode({"query": query})
            result: list[object] = json.loads(urllib.request.urlopen(url).read())["data"]["result"]
            return result

        for where, query in queries():
            if not where.startswith("rules.yml: MoshiMesh") and not GPU_ONLY & set(NAME.findall(query)):
                assert await asyncio.to_thread(ask, query.replace("$__rate_interval", "10s")), where
        firing = await asyncio.to_thread(ask, 'ALERTS{alertstate="firing"}')
        assert not firing, firing


def quantile(samples: Samples, name: str, share: float, **labels: str) -> float:
    """As histogram_quantile does: linear within the bucket."""
    buckets = sorted((float(dict(key)["le"]), count) for key, count in samples[name].items()
                     if labels.items() <= dict(key).items())
    rank, lower, below = share * buckets[-1][1], 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    raise AssertionError("no bucket")
