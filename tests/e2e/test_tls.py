"""A whole mesh with TLS, started as an operator does, and what it says of itself."""

from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp
import grpc
import moshimesh
import pytest

from harness.certificates import Authority
from harness.local_mesh import free_port
from harness.null_mesh import NullMesh
from services.gateway.dev_certificate import dev_certificate
from tests.e2e.test_startup import assert_one_clear_line, outcome


async def talks(target: str, credentials: grpc.ChannelCredentials | None) -> bool:
    async with moshimesh.connect(target, credentials=credentials) as mesh:
        events = [event async for event in mesh.converse(bytes(3840 * 5), pacing="offline")]
    return isinstance(events[-1], moshimesh.Summary) and events[-1].frames_in == 5


@pytest.mark.slow
async def test_a_mesh_for_developers_has_a_certificate_of_its_own_ca(tmp_path: Path) -> None:
    lines: list[str] = []
    # As `make run TLS=1` does: the folder is the user's, in both processes.
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    ca = dev_certificate(tmp_path / "moshi-mesh" / "dev-tls").ca
    credentials = grpc.ssl_channel_credentials(ca.read_bytes())
    async with NullMesh(slots=2, gateway_host="0.0.0.0", gateway_flags=["--dev-tls"], environment=environment,
                        credentials={"gateway": credentials}, on_line=lambda name, line: lines.append(line)) as mesh:
        assert await talks(mesh.target, credentials)
        with pytest.raises(moshimesh.MeshError):
            await talks(mesh.target, None)
        async with aiohttp.ClientSession() as http, http.get(
                f"{mesh.url}/readyz", ssl=ssl.create_default_context(cafile=ca)) as answer:
            assert mesh.url.startswith("https://") and answer.status == 200
        assert any(str(ca) in line for line in lines)
        assert not [line for line in lines if "andshake failed" in line]  # any stranger could fill the log
        assert [line for line in lines if "is open to other machines without keys: " in line]


@pytest.mark.slow
async def test_the_mesh_inside_speaks_mutual_tls_and_says_why_it_can_t(tmp_path: Path) -> None:
    ca, other = Authority(), Authority("another CA")
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    cert, key = ca.issue().write(tmp_path, "peer")
    stranger, stranger_key = other.issue().write(tmp_path, "stranger")
    ours = ca.issue("us")
    environment = {"MOSHIMESH_PEER_CA": str(tmp_path / "ca.pem"), "MOSHIMESH_PEER_CERT": str(cert),
                   "MOSHIMESH_PEER_KEY": str(key)}
    credentials = grpc.ssl_channel_credentials(ca.pem, ours.key, ours.pem)
    async with NullMesh(slots=2, environment=environment, credentials=dict.fromkeys(("codec", "lm"), credentials)
                        ) as mesh:
        assert await talks(mesh.target, None)
        peers = ["--codec", mesh.addresses("codec"), "--lm", mesh.addresses("lm"), "--peers-wait-s", "1", "--port",
                 str(free_port()), "--redis-url", mesh.redis_url]
        with_other = ["--peer-ca", str(tmp_path / "ca.pem"), "--peer-cert", str(stranger), "--peer-key",
                      str(stranger_key)]
        assert_one_clear_line(await outcome("gateway", *peers, *with_other), ["gateway:", "it may not know the CA of"])
        assert_one_clear_line(await outcome("gateway", *peers), ["gateway:", "it may want TLS, see --peer-ca"])


@pytest.mark.parametrize(("flags", "says"), [
    (["--tls-cert", "x.pem"], "--tls-key: must be set, too"),
    (["--tls-cert", "no-such.pem", "--tls-key", "no-such.key"], "--tls-cert: no-such.pem can't be read"),
    (["--dev-tls", "--tls-cert", "x.pem", "--tls-key", "x.key"], "can't be used together"),
    (["--peer-ca", "ca.pem"], "--peer-cert and --peer-key: must be set, too")])
async def test_settings_that_do_not_go_together(flags: list[str], says: str) -> None:
    result = await outcome("gateway", "--port", "0", "--redis-url", "redis://:secret57@localhost", *flags)
    assert_one_clear_line(result, ["gateway:", says])
    assert "secret57" not in result[1]
