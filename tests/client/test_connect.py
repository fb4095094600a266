"""Addresses and keys."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import moshimesh
import pytest

from harness.certificates import Authority
from harness.local_mesh import free_port
from tests.client.gateway import Gateway, serving


@pytest.fixture
async def live() -> AsyncIterator[tuple[Gateway, str]]:
    gateway = Gateway()
    async with serving(gateway) as target:
        yield gateway, target


@pytest.fixture
def mute() -> Iterator[str]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("target", ["{dead}, {live}", " {dead} ,{live}, ", "{live}"])
async def test_several_addresses(live: tuple[Gateway, str], target: str) -> None:
    target = target.format(dead=f"127.0.0.1:{free_port()}", live=live[1])
    async with moshimesh.connect(target) as mesh:
        assert (await mesh.info()).model_id == "test"
        events = [event async for event in mesh.converse(bytes(3840), pacing="offline")]
    assert isinstance(events[-1], moshimesh.Summary)


async def test_models_are_listed_and_named(live: tuple[Gateway, str]) -> None:
    async with moshimesh.connect(f"127.0.0.1:{free_port()}, {live[1]}") as mesh:
        models = await mesh.models()
        async for _ in mesh.converse(b"", model=models[1].model_id):
            pass
    assert [(model.model_id, model.codec_id, model.slots_free) for model in models] == [
        ("test-1", "codec", 1), ("test-2", "codec", 2)]
    assert [config.model for config in live[0].configs] == ["test-2"]


async def test_a_port_that_takes_connections_and_stays_mute_costs_connect_s(live: tuple[Gateway, str], mute: str
                                                                            ) -> None:
    for ask in ("info", "converse"):
        began = time.monotonic()
        async with moshimesh.connect(f"{mute},{live[1]}", connect_s=0.5) as mesh:
            if ask == "info":
                await mesh.info()
            else:
                async for _ in mesh.converse(b"", pacing="offline"):
                    pass
        assert 0.4 < time.monotonic() - began < 5


async def test_with_tls_it_trusts_the_ca_that_it_is_given_and_shows_its_own_certificate() -> None:
    ca, other = Authority(), Authority("another CA")
    theirs, ours = ca.issue(), ca.issue("a caller")
    wants = grpc.ssl_server_credentials([(theirs.key, theirs.pem)], ca.pem, require_client_auth=True)
    trusted = grpc.ssl_channel_credentials(ca.pem, ours.key, ours.pem)
    refused = {"in plain text": None, "another CA": grpc.ssl_channel_credentials(other.pem, ours.key, ours.pem),
               "public CAs": grpc.ssl_channel_credentials(), "no certificate": grpc.ssl_channel_credentials(ca.pem)}
    async with serving(Gateway(), wants) as target:
        async with moshimesh.connect(target, credentials=trusted) as mesh:
            events = [event async for event in mesh.converse(bytes(3840), pacing="offline")]
            assert isinstance(events[-1], moshimesh.Summary)
        for who, credentials in refused.items():
            async with moshimesh.connect(target, credentials=credentials) as mesh:
                with pytest.raises(moshimesh.MeshError) as caught:
                    await mesh.info()
                assert caught.value.code is grpc.StatusCode.UNAVAILABLE, who


async def test_nobody_at_home_is_unavailable(mute: str) -> None:
    async with moshimesh.connect(f"{mute},127.0.0.1:{free_port()}", connect_s=0.2) as mesh:
        with pytest.raises(moshimesh.MeshError) as caught:
            await mesh.info()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("target", ["", " , ", "localhost", "localhost:", ":50050", "localhost:99999", "localhost:abc",
                                    "http://localhost:50050", "localhost:50050/", "[::1", "a:1;b:2", "ok:1, b"])
async def test_a_target_without_an_address_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        async with moshimesh.connect(target):
            pass


@pytest.mark.parametrize("target", ["[::1]:50050", "dns:///localhost:50050", "unix:/run/mesh.sock", "1.2.3.4:1,b-c:2"])
async def test_addresses_of_all_kinds_are_taken(target: str) -> None:
    async with moshimesh.connect(target):
        pass


async def test_a_key_that_is_none_is_named(live: tuple[Gateway, str]) -> None:
    """As os.environ.get gives for a variable that is not set."""
    async with moshimesh.connect(live[1]) as mesh:
        with pytest.raises(TypeError, match=r"api_key must be a str, .* got NoneType"):
            await anext(mesh.converse(b"", api_key=None))  # type: ignore[arg-type]


async def test_a_key_from_a_file_ends_with_a_line_end(live: tuple[Gateway, str]) -> None:
    gateway, target = live
    async with moshimesh.connect(target) as mesh:
        for key in ("secret-1\n", " secret-1\r\n", "secret-1"):
            async for _ in mesh.converse(b"", pacing="offline", api_key=key):
                pass
    assert gateway.keys == ["secret-1"] * 3


@pytest.mark.parametrize("key", ["sec\nret", "schlüssel", "sec\x00ret", "sec\x7fret"])
async def test_a_key_that_metadata_can_not_carry_is_refused_and_not_shown(live: tuple[Gateway, str], key: str) -> None:
    async with moshimesh.connect(live[1]) as mesh:
        with pytest.raises(ValueError, match="api_key") as caught:
            await anext(mesh.converse(b"", api_key=key))
    assert "sec" not in str(caught.value) and "schl" not in str(caught.value)
    assert live[0].calls == 0


async def test_no_task_is_left_of_a_call_that_was_refused(live: tuple[Gateway, str]) -> None:
    async with moshimesh.connect(f"127.0.0.1:{free_port()},{live[1]}") as mesh:
        before = asyncio.all_tasks()
        async for _ in mesh.converse(bytes(3840), pacing="offline"):
            pass
        for _ in range(100):
            if not (left := {task for task in asyncio.all_tasks() - before if "consume_request" in repr(task)}):
                return
            await asyncio.sleep(0.02)
    pytest.fail(f"left: {left}")
