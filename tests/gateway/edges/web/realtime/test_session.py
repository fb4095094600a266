"""What a client may send, and what it is answered, without any wire."""

from __future__ import annotations

import base64
import json

import pytest

from services.gateway.calls.callers import PlayedOut
from services.gateway.calls.events import GoAway, Queued, Summary
from services.gateway.edges.web.realtime.feed import MOST_WAITING_BYTES
from services.gateway.edges.web.realtime.items import MOST_BYTES
from services.gateway.edges.web.realtime.session import MOST_EARLY_CHARACTERS
from services.mesh.errors import Draining, EngineFailed, InvalidRequest
from tests.gateway.edges.web.realtime.told import (
    MODEL_STARTS,
    READY,
    USER_STARTS,
    Talk,
    types,
)


def said(talk: Talk, *words: str) -> str:
    """The model says something, a word a frame; the id of its item."""
    item_id = talk.event(MODEL_STARTS)[1]["item"]["id"]
    for word in words:
        talk.frames(1, word)
    talk.stops()
    return item_id


def error_of(messages: list[dict]) -> dict:
    (message,) = messages
    assert message["type"] == "error" and set(message["error"]) == {"type", "code", "message", "param", "event_id"}
    return message["error"]


# The session.


def test_session_created_waits_for_the_slot() -> None:
    talk = Talk(ready=False)
    talk.session.told(Queued(3, 1000))
    assert talk.take() == []
    talk.session.told(READY)
    (created,) = talk.take()
    assert created["type"] == "session.created" and created["session"]["model"] == "moshi"


def test_what_a_client_sends_in_the_line_is_answered_after_session_created() -> None:
    """openai-agents and LiveKit send their settings as soon as the socket is open."""
    talk = Talk(ready=False)
    assert talk.ask("session.update", session={"type": "realtime"}) == []
    assert talk.ask("input_audio_buffer.append", audio=base64.b64encode(bytes(4800)).decode()) == []
    talk.session.told(READY)
    assert types(talk.take()) == ["session.created", "session.updated"]
    assert len(talk.inbox._feed._waiting) == 0


def test_a_client_that_floods_the_line_is_told() -> None:
    talk = Talk(ready=False)
    for _ in range(MOST_EARLY_CHARACTERS // 60_000):
        assert talk.ask("session.update", session={"type": "realtime", "instructions": "a" * 60_000}) == []
    assert error_of(talk.ask("session.update", session={"instructions": "a" * 60_000}))["code"] == "too_many_events"


def test_an_update_is_answered_with_the_truth() -> None:
    talk = Talk()
    before = talk.dialect.session(talk.settings)
    (updated,) = talk.ask("session.update", session={
        "type": "realtime", "model": "gpt-realtime", "instructions": "Sing.", "output_modalities": ["text"],
        "audio": {"input": {"turn_detection": None, "transcription": {"model": "whisper-1"},
                            "noise_reduction": {"type": "near_field"}, "format": {"type": "audio/pcm", "rate": 24000}},
                  "output": {"voice": "marin", "speed": 1.5}},
        "tools": [{"type": "function", "name": "f"}], "tool_choice": "auto", "tracing": "auto",
        "max_output_tokens": 100})
    assert updated["type"] == "session.updated" and updated["session"] == before
    assert before["audio"]["input"]["turn_detection"]["type"] == "server_vad"  # null would make clients cancel


def test_every_update_is_answered() -> None:
    """LiveKit sends three at the start."""
    talk = Talk()
    assert [types(talk.ask("session.update", session={})) for _ in range(3)] == [["session.updated"]] * 3


@pytest.mark.parametrize(("asked", "input", "output"), [
    ({"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, {"type": "audio/pcmu"}, None),
    ({"audio": {"output": {"format": {"type": "audio/pcma"}}}}, None, {"type": "audio/pcma"}),
    ({"input_audio_format": "g711_ulaw", "output_audio_format": "g711_alaw"}, {"type": "audio/pcmu"},
     {"type": "audio/pcma"}),
    ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 8000}}}}, {"type": "audio/pcm", "rate": 8000}, None),
    ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 12345}}}}, None, None),
    ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 8000.0}}}}, None, None),
    ({"audio": {"input": {"format": {"type": "audio/opus"}}}}, None, None),
    ({"audio": {"input": {"format": "mp3"}}, "output_audio_format": 7}, None, None),
    ({"audio": [], "input_audio_format": []}, None, None)])
def test_formats(asked: dict, input: dict | None, output: dict | None) -> None:
    talk = Talk()
    (updated,) = talk.ask("session.update", session=asked)
    audio, default = updated["session"]["audio"], {"type": "audio/pcm", "rate": 24000}
    assert (audio["input"]["format"], audio["output"]["format"]) == (input or default, output or default)


def test_a_session_of_another_type_is_refused() -> None:
    assert error_of(Talk().ask("session.update", session={"type": "transcription"}))["param"] == "session.type"


# What can't be understood.


@pytest.mark.parametrize(("text", "code"), [
    ("", "invalid_json"), ("{", "invalid_json"), ("[" * 100_000, "event_too_large"), ("[]", "invalid_event"),
    ("7", "invalid_event"), ('{"type": 7}', "invalid_value"), ("{}", "invalid_value"), (b"\x00", "invalid_event"),
    ("[" * 10_000, "invalid_json"), ('{"type": "response.sing"}', "unknown_event"),
    ('{"type": "session.update"}', "invalid_value"), ('{"type": "session.update", "session": 7}', "invalid_value"),
    ('{"type": "input_audio_buffer.append"}', "invalid_value"),
    ('{"type": "input_audio_buffer.append", "audio": "?"}', "invalid_base64"),
    ('{"type": "input_audio_buffer.append", "audio": "AAA"}', "invalid_base64"),
    ('{"type": "input_audio_buffer.append", "audio": "\\u20ac"}', "invalid_base64"),
    ('{"type": "conversation.item.create"}', "invalid_value"),
    ('{"type": "conversation.item.create", "item": {"id": 7}}', "invalid_value"),
    ('{"type": "conversation.item.retrieve", "item_id": "x"}', "item_retrieve_invalid_item_id"),
    ('{"type": "conversation.item.delete"}', "invalid_value"),
    ('{"type": "conversation.item.delete", "item_id": ""}', "invalid_value"),
    ('{"type": "conversation.item.truncate", "item_id": "x"}', "invalid_value"),
    ('{"type": "conversation.item.truncate", "item_id": "x", "audio_end_ms": NaN}', "invalid_json"),
    ('{"type": "conversation.item.create", "item": {"type": "note", "x": 1e999}}', "invalid_json"),
    ('{"type": "conversation.item.truncate", "item_id": "x", "audio_end_ms": true}', "invalid_value")])
def test_faults(text: str, code: str) -> None:
    talk = Talk()
    talk.session.asked(text)
    assert error_of(talk.take())["code"] == code
    assert talk.session.close_code is None


def test_a_fault_names_the_client_s_event() -> None:
    assert error_of(Talk().ask("response.sing", event_id="mine"))["event_id"] == "mine"


def test_a_large_message_of_many_values_is_not_even_parsed() -> None:
    talk = Talk()
    talk.session.asked(json.dumps({"type": "session.update", "session": {"tools": list(range(100_000))}}))
    assert error_of(talk.take())["code"] == "event_too_large"


# Sound.


def test_sound_waits_to_be_heard_and_is_not_answered() -> None:
    talk = Talk()
    assert talk.ask("input_audio_buffer.append", audio=base64.b64encode(bytes(4800)).decode()) == []
    assert len(talk.inbox._feed._waiting) == 4800


def test_sound_that_is_cleared_is_not_heard() -> None:
    talk = Talk()
    talk.ask("input_audio_buffer.append", audio=base64.b64encode(bytes(4800)).decode())
    assert types(talk.ask("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    assert len(talk.inbox._feed._waiting) == 0


def test_more_sound_than_may_wait_is_refused() -> None:
    talk, mebibyte = Talk(), base64.b64encode(bytes(1 << 20)).decode()
    for _ in range(MOST_WAITING_BYTES >> 20):
        assert talk.ask("input_audio_buffer.append", audio=mebibyte) == []
    assert error_of(talk.ask("input_audio_buffer.append", audio=mebibyte))["code"] == "input_audio_buffer_full"


def test_a_commit_lists_an_item_and_triggers_nothing() -> None:
    talk = Talk()
    committed, added, done = talk.ask("input_audio_buffer.commit")
    assert types([committed, added, done]) == [
        "input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]
    assert committed["item_id"] == added["item"]["id"] == done["item"]["id"]
    assert talk.frames(10) == []


# Items.


def test_an_item_of_the_client_keeps_its_id() -> None:
    talk = Talk()
    added, done = talk.ask("conversation.item.create", item={
        "id": "mine", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]})
    assert types([added, done]) == ["conversation.item.added", "conversation.item.done"]
    assert added["item"] == {"id": "mine", "object": "realtime.item", "type": "message", "role": "user",
                             "status": "completed", "content": [{"type": "input_text", "text": "Hi"}]}


def test_an_item_without_an_id_gets_one() -> None:
    added, _ = Talk().ask("conversation.item.create", item={"type": "function_call_output", "call_id": "c"})
    assert added["item"]["id"] and added["item"]["call_id"] == "c"


def test_items_are_chained() -> None:
    talk = Talk()
    before = []
    for item_id, after in (("a", None), ("b", None), ("c", "a"), ("d", "root"), ("e", "unknown")):
        fields = {} if after is None else {"previous_item_id": after}
        before.append(talk.ask("conversation.item.create", item={"id": item_id, "type": "message"},
                               **fields)[0]["previous_item_id"])
    assert before == [None, "a", "a", None, "b"]


def test_an_item_that_comes_again_takes_the_place_of_the_old_one() -> None:
    talk = Talk()
    for text in ("old", "new"):
        talk.ask("conversation.item.create", item={
            "id": "a", "type": "message", "content": [{"type": "input_text", "text": text}]})
    (retrieved,) = talk.ask("conversation.item.retrieve", item_id="a")
    assert retrieved["item"]["content"][0]["text"] == "new"


@pytest.mark.parametrize("item_id", ["known", "unknown"])
def test_every_deletion_is_confirmed(item_id: str) -> None:
    """LiveKit waits 5 s for it."""
    talk = Talk()
    talk.ask("conversation.item.create", item={"id": "known", "type": "message"})
    (deleted,) = talk.ask("conversation.item.delete", item_id=item_id)
    assert deleted == {"type": "conversation.item.deleted", "item_id": item_id}


def test_sound_and_pictures_of_an_item_are_not_kept() -> None:
    talk = Talk()
    added, _ = talk.ask("conversation.item.create", item={"type": "message", "role": "user", "content": [
        {"type": "input_image", "image_url": "data:" + "a" * 1_000_000}, {"type": "input_audio", "audio": "AAAA"}]})
    assert added["item"]["content"] == [{"type": "input_image"}, {"type": "input_audio"}]


def test_an_item_that_is_too_large_is_refused() -> None:
    assert error_of(Talk().ask("conversation.item.create", item={"type": "message", "content": [
        {"type": "input_text", "text": "a" * 70_000}]}))["code"] == "item_too_large"


def test_the_oldest_items_are_forgotten() -> None:
    talk = Talk()
    for number in range(3 * MOST_BYTES // 60_000):
        talk.ask("conversation.item.create", item={"id": str(number), "type": "message", "content": [
            {"type": "input_text", "text": "a" * 60_000}]})
    assert error_of(talk.ask("conversation.item.retrieve", item_id="0"))["code"] == "item_retrieve_invalid_item_id"
    assert types(talk.ask("conversation.item.retrieve", item_id=str(number))) == ["conversation.item.retrieved"]
    assert talk.items._bytes <= MOST_BYTES


def test_what_was_said_can_be_retrieved_without_its_sound() -> None:
    talk = Talk()
    (retrieved,) = talk.ask("conversation.item.retrieve", item_id=said(talk, " one", " two"))
    assert retrieved["item"]["content"] == [{"type": "output_audio", "transcript": "one two"}]


# What was heard.


@pytest.mark.parametrize(("asked_ms", "heard_ms", "transcript"), [
    (80, 80, "one"), (200, 200, "one two three"), (0, 0, ""), (-5, 0, ""), (1e9, 240, "one two three"),
    (160, 160, "one two")])
def test_a_truncation_cuts_the_transcript_and_is_clamped(asked_ms: float, heard_ms: int, transcript: str) -> None:
    talk = Talk()
    item_id = said(talk, " one", " two", " three")
    (truncated,) = talk.ask("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=asked_ms)
    assert truncated == {"type": "conversation.item.truncated", "item_id": item_id, "content_index": 0,
                         "audio_end_ms": heard_ms}
    (retrieved,) = talk.ask("conversation.item.retrieve", item_id=item_id)
    assert retrieved["item"]["content"][0]["transcript"] == transcript


def test_a_truncation_tells_the_mesh_how_far_the_user_heard() -> None:
    talk = Talk()
    talk.frames(10)
    item_id = said(talk, " one", " two", " three")  # with two silent frames in front: from frame 9 on
    talk.ask("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=250)
    assert talk.controls == [PlayedOut(11)]


def test_a_truncation_of_an_unknown_item_is_clamped_to_nothing() -> None:
    (truncated,) = Talk().ask("conversation.item.truncate", item_id="x", content_index=3, audio_end_ms=100)
    assert (truncated["audio_end_ms"], truncated["content_index"]) == (0, 3)


# Ends.


def test_a_gateway_that_stops_lets_the_model_finish() -> None:
    talk = Talk()
    talk.event(MODEL_STARTS)
    talk.session.told(GoAway(5.0))
    assert talk.session.close_code is None
    talk.frames(3)
    talk.stops()
    assert talk.session.close_code == 1012


@pytest.mark.parametrize("ending", ["quiet", "cancel", "interrupted"])
def test_a_gateway_that_stops_while_nothing_is_said(ending: str) -> None:
    talk = Talk()
    if ending != "quiet":
        talk.event(MODEL_STARTS)
    talk.session.told(GoAway(5.0))
    if ending == "cancel":
        talk.ask("response.cancel")
    elif ending == "interrupted":
        talk.yields()
    assert talk.session.close_code == 1012


def test_the_end_of_a_drain_is_no_error() -> None:
    """An error would make Pipecat deaf; a close with 1012 makes clients call again."""
    talk = Talk()
    talk.event(MODEL_STARTS)
    talk.session.failed(Draining("stopping"))
    assert talk.session.close_code == 1012 and talk.take()[-1]["type"] == "response.done"


def test_an_error_ends_the_response_and_says_why() -> None:
    talk = Talk()
    talk.event(MODEL_STARTS)
    talk.event(USER_STARTS)
    talk.session.failed(EngineFailed("a step failed"))
    *_, done, error = talk.take()
    assert done["response"]["status"] == "failed"
    assert done["response"]["status_details"]["error"] == {
        "type": "server_error", "code": "engine_failed", "message": "a step failed"}
    assert error["error"]["type"] == "server_error" and talk.session.close_code == 1011


def test_a_caller_s_own_fault_says_so() -> None:
    talk = Talk()
    talk.session.failed(InvalidRequest("BAD_PCM", "too loud", field="audio.pcm"))
    assert error_of(talk.take()) == {"type": "invalid_request_error", "code": "bad_pcm", "message": "too loud",
                                     "param": "audio.pcm", "event_id": None}


def test_a_conversation_that_has_ended_well() -> None:
    talk = Talk()
    talk.session.told(Summary(1, 1, 0))
    assert talk.session.close_code == 1000
