"""What callers say in JSON, in queries and in headers: an answer or an error of ours, never an exception."""

from __future__ import annotations

import contextlib
import json

from hypothesis import strategies as st

from services.gateway.calls.events import EventKind
from services.gateway.edges.web.chat.query import read_query as read_chat_query
from services.gateway.edges.web.chat.query import read_resumed
from services.gateway.edges.web.credentials import credential_of
from services.gateway.edges.web.live import session as live
from services.gateway.edges.web.live.reading import read_start
from services.gateway.edges.web.pcm import reading
from services.gateway.edges.web.realtime.dialects import Beta, Ga
from services.gateway.edges.web.realtime.faults import ClientFault
from services.mesh.errors import InvalidRequest, MeshError
from tests.fuzz.budget import fuzz
from tests.fuzz.inputs import NUMBERS, TEXTS, messages, values, written
from tests.gateway.edges.web.realtime.test_rude import NAMES, TYPES
from tests.gateway.edges.web.realtime.told import READY, Talk

PCM_TYPES = ["open", "settings", "interrupt", "say", "played", "ping", "end", "sing"]
PCM_NAMES = ["format", "rate", "model", "voice", "text_prompt", "sampling", "temperature", "top_k", "seed", "frames",
             "pacing", "traceparent", "resume", "handle", "first_sequence", "answered_sequence", "hold_ms", "text",
             "sequence", "id", "padding_bonus"]
LIVE_TYPES = ["session.start", "session.input_audio.append", "session.input_audio.mute", "session.update",
              "session.input_audio.unmute", "session.close", "response.create", "sing"]
LIVE_NAMES = ["session", "model", "audio", "format", "type", "rate", "event_id"]
QUERY = st.dictionaries(
    st.sampled_from(["text_temperature", "text_topk", "audio_temperature", "audio_topk", "seed", "text_seed",
                     "audio_seed", "pad_mult", "repetition_penalty", "repetition_penalty_context", "max_steps",
                     "resume", "model", "voice_prompt", "text_prompt", "format", "rate", "voice", "pacing", "key"]),
    st.one_of(st.sampled_from([*TEXTS, *map(str, NUMBERS), "nan", "1_0", "٣", "0x10", "1e5", "again", "live"]),
              st.text(max_size=12)), max_size=6)


@fuzz("JSON of /api/pcm", text=messages(PCM_TYPES, PCM_NAMES, ["s16le", "opus", "live"]))
def test_what_a_caller_of_pcm_says(text: str) -> None:
    with contextlib.suppress(InvalidRequest):
        reading.read_open(text).opening()
    with contextlib.suppress(InvalidRequest):
        told = reading.read_told(text)
        if not isinstance(told, reading.End | reading.Ping):
            told.control()


@fuzz("queries", query=QUERY)
def test_what_a_url_asks_for(query: dict[str, str]) -> None:
    with contextlib.suppress(InvalidRequest):
        asked = read_chat_query(query)
        assert "/" not in asked.new.voice and "." not in asked.new.voice
    with contextlib.suppress(InvalidRequest):
        reading.read_query(query).opening()


@fuzz("metadata of /api/chat", text=st.one_of(st.binary(max_size=40), values(
    ("resume_handle", "first_sequence", "answered_sequence")).map(lambda value: written(value).encode())))
def test_a_first_message_of_chat(text: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        resumed = read_resumed(text)
        assert resumed.first_sequence >= 0


@fuzz("credentials in headers", headers=st.dictionaries(
    st.sampled_from(["authorization", "x-api-key", "sec-websocket-protocol"]),
    st.one_of(st.text(max_size=40), st.sampled_from(["Bearer", "Bearer ", "bearer a b", ",,,", "moshimesh.ticket.",
                                                    "a, moshimesh.ticket.x, moshimesh.ticket.y", "\udcff"]))),
      query=QUERY)
def test_a_credential_is_a_text_or_a_refusal(headers: dict[str, str], query: dict[str, str]) -> None:
    with contextlib.suppress(InvalidRequest):
        assert isinstance(credential_of(headers, query), str)


@fuzz("JSON of Realtime", texts=st.lists(st.one_of(messages(TYPES, NAMES, ["audio/pcm", "message"]), st.binary(
    max_size=20)), max_size=8), beta=st.booleans(), event=st.sampled_from(list(EventKind)))
def test_what_a_client_of_realtime_says(texts: list[str | bytes], beta: bool, event: EventKind) -> None:
    talk = Talk(Beta() if beta else Ga())
    for text in texts:
        talk.session.asked(text)
        talk.inbox._feed.next()
        talk.event(event)
        talk.frames(1, "a")
    for message in talk.sent:
        json.dumps(message, allow_nan=False)


@fuzz("JSON of Live", start=messages(LIVE_TYPES[:1], LIVE_NAMES, ["audio/pcm", "audio/pcmu"]),
      texts=st.lists(messages(LIVE_TYPES, LIVE_NAMES), max_size=6))
def test_what_a_client_of_live_says(start: str, texts: list[str]) -> None:
    try:
        session = live.Session(read_start(start), "moshi", 24_000, 1920, 2_000_000_000)
    except ClientFault as fault:
        live.refused(fault)
        return
    for text in texts:
        for answer in [*session.asked(text), *session.told(READY)]:
            json.loads(answer)
    json.loads(session.failed(MeshError("no")))
