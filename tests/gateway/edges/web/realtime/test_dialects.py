"""Both dialects, as the `openai` package understands them: every message has a type that it knows, and every field."""

from __future__ import annotations

from typing import Any

import pytest

from services.gateway.edges.web.realtime.dialects import Beta, Dialect, Ga
from services.mesh.errors import EngineFailed
from tests.gateway.edges.web.realtime.told import (
    MODEL_STARTS,
    READY,
    USER_STARTS,
    USER_STOPS,
    Talk,
)

BETA_ONLY = {"conversation.item.created", "response.audio.delta", "response.audio.done",
             "response.audio_transcript.delta", "response.audio_transcript.done"}
GA_ONLY = {"conversation.item.added", "conversation.item.done", "response.output_audio.delta",
           "response.output_audio.done", "response.output_audio_transcript.delta",
           "response.output_audio_transcript.done"}


def everything(dialect: Dialect) -> list[dict[str, Any]]:
    """A session in which every message of the mesh comes."""
    talk = Talk(dialect, ready=False)
    talk.session.told(READY)
    talk.take()
    talk.ask("session.update", session={"audio": {"output": {"format": {"type": "audio/pcmu"}}}})
    talk.ask("conversation.item.create", item={"type": "message", "role": "assistant",
                                               "content": [{"type": "output_text", "text": "Hi"}]})
    talk.ask("conversation.item.create", item={"type": "function_call_output", "call_id": "c", "output": "7"})
    talk.ask("input_audio_buffer.commit")
    talk.ask("input_audio_buffer.clear")
    talk.event(USER_STARTS)
    talk.event(USER_STOPS)
    talk.ask("response.create", response={"metadata": {"a": "b"}})
    item_id = talk.event(MODEL_STARTS)[2]["item"]["id"]
    talk.frames(3, " hello")
    talk.stops()
    talk.ask("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=100)
    talk.ask("conversation.item.retrieve", item_id=item_id)
    talk.ask("conversation.item.delete", item_id=item_id)
    for ending in ("barge-in", "cancel", "failure"):
        talk.clock.seconds += 10
        talk.event(MODEL_STARTS)
        talk.frames(1)
        if ending == "barge-in":
            talk.event(USER_STARTS)
            talk.yields()
        elif ending == "cancel":
            talk.ask("response.cancel")
        else:
            talk.session.failed(EngineFailed("broken"))
            talk.take()
    return [{"event_id": talk.ids.new("event"), **message} for message in talk.sent]


@pytest.mark.parametrize("dialect", [Ga(), Beta()], ids=["ga", "beta"])
def test_every_message_is_one_that_openai_s_package_knows(dialect: Dialect) -> None:
    pydantic = pytest.importorskip("pydantic")
    if isinstance(dialect, Ga):
        types = pytest.importorskip("openai.types.realtime")
    else:
        types = pytest.importorskip("openai.types.beta.realtime")
    adapter = pydantic.TypeAdapter(types.RealtimeServerEvent)
    for message in everything(dialect):
        if isinstance(dialect, Beta) and "session" in message:
            message["session"]["model"] = "gpt-realtime"  # its type lists OpenAI's own; the package takes any
        parsed = adapter.validate_python(message)
        assert parsed.type == message["type"]
        unknown = {key for key in message if key not in type(parsed).model_fields} - {"start_time"}
        assert not unknown, (message["type"], unknown)


def test_no_stream_has_names_of_both_dialects() -> None:
    ga, beta = ({message["type"] for message in everything(dialect)} for dialect in (Ga(), Beta()))
    assert ga >= GA_ONLY and not ga & BETA_ONLY
    assert beta >= BETA_ONLY and not beta & GA_ONLY
    assert ga - GA_ONLY == beta - BETA_ONLY


def test_every_message_has_the_fields_that_strict_clients_ask_for() -> None:
    """Pipecat up to 1.12 goes deaf without usage or status_details; npm's agents die without a user's transcript."""
    for message in everything(Ga()):
        if message["type"] == "response.done":
            response = message["response"]
            assert "status_details" in response and "metadata" in response
            assert {"total_tokens", "input_tokens", "output_tokens", "input_token_details",
                    "output_token_details"} == set(response["usage"])
        item = message.get("item", {})
        if item.get("role") == "user":
            assert all("transcript" in part for part in item["content"] if part["type"] == "input_audio")


def test_a_beta_session_is_flat() -> None:
    created = everything(Beta())[0]["session"]
    assert created["modalities"] == ["audio", "text"] and created["input_audio_format"] == "pcm16"
    assert "audio" not in created and "output_modalities" not in created


def test_a_beta_response_is_flat() -> None:
    done = next(one for one in everything(Beta()) if one["type"] == "response.done")["response"]
    assert done["output_audio_format"] == "g711_ulaw" and done["output"][0]["content"][0]["type"] == "audio"
    assert "audio" not in done
