"""`/api/chat` through a real WebSocket: both dialects of Moshi's protocol, and what comes in between."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest
import sphn

from harness.chat_clients import Ear, hold
from services.gateway.calls.callers import Caller, New, Resumed
from services.gateway.edges.web.chat.edge import ChatEdge
from services.mesh.errors import LineFull, PermissionDenied
from tests.gateway.edges.sounds import likeness, speech
from tests.gateway.edges.web.echo import FRAME, RATE, EchoDesk
from tests.gateway.web_door import WebDoor


class Everybody:
    """A gate that asks nobody."""

    async def caller(self, credential: str, address: str, edge: str) -> Caller:
        if credential == "stolen":
            raise PermissionDenied("KEY_REVOKED", "this key was revoked")
        return Caller.with_key(credential, address, edge)


def chat(desk: Any) -> WebDoor:
    return WebDoor(lambda sockets: ChatEdge(desk, Everybody(), sockets).routes)


@pytest.fixture
def desk() -> EchoDesk:
    return EchoDesk()


@pytest.fixture
async def door(desk: EchoDesk) -> AsyncIterator[WebDoor]:
    async with chat(desk) as door:
        yield door


def pages(said: np.ndarray, packet_ms: int = 80) -> list[bytes]:
    """Audio messages as moshi.client sends them."""
    writer, size = sphn.OpusStreamWriter(RATE), RATE * packet_ms // 1000
    return [b"\x01" + writer.append_pcm(said[at:at + size]) for at in range(0, len(said) - size + 1, size)]


async def heard(socket: aiohttp.ClientWebSocketResponse, samples: int, *, open: bool = False) -> Any:
    """What the server says, until so many samples have come or it closes; `open`: after the handshake."""
    ear = Ear("python")
    ear.open = open
    while ear.samples < samples:
        message = await socket.receive(5)
        if message.type is not aiohttp.WSMsgType.BINARY:
            break
        ear.hear(message.data)
    return ear.call(socket.close_code)


@pytest.mark.parametrize("dialect", ["python", "rust"])
async def test_a_conversation_in_each_dialect(door: WebDoor, dialect: Any) -> None:
    said = speech(RATE, 0.8)
    held = await hold(door.url, said, dialect)
    assert not held.error and len(held.audio) == len(said)
    assert max(likeness(said[:-late], held.audio[late:]) for late in range(160, 420, 4)) > 0.8
    assert held.text.startswith(" 1é 3é")
    assert len(held.metadata) == (dialect == "rust")


@pytest.mark.parametrize("packet_ms", [10, 20, 40, 80])
async def test_packets_of_any_length(door: WebDoor, packet_ms: int) -> None:
    held = await hold(door.url, speech(RATE, 0.48), packet_ms=packet_ms)
    assert len(held.audio) == 6 * FRAME


async def test_what_was_said_before_the_handshake_is_heard(door: WebDoor) -> None:
    async with door.connect("/api/chat") as socket:
        for page in pages(speech(RATE, 0.4)):
            await socket.send_bytes(page)
        assert len((await heard(socket, 5 * FRAME)).audio) == 5 * FRAME


async def test_headers_in_messages_of_their_own_split_pages_and_several_pages_a_message(door: WebDoor) -> None:
    stream = b"".join(page[1:] for page in pages(speech(RATE, 0.4), 20))
    head = stream.index(b"OggS", 4)
    tags = stream.index(b"OggS", head + 4)
    for cuts in ([head, tags], list(range(50, len(stream), 97)), []):
        async with door.connect("/api/chat") as socket:
            for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
                await socket.send_bytes(b"\x01" + stream[begin:end])
            assert len((await heard(socket, 5 * FRAME)).audio) == 5 * FRAME


async def test_messages_that_moshis_servers_discard_are_discarded(door: WebDoor) -> None:
    async with door.connect("/api/chat") as socket:
        for page in pages(speech(RATE, 0.4)):
            await socket.send_str("text is not for here")
            for other in (b"", b"\x00", b"\x02hello", *(b"\x03" + bytes([control]) for control in range(5)), b"\x04{}",
                          b"\x05", b"\x06", b"\x07", b"\x09\xff", b"\xffunknown"):
                await socket.send_bytes(other)
            await socket.send_bytes(page)
        assert len((await heard(socket, 5 * FRAME)).audio) == 5 * FRAME


async def test_pythons_server_sends_two_bytes_less_than_rusts_and_the_audio_of_a_frame_at_once(door: WebDoor) -> None:
    for path, opening, audio in (("/api/chat", [b"\x00"], 1), ("/api/chat?text_topk=25", [b"\x04", bytes(9)], 2)):
        async with door.connect(path) as socket:
            got = [await socket.receive_bytes() for _ in opening]
            assert all(one.startswith(expected) for one, expected in zip(got, opening, strict=True))
            assert got[-1] == opening[-1]
            for page in pages(speech(RATE, 0.16)):
                await socket.send_bytes(page)
            kinds = [(await socket.receive_bytes())[0] for _ in range(2 * audio + 1)]
            assert kinds == [1] * 2 * audio + [2]


async def test_the_settings_of_the_query_reach_the_model(door: WebDoor, desk: EchoDesk) -> None:
    query = ("text_temperature=0.6&text_topk=20&audio_temperature=0.9&audio_topk=100&text_seed=5&audio_seed=6"
             "&pad_mult=-1&repetition_penalty=1.5&repetition_penalty_context=200&email=a&worker_auth_id=7&image_url=x&model=m")
    async with door.connect(f"/api/chat?{query}") as socket:
        told = json.loads((await socket.receive_bytes())[1:])
    new = desk.openings[0].origin
    assert isinstance(new, New) and new.model_id == "m" and desk.openings[0].live
    asked = {field.name: value for field, value in new.sampling.ListFields()}
    assert asked.pop("seed") not in (5, 6)
    assert asked == pytest.approx({
        "text_temperature": 0.6, "text_top_k": 20, "audio_temperature": 0.9, "audio_top_k": 100, "padding_bonus": -1,
        "repetition_penalty": 1.5, "repetition_penalty_context": 128})
    assert told["text_temperature"] == pytest.approx(0.6) and told["audio_topk"] == 100
    assert (told["pad_mult"], told["repetition_penalty_context"]) == (-1, 128) and "resume_handle" not in told


async def test_personaplex_names_a_voice_a_prompt_and_a_seed(door: WebDoor, desk: EchoDesk) -> None:
    async with door.connect("/api/chat?voice_prompt=NATF0.pt&text_prompt=You%20are%20kind.&seed=7") as socket:
        assert await socket.receive_bytes() == b"\x00"
    assert desk.openings[0].origin == New(desk.openings[0].origin.sampling, "", "NATF0", "You are kind.")
    assert desk.openings[0].origin.sampling.seed == 7


@pytest.mark.parametrize(("query", "reason"), [
    ("text_temperature=11", "BAD_QUERY"), ("audio_temperature=nan", "BAD_QUERY"), ("text_topk=-1", "BAD_QUERY"),
    ("audio_topk=many", "BAD_QUERY"), ("audio_topk=1e3", "BAD_QUERY"), ("max_steps=0", "BAD_QUERY"),
    ("text_seed=18446744073709551616", "BAD_QUERY"), ("pad_mult=11", "BAD_QUERY"),
    ("repetition_penalty=0", "BAD_QUERY"), ("voice_prompt=../../etc/passwd", "UNKNOWN_VOICE"),
    ("voice_prompt=/NATF0.pt", "UNKNOWN_VOICE"), ("voice_prompt=NATF0.pt%00", "UNKNOWN_VOICE")])
async def test_what_cant_be_had_is_refused_with_an_error_and_a_close_code(door: WebDoor, query: str, reason: str
                                                                         ) -> None:
    async with door.connect(f"/api/chat?{query}") as socket:
        held = await heard(socket, 1)
    assert reason in held.error and query.partition("=")[0] in held.error and held.close_code == 1008


async def test_a_full_mesh_says_so_and_to_try_again_later() -> None:
    async with chat(EchoDesk(LineFull("every place in the line is taken"))) as door:
        held = await hold(door.url, speech(RATE, 0.4))
    assert held.error == "every place in the line is taken (LINE_FULL)" and held.close_code == 1013


async def test_a_bug_of_ours_is_an_error_without_its_details() -> None:
    async with chat(EchoDesk(RuntimeError("secret"))) as door:  # type: ignore[arg-type]
        held = await hold(door.url, speech(RATE, 0.4))
    assert "INTERNAL" in held.error and "secret" not in held.error and held.close_code == 1011


async def test_keys_come_in_headers_and_never_in_the_url(door: WebDoor, desk: EchoDesk) -> None:
    await hold(door.url, speech(RATE, 0.08), headers={"Authorization": "Bearer abc"})
    assert desk.callers[0].key_id == Caller.with_key("abc", "", "").key_id and desk.callers[0].edge == "chat"
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        await hold(door.url, speech(RATE, 0.08), headers={"x-api-key": "stolen"})
    with pytest.raises(aiohttp.WSServerHandshakeError, match="400"):
        await hold(door.url, speech(RATE, 0.08), query={"api_key": "abc"})


async def test_a_call_ends_well_after_the_steps_that_the_caller_wants(door: WebDoor) -> None:
    held = await hold(door.url, speech(RATE, 2.0), "rust", query={"max_steps": "3"})
    assert len(held.audio) == 3 * FRAME and not held.error and held.close_code == 1000


async def test_a_handle_is_only_told_to_who_can_use_it_and_comes_back_in_the_first_message(
        door: WebDoor, desk: EchoDesk) -> None:
    async with door.connect("/api/chat?resume=1") as socket:
        told = json.loads((await socket.receive_bytes())[1:])
        assert await socket.receive_bytes() == b"\x00"
    async with door.connect("/api/chat?resume=again") as socket:
        await socket.send_bytes(b"\x04" + json.dumps(
            {"resume_handle": told["resume_handle"], "first_sequence": 12, "answered_sequence": 9}).encode())
        assert (await socket.receive_bytes())[0] == 4
    assert desk.openings[1].origin == Resumed("the handle", 12, 9)


@pytest.mark.parametrize("first", [
    b"\x01OggS", b"\x04", b"\x04{", b"\x04[]", b'\x04{"resume_handle": 1, "first_sequence": 0}',
    b'\x04{"resume_handle": "h"}', b'\x04{"resume_handle": "h", "first_sequence": -1}',
    b'\x04{"resume_handle": "h", "first_sequence": true}', b"\x04" + b"[" * 100_000, b"\x04\xff"])
async def test_a_first_message_that_names_no_conversation_is_refused(door: WebDoor, first: bytes) -> None:
    async with door.connect("/api/chat?resume=again") as socket:
        await socket.send_bytes(first)
        held = await heard(socket, 1)
    assert "BAD_METADATA" in held.error and held.close_code == 1008
