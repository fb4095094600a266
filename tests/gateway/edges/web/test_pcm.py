"""`/api/pcm` through a real WebSocket: translation both ways, what it refuses, and callers that leave or flood."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest

from harness.pcm_client import HeldCall, heard, hold, say
from harness.resample_floor import tone
from services.gateway.calls import events
from services.gateway.calls.callers import Caller
from services.gateway.edges.opus import OpusDecoder, OpusEncoder
from services.gateway.edges.web.pcm import writing
from services.gateway.edges.web.pcm.edge import PcmEdge
from services.gateway.edges.web.socket import MESSAGES_BURST
from services.gateway.trust.gate import OpenGate
from services.mesh.errors import PermissionDenied, Unauthenticated
from tests.gateway.door import Gateway, codec, lm
from tests.gateway.fake_codec import FRAME, RATE, FakeCodec
from tests.gateway.fake_lm import DELAY
from tests.gateway.house import FRAMES, House, expected, frame
from tests.gateway.redis_server import RedisServer
from tests.gateway.web_door import WebDoor
from tests.until import until

END = '{"type": "end"}'
F32 = {"type": "open", "format": "f32le", "rate": RATE, "pacing": "offline", "frames": True}


@pytest.fixture
async def door(house: House) -> AsyncIterator[WebDoor]:
    async with WebDoor(lambda sockets: PcmEdge(house.desk, OpenGate(), sockets).routes) as door:
        yield door


async def call(door: WebDoor, *messages: bytes | str | dict[str, Any], path: str = "/api/pcm", **options: Any
               ) -> HeldCall:
    async with door.connect(path, **options) as socket:
        return await say(socket, [json.dumps(one) if isinstance(one, dict) else one for one in messages])


async def test_a_whole_conversation(door: WebDoor, house: House) -> None:
    held = await call(door, F32 | {"sampling": {"seed": 7}}, *[frame(number).tobytes() for number in range(FRAMES)],
                      END, protocols=("moshimesh", "moshimesh.ticket.secret"))
    ready = held.ready
    assert {name: ready[name] for name in ("model_id", "format", "rate", "samples_per_frame", "frame_ms",
                                           "delay_frames", "next_sequence")} == {
        "model_id": "checksum", "format": "f32le", "rate": RATE, "samples_per_frame": FRAME, "frame_ms": 80,
        "delay_frames": DELAY, "next_sequence": 0}
    assert ready["sampling"]["seed"] == 7 and ready["resume_handle"] and ready["resume_grace_ms"] == 60_000
    assert [one["sequence"] for one in held.frames] == list(range(DELAY, FRAMES + DELAY))
    said = [np.frombuffer(data, "<f4").astype(int)[:2].tolist() for data in held.audio]
    assert said == [codes for _, *codes in expected(FRAMES)]
    assert held.summary == {"type": "summary", "frames_in": FRAMES, "frames_out": FRAMES, "frames_skipped": 0}
    assert held.close_code == 1000
    hops = held.frames[0]["hops"]
    assert [hop[0] for hop in hops] == ["gateway.ingest", "gateway.emit"]
    assert all(isinstance(number, int) for hop in hops for number in hop[1:])
    await until(lambda: house.lm.held == 0)


async def test_a_browser_gets_its_subprotocol_and_no_other(door: WebDoor) -> None:
    for offered, answered in ((("moshimesh.ticket.secret", "moshimesh"), "moshimesh"), ((), None)):
        async with door.connect("/api/pcm", protocols=offered) as socket:
            assert socket.protocol == answered


async def test_without_frames_only_text_is_told(door: WebDoor) -> None:
    held = await call(door, F32 | {"frames": False}, *[frame(number).tobytes() for number in range(FRAMES)], END)
    assert len(held.audio) == FRAMES
    assert all(told["text"] and "hops" not in told for told in held.frames)


async def test_audio_at_once_with_the_rest_in_the_query(door: WebDoor) -> None:
    path = f"/api/pcm?format=f32le&rate={RATE}&pacing=offline"
    pieces = [frame(number).tobytes() for number in range(FRAMES)]
    held = await call(door, *pieces, END, path=path)
    assert held.ready["format"] == "f32le" and len(held.audio) == FRAMES and held.summary
    quiet = await call(door, *pieces, END, path=path + "&events=0")
    assert quiet.audio == held.audio and not quiet.told
    assert (await call(door, *pieces, bytes(3), path=path + "&events=0")).of("error")


async def test_a_call_that_was_cut_off_goes_on(door: WebDoor, house: House) -> None:
    async with door.connect("/api/pcm") as socket:
        await socket.send_json(F32)
        ready = await socket.receive_json()
        answered = -1
        for number in range(10):
            await socket.send_bytes(frame(number).tobytes())
        said = []
        while len(said) < 5:
            message = await socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                said.append(message.data)
            else:
                answered = json.loads(message.data)["sequence"]
    await until(lambda: not house.sessions._live)
    held = await call(door, F32 | {"resume": {
        "handle": ready["resume_handle"], "first_sequence": answered + 1, "answered_sequence": answered}},
        *[frame(number).tobytes() for number in range(answered + 1, FRAMES)], END)
    said += held.audio
    assert [np.frombuffer(data, "<f4").astype(int)[:2].tolist() for data in said] == [
        codes for _, *codes in expected(FRAMES)]


@pytest.mark.parametrize(("format", "rate", "bytes_per_frame"), [
    ("s16le", 24_000, 3840), ("f32le", 44_100, 14_112), ("mulaw", 8000, 640), ("alaw", 8000, 640),
    ("s16le", 22_050, 3528)])
async def test_formats_and_rates(format: str, rate: int, bytes_per_frame: int) -> None:
    async with Gateway([codec("mimi", 1)], [lm("one", "mimi", 1)]) as gateway, WebDoor(
            lambda sockets: PcmEdge(gateway.desk, OpenGate(), sockets).routes) as door:
        held = await hold(door.url, np.zeros(rate * 8 // 10, np.float32), format, rate)
    assert (held.ready["format"], held.ready["rate"], held.ready["samples_per_frame"], held.ready["frame_ms"]) == (
        format, rate, rate * 8 // 100, 80)
    assert {len(data) for data in held.audio[:-1]} == {bytes_per_frame} and held.summary
    assert not np.any(held.pcm(format).round(3))


async def test_pings_are_answered_also_at_the_end(door: WebDoor) -> None:
    async with door.connect("/api/pcm") as socket:
        await socket.send_json(F32)
        await socket.receive_json()
        await socket.send_str('{"type": "ping", "id": 5}')
        assert await socket.receive_json() == {"type": "pong", "id": 5}
        await socket.ping()
        await socket.send_str(END)
        assert (await heard(socket)).summary


async def test_opus() -> None:
    """A tone goes in, silence comes back: four packets of 20 ms for each frame."""
    encoder, decoder = OpusEncoder(48_000), OpusDecoder(48_000)
    packets = [encoder.encode(tone(48_000)[at:at + 960]) for at in range(0, 38_400, 960)]
    async with Gateway([codec("mimi", 1)], [lm("one", "mimi", 1)]) as gateway, WebDoor(
            lambda sockets: PcmEdge(gateway.desk, OpenGate(), sockets).routes) as door:
        held = await call(door, {"type": "open", "format": "opus", "pacing": "offline", "frames": True}, *packets, END)
        bad = await call(door, {"type": "open", "format": "opus", "rate": 48_000}, b"\xff\xff")
    assert (held.ready["format"], held.ready["rate"], held.ready["samples_per_frame"]) == ("opus", 48_000, 3840)
    assert len(held.frames) == 10 and len(held.audio) == 40 and held.summary
    assert {len(decoder.decode(packet)) for packet in held.audio} == {960}
    assert bad.error and bad.error["reason"] == "BAD_OPUS"


BAD = {
    "no JSON": ("{", "BAD_MESSAGE"),
    "deeply nested": ("[" * 10_000, "BAD_MESSAGE"),
    "a huge number": ('{"type": "open", "rate": ' + "9" * 5000 + "}", "BAD_MESSAGE"),
    "not a number": ('{"type": "open", "sampling": {"temperature": NaN}}', "BAD_MESSAGE"),
    "infinity": ('{"type": "open", "sampling": {"temperature": 1e999}}', "BAD_MESSAGE"),
    "no open": ('{"type": "ping", "id": 1}', "BAD_MESSAGE"),
    "a long text": (json.dumps({"type": "open", "model": "x" * 20_000}), "BAD_MESSAGE"),
    "an unknown format": ('{"type": "open", "format": "mp3"}', "BAD_ENCODING"),
    "an unknown rate": ('{"type": "open", "rate": 11025}', "BAD_SAMPLE_RATE"),
    "Opus at 24 kHz": ('{"type": "open", "format": "opus", "rate": 24000}', "BAD_SAMPLE_RATE"),
    "a telephone at 16 kHz": ('{"type": "open", "format": "alaw", "rate": 16000}', "BAD_SAMPLE_RATE"),
    "an unknown pacing": ('{"type": "open", "pacing": "fast"}', "BAD_MESSAGE"),
    "an unknown model": (json.dumps(F32 | {"model": "nobody"}), "UNKNOWN_MODEL"),
    "an unknown session": (json.dumps(F32 | {"resume": {"handle": "A" * 43}}), "UNKNOWN_SESSION"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_first_message_that_is_refused(door: WebDoor, house: House, name: str) -> None:
    message, reason = BAD[name]
    held = await call(door, message)
    assert held.error and held.error["reason"] == reason and held.error["message"] and held.close_code == 1008
    assert house.lm.held == 0


@pytest.mark.parametrize(("message", "reason"), [
    (b"", "BAD_PCM"), (bytes(3), "BAD_PCM"), (bytes(4 * RATE + 4), "BAD_PCM"),
    (np.array([np.nan] * 8, "<f4").tobytes(), "BAD_PCM"), ("[" * 10_000, "BAD_MESSAGE"), ("{}", "BAD_MESSAGE"),
    (json.dumps(F32), "BAD_MESSAGE"), ('{"type": "settings"}', "BAD_MESSAGE"),
    ('{"type": "played", "sequence": -1}', "BAD_MESSAGE")])
async def test_a_later_message_that_is_refused(door: WebDoor, house: House, message: bytes | str, reason: str) -> None:
    held = await call(door, F32, frame(0).tobytes(), message)
    assert held.error and held.error["reason"] == reason and held.close_code == 1008
    await until(lambda: house.lm.held == 0)


async def test_a_message_of_a_megabyte_closes_the_socket(door: WebDoor, house: House) -> None:
    assert (await call(door, F32, bytes(1_000_000))).close_code == 1009
    await until(lambda: house.lm.held == 0)


async def test_a_flood_of_messages_is_refused(door: WebDoor, house: House) -> None:
    held = await call(door, F32, *['{"type": "ping", "id": 1}'] * (3 * MESSAGES_BURST))
    assert held.error and held.error["reason"] == "TOO_MANY_MESSAGES" and held.close_code == 1008
    async with door.connect("/api/pcm", autoping=False) as socket:
        await socket.send_json(F32)
        await socket.receive_json()
        for _ in range(3 * MESSAGES_BURST):
            if socket.closed:
                break
            await socket.ping()
        while (message := await socket.receive()).type is aiohttp.WSMsgType.PONG:
            pass
        assert message.json()["reason"] == "TOO_MANY_MESSAGES"
    await until(lambda: house.lm.held == 0)


async def test_a_caller_that_says_nothing_first(house: House) -> None:
    async with WebDoor(lambda sockets: PcmEdge(house.desk, OpenGate(), sockets, 0.05).routes) as door:
        held = await call(door)
        assert held.error and held.error["reason"] == "SLOW_CALLER" and held.close_code == 1008


@pytest.mark.parametrize("politely", [True, False])
async def test_a_caller_that_hangs_up_leaves_no_slot_leased(door: WebDoor, house: House, politely: bool) -> None:
    async with door.connect("/api/pcm") as socket:
        await socket.send_json(F32)
        await socket.receive_json()
        await socket.send_bytes(frame(0).tobytes()[:16])
        await until(lambda: house.lm.held == 1)
        if politely:
            await socket.close()
        else:
            assert socket._response.connection is not None
            socket._response.connection.transport.abort()  # type: ignore[union-attr]
        await until(lambda: house.lm.held == sum(house.codec.held.values()) == 0)
    await until(lambda: house.observers[-1].facts[-1] == ("ended", "cancelled"))


async def test_a_caller_in_the_line(redis_server: RedisServer) -> None:
    """It hears its place, what it says meanwhile is dropped, and its turn comes when the other one leaves."""
    async with House(redis_server.url, codec=FakeCodec(1)) as house, WebDoor(
            lambda sockets: PcmEdge(house.desk, OpenGate(), sockets).routes) as door:
        async with door.connect("/api/pcm") as first, door.connect("/api/pcm") as second:
            await first.send_json(F32)
            await first.receive_json()
            await second.send_json(F32)
            assert await second.receive_json() == {"type": "queued", "position": 1, "estimated_wait_ms": 0}
            for _ in range(5):
                await second.send_bytes(frame(40).tobytes())
            await second.send_str('{"type": "ping", "id": 1}')
            assert (await second.receive_json())["type"] == "pong"  # all before it was read
            third = await call(door, F32)
            assert third.error and third.error["reason"] == "LINE_FULL" and third.close_code == 1013
            assert third.error["retry_after_ms"] == 5000
            await first.close()
            while (told := await second.receive_json())["type"] == "queued":
                pass
            assert told["type"] == "ready"
            held = await say(second, [*[frame(number).tobytes() for number in range(FRAMES)], END])
        assert held.summary and held.summary["frames_in"] == FRAMES
        said = [np.frombuffer(data, "<f4").astype(int)[:2].tolist() for data in held.audio]
        assert said == [codes for _, *codes in expected(FRAMES)]


async def test_who_leaves_the_line_is_noticed(redis_server: RedisServer) -> None:
    async with House(redis_server.url, codec=FakeCodec(1)) as house, WebDoor(
            lambda sockets: PcmEdge(house.desk, OpenGate(), sockets).routes) as door:
        async with door.connect("/api/pcm") as first:
            await first.send_json(F32)
            await first.receive_json()
            held = []
            for leave in (END, None, "{"):
                async with door.connect("/api/pcm") as second:
                    await second.send_json(F32)
                    assert (await second.receive_json())["type"] == "queued"
                    if leave is None:
                        await second.close()
                    else:
                        await second.send_str(leave)
                        held.append(await heard(second))
                await until(lambda: len(door.sockets._by_address) <= 1 and house.observers[-1].facts)
        assert [one.close_code for one in held] == [1000, 1008] and held[1].error


async def test_a_gateway_that_stops(door: WebDoor, house: House) -> None:
    async with door.connect("/api/pcm") as socket:
        await socket.send_json(F32)
        await socket.receive_json()
        house.desk.drain()
        assert await socket.receive_json() == {"type": "go_away", "time_left_ms": 5000}
        house.desk._end_all()
        held = await heard(socket)
        assert held.error and held.error["reason"] == "DRAINING" and held.close_code == 1012
    late = await call(door, F32)
    assert late.error and late.error["reason"] == "DRAINING"


class Guarded:
    """A gate that lets one key in."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    async def caller(self, credential: str, address: str, edge: str) -> Caller:
        self.shown.append(credential)
        if not credential:
            raise Unauthenticated("NO_CREDENTIAL", "show a key")
        if credential != "secret":
            raise PermissionDenied("WRONG_EDGE", "not here")
        return Caller.with_key(credential, address, edge)


async def test_who_may_not_call_is_refused_before_the_upgrade(house: House) -> None:
    gate = Guarded()
    async with WebDoor(lambda sockets: PcmEdge(house.desk, gate, sockets).routes) as door:
        for options, status in (({}, 401), ({"headers": {"x-api-key": "other"}}, 403)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await call(door, F32, **options)
            assert refused.value.status == status
        for options in ({"headers": {"Authorization": "Bearer secret"}}, {"headers": {"x-api-key": "secret"}},
                        {"protocols": ("moshimesh", "moshimesh.ticket.secret")}):
            assert (await call(door, F32, END, **options)).summary
    assert gate.shown == ["", "other", "secret", "secret", "secret"]


@pytest.mark.slow  # 12 s: the buffers of two sockets fill first
async def test_a_caller_that_does_not_read_loses_its_slot() -> None:
    async with Gateway([codec("mimi", 1)], [lm("one", "mimi", 1)]) as gateway, WebDoor(
            lambda sockets: PcmEdge(gateway.desk, OpenGate(), sockets).routes, stall_s=0.1) as door, door.connect(
            "/api/pcm") as socket:
        async def free() -> bool:
            return (await gateway.desk.info()).slots_free == 1

        await socket.send_json(F32 | {"rate": 48_000})
        await socket.receive_json()
        assert socket._response.connection is not None
        socket._response.connection.transport.pause_reading()  # type: ignore[union-attr]

        async def talk() -> None:
            while True:
                await socket.send_bytes(bytes(4 * 48_000))

        talking = asyncio.create_task(talk())
        await until(free)
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)


async def test_every_event_has_a_message() -> None:
    for event in (events.Heard(3, " yes", " no"), events.GoAway(1.5), events.ResumeStatus(False),
                  events.Queued(1, 0), events.Summary(3, 2, 1),
                  events.ConversationEvent(events.EventKind.INTERRUPTED, 4, 320)):
        message = json.loads(writing.told(event, "s16le"))
        assert message["type"] and len(message) > 1
