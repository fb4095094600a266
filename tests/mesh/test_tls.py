"""Certificates in files: which are taken, what is done when they change, and who gets in. Connections are real ones."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from aiohttp import ClientSession, TCPConnector
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc
from moshimesh.lm.v1 import lm_pb2, lm_pb2_grpc

from harness.certificates import Authority, Certificate, serial_of
from harness.local_mesh import free_port
from services.gateway.edges.web import door
from services.gateway.edges.web.door import HttpDoor
from services.gateway.edges.web.socket import Sockets
from services.mesh.config import ServiceConfig
from services.mesh.process import MeshServer
from services.mesh.tls import SETTLED_S, Identity
from tests.mesh.test_process import Waiting
from tests.until import until

CA, OTHER = Authority(), Authority("another CA")


class Turned:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def written(folder: Path, certificate: Certificate | None = None) -> list[str]:
    """The three files, for Identity."""
    chain, key = (certificate or CA.issue()).write(folder, "it")
    (folder / "ca.pem").write_bytes(CA.pem)
    return [str(chain), str(key), str(folder / "ca.pem")]


def settled(identity: Identity, clock: Turned) -> None:
    """Look at the files until they count as whole."""
    identity.look()
    clock.seconds += SETTLED_S
    identity.look()


def locked(certificate: Certificate) -> bytes:
    key = serialization.load_pem_private_key(certificate.key, None)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.BestAvailableEncryption(b"secret"))


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no certificate": (lambda folder: (folder / "it.pem").unlink(), "--peer-cert: .* can't be read"),
    "no key": (lambda folder: (folder / "it.key").unlink(), "--peer-key: .* can't be read"),
    "no CA": (lambda folder: (folder / "ca.pem").unlink(), "--peer-ca: .* can't be read"),
    "half a certificate": (lambda folder: (folder / "it.pem").write_bytes((folder / "it.pem").read_bytes()[:300]),
                           "--peer-cert: .* is no certificate"),
    "an empty CA": (lambda folder: (folder / "ca.pem").write_bytes(b""), "--peer-ca: .* is no certificate"),
    "a key of another": (lambda folder: (folder / "it.key").write_bytes(CA.issue().key), "is not the key of the"),
    "a key of another kind": (lambda folder: (folder / "it.key").write_bytes(CA.issue(kind="rsa").key), "is not the"),
    "a key that is none": (lambda folder: (folder / "it.key").write_bytes(CA.pem), "--peer-key: .* is no private key"),
    "a locked key": (lambda folder: (folder / "it.key").write_bytes(locked(CA.issue())), "locked with a password"),
    "an expired one": (lambda folder: CA.issue(days=-1).write(folder, "it"), "was valid until .* only"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_files_that_can_t_be_used_end_the_start_with_one_line(what: str, tmp_path: Path) -> None:
    spoil, says = SPOILT[what]
    files = written(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=says) as caught:
        Identity("--peer", *files)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("what", SPOILT)
def test_files_that_can_t_be_used_any_more_leave_the_old_ones_in_use_with_one_line(
        what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Turned()
    files = written(tmp_path)
    identity = Identity("--peer", *files, now=clock)
    before = identity.current
    SPOILT[what][0](tmp_path)
    for _ in range(3):
        settled(identity, clock)
    assert identity.current is before
    assert len(caplog.messages) == 1 and "stays in use" in caplog.messages[0]
    again = CA.issue()
    written(tmp_path, again)
    settled(identity, clock)
    assert identity.current.chain == again.pem


def test_a_pair_that_is_being_written_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Turned()
    identity = Identity("--peer", *written(tmp_path), now=clock)
    new = CA.issue()
    (tmp_path / "it.pem").write_bytes(new.pem)
    identity.look()
    clock.seconds += SETTLED_S / 2
    (tmp_path / "it.key").write_bytes(new.key)
    settled(identity, clock)
    assert identity.current.key == new.key
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_files_that_were_touched_are_not_another_pair(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Turned()
    certificate = CA.issue()
    identity = Identity("--peer", *written(tmp_path, certificate), now=clock)
    before = identity.current
    written(tmp_path, certificate)
    settled(identity, clock)
    assert identity.current is before and not caplog.messages


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[MeshServer, Identity, int]]:
    """A service that wants a certificate of CA, and its port of health."""
    identity, health_port = Identity("--peer", *written(tmp_path)), free_port()
    server = MeshServer(ServiceConfig(host="127.0.0.1", health_port=health_port), "test", tls=identity)
    await server.start(Waiting())
    yield server, identity, health_port
    gc.unfreeze()
    await server.stop(0)


def credentials(ours: Certificate | None, ca: Authority = CA) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(ca.pem, *((ours.key, ours.pem) if ours else ()))


async def ask(port: int, ours: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """How a call there ends."""
    address = f"127.0.0.1:{port}"
    async with (grpc.aio.secure_channel(address, ours) if ours else grpc.aio.insecure_channel(address)) as channel:
        try:
            await lm_pb2_grpc.LmServiceStub(channel).GetInfo(lm_pb2.GetInfoRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


async def test_only_who_has_a_certificate_of_the_ca_gets_in(served: tuple[MeshServer, Identity, int]) -> None:
    port = served[0].port
    assert await ask(port, credentials(CA.issue("a gateway"))) is grpc.StatusCode.OK
    refused = {"no certificate": credentials(None), "of another CA": credentials(OTHER.issue()),
               "signed by itself": credentials(Certificate(OTHER.pem, OTHER.issue().key)),
               "expired": credentials(CA.issue(days=-1)), "in plain text": None}
    for who, ours in refused.items():
        assert await ask(port, ours) is grpc.StatusCode.UNAVAILABLE, who
    assert await ask(port, credentials(CA.issue("a gateway"))) is grpc.StatusCode.OK


async def test_health_in_plain_text_has_a_port_of_its_own_and_nothing_else(served: tuple[MeshServer, Identity, int]
                                                                           ) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served[2]}") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await lm_pb2_grpc.LmServiceStub(channel).GetInfo(lm_pb2.GetInfoRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_port_of_health_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit, match="with --health-port"):
        MeshServer(ServiceConfig(host="127.0.0.1", health_port=taken.getsockname()[1]), "test")


async def test_new_connections_get_the_new_certificate_and_those_that_stand_stay(
        served: tuple[MeshServer, Identity, int], tmp_path: Path) -> None:
    server = served[0]
    address = f"127.0.0.1:{server.port}"
    async with grpc.aio.secure_channel(address, credentials(CA.issue("a gateway"))) as channel:
        call = lm_pb2_grpc.LmServiceStub(channel).Step()
        await call.write(lm_pb2.StepRequest())
        assert (await call.read()).HasField("ready")
        new = CA.issue(kind="rsa")
        new.write(tmp_path, "it")

        async def serial() -> int:
            return await served_serial(server.port)

        await until(lambda: served[1].current.chain == new.pem)
        assert await serial() == serial_of(new.pem)
        # A CA that is replaced decides who gets in from now on.
        (tmp_path / "ca.pem").write_bytes(OTHER.pem)
        await until(lambda: served[1].current.peer_ca == OTHER.pem)
        assert await ask(server.port, credentials(CA.issue("a gateway"))) is grpc.StatusCode.UNAVAILABLE
        assert await ask(server.port, credentials(OTHER.issue("a gateway"))) is grpc.StatusCode.OK
        assert not call.done()
        call.cancel()


async def served_serial(port: int) -> int:
    """Of the certificate that is served there now."""
    pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port), timeout=10)
    return serial_of(pem.encode())


async def test_a_connection_that_does_not_shake_hands_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                ) -> None:
    monkeypatch.setattr(door, "TLS_HANDSHAKE_S", 0.2)
    identity = Identity("--tls", *written(tmp_path)[:2], for_http=True)
    https = HttpDoor("127.0.0.1", 0, (), Sockets(5.0), ready=lambda: True, tls=identity.server_context())
    await https.open()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", https.port)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    finally:
        await https.close()


@pytest.mark.parametrize("kind", ["ec", "rsa"])
async def test_the_http_port_serves_the_new_certificate_whatever_its_kind(kind: str, tmp_path: Path) -> None:
    """OpenSSL keeps a certificate of each kind of key beside one another."""
    clock, first = Turned(), CA.issue(kind="rsa")
    identity = Identity("--tls", *written(tmp_path, first)[:2], for_http=True, now=clock)
    https = HttpDoor("127.0.0.1", 0, (), Sockets(5.0), ready=lambda: True, tls=identity.server_context())
    await https.open()
    try:
        trusting = ssl.create_default_context(cadata=CA.pem.decode())
        trusting.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES128-GCM-SHA256")
        async with ClientSession(connector=TCPConnector(ssl=trusting)) as stays:
            async def healthy(host: str) -> bool:
                async with stays.get(f"https://{host}:{https.port}/healthz") as answer:
                    return answer.status == 200

            assert await healthy("localhost") and await healthy("127.0.0.1")
            assert await served_serial(https.port) == serial_of(first.pem)
            new = CA.issue(kind=kind)  # type: ignore[arg-type]
            new.write(tmp_path, "it")
            settled(identity, clock)
            assert await served_serial(https.port) == serial_of(new.pem)
            assert await healthy("localhost")  # over the connection that it had
        async with ClientSession(connector=TCPConnector(ssl=trusting)) as late, \
                late.get(f"https://localhost:{https.port}/healthz") as answer:
            assert answer.status == 200
    finally:
        await https.close()
