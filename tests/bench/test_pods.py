"""The manifests as they stand: the services run with their commands, environment, ports, probes and grace."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import moshimesh
import pytest

from bench.chaos import FRAME_BYTES, Caller
from bench.pods import ROOT, Cluster, Pod
from harness.certificates import Authority
from harness.load import read_speech
from harness.scraping import samples_at
from scripts.check_compose import documents
from scripts.check_manifests import K8S, render
from services.gateway.trust import make_key
from services.gateway.trust.keys import KeyRecord, hash_of, new_key
from tests.deploy.observability import autoscaler_metrics
from tests.deploy.rendering import rendered
from tests.until import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SPEECH = b"".join(read_speech(ROOT / "samples"))
FRAMES = [SPEECH[begin:begin + FRAME_BYTES] for begin in range(0, len(SPEECH) - FRAME_BYTES + 1, FRAME_BYTES)]


@pytest.fixture(scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster(render(K8S / "overlays" / "dev"), replicas=2) as cluster:
        yield cluster


async def test_every_port_of_every_pod_is_open(cluster: Cluster) -> None:
    for pod in cluster.all:
        assert pod.container.ports
        for port in pod.container.ports.values():
            with socket.create_connection((pod.address, port), timeout=5):
                pass


@pytest.mark.parametrize("workload", ["lm", "codec", "gateway"])
async def test_no_call_is_lost_when_a_pod_is_deleted_and_another_one_is_there(cluster: Cluster, workload: str) -> None:
    caller, until_then = Caller(FRAMES), asyncio.Event()
    call = asyncio.create_task(caller.call(cluster.target, until_then))
    await until(lambda: len(caller.answers) > 20, within_s=60)
    for old in list(cluster.pods[workload]):  # one of them holds the call
        before = len(caller.spoken)
        assert await cluster.stop(old) == 0, list(old.lines)
        assert old.stopped_after_s < old.grace_s
        await until(lambda before=before: any(sequence > before for sequence in caller.answers), within_s=60)
        await (await cluster.start(workload)).wait_ready()
    until_then.set()
    await call
    assert caller.error == ""
    # Frames that a live call can't keep up with are skipped, while the services of this machine start beside it.
    assert caller.frames_lost <= caller.skipped
    assert _unhealthy(cluster) == {}


async def test_autoscalers_find_their_metrics(cluster: Cluster) -> None:
    emitted: set[str] = set()
    for pod in cluster.all:
        if "metrics" in pod.container.ports:
            emitted |= (await samples_at(f"{pod.address}:{pod.container.ports['metrics']}")).keys()
    used = autoscaler_metrics()
    assert len(used) >= 4 and used <= emitted


async def test_a_call_completes_with_what_compose_says() -> None:
    async with Cluster(documents("cpu"), replicas=1) as cluster:
        for pod in cluster.all:
            for port in pod.container.ports.values():
                with socket.create_connection((pod.address, port), timeout=5):
                    pass
        caller, until_then = Caller(FRAMES), asyncio.Event()
        call = asyncio.create_task(caller.call(cluster.target, until_then))
        await until(lambda: len(caller.answers) > 20, within_s=60)
        until_then.set()
        await call
        assert caller.error == "" and _unhealthy(cluster) == {}


async def test_a_call_completes_with_keys_and_tls_everywhere(tmp_path: Path) -> None:
    documents = rendered(("keys", "edge-tls", "mutual-tls"), upon="overlays/dev", beside=())
    authority, key = Authority(), new_key()
    cluster = Cluster(documents, replicas=1, secrets=tmp_path)
    for secret, names in (("gateway-tls", cluster.addresses("gateway")), ("gateway-peer-tls", ["gateway"]),
                          ("codec-peer-tls", ["codec", *cluster.addresses("codec")]),
                          ("lm-peer-tls", ["lm", *cluster.addresses("lm")])):
        certificate, folder = authority.issue(*names), tmp_path / secret
        folder.mkdir()
        (folder / "tls.crt").write_bytes(certificate.pem)
        (folder / "tls.key").write_bytes(certificate.key)
        (folder / "ca.crt").write_bytes(authority.pem)
    (tmp_path / "gateway-keys").mkdir()
    make_key.add(tmp_path / "gateway-keys" / "keys.json", KeyRecord(name="shop", sha256=hash_of(key)))
    async with cluster:
        credentials = grpc.ssl_channel_credentials(authority.pem)
        async with moshimesh.connect(cluster.target, credentials=credentials) as mesh:
            with pytest.raises(moshimesh.MeshError) as refused:
                await mesh.info()
            assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED
            heard = [event async for event in mesh.converse(b"".join(FRAMES[:20]), pacing="offline", api_key=key)
                     if isinstance(event, moshimesh.Speech)]
            assert len(heard) == 20
        assert _unhealthy(cluster) == {}


def _unhealthy(cluster: Cluster) -> dict[str, list[str]]:
    def problems(pod: Pod) -> list[str]:
        return pod.failures + ([] if pod.ready else ["not ready"])

    return {pod.name: found for pod in cluster.all if (found := problems(pod))}
