"""Clients of the field against scripted calls: openai-agents, LiveKit's plugin and Pipecat, each in its own process.

Three things that each of them has broken on: what speech_started does to a playback, and cancels that come late for it;
parsers that stop at what they don't know; clients that call again for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from harness.realtime_clients import NotInstalled, Running, running
from services.gateway.calls.callers import Interrupt
from services.gateway.calls.events import EventKind, GoAway
from services.gateway.edges.web.realtime.session import Session
from services.gateway.edges.web.realtime.turns import LEAD_FRAMES
from services.mesh.errors import AudioQuotaUsed
from tests.gateway.edges.web.realtime.scripted import KEY, Call, Stage
from tests.gateway.edges.web.realtime.told import FRAME
from tests.until import until

pytestmark = pytest.mark.slow
CLIENTS = ["openai_agents", "livekit_agents", "pipecat_service"]
FRAME_BYTES = 2 * FRAME
WAIT_S = 60.0  # for a process that loads a gigabyte of packages on a busy machine


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What clients send, but for sound."""
    messages: list[dict[str, Any]] = []
    take = Session.asked

    def noted(session: Session, text: str | bytes) -> None:
        message = json.loads(text)
        if message["type"] != "input_audio_buffer.append":
            messages.append(message)
        take(session, text)

    monkeypatch.setattr(Session, "asked", noted)
    return messages


def types(messages: list[dict[str, Any]]) -> set[str]:
    return {message["type"] for message in messages}


@contextlib.asynccontextmanager
async def calling(name: str, stage: Stage, key: str = KEY) -> AsyncIterator[Running]:
    """A client that has called and sends sound."""
    try:
        async with running(name, stage.http, key) as client:
            await until(lambda: stage.desk.calls and stage.call.samples and client.seen, WAIT_S)
            yield client
    except NotInstalled as error:
        pytest.skip(str(error))


async def talk(call: Call, frames: int) -> None:
    """So many frames of the model, faster than they are played: players go by the clock, and have some left to stop."""
    for _ in range(frames):
        call.frames(1, " la")
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("name", CLIENTS)
async def test_a_back_channel_stops_nobody_s_playback(stage: Stage, name: str, asked: list[dict[str, Any]]) -> None:
    async with calling(name, stage) as client:
        stage.call.event(EventKind.MODEL_SPEECH_STARTED)
        await talk(stage.call, 10)
        stage.call.event(EventKind.USER_SPEECH_STARTED)
        await talk(stage.call, 4)
        stage.call.event(EventKind.USER_SPEECH_STOPPED)
        await talk(stage.call, 10)
        stage.call.event(EventKind.MODEL_SPEECH_STOPPED)
        stage.call.frames(1)
        await until(lambda: client.seen["heard_bytes"] == 24 * FRAME_BYTES, WAIT_S)
        assert client.seen["interruptions"] == 0 and client.seen["errors"] == []
        assert not types(asked) & {"response.cancel", "conversation.item.truncate"}


@pytest.mark.parametrize("name", CLIENTS)
async def test_a_barge_in_stops_the_playback_and_what_the_client_sends_for_it_does_not_kill_the_next_response(
        stage: Stage, name: str, asked: list[dict[str, Any]]) -> None:
    async with calling(name, stage) as client:
        stage.call.event(EventKind.MODEL_SPEECH_STARTED)
        await talk(stage.call, 15)
        stage.call.event(EventKind.USER_SPEECH_STARTED)
        await talk(stage.call, 2)
        stage.call.event(EventKind.MODEL_SPEECH_STOPPED)
        stage.call.event(EventKind.INTERRUPTED)
        stage.call.event(EventKind.USER_SPEECH_STOPPED)
        stage.call.event(EventKind.MODEL_SPEECH_STARTED)  # before the client's cancel has come
        await talk(stage.call, 15)
        stage.call.event(EventKind.MODEL_SPEECH_STOPPED)
        stage.call.frames(1)
        await until(lambda: client.seen["heard_bytes"] == 32 * FRAME_BYTES, WAIT_S)
        await until(lambda: client.seen["interruptions"] == 1, WAIT_S)
        facts = await client.facts()
    assert facts["errors"] == [] and facts["statuses"] == ["cancelled", "completed"]
    assert "conversation.item.truncate" in types(asked)
    assert ("response.cancel" in types(asked)) == (name == "livekit_agents")
    assert Interrupt() not in stage.call.controls


@pytest.mark.parametrize("name", CLIENTS)
async def test_every_message_is_understood(stage: Stage, name: str) -> None:
    """All kinds of messages, all kinds of ends, and the client still listens after them."""
    async with calling(name, stage) as client:
        stage.call.event(EventKind.USER_SPEECH_STARTED)
        stage.call.event(EventKind.USER_SPEECH_STOPPED)
        for ending in (EventKind.MODEL_SPEECH_STOPPED, EventKind.INTERRUPTED, EventKind.MODEL_SPEECH_STOPPED):
            stage.call.event(EventKind.MODEL_SPEECH_STARTED)
            await talk(stage.call, 10)
            stage.call.event(EventKind.MODEL_SPEECH_STOPPED)
            stage.call.event(ending)
            await talk(stage.call, 15)
        await until(lambda: client.seen["heard_bytes"] == (30 + 2 * LEAD_FRAMES) * FRAME_BYTES, WAIT_S)
        facts = await client.facts()
    assert facts["errors"] == []
    assert facts["statuses"] == ["completed", "cancelled", "completed"]


# Those who call for ever.


async def test_livekit_calls_again_when_the_gateway_stops(stage: Stage) -> None:
    async with calling("livekit_agents", stage) as client:
        stage.call.tell(GoAway(5.0))
        await until(lambda: len(stage.desk.calls) == 2 and stage.call.samples, WAIT_S)
        stage.call.event(EventKind.MODEL_SPEECH_STARTED)
        await talk(stage.call, 5)
        await until(lambda: client.seen["heard_bytes"] == 5 * FRAME_BYTES, WAIT_S)


async def test_livekit_does_not_call_again_when_its_quota_is_used(stage: Stage) -> None:
    async with calling("livekit_agents", stage) as client:
        stage.call.tell(AudioQuotaUsed("an hour is an hour"))
        await until(lambda: any("recoverable=False" in error for error in client.seen["errors"]), WAIT_S)
        await client.facts()
    assert len(stage.desk.calls) == 1


async def test_livekit_gives_up_when_it_is_refused(guarded: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = []
    gate = guarded.gate
    take = gate.caller

    async def noted(*asked: Any) -> Any:
        refusals.append(asked)
        return await take(*asked)

    monkeypatch.setattr(gate, "caller", noted)
    try:
        async with running("livekit_agents", guarded.http, "wrong") as client:
            await until(lambda: any("recoverable=False" in error for error in client.seen.get("errors", ())), WAIT_S)
            assert len(refusals) == 4
    except NotInstalled as error:
        pytest.skip(str(error))
