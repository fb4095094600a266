"""What a call begins with: the voice and the instructions that clients ask for in their first messages."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from moshimesh.lm.v1 import lm_pb2

from services.gateway.edges.web.live.edge import LiveEdge
from services.gateway.edges.web.realtime.edge import RealtimeEdge
from services.gateway.trust.gate import OpenGate
from services.gateway.trust.tickets import Tickets
from tests.gateway.calls.test_voices import folder, prompt
from tests.gateway.edges.web.realtime.client import Client
from tests.gateway.fake_lm import FakeLm
from tests.gateway.house import House
from tests.gateway.redis_server import RedisServer
from tests.gateway.web_door import WebDoor
from tests.until import until

__all__ = ["folder"]

KIND = "Be kind."
LONG = "x" * 41  # one more than the model has learnt to follow
SOUND = base64.b64encode(bytes(9600)).decode()


@pytest.fixture
async def house(redis_server: RedisServer, folder: Path) -> AsyncIterator[House]:
    lm = FakeLm(slots=1)
    lm.text_prompt_characters = 40
    async with House(redis_server.url, lm=lm, voices=str(folder)) as house:
        yield house


@pytest.fixture
async def door(house: House) -> AsyncIterator[WebDoor]:
    gate = OpenGate(Tickets(house.store))
    async with WebDoor(lambda sockets: [*RealtimeEdge(house.desk, gate, sockets, 3600.0).routes,
                                        *LiveEdge(house.desk, gate, sockets, 3600.0).routes]) as door:
        yield door


def call(door: WebDoor, **options: Any) -> Client:
    return Client(f"{door.url}/v1/realtime", **options)


def asked(voice: str | None = None, instructions: str | None = None) -> dict[str, Any]:
    """A session in GA's shape."""
    said = {"audio": {"output": {"voice": voice}}, "instructions": instructions}
    return {name: value for name, value in said.items() if value is not None}


def in_force(session: dict[str, Any]) -> tuple[str, str]:
    return session["audio"]["output"]["voice"], session["instructions"]


async def begun_with(house: House, calls: int = 1) -> lm_pb2.StepPrompt:
    """What the model was told before the first frame of the last of so many calls."""
    await until(lambda: len(house.lm.prompts) >= calls)
    return house.lm.prompts[-1]


async def test_what_a_client_asks_for_at_once_is_in_force(house: House, door: WebDoor, folder: Path) -> None:
    async with call(door) as client:
        await client.ask("session.update", session=asked("lena", KIND))
        assert in_force((await client.hear("session.updated"))["session"]) == ("lena", KIND)
        assert in_force(client.heard[0]["session"]) == ("default", "")  # session.created
        assert await begun_with(house) == prompt(folder, "lena", KIND)


async def test_a_client_that_waits_for_session_created_is_waited_for(house: House, door: WebDoor, folder: Path) -> None:
    async with call(door) as client:
        await client.hear("session.created")
        assert house.lm.held == 0
        await client.ask("session.update", session=asked("lena"))
        assert await begun_with(house) == prompt(folder, "lena")


async def test_updates_that_follow_each_other_count_together_and_sound_between_them_is_heard(
        house: House, door: WebDoor, folder: Path) -> None:
    """LiveKit sends three, and does not wait with its sound."""
    async with call(door) as client:
        await client.ask("session.update", session=asked("marin"))
        await client.ask("input_audio_buffer.append", audio=SOUND)
        await client.ask("session.update", session=asked(instructions=KIND))
        await client.ask("session.update", session={"tools": []})
        assert await begun_with(house) == prompt(folder, text=KIND)


async def test_a_client_that_only_speaks_is_not_kept_waiting(house: House, door: WebDoor) -> None:
    async with call(door) as client:
        await client.ask("input_audio_buffer.append", audio=SOUND)  # before session.created: the socket is open
        await client.hear("session.created")
        while not house.lm.held:
            await client.ask("input_audio_buffer.append", audio=SOUND)
            await asyncio.sleep(0.02)
        assert await begun_with(house) == lm_pb2.StepPrompt()


@pytest.mark.parametrize("session", [
    asked("alloy", LONG), asked("../lena"), asked(instructions=""), asked(), {"instructions": 7, "audio": {"output": {
        "voice": ["lena"]}}}, {"audio": {"output": {"voice": {"id": "of another mesh"}}}}])
async def test_what_the_mesh_has_not_is_not_in_force_and_the_session_says_so(
        house: House, door: WebDoor, session: dict[str, Any]) -> None:
    async with call(door) as client:
        await client.ask("session.update", session=session)
        assert in_force((await client.hear("session.updated"))["session"]) == ("default", "")
        assert await begun_with(house) == lm_pb2.StepPrompt()
        assert not [one for one in client.heard if one["type"] == "error"]


async def test_later_updates_change_neither(house: House, door: WebDoor, folder: Path) -> None:
    """No error: openai-agents and LiveKit send new instructions in mid-call, and Pipecat stops listening at one."""
    async with call(door) as client:
        await client.ask("session.update", session=asked({"id": "lena"}, KIND))  # type: ignore[arg-type]
        await begun_with(house)
        await client.hear("session.updated")
        await client.ask("session.update", session=asked("Paul-2", "Be brief."))
        assert in_force((await client.hear("session.updated"))["session"]) == ("lena", KIND)
        assert house.lm.prompts == [prompt(folder, "lena", KIND)]


async def test_the_beta_dialect(house: House, door: WebDoor, folder: Path) -> None:
    async with call(door, headers={"OpenAI-Beta": "realtime=v1"}) as client:
        await client.ask("session.update", session={"voice": "lena", "instructions": KIND})
        updated = await client.hear("session.updated")
        assert (updated["session"]["voice"], updated["session"]["instructions"]) == ("lena", KIND)
        assert await begun_with(house) == prompt(folder, "lena", KIND)


async def test_who_waits_in_line_begins_as_it_asked_meanwhile(house: House, door: WebDoor, folder: Path) -> None:
    async with call(door) as first:
        await begun_with(house)
        async with call(door) as second:
            await until(lambda: house.line.waiting == 1)
            await second.ask("session.update", session=asked("lena", KIND))
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:  # one may wait in this house
                async with call(door):
                    pass
            assert caught.value.status == 503
            await first.socket.close()
            assert in_force((await second.hear("session.updated"))["session"]) == ("lena", KIND)
            assert [one["type"] for one in second.heard] == ["session.created", "session.updated"]
            assert await begun_with(house, 2) == prompt(folder, "lena", KIND)


async def test_who_hangs_up_before_the_call_has_begun_holds_nothing(house: House, door: WebDoor) -> None:
    async with call(door) as client:
        await client.hear("session.created")
    await until(lambda: house.desk.calls == 0)
    assert house.lm.prompts == [] and house.lm.held == 0


async def secret_for(door: WebDoor, session: dict[str, Any]) -> dict[str, Any]:
    async with aiohttp.ClientSession() as http, http.post(
            f"{door.url}/v1/realtime/client_secrets", json={"session": {"type": "realtime", **session}}) as answer:
        assert answer.status == 200, await answer.text()
        secret: dict[str, Any] = await answer.json()
        return secret


def browser(door: WebDoor, secret: dict[str, Any]) -> Client:
    return call(door, protocols=["realtime", f"openai-insecure-api-key.{secret['value']}"])


async def test_a_secret_s_settings_are_those_of_its_calls(house: House, door: WebDoor, folder: Path) -> None:
    session = asked("lena", KIND)
    session["audio"]["input"] = {"format": {"type": "audio/pcmu"}, "turn_detection": {"type": "semantic_vad"}}
    secret = await secret_for(door, session)
    assert in_force(secret["session"]) == ("lena", KIND)
    for calls in (1, 2):
        async with browser(door, secret) as client:
            created = (await client.hear("session.created"))["session"]
            assert in_force(created) == ("lena", KIND)
            assert created["audio"]["input"]["format"] == {"type": "audio/pcmu"}
            assert await begun_with(house, calls) == prompt(folder, "lena", KIND)
        await until(lambda: not house.desk.calls)


async def test_a_call_s_own_settings_go_before_its_secret_s(house: House, door: WebDoor, folder: Path) -> None:
    async with browser(door, await secret_for(door, asked("lena", KIND))) as client:
        await client.ask("session.update", session=asked("Paul-2"))
        assert in_force((await client.hear("session.updated"))["session"]) == ("Paul-2", KIND)
        assert await begun_with(house) == prompt(folder, "Paul-2", KIND)


async def test_instructions_that_no_model_follows_are_not_kept(redis_server: RedisServer, door: WebDoor) -> None:
    secret = await secret_for(door, asked(instructions="x" * 50_000))
    assert in_force(secret["session"]) == ("default", "")
    kept = [redis_server.client.get(key) for key in redis_server.client.keys("*ticket:*")]
    assert kept and all(len(value or b"") < 1000 for value in kept)


@pytest.mark.parametrize(("session", "param"), [
    ({"instructions": 7}, "session.instructions"), ({"model": 7}, "session.model"),
    (asked("nobody"), "session.audio.output.voice"), ({"voice": "nobody"}, "session.voice"),
    ({"audio": {"output": {"format": {"type": "audio/mp3"}}}}, "session.audio.output.format.type"),
    ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 11_025}}}}, "session.audio.input.format.rate"),
    ({"audio": []}, "session.audio"), ({"model": "x" * 300}, "session.model")])
async def test_bad_settings_give_no_secret(door: WebDoor, session: dict[str, Any], param: str) -> None:
    async with aiohttp.ClientSession() as http, http.post(
            f"{door.url}/v1/realtime/client_secrets", data=json.dumps({"session": session})) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["type"], error["code"]) == (400, "invalid_request_error", "bad_session")
        assert error["param"] == param and error["message"].startswith(f"{param}: ")


async def test_a_live_session_begins_as_its_first_message_says(house: House, door: WebDoor, folder: Path) -> None:
    async with Client(f"{door.url}/v1/live/sessions") as client:
        await client.ask("session.start", session=asked("lena", KIND) | {"model": "gpt-live-1"})
        assert in_force((await client.hear("session.started"))["session"]) == ("lena", KIND)
        assert house.lm.prompts == [prompt(folder, "lena", KIND)]
