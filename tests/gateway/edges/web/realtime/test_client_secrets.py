"""What a backend gets for its key, to be shown by a browser."""

from __future__ import annotations

import json
import time
from typing import Any

import aiohttp
import pytest

from tests.gateway.edges.web.realtime.client import Client
from tests.gateway.edges.web.realtime.scripted import KEY, Stage


async def post(stage: Stage, path: str, body: Any, key: str = KEY) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as http, http.post(
            f"{stage.http}/v1/realtime/{path}", data=body if isinstance(body, bytes) else json.dumps(body),
            headers={"Authorization": f"Bearer {key}"}) as response:
        return response.status, await response.json()


@pytest.mark.parametrize(("asked", "lives_s"), [
    ({}, 600), (b"", 600), ({"session": {"type": "realtime", "instructions": "Sing."}}, 600),
    ({"expires_after": {"anchor": "created_at", "seconds": 30}}, 30), ({"expires_after": 7}, 600),
    ({"expires_after": {"seconds": 1}}, 10), ({"expires_after": {"seconds": 1e9}}, 7200),
    ({"expires_after": {"seconds": "x"}}, 600), ({"expires_after": {"seconds": True}}, 600)])
async def test_a_client_secret(guarded: Stage, asked: Any, lives_s: float) -> None:
    status, secret = await post(guarded, "client_secrets", asked)
    assert status == 200 and secret["value"].startswith("ek_")
    assert secret["expires_at"] == pytest.approx(time.time() + lives_s, abs=5)
    assert secret["session"]["type"] == "realtime" and secret["session"]["object"] == "realtime.session"
    assert guarded.gate.tickets == {secret["value"]: (lives_s, False)}


async def test_a_browser_calls_with_its_secret_more_than_once(guarded: Stage) -> None:
    _, secret = await post(guarded, "client_secrets", {})
    for _ in range(2):
        async with Client(guarded.url, protocols=[
                "realtime", f"openai-insecure-api-key.{secret['value']}"]) as client:
            await client.hear("session.created")


async def test_a_beta_session(guarded: Stage) -> None:
    status, session = await post(guarded, "sessions", {"model": "gpt-4o-realtime-preview"})
    assert status == 200 and session["input_audio_format"] == "pcm16"
    assert session["client_secret"]["value"].startswith("ek_")
    assert session["client_secret"]["expires_at"] == pytest.approx(time.time() + 60, abs=5)


@pytest.mark.parametrize(("key", "asked", "status", "code"), [
    ("wrong", {}, 401, "invalid_api_key"), (KEY, b"{", 400, "bad_body"), (KEY, [], 400, "bad_body"),
    (KEY, {"session": {"type": "transcription"}}, 400, "bad_session"), ("forbidden", {}, 403, "door_closed")])
async def test_a_secret_that_is_refused(guarded: Stage, key: str, asked: Any, status: int, code: str) -> None:
    answered, body = await post(guarded, "client_secrets", asked, key)
    assert (answered, body["error"]["code"]) == (status, code)
    assert not guarded.gate.tickets


async def test_openai_s_client_makes_secrets(guarded: Stage) -> None:
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(base_url=f"{guarded.http}/v1", api_key=KEY) as client:
        secret = await client.realtime.client_secrets.create(session={"type": "realtime", "model": "gpt-realtime"})
        session = await client.beta.realtime.sessions.create(model="gpt-4o-realtime-preview")
    assert secret.value.startswith("ek_") and secret.session.type == "realtime"
    assert session.client_secret.value.startswith("ek_")
