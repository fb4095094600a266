"""Services that can't start say why in one line; those that can, stop cleanly."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
import moshimesh
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from moshimesh.lm.v1 import lm_pb2, lm_pb2_grpc

from harness.local_mesh import LocalMesh, MeshDown, free_port

ROOT = Path(__file__).resolve().parent.parent.parent


async def outcome(service: str, *flags: str) -> tuple[int, str]:
    """Exit code and output of a service that should not start."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"services.{service}", "--host", "127.0.0.1", *flags, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "protos" / "python")])},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, output.decode()


def assert_one_clear_line(result: tuple[int, str], words: Sequence[str]) -> None:
    code, output = result
    assert code != 0
    assert len(output.strip().splitlines()) == 1, output
    for word in words:
        assert word in output


@pytest.mark.parametrize("service", ["codec", "lm"])
async def test_a_missing_checkpoint(service: str, tmp_path: Path) -> None:
    result = await outcome(service, "--port", "0", "--checkpoint", str(tmp_path))
    assert_one_clear_line(result, [f"{service}:", "config.json is missing"])


async def test_a_mismatched_checkpoint(checkpoint: str, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "wrong")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"text_card": config["text_card"] + 8}))
    assert_one_clear_line(await outcome("lm", "--port", "0", "--checkpoint", str(folder)), ["lm:", "text_card"])


@pytest.mark.parametrize("service", ["codec", "lm", "gateway"])
async def test_a_busy_port(service: str) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert_one_clear_line(await outcome(service, "--port", str(port)), [f"{service}:", str(port), "--port"])


async def test_redis_down() -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    result = await outcome("gateway", "--port", "0", "--redis-url", url)
    assert_one_clear_line(result, ["gateway:", url.removeprefix("redis://"), "--redis-url"])


async def test_peers_that_are_not_there(mesh: LocalMesh) -> None:
    flags = ["--redis-url", mesh.redis_url, "--lm", f"localhost:{mesh.lm_port}", "--peers-wait-s", "1"]
    result = await outcome("gateway", "--port", "0", "--codec", f"localhost:{free_port()}", *flags)
    assert_one_clear_line(result, ["gateway:", "codec service", "--codec"])


@pytest.mark.parametrize(("flags", "words"), [
    (["--slots", "0"], ["codec: --slots", "greater than or equal to 1", "'0'"]),
    (["--slots", "many"], ["codec: --slots", "'many'"]),
    (["--port", "70000"], ["codec: --port", "65535"]),
    (["--device", "abacus"], ["codec: --device abacus", "cpu"]),
    (["--device", "cuda"], ["codec: --device cuda", "--device cpu"]),
    (["--log-level", "loud"], ["codec: --log-level", "'loud'"]),
])
async def test_a_setting_out_of_range(flags: list[str], words: list[str]) -> None:
    assert_one_clear_line(await outcome("codec", *flags), words)


async def test_peers_that_are_swapped(mesh: LocalMesh) -> None:
    flags = ["--redis-url", mesh.redis_url, "--lm", f"localhost:{mesh.codec_port}"]
    result = await outcome("gateway", "--port", "0", "--codec", f"localhost:{mesh.lm_port}", *flags)
    assert_one_clear_line(result, ["gateway:", "not the codec service", "--codec"])


async def test_a_second_mesh_on_the_same_ports(mesh: LocalMesh) -> None:
    with pytest.raises(MeshDown, match=f"port {mesh.codec_port} is taken"):
        async with LocalMesh(mesh.checkpoint, codec_port=mesh.codec_port):
            pass


@pytest.mark.slow
async def test_a_proxy_in_the_environment_is_not_for_the_mesh(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "localhost")  # a name; the mesh connects to addresses
    monkeypatch.setattr("harness.local_mesh.START_S", 40.0)
    async with LocalMesh(checkpoint, slots=1) as mesh, moshimesh.connect(mesh.target) as caller:
        events = [event async for event in caller.converse(bytes(19_200), pacing="offline")]
    assert sum(isinstance(event, moshimesh.Speech) for event in events) == 5


async def health(channel: grpc.aio.Channel, name: str, *, becomes: int) -> None:
    """Wait until health says this of a name. Raises AioRpcError when it does not come."""
    request = health_pb2.HealthCheckRequest(service=name)
    async for answer in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=30):
        if answer.status == becomes:
            return


@pytest.mark.slow
async def test_a_gateway_without_lm_is_alive_but_not_ready(checkpoint: str) -> None:
    name, good, bad = ("moshimesh.gateway.v1.ConversationService", health_pb2.HealthCheckResponse.SERVING,
                       health_pb2.HealthCheckResponse.NOT_SERVING)
    async with LocalMesh(checkpoint, slots=1) as mesh, grpc.aio.insecure_channel(mesh.target) as channel:
        await health(channel, name, becomes=good)
        mesh.processes["lm"].send(signal.SIGKILL)
        await health(channel, name, becomes=bad)
        await health(channel, "", becomes=good)
        await mesh.start_replica("lm")
        await mesh.wait_ready("lm", mesh.lm_port)
        await health(channel, name, becomes=good)


async def test_no_part_of_a_password_is_printed() -> None:
    """At any level: `#` ends a URL early, and this one once meant localhost."""
    result = await outcome("gateway", "--port", "0", "--redis-url", "redis://:57first#second@h:1/0", "--log-level",
                           "debug")
    assert "--redis-url" in result[1] and "%23" in result[1]
    assert "57first" not in result[1] and "second@" not in result[1] and "#second" not in result[1]


async def test_a_password_is_not_printed() -> None:
    _, output = await outcome("gateway", "--port", "0", "--redis-url", f"redis://:secret@127.0.0.1:{free_port()}/0")
    assert "can't be reached" in output
    assert "secret" not in output


async def test_the_redis_url_is_in_no_command_line(mesh: LocalMesh) -> None:
    """Everybody on the machine can read those, and the URL may hold a password."""
    assert mesh.redis_url
    for process in mesh.processes.values():
        assert mesh.redis_url not in " ".join(process.command)


async def test_sigterm_drains_and_exits_with_0(checkpoint: str) -> None:
    async with LocalMesh(checkpoint, slots=1) as mesh:
        for name in ("gateway", "lm", "codec"):
            process = mesh.processes[name]
            process.send(signal.SIGTERM)
            assert process.child is not None
            assert await asyncio.wait_for(process.child.wait(), 10) == 0
            assert "stopped" in process.last_line


@pytest.mark.parametrize("flags", [["--slots", "auto", "--precision", "bf16"],
                                   ["--precision", "int8", "--kv-precision", "int8", "--context-frames", "100"]])
async def test_other_precisions_and_slots_that_fit(mesh: LocalMesh, flags: list[str]) -> None:
    port = free_port()
    lm = LocalMesh(mesh.checkpoint, lm_port=port)  # only its lm
    await lm.start_process("lm", [sys.executable, "-m", "services.lm", "--port", str(port), "--checkpoint",
                                  mesh.checkpoint, *flags])
    try:
        await lm.wait_ready("lm", port)
        async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
            info = await lm_pb2_grpc.LmServiceStub(channel).GetInfo(lm_pb2.GetInfoRequest())
        assert info.slots_total == (256 if "auto" in flags else 8)
        assert info.context_frames == (100 if "--context-frames" in flags else 250)
        assert info.weights_bytes > 0 < info.kv_bytes_per_frame
    finally:
        await lm.__aexit__()


async def test_a_longer_context_than_the_checkpoints_own(checkpoint: str) -> None:
    result = await outcome("lm", "--port", "0", "--checkpoint", checkpoint, "--context-frames", "9999")
    assert_one_clear_line(result, ["lm: --context-frames 9999", "250"])
