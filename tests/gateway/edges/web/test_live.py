"""`/v1/live/sessions`, spoken to by the `openai` package's own client, and by a client that breaks its rules."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest
from moshimesh.audio.v1 import audio_pb2

from services.gateway.calls.desk import ModelInfo
from services.gateway.calls.events import Speech
from services.gateway.edges.web.live.edge import LiveEdge
from services.gateway.edges.web.live.reading import read_start
from services.gateway.edges.web.live.session import Session
from services.gateway.edges.web.realtime.offer import Offer
from services.gateway.trust.gate import OpenGate
from tests.gateway.door import Gateway, codec, lm
from tests.gateway.web_door import WebDoor
from tests.until import until

PATH = "/v1/live/sessions"
FRAME = bytes(3840)
START = {"type": "session.start", "event_id": "mine", "session": {"model": "gpt-live-1"}}


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with Gateway([codec("mimi", 1)], [lm("one", "mimi", 1)]) as gateway:
        yield gateway


@pytest.fixture
async def door(gateway: Gateway) -> AsyncIterator[WebDoor]:
    async with WebDoor(lambda sockets: LiveEdge(gateway.desk, OpenGate(), sockets, 60.0).routes) as door:
        yield door


async def free(gateway: Gateway) -> None:
    """Wait until the one slot is free."""
    async def is_free() -> bool:
        return (await gateway.desk.info()).slots_free == 1

    await until(is_free)


def append(data: bytes) -> dict[str, str]:
    return {"type": "session.input_audio.append", "audio": base64.b64encode(data).decode()}


async def test_openai_s_own_client(gateway: Gateway, door: WebDoor) -> None:
    openai = pytest.importorskip("openai")
    client = openai.AsyncOpenAI(api_key="sk-none", base_url=f"{door.url}/v1")
    heard: list[Any] = []
    async with client.live.connect() as connection:
        await connection.session.start(session={"model": "gpt-live-1", "instructions": "Sing.", "audio": {
            "format": {"type": "audio/pcm", "rate": 16_000}, "output": {"voice": "marin"}}})
        started = await connection.recv()
        assert started.type == "session.started" and started.session.model == "one"
        assert started.session.audio.format.rate == 16_000 and started.session.instructions is None
        await connection.session.input_audio.mute()
        await connection.session.input_audio.unmute()
        for _ in range(5):
            await connection.session.input_audio.append(audio=base64.b64encode(bytes(2560)).decode())
        sounds = 0
        async for event in connection:
            heard.append(event)
            if event.type == "session.output_audio.delta":
                sounds += 1
                assert len(base64.b64decode(event.delta)) == 2560
            if sounds == 8:  # more than was said: it goes on by itself
                await connection.session.close()
                break
        heard += [event async for event in connection]
    closed = heard[-1]
    assert closed.type == "session.closed" and closed.reason == "close_requested" and closed.usage.seconds >= 1
    assert [event.type for event in heard if "mute" in event.type] == [
        "session.input_audio.muted", "session.input_audio.unmuted"]
    assert not [event for event in heard if event.type == "error"]
    await free(gateway)


def test_what_the_model_says_has_its_time_and_what_it_does_not_say_is_silence() -> None:
    session = Session(read_start(json.dumps(START)), ModelInfo("one", "mimi", 24_000, 1920, 1, 1), Offer(), 0)
    loud, faint = (np.full(1920, level, np.float32) for level in (0.1, 0.0009))
    told = [json.loads(message) for pcm, text in ((loud, "Hi"), (faint, ""))
            for message in session.told(Speech(audio_pb2.FrameContext(sequence=25), pcm, text, 7, [], 0))]
    assert [event["type"].removeprefix("session.") for event in told] == [
        "output_audio.delta", "output_transcript.delta", "output_audio.delta"]
    assert (told[1]["delta"], told[1]["start_ms"], told[1]["end_ms"]) == ("Hi", 2000, 2080)
    assert any(base64.b64decode(told[0]["delta"])) and not any(base64.b64decode(told[2]["delta"]))


async def test_a_telephone(door: WebDoor) -> None:
    async with door.connect(PATH) as socket:
        await socket.send_json(START | {"session": {"model": "one", "audio": {"format": {"type": "audio/pcmu"}}}})
        started = await socket.receive_json()
        assert started["session"]["audio"]["format"] == {"type": "audio/pcmu", "rate": 8000}
        assert started["client_event_id"] == "mine"
        await socket.send_json(append(b"\xff" * 1600))
        while (event := await socket.receive_json())["type"] != "session.output_audio.delta":
            pass
        assert base64.b64decode(event["delta"]) == b"\xff" * 640


BAD_STARTS = {
    "no JSON": ("{", "invalid_event"), "deeply nested": ("[" * 10_000, "invalid_event"),
    "no session": ('{"type": "session.start"}', "invalid_event"),
    "sound first": (json.dumps(append(FRAME)), "invalid_event"),
    "an unknown rate": (json.dumps(START | {"session": {"audio": {"format": {"type": "audio/pcm", "rate": 11_025}}}}),
                        "invalid_value"),
    "an unknown format": (json.dumps(START | {"session": {"audio": {"format": {"type": "audio/mp3"}}}}),
                          "invalid_event"),
}


@pytest.mark.parametrize("name", BAD_STARTS)
async def test_a_session_that_does_not_begin(gateway: Gateway, door: WebDoor, name: str) -> None:
    message, code = BAD_STARTS[name]
    async with door.connect(PATH) as socket:
        await socket.send_str(message)
        error = await socket.receive_json()
        assert error["type"] == "error" and error["error"]["code"] == code and error["error"]["message"]
        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE and socket.close_code == 1008
    await free(gateway)


async def test_what_is_refused_later_ends_nothing(door: WebDoor) -> None:
    later: list[tuple[Any, str]] = [
        ("{", "invalid_event"), (START, "invalid_event"), ({"type": "session.dance"}, "invalid_event"),
        ({"type": "session.input_audio.append", "audio": "?", "event_id": "e1"}, "invalid_base64"),
        ({"type": "session.commentary.append", "content": "Hello", "event_id": "e2"}, "unsupported_event"),
        (append(bytes(4_200_000)), "buffer_full")]
    async with door.connect(PATH) as socket:
        await socket.send_json(START)
        await socket.receive_json()
        for message, code in later:
            await socket.send_str(message if isinstance(message, str) else json.dumps(message))
            while (event := await socket.receive_json())["type"] != "error":
                pass
            assert event["error"]["code"] == code
            if isinstance(message, dict) and "event_id" in message and message is not START:
                assert event["error"]["client_event_id"] == message["event_id"]
        await socket.send_json({"type": "session.update", "session": {}})
        while (event := await socket.receive_json())["type"] != "session.updated":
            pass


async def test_a_client_that_hangs_up_leaves_no_slot_leased(gateway: Gateway, door: WebDoor) -> None:
    async with door.connect(PATH) as socket:
        await socket.send_json(START)
        await socket.receive_json()
    await free(gateway)


async def test_a_flood_and_a_gateway_that_stops(gateway: Gateway, door: WebDoor) -> None:
    async with door.connect(PATH) as socket:
        await socket.send_json(START)

        async def flood() -> None:
            for _ in range(3000):
                await socket.send_str('{"type": "session.update", "session": {}}')

        flooding = asyncio.create_task(flood())
        codes = [message.json()["error"]["code"] async for message in socket if '"error"' in message.data]
        await asyncio.gather(flooding, return_exceptions=True)
        assert codes == ["too_many_messages"] and socket.close_code == 1008
    await free(gateway)
    async with door.connect(PATH) as socket:
        await socket.send_json(START)
        await socket.receive_json()
        gateway.desk.drain()
        told = [message.json() async for message in socket if '"delta"' not in message.data]
        assert [event["type"] for event in told] == ["info", "error"] and socket.close_code == 1012
