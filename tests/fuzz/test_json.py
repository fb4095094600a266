"""What callers say in JSON, in queries and in headers: an answer or an error of ours, never an exception."""

from __future__ import annotations

from urllib.parse import urlencode

from hypothesis import strategies as st

from tests.fuzz.budget import fuzz
from tests.fuzz.inputs import NUMBERS, TEXTS, messages, values, written
from tests.fuzz.parsers import SEPARATOR, chat_metadata, credentials, live_json, pcm_json, queries, realtime_json
from tests.gateway.edges.web.realtime.test_rude import NAMES, TYPES

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
              st.text(max_size=12)), max_size=6).map(
                  lambda query: urlencode(query, errors="surrogateescape").encode())


def in_bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode(errors="surrogateescape")


def several(texts: st.SearchStrategy[list[str | bytes]]) -> st.SearchStrategy[bytes]:
    """Parts of one input."""
    return texts.map(lambda parts: SEPARATOR.join(map(in_bytes, parts)))


@fuzz("JSON of /api/pcm", data=messages(PCM_TYPES, PCM_NAMES, ["s16le", "opus", "live"]).map(in_bytes))
def test_what_a_caller_of_pcm_says(data: bytes) -> None:
    pcm_json(data)


@fuzz("queries", data=QUERY)
def test_what_a_url_asks_for(data: bytes) -> None:
    queries(data)


@fuzz("metadata of /api/chat", data=st.one_of(st.binary(max_size=40), values(
    ("resume_handle", "first_sequence", "answered_sequence")).map(lambda value: in_bytes(written(value)))))
def test_a_first_message_of_chat(data: bytes) -> None:
    chat_metadata(data)


@fuzz("credentials in headers", headers=st.dictionaries(
    st.sampled_from(["authorization", "x-api-key", "sec-websocket-protocol"]),
    st.one_of(st.text(max_size=40), st.sampled_from(["Bearer", "Bearer ", "bearer a b", ",,,", "moshimesh.ticket.",
                                                    "a, moshimesh.ticket.x, moshimesh.ticket.y", "\udcff"]))),
      query=QUERY)
def test_a_credential_is_a_text_or_a_refusal(headers: dict[str, str], query: bytes) -> None:
    lines = "\n".join(f"{name}: {value}" for name, value in headers.items())
    credentials(in_bytes(lines) + SEPARATOR + query)


@fuzz("JSON of Realtime", head=st.binary(min_size=2, max_size=2), texts=several(st.lists(st.one_of(
    messages(TYPES, NAMES, ["audio/pcm", "message"]), st.binary(max_size=20)), max_size=8)))
def test_what_a_client_of_realtime_says(head: bytes, texts: bytes) -> None:
    realtime_json(head + texts)


@fuzz("JSON of Live", start=messages(LIVE_TYPES[:1], LIVE_NAMES, ["audio/pcm", "audio/pcmu"]).map(in_bytes),
      texts=several(st.lists(messages(LIVE_TYPES, LIVE_NAMES), max_size=6)))
def test_what_a_client_of_live_says(start: bytes, texts: bytes) -> None:
    live_json(start + SEPARATOR + texts)
