"""Responses and user turns: from scripted frames and events to messages, without any wire."""

from __future__ import annotations

import base64
import struct

import pytest

from services.gateway.calls.callers import Interrupt
from services.gateway.edges.web.realtime.turns import LATE_CANCEL_S, LEAD_FRAMES, METADATA_S, TALKS_ON_FRAMES
from tests.gateway.edges.web.realtime.told import (
    BACK_CHANNEL,
    FRAME,
    INTERRUPTED,
    MODEL_STARTS,
    MODEL_STOPS,
    USER_STARTS,
    USER_STOPS,
    Talk,
    types,
)

BEGIN = ["response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added"]
END = ["response.output_audio.done", "response.output_audio_transcript.done", "response.content_part.done",
       "response.output_item.done", "conversation.item.done", "response.done"]
USER_ITEM = ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]
STARTED, STOPPED = "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"
DELTA, TEXT = "response.output_audio.delta", "response.output_audio_transcript.delta"


def sequence_of(delta: dict) -> int:
    """The number of the frame whose sound this is; see told.frame."""
    sound = base64.b64decode(delta["delta"])
    assert len(sound) == 2 * FRAME
    return round(struct.unpack("<h", sound[:2])[0] / 32768 * 1000)


def status(messages: list[dict]) -> tuple[str, str | None]:
    """Of the response that ends in these messages."""
    (done,) = [message["response"] for message in messages if message["type"] == "response.done"]
    return done["status"], (done["status_details"] or {}).get("reason")


def speaking(talk: Talk, frames: int = 5) -> Talk:
    """The model has begun, and spoken for some frames."""
    talk.event(MODEL_STARTS)
    talk.frames(frames)
    return talk


def test_nothing_goes_out_while_nobody_speaks() -> None:
    assert Talk().frames(50) == []


def test_a_response_from_its_begin_to_its_end() -> None:
    talk = Talk()
    assert types(talk.event(MODEL_STARTS)) == BEGIN
    assert types(talk.frames(2)) == [DELTA, DELTA]
    assert types(talk.stops()) == END
    assert talk.frames(5) == []


def test_every_message_of_a_response_names_it() -> None:
    talk = speaking(Talk(), 2)
    talk.stops()
    response_id, item_id = talk.sent[0]["response"]["id"], talk.sent[1]["item"]["id"]
    for message in talk.sent:
        assert message.get("response_id", response_id) == response_id and message.get("item_id", item_id) == item_id


def test_one_delta_a_frame_pauses_included() -> None:
    talk = speaking(Talk(), 0)
    assert [sequence_of(delta) for delta in talk.frames(10)] == list(range(1, 11))


def test_the_onset_is_not_clipped_when_the_event_comes_late() -> None:
    """The model began at frame 7, which is certain at frame 11: what was kept since shortly before goes out at once."""
    talk = Talk()
    talk.frames(10)
    opened = talk.event(MODEL_STARTS, 7)
    assert types(opened[:4]) == BEGIN
    assert [sequence_of(delta) for delta in opened[4:]] == list(range(7 - LEAD_FRAMES, 11))
    assert [sequence_of(delta) for delta in talk.frames(2)] == [11, 12]


def test_what_is_older_than_what_is_kept_is_lost_without_harm() -> None:
    talk = Talk()
    talk.frames(100)
    opened = talk.event(MODEL_STARTS, 1)
    assert sequence_of(opened[-1]) == 100


def test_text_that_runs_ahead_of_the_sound_is_in_the_transcript() -> None:
    talk = Talk()
    talk.frames(1, " Hel")
    talk.frames(4)
    opened = talk.event(MODEL_STARTS, 6)
    talk.frames(1, "lo")
    transcript = next(one for one in talk.stops() if one["type"] == "response.output_audio_transcript.done")
    assert transcript["transcript"] == "Hello"
    assert next(one for one in opened if one["type"] == TEXT)["start_time"] == 0.0


def test_words_have_the_time_at_which_they_are_said() -> None:
    talk = speaking(Talk(), 5)
    (_, word) = talk.frames(1, " hello")
    assert word["type"] == TEXT and word["delta"] == "hello" and word["start_time"] == pytest.approx(0.4)


def test_a_frame_without_text_has_no_transcript_delta() -> None:
    assert types(speaking(Talk(), 0).frames(3)) == [DELTA] * 3


def test_two_responses_have_different_ids() -> None:
    talk = speaking(Talk())
    talk.stops()
    talk.event(MODEL_STARTS)
    created = [one for one in talk.sent if one["type"] == "response.created"]
    added = [one for one in talk.sent if one["type"] == "conversation.item.added"]
    assert created[0]["response"]["id"] != created[1]["response"]["id"]
    assert added[1]["previous_item_id"] == added[0]["item"]["id"] and added[0]["previous_item_id"] is None


def test_a_model_that_begins_twice_has_one_response() -> None:
    talk = speaking(Talk())
    assert talk.event(MODEL_STARTS) == []


def test_a_model_that_stops_twice_ends_one_response() -> None:
    talk = speaking(Talk())
    talk.stops()
    assert talk.stops() == talk.yields() == talk.event(INTERRUPTED) == []


def test_the_end_tells_what_was_said_and_used() -> None:
    talk = Talk()
    talk.frames(10)
    speaking(talk, 0)
    talk.frames(2, " yes")
    done = talk.stops()[-1]["response"]
    (item,) = done["output"]
    assert done["status"] == "completed" and done["status_details"] is None
    assert item["content"] == [{"type": "output_audio", "transcript": "yes yes"}] and item["status"] == "completed"
    usage = done["usage"]
    assert usage["input_tokens"] == 12 and usage["output_tokens"] == usage["total_tokens"] - 12
    assert usage["output_token_details"] == {"text_tokens": 2, "audio_tokens": 2 + LEAD_FRAMES}
    assert usage["input_token_details"]["audio_tokens"] == 12


def test_a_user_s_turn() -> None:
    talk = Talk()
    (started,) = talk.event(USER_STARTS, 3)
    stopped, committed, added, done = talk.event(USER_STOPS, 20)
    assert (started["type"], started["audio_start_ms"]) == (STARTED, 240)
    assert (stopped["type"], stopped["audio_end_ms"]) == (STOPPED, 1600)
    assert types([committed, added, done]) == USER_ITEM
    assert {one["item_id"] for one in (started, stopped, committed)} == {added["item"]["id"]}
    assert added["item"] == done["item"] == {
        "id": started["item_id"], "object": "realtime.item", "type": "message", "status": "completed", "role": "user",
        "content": [{"type": "input_audio", "transcript": None}]}


def test_the_answer_follows_the_user_s_item() -> None:
    talk = Talk()
    talk.event(USER_STARTS)
    talk.event(USER_STOPS)
    opened = talk.event(MODEL_STARTS)
    assert opened[2]["previous_item_id"] == talk.sent[0]["item_id"]


def test_a_back_channel_does_not_stop_the_model() -> None:
    """speech_started means "stop playing" to every client: a short yes of the user must not be told."""
    talk = speaking(Talk())
    assert talk.event(USER_STARTS) == []
    assert types(talk.frames(3)) == [DELTA] * 3
    assert talk.event(USER_STOPS) == talk.event(BACK_CHANNEL) == []
    assert types(talk.stops()) == END


def test_a_barge_in_is_told_when_the_model_has_yielded() -> None:
    talk = speaking(Talk())
    talk.event(USER_STARTS, 4)
    talk.frames(4)
    ended = talk.yields()
    assert types(ended) == [STARTED, *END]
    assert ended[0]["audio_start_ms"] == 320  # when it began, not when it was told
    assert status(ended) == ("cancelled", "turn_detected")
    assert ended[-1]["response"]["output"][0]["status"] == "incomplete"
    assert types(talk.event(USER_STOPS)) == [STOPPED, *USER_ITEM]


def test_a_barge_in_that_is_over_when_the_model_yields() -> None:
    talk = speaking(Talk())
    talk.event(USER_STARTS)
    talk.event(USER_STOPS)
    assert types(talk.yields()) == [STARTED, *END, STOPPED, *USER_ITEM]


def test_a_user_who_still_talks_when_the_response_is_over_is_heard_of_then() -> None:
    talk = speaking(Talk())
    talk.event(USER_STARTS)
    ended = talk.stops()
    assert types(ended) == [*END, STARTED] and status(ended) == ("completed", None)


def test_a_model_that_yields_to_a_turn_that_is_known_is_only_ended() -> None:
    """It began while the user talked: speech_started was told before the response."""
    talk = Talk()
    talk.event(USER_STARTS)
    speaking(talk)
    ended = talk.yields()
    assert types(ended) == END and status(ended) == ("cancelled", "turn_detected")


def test_a_user_s_turn_may_end_while_a_response_is_open() -> None:
    talk = Talk()
    talk.event(USER_STARTS)
    speaking(talk)
    assert types(talk.event(USER_STOPS)) == [STOPPED, *USER_ITEM]


def test_a_stop_without_a_start_is_nothing() -> None:
    assert Talk().event(USER_STOPS) == []


def test_a_model_that_begins_again_in_the_frame_in_which_it_stopped() -> None:
    talk = speaking(Talk())
    talk.event(MODEL_STOPS)
    assert types(talk.event(MODEL_STARTS)) == [*END, *BEGIN]


def test_a_call_that_ends_while_the_model_speaks() -> None:
    talk = speaking(Talk())
    talk.event(USER_STARTS)
    assert status(talk.turns.finish()) == ("completed", None)


def test_never_two_responses_are_open_and_nothing_is_sent_between_them() -> None:
    """Any order of events: a client sees begin, deltas, end, and turns outside of them."""
    kinds = [USER_STARTS, MODEL_STARTS, USER_STOPS, INTERRUPTED, MODEL_STARTS, MODEL_STOPS, USER_STARTS, MODEL_STARTS,
             MODEL_STOPS, USER_STOPS, BACK_CHANNEL, MODEL_STARTS, INTERRUPTED, INTERRUPTED, MODEL_STARTS]
    talk, opened = Talk(), 0
    for kind in kinds * 3:
        talk.event(kind)
        talk.frames(2, "a")
        if kind is MODEL_STARTS:
            talk.ask("response.cancel")
    for message in talk.sent:
        if message["type"] == "response.created":
            opened += 1
        assert opened in (0, 1)
        if message["type"] in (DELTA, TEXT):
            assert opened == 1
        if message["type"] == "response.done":
            opened -= 1


# Cancels.


def test_a_cancel_ends_the_response_and_silences_the_model() -> None:
    talk = speaking(Talk())
    ended = talk.ask("response.cancel")
    assert types(ended) == END and status(ended) == ("cancelled", "client_cancelled")
    assert talk.controls == [Interrupt()]


def test_clearing_the_output_is_a_cancel() -> None:
    talk = speaking(Talk())
    assert status(talk.ask("output_audio_buffer.clear")) == ("cancelled", "client_cancelled")


def test_what_the_model_says_after_a_cancel_is_not_heard() -> None:
    talk = speaking(Talk())
    talk.ask("response.cancel")
    assert talk.frames(4) == talk.stops() == talk.frames(20) == []


def test_a_model_that_talks_on_after_a_cancel_has_a_new_response() -> None:
    """LiveKit drops the rest of the old one unheard."""
    talk = speaking(Talk(), 3)
    first = talk.sent[0]["response"]["id"]
    talk.ask("response.cancel")
    assert talk.frames(TALKS_ON_FRAMES, " lost") == []
    opened = talk.frames(1, " heard")
    assert types(opened) == [*BEGIN, DELTA, TEXT] and opened[0]["response"]["id"] != first
    assert opened[-1]["delta"] == "heard"


def test_a_cancel_when_nothing_is_open_is_answered_with_silence() -> None:
    talk = Talk()
    assert talk.ask("response.cancel") == [] and talk.controls == []


def test_a_second_cancel_does_not_kill_the_next_response() -> None:
    """LiveKit sends two."""
    talk = speaking(Talk())
    talk.ask("response.cancel")
    talk.yields()
    talk.event(MODEL_STARTS)
    assert talk.ask("response.cancel") == []
    assert types(talk.frames(1)) == [DELTA]


def test_a_late_cancel_after_speech_started_does_not_kill_the_next_response() -> None:
    """The client cancels what it heard when speech_started came; by then the model may have begun anew."""
    talk = speaking(Talk())
    talk.event(USER_STARTS)
    talk.yields()
    talk.event(MODEL_STARTS)
    assert talk.ask("response.cancel") == [] and talk.controls == []
    talk.clock.seconds += LATE_CANCEL_S
    assert status(talk.ask("response.cancel")) == ("cancelled", "client_cancelled")


def test_a_cancel_by_id_is_never_late() -> None:
    talk = speaking(Talk())
    talk.event(USER_STARTS)
    talk.yields()
    new = talk.event(MODEL_STARTS)[0]["response"]["id"]
    assert status(talk.ask("response.cancel", response_id=new)) == ("cancelled", "client_cancelled")


def test_a_cancel_of_another_response_is_nothing() -> None:
    talk = speaking(Talk())
    assert talk.ask("response.cancel", response_id="resp_other") == [] and talk.controls == []


def test_a_user_who_talks_while_the_client_cancels_is_heard_of() -> None:
    talk = speaking(Talk())
    talk.event(USER_STARTS)
    assert types(talk.ask("response.cancel")) == [*END, STARTED]


# What the client wants to know its response by.


def test_the_metadata_of_a_request_is_on_the_next_response() -> None:
    talk = Talk()
    assert talk.ask("response.create", response={"metadata": {"client_event_id": "x"}}) == []
    assert talk.event(MODEL_STARTS)[0]["response"]["metadata"] == {"client_event_id": "x"}
    assert talk.stops()[-1]["response"]["metadata"] == {"client_event_id": "x"}
    assert talk.event(MODEL_STARTS)[0]["response"]["metadata"] is None


def test_old_metadata_is_forgotten() -> None:
    """LiveKit gives up after 10 s, and cancels the response that comes with it later."""
    talk = Talk()
    talk.ask("response.create", response={"metadata": {"client_event_id": "x"}})
    talk.clock.seconds += METADATA_S
    assert talk.event(MODEL_STARTS)[0]["response"]["metadata"] is None


@pytest.mark.parametrize("metadata", ["x", {"a": 1}, {"a" * 65: "b"}, {"a": "b" * 513},
                                      {str(number): "" for number in range(17)}])
def test_metadata_that_is_none_is_left_out(metadata: object) -> None:
    talk = Talk()
    talk.ask("response.create", response={"metadata": metadata})
    assert talk.event(MODEL_STARTS)[0]["response"]["metadata"] is None
