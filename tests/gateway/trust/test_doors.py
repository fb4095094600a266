"""Who gets in through real doors: two gateways' gRPC and HTTP sides over one Redis, and an issuer of tokens."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc

from harness.intruders import Intruders
from harness.issuer import AUDIENCE, ISSUER, token
from harness.secrets_scan import of_processes, of_redis, secrets_found
from services.gateway.calls.callers import CallerLimits
from services.gateway.calls.desk import ModelInfo
from services.gateway.edges.grpc import GrpcEdge
from services.gateway.edges.web import tickets
from services.gateway.edges.web.chat.edge import ChatEdge
from services.gateway.edges.web.door import HttpDoor
from services.gateway.edges.web.realtime.client_secrets import ClientSecrets
from services.gateway.edges.web.socket import Sockets
from services.gateway.store import Store
from services.gateway.trust.guard import Guard
from services.gateway.trust.keys import KeyFile
from services.gateway.trust.tickets import Tickets
from services.gateway.trust.tokens import KeySet, Tokens
from tests.gateway.edges.web.echo import FRAME, RATE, EchoDesk
from tests.gateway.redis_server import RedisServer
from tests.served import Served

ANSWER_S = 0.4
NOTE = "You are a doctor, and the caller is your patient."


class Desk(EchoDesk):
    voices = ()

    async def info(self) -> ModelInfo:
        return ModelInfo("echo", "mimi", RATE, FRAME, 1, 1)

    async def models(self) -> list[ModelInfo]:
        return [await self.info()]

    async def close(self) -> None:
        pass


class Gateway:
    """Both doors of a gateway."""

    def __init__(self, store: Store, intruders: Intruders) -> None:
        keys = KeyFile(Path(intruders.flags[1]))
        self.gate = Guard(keys, Tokens(ISSUER, AUDIENCE, KeySet(intruders.issuer.url)), Tickets(store), CallerLimits())
        self.desk: Any = Desk()
        sockets = Sockets(5.0)
        routes = [*tickets.routes(self.gate), *ChatEdge(self.desk, self.gate, sockets).routes,
                  *ClientSecrets(self.desk, self.gate, "realtime", 60.0).routes]
        self._http = HttpDoor("127.0.0.1", 0, routes, sockets, ready=lambda: True)
        self._grpc = Served("gateway", GrpcEdge(self.desk, self.gate, 5.0),
                            conversation_pb2_grpc.ConversationServiceStub)

    async def __aenter__(self) -> Gateway:
        await self._grpc.__aenter__()
        await self._http.open()
        self.target, self.stub = self._grpc.address, self._grpc.stub
        self.url = f"http://127.0.0.1:{self._http.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()
        await self._grpc.__aexit__()
        await self.gate.close()


@pytest.fixture
async def intruders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Intruders]:
    monkeypatch.setattr("services.gateway.trust.tokens.ANSWER_S", ANSWER_S)
    async with Intruders(tmp_path, ANSWER_S) as intruders:
        yield intruders


@pytest.fixture
async def gateways(stores: list[Store], intruders: Intruders) -> AsyncIterator[list[Gateway]]:
    async with contextlib.AsyncExitStack() as opened:
        yield [await opened.enter_async_context(Gateway(store, intruders)) for store in stores]


async def ask(gateway: Gateway, credential: str, header: str = "authorization") -> conversation_pb2.GetInfoResponse:
    value = f"Bearer {credential}" if header == "authorization" else credential
    return await gateway.stub.GetInfo(conversation_pb2.GetInfoRequest(), metadata=((header, value),))


@pytest.mark.slow
async def test_nobody_gets_in_who_may_not(gateways: list[Gateway], intruders: Intruders) -> None:
    refused = await intruders.tried(gateways[0].target, gateways[0].url, gateways[1].target)
    assert [name for name, was_refused in refused.items() if not was_refused] == []
    assert len(refused) >= 19


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_a_key_opens_a_door_of_grpc(gateways: list[Gateway], intruders: Intruders, header: str) -> None:
    assert (await ask(gateways[0], intruders.key, header)).model_id == "echo"


async def test_a_caller_is_named_after_its_key_and_its_host(gateways: list[Gateway], intruders: Intruders) -> None:
    config = conversation_pb2.ConverseConfig(sample_rate_hertz=RATE)
    call = gateways[0].stub.Converse(metadata=(("x-api-key", intruders.key),))
    await call.write(conversation_pb2.ConverseRequest(config=config))
    assert (await call.read()).HasField("ready")
    call.cancel()
    (caller,) = gateways[0].desk.callers
    assert (caller.key_id, caller.address, caller.edge) == ("shop", "127.0.0.1", "grpc")


@pytest.mark.parametrize("protocol", ["moshimesh.ticket.", "openai-insecure-api-key."])
async def test_a_ticket_opens_one_socket_at_another_gateway(gateways: list[Gateway], intruders: Intruders, protocol: str
                                                            ) -> None:
    one, other = gateways
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{one.url}/api/tickets", headers={"X-Api-Key": intruders.key}) as answer:
            told = await answer.json()
        assert told["ticket"].startswith("ek_") and answer.headers["Cache-Control"] == "no-store"
        shown = f"{protocol}{told['ticket']}"
        async with http.ws_connect(f"{other.url}/api/chat", protocols=(shown,)) as socket:
            assert (await socket.receive()).type is aiohttp.WSMsgType.BINARY
        assert other.desk.callers[-1].key_id == "shop"
        async with http.post(f"{one.url}/api/tickets", headers={"Authorization": f"Bearer {told['ticket']}"}) as answer:
            assert answer.status in (401, 403)


@pytest.mark.parametrize("single_use", [True, False])
async def test_a_ticket_has_its_note_at_any_gateway(gateways: list[Gateway], intruders: Intruders, server: RedisServer,
                                                    single_use: bool) -> None:
    one, other = (gateway.gate for gateway in gateways)
    caller = await one.caller(intruders.key, "127.0.0.1", "realtime")
    assert caller.ticket_note == ""
    ticket, _ = await one.issue(caller, 600, single_use=single_use, note=NOTE)
    assert (await other.caller(ticket, "127.0.0.1", "realtime")).ticket_note == NOTE
    kept = [key for key in server.client.keys("*ticket:*") if b"probe" not in key]
    assert len(kept) == (0 if single_use else 2)
    plain, _ = await one.issue(caller)
    assert (await other.caller(plain, "127.0.0.1", "realtime")).ticket_note == ""


async def test_tickets_without_redis_say_so(gateways: list[Gateway], intruders: Intruders, server: RedisServer) -> None:
    server.kill()
    async with aiohttp.ClientSession() as http, http.post(
            f"{gateways[0].url}/api/tickets", headers={"X-Api-Key": intruders.key}) as answer:
        assert answer.status == 503 and answer.headers["Retry-After"]
        assert (await answer.json())["error"]["reason"] == "TICKETS_UNAVAILABLE"
    assert (await ask(gateways[0], intruders.key)).model_id == "echo"  # keys need no Redis


async def test_a_header_that_is_no_text_is_refused_as_any_other(gateways: list[Gateway]) -> None:
    async with aiohttp.ClientSession() as http, http.post(
            f"{gateways[0].url}/api/tickets", headers={"Authorization": "Bearer mm_\udcff"}) as answer:
        assert answer.status == 401


async def test_no_secret_is_in_logs_redis_or_ps(gateways: list[Gateway], intruders: Intruders, server: RedisServer,
                                                caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    signed = token()
    for credential in (intruders.key, signed):
        await ask(gateways[0], credential)
    caller = await gateways[0].gate.caller(intruders.key, "127.0.0.1", "pcm")
    many, _ = await gateways[0].gate.issue(caller, 600, single_use=False, note=NOTE)
    await ask(gateways[1], many)
    for wrong in (one := intruders.revoked[:-1] + "x", signed[:-8] + "AAAAAAAA"):
        with pytest.raises(Exception, match=r"UNAUTHENTICATED|Unauthenticated"):
            await ask(gateways[0], wrong)
    shown = {"the key": intruders.key, "the token": signed, "the ticket": many, "a wrong key": one, "the note": NOTE}
    redis = of_redis(server.client)
    assert b"ticket:" in redis  # there is something to find
    assert secrets_found(shown, {"the log": caplog.text, "Redis": redis, "ps": of_processes([os.getpid()])}) == []


def test_the_scanner_finds_what_it_looks_for() -> None:
    secret = secrets.token_urlsafe(32)
    for place in (f"key={secret}", f"key={secret[:30]}...", base64.b64encode(secret.encode()), secret.encode().hex()):
        assert secrets_found({"it": secret}, {"there": place}) == ["it in there"]
    assert secrets_found({"it": secret}, {"there": "nothing"}) == []
