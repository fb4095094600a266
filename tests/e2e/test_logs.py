"""JSON logs of the real services: every line parses, knows its call, and holds none of its words."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator

import grpc
import moshimesh
import numpy as np
import numpy.typing as npt
import pytest
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc

from harness.local_mesh import LocalMesh
from harness.null_mesh import NullMesh
from services.mesh import logs
from tests.e2e.calls import GREEDY, call, slots_are_free, stepper
from tests.until import until

SESSION, TRACE = "cafe" * 8, "ab" * 16


def line(record: logging.LogRecord) -> dict[str, object]:
    return dict(json.loads(logs.JsonLines("lm").format(record)))


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("test").makeRecord(
        "services.lm.engine", logging.WARNING, "file.py", 1, message, args, None, extra=extra)


async def test_a_line_knows_its_call() -> None:
    assert {"session", "trace_id"}.isdisjoint(line(record("nobody's")))
    logs.bind(SESSION, f"00-{TRACE}-{'cd' * 8}-01")
    found = line(record("%d frames", 3))
    assert (found["message"], found["session"], found["trace_id"]) == ("3 frames", SESSION, TRACE)
    assert (found["level"], found["logger"], found["service"]) == ("warning", "services.lm.engine", "lm")
    assert line(record("of others", session="theirs"))["session"] == "theirs"
    for nonsense in ("nonsense", f"00-{'a' * 1_000_000}-{'cd' * 8}-01", f"00-{'zz' * 16}-{'cd' * 8}-01"):
        logs.bind(SESSION, nonsense)
        assert "trace_id" not in line(record("untraced"))


async def test_an_error_is_one_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        failed = logging.getLogger("test").makeRecord(
            "a", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    text = logs.JsonLines("lm").format(failed)
    assert "\n" not in text and "ValueError" in json.loads(text)["exception"]


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_the_services_say_nothing_of_what_was_said(checkpoint: str, speech: npt.NDArray[np.float32]) -> None:
    lines: dict[str, list[str]] = defaultdict(list)
    async with LocalMesh(checkpoint, slots=2, metrics=True, on_line=lambda name, text: lines[name].append(text),
                         environment={"MOSHIMESH_LOG_FORMAT": "json", "MOSHIMESH_LOG_LEVEL": "debug"}) as mesh:
        answer = await call(mesh.target, np.tile(speech, 3)[:24_000 * 10], **GREEDY)
        async with grpc.aio.insecure_channel(mesh.target) as channel:  # a caller whose frames are wrong
            stream = conversation_pb2_grpc.ConversationServiceStub(channel).Converse()
            await stream.write(conversation_pb2.ConverseRequest(
                config=conversation_pb2.ConverseConfig(sample_rate_hertz=24_000)))
            await stream.write(conversation_pb2.ConverseRequest(
                audio=conversation_pb2.AudioChunk(pcm=np.full(1920, np.nan, "<f4").tobytes())))
            with pytest.raises(grpc.aio.AioRpcError):
                while await stream.read() is not grpc.aio.EOF:
                    pass
        assert await slots_are_free(mesh)
        for name, expected in (("codec", 'moshimesh_slots{batcher="encode",state="free"} 2.0'),
                               ("lm", 'moshimesh_slots{batcher="lm",state="free"} 2.0'),
                               ("gateway", 'moshimesh_calls_ended_total{reason="completed"} 1.0')):
            url = f"http://127.0.0.1:{mesh.metrics_ports[name]}/metrics"
            assert expected in urllib.request.urlopen(url).read().decode()  # noqa: ASYNC210
    spoken = "".join(frame.text for frame in answer.speech)
    words = spoken.split()
    assert len(words) > 4
    for name in ("codec", "lm", "gateway"):
        found = [json.loads(text) for text in lines[name]]
        assert any("ready on" in entry["message"] for entry in found), name
        assert all({"time", "level", "logger", "message", "service"} <= entry.keys() for entry in found)
        everything = "\n".join(lines[name])
        assert not any(" ".join(words[begin:begin + 3]) in everything for begin in range(len(words) - 2))


@pytest.mark.slow
async def test_a_move_names_its_own_session() -> None:
    """The loss of a replica is noticed in a task that all of its calls share; each line is still its call's."""
    lines: list[str] = []
    async with NullMesh(slots=8, replicas=2, environment={"MOSHIMESH_LOG_FORMAT": "json"},
                        on_line=lambda name, text: lines.append(text) if name == "gateway" else None) as mesh:
        here: dict[str, int] = {}  # sessions, and their answers

        async def talk() -> None:
            session = ""

            async def audio() -> AsyncIterator[bytes]:
                while len(moved()) < 3:  # then each is heard of, and may end
                    yield bytes(3840)
                    await asyncio.sleep(0.08)

            async with moshimesh.connect(mesh.target) as client:
                async for event in client.converse(audio()):
                    if isinstance(event, moshimesh.Ready):
                        session = event.session_id
                    elif isinstance(event, moshimesh.Speech):
                        here[session] = here.get(session, 0) + 1

        def moved() -> set[str]:
            return {entry["session"] for entry in map(json.loads, lines) if "moves away" in entry["message"]}

        talking = [asyncio.create_task(talk()) for _ in range(6)]  # three for each replica
        await until(lambda: len(here) == 6 and min(here.values()) > 3)
        mesh.processes["codec"].send(signal.SIGKILL)
        await until(lambda: len(moved()) >= 3)
        await asyncio.gather(*talking)
    assert moved() <= set(here)


@pytest.mark.slow
async def test_a_resumed_call_logs_its_session() -> None:
    """A call has an id of its own until it is known which session it resumes."""
    lines: list[str] = []
    async with NullMesh(slots=8, replicas=2, environment={"MOSHIMESH_LOG_FORMAT": "json"},
                        on_line=lambda name, text: lines.append(text) if name.startswith("gateway") else None) as mesh:
        heard: list[moshimesh.Speech] = []
        session = ""

        def moved() -> set[str]:
            return {entry["session"] for entry in map(json.loads, lines) if "moves away" in entry["message"]}

        async def audio() -> AsyncIterator[bytes]:
            while not moved():
                yield bytes(3840)
                await asyncio.sleep(0.08)

        async def talk() -> None:
            nonlocal session
            async with moshimesh.connect(mesh.addresses("gateway")) as client:
                async for event in client.converse(audio()):
                    if isinstance(event, moshimesh.Ready):
                        session = event.session_id
                    elif isinstance(event, moshimesh.Speech):
                        heard.append(event)

        talking = asyncio.create_task(talk())
        await until(lambda: len(heard) > 5)
        mesh.processes["gateway"].send(signal.SIGKILL)
        before = len(heard)
        await until(lambda: len(heard) > before + 10)
        mesh.processes[await stepper(mesh)].send(signal.SIGKILL)
        await talking
    assert moved() == {session}


async def test_what_prevents_a_start_is_an_object_too(checkpoint: str) -> None:
    lines: list[str] = []
    with pytest.raises(Exception, match="gateway ended"):
        async with LocalMesh(checkpoint, environment={"MOSHIMESH_LOG_FORMAT": "json"}, gateway_flags=[
                "--peers-wait-s", "0"], on_line=lambda name, text: lines.append(text) if name == "gateway" else None):
            pass
    last = json.loads(lines[-1])
    assert last["level"] == "error" and "no codec service at" in last["message"]
