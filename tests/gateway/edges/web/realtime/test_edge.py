"""The edge on a real port: what opens a call, what ends it, and that both sides' messages are in order."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from typing import Any

import aiohttp
import pytest

from services.gateway.calls.callers import Caller, Interrupt
from services.gateway.calls.events import EventKind, GoAway, Queued, Summary
from services.gateway.edges.web.socket import MESSAGES_BURST
from services.mesh.errors import (
    AudioQuotaUsed,
    Draining,
    EngineFailed,
    LineFull,
    NoFreeSlot,
    PeerLost,
    TooManyCalls,
)
from tests.gateway.edges.web.realtime.client import Client
from tests.gateway.edges.web.realtime.scripted import KEY, Stage
from tests.gateway.edges.web.realtime.told import FRAME, READY
from tests.until import until


async def test_a_conversation(stage: Stage) -> None:
    async with Client(stage.url) as client:
        created = await client.hear("session.created")
        assert created["session"]["model"] == "moshi" and created["event_id"]
        await client.ask("input_audio_buffer.append", audio=base64.b64encode(bytes(2 * FRAME)).decode())
        await until(lambda: stage.call.samples >= FRAME)
        stage.call.event(EventKind.USER_SPEECH_STARTED)
        stage.call.event(EventKind.USER_SPEECH_STOPPED)
        stage.call.event(EventKind.MODEL_SPEECH_STARTED)
        stage.call.frames(10, " la")
        stage.call.event(EventKind.MODEL_SPEECH_STOPPED)
        stage.call.frames(1)
        done = await client.hear("response.done")
        assert done["response"]["output"][0]["content"][0]["transcript"] == "la" + " la" * 9
        deltas = [one for one in client.heard if one["type"] == "response.output_audio.delta"]
        assert [len(base64.b64decode(delta["delta"])) for delta in deltas] == [2 * FRAME] * 10
        event_ids = [one["event_id"] for one in client.heard]
        assert len(set(event_ids)) == len(event_ids)
    await until(lambda: stage.call.over)


async def test_a_cancel_reaches_the_model(stage: Stage) -> None:
    async with Client(stage.url) as client:
        stage.call.event(EventKind.MODEL_SPEECH_STARTED)
        stage.call.frames(3)
        await client.hear("response.output_audio.delta")
        await client.ask("response.cancel")
        assert (await client.hear("response.done"))["response"]["status"] == "cancelled"
        await until(lambda: stage.call.controls == [Interrupt()])


async def test_messages_of_both_sides_are_in_order(stage: Stage) -> None:
    """A cancel in the midst of frames: no sound of a response after its end."""
    async with Client(stage.url) as client:
        for _ in range(20):
            stage.call.event(EventKind.MODEL_SPEECH_STARTED)
            stage.call.frames(20)
            await client.hear("response.created")
            created = client.heard[-1]["response"]["id"]
            await client.ask("response.cancel", response_id=created)
            stage.call.event(EventKind.MODEL_SPEECH_STOPPED)
            stage.call.frames(1)
            await client.hear("response.done")
        opened = None
        for message in client.heard:
            if message["type"] == "response.created":
                assert opened is None
                opened = message["response"]["id"]
            elif message["type"] == "response.done":
                opened = None
            elif message["type"].startswith("response."):
                assert message["response_id"] == opened


@pytest.mark.parametrize("path", ["/v1/realtime", "/realtime", "/v1/realtime?model=anything"])
async def test_where_clients_call(stage: Stage, path: str) -> None:
    async with Client(stage.http + path) as client:
        assert (await client.hear("session.created"))["session"]["model"] == "moshi"


async def test_a_client_in_the_line_has_its_socket_and_waits(stage: Stage) -> None:
    stage.desk.first = [Queued(2, 0)]
    async with Client(stage.url) as client:
        await client.ask("session.update", session={})
        stage.call.tell(Queued(1, 0))
        stage.call.tell(READY)
        await client.hear("session.updated")
        assert [one["type"] for one in client.heard] == ["session.created", "session.updated"]


# Who may call.


async def test_a_key_in_the_header(guarded: Stage) -> None:
    async with Client(guarded.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        await client.hear("session.created")
        assert client.socket.protocol is None
    assert guarded.call.caller == Caller.with_key(KEY, "127.0.0.1", "realtime")


@pytest.mark.parametrize("protocols", [
    ["realtime", f"openai-insecure-api-key.{KEY}"], ["realtime", f"openai-insecure-api-key.{KEY}", "openai-project.x"],
    [f"openai-insecure-api-key.{KEY}", "realtime", "openai-beta.realtime-v1"]])
async def test_a_browser_s_key(guarded: Stage, protocols: list[str]) -> None:
    """Only `realtime` is answered: another answer would hand the key back."""
    async with Client(guarded.url, protocols=protocols) as client:
        await client.hear("session.created")
        assert client.socket.protocol == "realtime"


@pytest.mark.parametrize(("key", "status", "code"), [
    ("wrong", 401, "invalid_api_key"), ("", 401, "invalid_api_key"), ("forbidden", 403, "door_closed")])
async def test_a_refused_key(guarded: Stage, key: str, status: int, code: str) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession() as http, http.get(guarded.url.replace("ws:", "http:"), headers={
            **headers, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}) as response:
        assert response.status == status
        assert (await response.json())["error"]["code"] == code
    assert guarded.desk.calls == []


async def test_a_browser_hears_why_it_was_refused(guarded: Stage) -> None:
    """It does not see the status of a refused upgrade."""
    async with Client(guarded.url, protocols=["realtime", "openai-insecure-api-key.wrong"]) as client:
        assert await client.end() == 1008
        assert client.heard[0]["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(("error", "status"), [
    (LineFull("full"), 503), (NoFreeSlot("full"), 503), (Draining("stopping"), 503), (PeerLost("away"), 503),
    (TooManyCalls("yours"), 429), (AudioQuotaUsed("yours"), 429)])
async def test_a_mesh_without_room_refuses_before_the_upgrade(stage: Stage, error: Exception, status: int) -> None:
    """LiveKit gives up after four refused upgrades, and calls for ever after a close."""
    stage.desk.first = [error]
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        async with Client(stage.url):
            pass
    assert caught.value.status == status
    assert caught.value.headers is not None and int(caught.value.headers["Retry-After"])


async def test_a_browser_hears_that_there_is_no_room(stage: Stage) -> None:
    stage.desk.first = [LineFull("full")]
    async with Client(stage.url, protocols=["realtime", "openai-insecure-api-key.x"]) as client:
        assert await client.end() == 1013
        assert client.heard[0]["error"]["code"] == "line_full"


@pytest.mark.parametrize("query", ["call_id=rtc_1", "intent=transcription"])
async def test_what_is_not_served_here(stage: Stage, query: str) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        async with Client(f"{stage.url}&{query}"):
            pass
    assert caught.value.status == 400 and stage.desk.calls == []


async def test_a_key_among_unknown_subprotocols_stays_out_of_the_log(
        guarded: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """aiohttp logs subprotocols of which it knows none."""
    caplog.set_level(logging.DEBUG)
    with contextlib.suppress(aiohttp.WSServerHandshakeError):
        async with Client(guarded.url, protocols=[f"openai-insecure-api-key.{KEY}"]) as client:
            await client.end()
    assert KEY not in caplog.text and guarded.desk.calls == []


# Ends.


@pytest.mark.parametrize(("event", "code", "last"), [
    (Summary(1, 1, 0), 1000, "session.created"), (GoAway(5.0), 1012, "session.created"),
    (Draining("stopping"), 1012, "session.created"), (EngineFailed("broken"), 1011, "error"),
    (RuntimeError("a bug"), 1011, "error")])
async def test_ends(stage: Stage, event: Any, code: int, last: str) -> None:
    async with Client(stage.url) as client:
        stage.call.tell(event)
        assert await client.end() == code
        assert client.heard[-1]["type"] == last
    await until(lambda: stage.call.over)


async def test_a_bug_is_not_explained_to_the_client(stage: Stage) -> None:
    async with Client(stage.url) as client:
        stage.call.tell(RuntimeError("secret"))
        await client.end()
        assert client.heard[-1]["error"]["code"] == "internal" and "secret" not in json.dumps(client.heard)


@pytest.mark.parametrize("rudely", [False, True])
async def test_a_client_that_hangs_up(stage: Stage, rudely: bool) -> None:
    client = await Client(stage.url).__aenter__()
    await client.hear("session.created")
    if rudely:
        connection = client.socket._response.connection
        assert connection is not None and connection.transport is not None
        connection.transport.abort()
    await client.__aexit__()
    await until(lambda: stage.call.over)


async def test_a_client_that_hangs_up_in_the_line(stage: Stage) -> None:
    stage.desk.first = []
    calling = asyncio.ensure_future(Client(stage.url).__aenter__())
    await until(lambda: stage.desk.calls)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    await until(lambda: stage.call.over)


async def test_a_message_that_is_far_too_large(stage: Stage) -> None:
    async with Client(stage.url) as client:
        await client.hear("session.created")
        with contextlib.suppress(ConnectionError):
            await client.socket.send_str("x" * (8 << 20))
        assert await client.end() == 1009
    await until(lambda: stage.call.over)


async def test_a_file_in_small_pieces_is_no_flood(stage: Stage) -> None:
    async with Client(stage.url) as client:
        piece = base64.b64encode(bytes(96)).decode()  # 2 ms
        for _ in range(MESSAGES_BURST + 300):
            await client.ask("input_audio_buffer.append", audio=piece)
        await client.ask("input_audio_buffer.commit")
        await client.hear("input_audio_buffer.committed")


async def test_a_client_that_does_not_read() -> None:
    async with Stage(stall_s=0.3) as stage, aiohttp.ClientSession() as http:
        socket = await http.ws_connect(stage.url, max_msg_size=0)
        stage.call.event(EventKind.MODEL_SPEECH_STARTED)
        for _ in range(200):
            stage.call.frames(100)
        await until(lambda: stage.call.over)
        await socket.close()


async def test_a_quota_that_is_used_up_ends_the_call_with_openai_s_word(stage: Stage) -> None:
    """LiveKit does not call again when it reads it."""
    async with Client(stage.url) as client:
        stage.call.tell(AudioQuotaUsed("an hour is an hour"))
        await client.end()
        assert client.heard[-1]["error"]["code"] == "insufficient_quota"


async def test_a_beta_client(stage: Stage) -> None:
    async with Client(stage.url, headers={"OpenAI-Beta": "realtime=v1"}) as client:
        created = await client.hear("session.created")
        assert created["session"]["input_audio_format"] == "pcm16"
        stage.call.event(EventKind.MODEL_SPEECH_STARTED)
        stage.call.frames(1)
        await client.hear("response.audio.delta")
