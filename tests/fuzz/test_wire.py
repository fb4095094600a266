"""Streams of hostile messages at every gRPC method and WebSocket of one gateway: none ends it, hangs, is called our
bug, or keeps a slot, and a neighbour who speaks meanwhile gets each of its answers.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
from google.protobuf import message_factory
from hypothesis import strategies as st
from moshimesh.gateway.v1 import conversation_pb2 as pb
from moshimesh.lm.v1 import lm_pb2

from services.gateway.edges.ogg import OggOpusWriter
from services.gateway.edges.web.chat.edge import ChatEdge
from services.gateway.edges.web.live.edge import LiveEdge
from services.gateway.edges.web.pcm.edge import PcmEdge
from services.gateway.edges.web.realtime.edge import RealtimeEdge
from services.gateway.sessions.sealing import Handle
from services.gateway.trust.gate import OpenGate
from tests.fuzz.budget import fuzz
from tests.fuzz.faults import Faults
from tests.fuzz.inputs import FLOATS, NUMBERS, TEXTS, messages, mutated
from tests.fuzz.parsers import PARSERS, SEPARATOR
from tests.fuzz.test_json import LIVE_NAMES, LIVE_TYPES, PCM_NAMES, PCM_TYPES
from tests.gateway.door import Gateway, codec, lm
from tests.gateway.edges.web.realtime.test_rude import NAMES, TYPES
from tests.gateway.web_door import WebDoor
from tests.until import until

SLOTS = 4
ANSWER_S = 8.0  # until a call that its caller has left unread and half-closed must be over
FRAME = bytes(4 * 1920)
SERVICE = "/moshimesh.gateway.v1.ConversationService/"


class Mesh:
    """One gateway with all doors."""

    def __init__(self, gateway: Gateway, web: WebDoor, faults: Faults) -> None:
        self.gateway, self.web, self.faults = gateway, web, faults

    async def settled(self) -> None:
        """All slots are back, and nothing was our fault. Raises AssertionError."""
        async def free() -> bool:
            return (await self.gateway.desk.info()).slots_free == SLOTS

        await until(free, 10)
        seen, self.faults.seen = self.faults.seen, []
        assert not seen, seen[0]


@pytest.fixture(scope="module")
async def mesh() -> AsyncIterator[Mesh]:
    faults = Faults()
    logging.getLogger().addHandler(faults)
    async with Gateway([codec("mimi", SLOTS)], [lm("one", "mimi", SLOTS)]) as gateway:
        desk, gate = gateway.desk, OpenGate()
        async with WebDoor(lambda sockets: [
                *PcmEdge(desk, gate, sockets).routes, *ChatEdge(desk, gate, sockets).routes,
                *RealtimeEdge(desk, gate, sockets, 60.0).routes, *LiveEdge(desk, gate, sockets, 60.0).routes]) as web:
            yield Mesh(gateway, web, faults)
    logging.getLogger().removeHandler(faults)


def protos(kind: Any, depth: int = 3) -> st.SearchStrategy[Any]:
    """Messages of a kind with some of their fields set, to values from the edges of their types."""
    fields = kind.DESCRIPTOR.fields
    if not fields:
        return st.just(kind())
    return st.lists(st.sampled_from(list(fields)), max_size=4, unique=True).flatmap(
        lambda chosen: st.tuples(*(_field(field, depth).map(lambda value, field=field: (field, value))
                                   for field in chosen)).map(lambda pairs: _filled(kind, pairs)))


def _filled(kind: Any, pairs: Sequence[tuple[Any, Any]]) -> Any:
    message = kind()
    for field, value in pairs:
        if field.is_repeated:
            getattr(message, field.name).extend(value)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(value)
        else:
            setattr(message, field.name, value)
    return message


def _field(field: Any, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        kind = message_factory.GetMessageClass(field.message_type)
        one = protos(kind, depth - 1) if depth else st.just(kind())
    elif field.enum_type is not None:
        one = st.sampled_from([0, 1, 2, 77, -1])
    else:
        low, high = {"uint32": (0, 2**32), "uint64": (0, 2**64), "int64": (-2**63, 2**63), "int32": (-2**31, 2**31)
                     }.get(_NAMES.get(field.type, ""), (0, 0))
        one = {"float": st.sampled_from(FLOATS), "double": st.sampled_from(FLOATS), "bool": st.booleans(),
               "string": st.sampled_from([*TEXTS, "word", Handle.new().text]),
               "bytes": st.sampled_from([b"", b"\1", bytes(7), FRAME, b"\xff" * 7680, bytes(100_000)])}.get(
                   _NAMES.get(field.type, ""), st.sampled_from(
                       [number for number in NUMBERS if isinstance(number, int) and low <= number < high] or [0]))
    return st.lists(one, max_size=9) if field.is_repeated else one


_NAMES = {1: "double", 2: "float", 3: "int64", 4: "uint64", 5: "int32", 8: "bool", 9: "string", 12: "bytes",
          13: "uint32"}

_OPEN = pb.ConverseRequest(config=pb.ConverseConfig(sample_rate_hertz=24_000, pacing=pb.PACING_OFFLINE))
_AUDIO = pb.ConverseRequest(audio=pb.AudioChunk(pcm=FRAME))
_REPLAY = pb.ReplayRequest(config=pb.ReplayConfig(sampling=lm_pb2.Sampling(seed=1)))
_STEP = pb.ReplayRequest(steps=pb.RecordedSteps(sequences=[0], user_codes=[0] * 8))


def streams(kind: Any, *good: Any) -> st.SearchStrategy[list[bytes]]:
    """Streams that begin well, most of them, and go on with anything; some messages are not even of their kind."""
    known = [message.SerializeToString() for message in good]
    one = st.one_of(st.sampled_from(known), protos(kind).map(lambda message: message.SerializeToString()),
                    mutated(*known))
    return st.builds(lambda first, rest: [*first, *rest], st.sampled_from([known[:1], known, []]),
                     st.lists(one, max_size=5))


async def stream(mesh: Mesh, method: str, requests: list[bytes]) -> None:
    """Say all of it, half-close, and read to the end. An end that is called our bug fails the test."""
    async def sent() -> AsyncIterator[bytes]:
        for request in requests:
            yield request

    call = mesh.gateway.channel.stream_stream(SERVICE + method)(sent(), timeout=ANSWER_S)
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        # INTERNAL is also what grpc.aio makes of a status that meets a write (services/gateway/edges/farewell.py).
        assert error.code() not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED), error.details()
        assert "internal error" not in (error.details() or ""), error.details()
    finally:
        call.cancel()


@fuzz("messages of Converse", requests=streams(pb.ConverseRequest, _OPEN, _AUDIO))
def test_messages_of_a_conversation_below_the_socket(requests: list[bytes]) -> None:
    PARSERS["messages of Converse"](SEPARATOR.join(requests))


@fuzz("messages of Replay", requests=streams(pb.ReplayRequest, _REPLAY, _STEP))
def test_messages_of_a_replay_below_the_socket(requests: list[bytes]) -> None:
    PARSERS["messages of Replay"](SEPARATOR.join(requests))


@fuzz("Converse", share=0.5, requests=streams(pb.ConverseRequest, _OPEN, _AUDIO))
async def test_converse(mesh: Mesh, requests: list[bytes]) -> None:
    await stream(mesh, "Converse", requests)
    await mesh.settled()


@fuzz("Replay", share=0.5, requests=streams(pb.ReplayRequest, _REPLAY, _STEP))
async def test_replay(mesh: Mesh, requests: list[bytes]) -> None:
    await stream(mesh, "Replay", requests)
    await mesh.settled()


@fuzz("Export, GetInfo and lists", share=0.5, request_bytes=st.one_of(
    protos(pb.ExportRequest).map(lambda message: message.SerializeToString()), st.binary(max_size=40)),
      method=st.sampled_from(["Export", "GetInfo", "ListModels", "ListVoices", "Forget", "Grant"]),
      metadata=st.lists(st.tuples(st.sampled_from(["x-api-key", "authorization", "traceparent"]), st.one_of(
          st.text("abc \x7f~", max_size=20), st.sampled_from(["Bearer", "bearer  x"]))), max_size=3))
async def test_unary_methods(mesh: Mesh, request_bytes: bytes, method: str, metadata: list[tuple[str, str]]) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):
        try:
            await mesh.gateway.channel.unary_unary(SERVICE + method)(
                request_bytes, metadata=[(name, value.encode("ascii", "ignore").decode().strip().replace("\x7f", "x"))
                                         for name, value in metadata], timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            assert "internal error" not in (error.details() or "")
            assert error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
            raise
    await mesh.settled()


_GRANTS = st.binary(min_size=54, max_size=57).map(lambda data: "lg_" + base64.urlsafe_b64encode(data).decode())


@fuzz("Listen", share=0.3, request_bytes=st.one_of(
    st.one_of(_GRANTS, st.sampled_from(TEXTS)).map(lambda grant: pb.ListenRequest(grant=grant).SerializeToString()),
    protos(pb.ListenRequest).map(lambda message: message.SerializeToString()), st.binary(max_size=40)))
async def test_listen(mesh: Mesh, request_bytes: bytes) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in mesh.gateway.channel.unary_stream(SERVICE + "Listen")(request_bytes, timeout=ANSWER_S):
            pass
    assert "internal error" not in (caught.value.details() or "")
    assert caught.value.code() not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
    await mesh.settled()


_PAGES = [b"\1" + page for page in OggOpusWriter(24_000, 80).write(np.zeros(9600, np.float32))]
_PCM = [json.dumps({"type": "open", "pacing": "offline"}), bytes(3840), bytes(3840), '{"type":"end"}']
_REALTIME = [json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA" * 400}),
             json.dumps({"type": "session.update", "session": {"input_audio_format": "g711_ulaw"}})]
_LIVE = [json.dumps({"type": "session.start", "session": {"model": "x"}}),
         json.dumps({"type": "session.input_audio.append", "audio": "AAAA" * 400}), '{"type":"session.close"}']


def said(*good: bytes | str, texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[bytes | str]]:
    binary = [one for one in good if isinstance(one, bytes)] or [b"\1"]
    one = st.one_of(st.sampled_from(good), texts, mutated(*binary))
    return st.builds(lambda first, rest: [*first, *rest], st.sampled_from([list(good), list(good[:1]), []]),
                     st.lists(one, max_size=5))


async def socket(mesh: Mesh, path: str, sent: list[bytes | str], headers: dict[str, str] | None = None) -> None:
    """Say all of it and hang up; whatever is answered must be readable."""
    try:
        async with mesh.web.connect(path, headers=headers or {}) as one:
            for message in sent:
                await (one.send_bytes(message) if isinstance(message, bytes) else one.send_str(
                    message.encode(errors="replace").decode()))
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                while (answer := await one.receive(0.05)).type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                    assert "internal error" not in str(answer.data)
                    if answer.type is aiohttp.WSMsgType.TEXT:
                        json.loads(answer.data, parse_constant=pytest.fail)
    except aiohttp.WSServerHandshakeError as error:
        assert error.status < 500 or error.status == 503, error.status
    except ConnectionError:  # it has hung up on us, which is its right
        pass
    await mesh.settled()


@fuzz("/api/pcm", share=0.3, sent=said(*_PCM, texts=messages(PCM_TYPES, PCM_NAMES, ["s16le", "live"])),
      query=st.sampled_from(["", "?format=opus", "?format=mulaw&rate=8000", "?rate=24000.0", "?model=%ff", "?%00=%00",
                             "?format=\ud7ff", "?pacing=offline&voice=%ed%a0%80"]))
async def test_pcm(mesh: Mesh, sent: list[bytes | str], query: str) -> None:
    await socket(mesh, "/api/pcm" + query, sent)


@fuzz("/api/chat", share=0.3, sent=said(*_PAGES, texts=st.text(max_size=20)), query=st.sampled_from(
    ["", "?text_temperature=0.7", "?resume=again", "?resume=1", "?voice_prompt=..%2f", "?model=%ff", "?max_steps=1",
     "?text_prompt=%ed%a0%80", "?seed=-1", "?model=%ed%a0%80%ff"]))
async def test_chat(mesh: Mesh, sent: list[bytes | str], query: str) -> None:
    await socket(mesh, "/api/chat" + query, sent)


@fuzz("/v1/realtime", share=0.3, sent=said(*_REALTIME, texts=messages(TYPES, NAMES, ["audio/pcm", "message"])),
      query=st.sampled_from(["", "?model=gpt-realtime", "?model=%ff", "?model=%ed%a0%80"]),
      beta=st.booleans())
async def test_realtime(mesh: Mesh, sent: list[bytes | str], query: str, beta: bool) -> None:
    await socket(mesh, "/v1/realtime" + query, sent, {"OpenAI-Beta": "realtime=v1"} if beta else None)


@fuzz("/v1/live/sessions", share=0.3, sent=said(*_LIVE, texts=messages(LIVE_TYPES, LIVE_NAMES, ["audio/pcm"])))
async def test_live(mesh: Mesh, sent: list[bytes | str]) -> None:
    await socket(mesh, "/v1/live/sessions", sent)


@fuzz("raw HTTP and frames", share=0.5, data=mutated(
    b"GET /api/chat HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    b"\x82\x85\0\0\0\0\1OggS\x89\x80\0\0\0\0",
    b"GET /api/pcm HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer \xff\xfe\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    b"\x81\x81\0\0\0\0{\x82\xfe\x0f\x00\0\0\0\0" + bytes(3840),
    b"GET /v1/realtime?model=x HTTP/1.1\r\nHost: h\r\ntraceparent: \xff\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    b"\x81\x82\0\0\0\0{}",
    b"POST /v1/realtime/client_secrets HTTP/1.1\r\nHost: h\r\nContent-Length: 30\r\n\r\n"
    b'{"expires_after":{"seconds":1}}'))
async def test_bytes_on_the_http_port(mesh: Mesh, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(mesh.web.url.rpartition(":")[2]))
    try:
        writer.write(data)
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError, ConnectionError):
            answer = await asyncio.wait_for(reader.read(1 << 16), 0.05)
            assert b"500 Internal" not in answer, answer
    finally:
        writer.transport.abort()
    await mesh.settled()
