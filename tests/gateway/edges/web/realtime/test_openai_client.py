"""The `openai` package's own clients, in both dialects."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from services.gateway.calls.callers import Interrupt
from services.gateway.calls.events import EventKind, GoAway, Summary
from services.mesh.errors import EngineFailed, LineFull
from tests.gateway.edges.web.realtime.scripted import KEY, Stage
from tests.gateway.edges.web.realtime.told import FRAME
from tests.until import until

openai = pytest.importorskip("openai")
pytest.importorskip("websockets")


def client_of(stage: Stage, key: str = KEY) -> Any:
    return openai.AsyncOpenAI(base_url=f"{stage.http}/v1", api_key=key,
                              websocket_base_url=f"{stage.http.replace('http', 'ws')}/v1")


async def heard(connection: Any, last: str) -> list[Any]:
    """What comes until one of this type. Only who iterates is connected again."""
    events: list[Any] = []

    async def listen() -> None:
        async for event in connection:
            events.append(event)
            if event.type == last:
                return

    await asyncio.wait_for(listen(), 20)
    return events


def speak(stage: Stage) -> None:
    stage.call.event(EventKind.MODEL_SPEECH_STARTED)
    stage.call.frames(5, " la")


async def test_a_conversation(stage: Stage) -> None:
    async with client_of(stage).realtime.connect(model="gpt-realtime") as connection:
        (created,) = await heard(connection, "session.created")
        assert created.session.model == "moshi"
        await connection.session.update(session={"type": "realtime", "instructions": "Sing."})
        (updated,) = await heard(connection, "session.updated")
        assert updated.session.audio.output.format.rate == 24_000
        await connection.input_audio_buffer.append(audio=base64.b64encode(bytes(2 * FRAME)).decode())
        await until(lambda: stage.call.samples >= FRAME)
        await connection.response.create(response={"metadata": {"wanted": "yes"}})
        await connection.conversation.item.create(item={
            "type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]})
        await heard(connection, "conversation.item.done")
        speak(stage)
        stage.call.event(EventKind.MODEL_SPEECH_STOPPED)
        stage.call.frames(1)
        done = (await heard(connection, "response.done"))[-1].response
        assert done.status == "completed" and done.metadata == {"wanted": "yes"}
        assert done.output[0].content[0].transcript == "la la la la la"


async def test_a_cancel(stage: Stage) -> None:
    async with client_of(stage).realtime.connect(model="gpt-realtime") as connection:
        speak(stage)
        await heard(connection, "response.output_audio.delta")
        await connection.response.cancel()
        done = (await heard(connection, "response.done"))[-1].response
        assert (done.status, done.status_details.reason) == ("cancelled", "client_cancelled")
        await until(lambda: stage.call.controls == [Interrupt()])


async def test_nothing_that_happens_is_an_error(stage: Stage) -> None:
    """`dispatch_events` raises at an error that nobody listens for."""
    async with client_of(stage).realtime.connect(model="gpt-realtime") as connection:
        await connection.response.cancel()
        await connection.input_audio_buffer.commit()
        await connection.input_audio_buffer.clear()
        await connection.output_audio_buffer.clear()
        await connection.conversation.item.delete(item_id="unknown")
        await connection.conversation.item.truncate(item_id="unknown", content_index=0, audio_end_ms=1)
        await connection.session.update(session={"type": "realtime", "tools": [], "tracing": "auto"})
        stage.call.event(EventKind.USER_SPEECH_STARTED)
        stage.call.event(EventKind.USER_SPEECH_STOPPED)
        speak(stage)
        stage.call.tell(Summary(1, 1, 0))
        await asyncio.wait_for(connection.dispatch_events(), 20)


async def test_it_calls_again_when_the_gateway_stops(stage: Stage) -> None:
    again: list[Any] = []
    async with client_of(stage).realtime.connect(model="gpt-realtime", on_reconnecting=lambda event: again.append(event)
                                                 ) as connection:
        await heard(connection, "session.created")
        stage.call.tell(GoAway(5.0))
        await heard(connection, "session.created")
    assert len(again) == 1 and len(stage.desk.calls) == 2


@pytest.mark.parametrize(("end", "calls"), [(Summary(1, 1, 0), 1), (EngineFailed("broken"), 2)])
async def test_it_calls_again_only_after_a_fault(stage: Stage, end: Any, calls: int) -> None:
    async with client_of(stage).realtime.connect(model="gpt-realtime", on_reconnecting=lambda event: None
                                                 ) as connection:
        await heard(connection, "session.created")
        stage.call.tell(end)
        if calls == 2:
            await heard(connection, "session.created")
        else:
            assert [event async for event in connection] == []
    assert len(stage.desk.calls) == calls


async def test_it_does_not_call_again_when_it_is_refused(guarded: Stage) -> None:
    import websockets

    with pytest.raises(websockets.InvalidStatus) as caught:
        async with client_of(guarded, "wrong").realtime.connect(model="m", on_reconnecting=lambda event: None):
            pass
    assert caught.value.response.status_code == 401
    guarded.desk.first = [LineFull("full")]
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with client_of(guarded).realtime.connect(model="m", on_reconnecting=lambda event: None):
            pass
    assert caught.value.response.status_code == 503 and len(guarded.desk.calls) == 1


async def test_a_beta_conversation(stage: Stage) -> None:
    async with client_of(stage).beta.realtime.connect(model="gpt-4o-realtime-preview") as connection:
        (created,) = await heard(connection, "session.created")
        assert created.session.input_audio_format == "pcm16"
        await connection.session.update(session={"voice": "alloy", "temperature": 0.8, "turn_detection": None})
        (updated,) = await heard(connection, "session.updated")
        assert updated.session.turn_detection.type == "server_vad"
        speak(stage)
        stage.call.event(EventKind.MODEL_SPEECH_STOPPED)
        stage.call.frames(1)
        events = await heard(connection, "response.done")
        assert [event.type for event in events].count("response.audio.delta") == 5
        assert events[-1].response.output[0].content[0].type == "audio"
