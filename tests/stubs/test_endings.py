"""Every way in which the mesh ends a call tells the caller why, however busy the machine and the caller are."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import moshimesh
import pytest
from moshimesh.audio.v1 import audio_pb2
from moshimesh.conversation import Conversation
from moshimesh.director import Director
from moshimesh.gateway.v1 import conversation_pb2 as pb
from moshimesh.gateway.v1 import conversation_pb2_grpc
from moshimesh.sent import Sent
from moshimesh.source import PcmFormat, Source

from harness.local_mesh import free_port
from harness.null_mesh import NullMesh

FRAME = bytes(3840)
CONFIG = pb.ConverseConfig(sample_rate_hertz=24_000, encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE)
BAD_AFTER = 5  # pieces
# A gateway that was restarted is connected to at once: gRPC's own pool remembers that it was away a moment ago.
FRESH = [("grpc.use_local_subchannel_pool", 1)]
AT_ONCE, AT_ONCE_SLOW, CALLS_SLOW = 5, 10, 60  # calls of each style
Opened = Callable[[str], None]


@dataclass(frozen=True)
class Way:
    """A way to end: the reason, the gateway's flags, and how the caller speaks so that it comes to that."""

    reason: str
    flags: tuple[str, ...] = ()
    bad_after: int = -1
    pause_s: float = 0.0
    """Between pieces; 0: none."""
    longer_s: float = 0.0
    """Each pause is longer than the last by this, so that a piece is on its way at the moment of the end."""


WAYS = {way.reason: way for way in (
    Way("BAD_PCM", bad_after=BAD_AFTER), Way("IDLE_CALLER", ("--idle-s", "0.4"), pause_s=0.25, longer_s=0.03),
    Way("CALL_TOO_LONG", ("--longest-call-s", "1")), Way("SESSION_MOVED"), Way("DRAINING", ("--drain-s", "1")))}


async def pieces(way: Way) -> AsyncIterator[bytes]:
    """Audio without an end."""
    for number in itertools.count():
        yield bytes(3) if number == way.bad_after else FRAME
        await asyncio.sleep(way.pause_s + number * way.longer_s)


def said(response: pb.ConverseResponse, opened: Opened) -> str:
    """The reason, if this response has one."""
    if response.HasField("ready"):
        opened(response.ready.resume_handle)
    return response.ended.reason


async def by_write(target: str, way: Way, opened: Opened) -> str:
    """A plain stub that writes and reads, and half-closes when the reason comes."""
    async with grpc.aio.insecure_channel(target, options=FRESH) as channel:
        call = conversation_pb2_grpc.ConversationServiceStub(channel).Converse()
        await call.write(pb.ConverseRequest(config=CONFIG))
        reason = said(await call.read(), opened)

        async def speak() -> None:
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the call has ended
                async for piece in pieces(way):
                    if reason:
                        return await call.done_writing()
                    await call.write(pb.ConverseRequest(audio=pb.AudioChunk(pcm=piece)))

        speaking = asyncio.create_task(speak())
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                reason = reason or said(response, opened)
        except grpc.aio.AioRpcError as error:
            return reason or str(error.code())
        finally:
            await speaking
        return reason


async def by_iterator(target: str, way: Way, opened: Opened) -> str:
    """A plain stub that is given an iterator, and ends it when the reason comes."""
    reason, is_open = "", asyncio.Event()

    async def requests() -> AsyncIterator[pb.ConverseRequest]:
        yield pb.ConverseRequest(config=CONFIG)
        await is_open.wait()
        async for piece in pieces(way):
            if reason:
                return
            yield pb.ConverseRequest(audio=pb.AudioChunk(pcm=piece))

    async with grpc.aio.insecure_channel(target, options=FRESH) as channel:
        try:
            async for response in conversation_pb2_grpc.ConversationServiceStub(channel).Converse(requests()):
                is_open.set()
                reason = reason or said(response, opened)
        except grpc.aio.AioRpcError as error:
            return reason or str(error.code())
        return reason


async def by_client(target: str, way: Way, opened: Opened) -> str:
    """The typed client. It can't send what is malformed, so for BAD_PCM it sends what is not a number."""
    async def audio() -> AsyncIterator[bytes]:
        async for piece in pieces(way):
            yield b"\xff" * 960 if len(piece) == 3 else bytes(960) * 4

    pcm_format = PcmFormat.of("f32", 24_000)
    source = Source(audio(), pcm_format, live=True)
    config = pb.ConverseConfig(sample_rate_hertz=24_000, encoding=pcm_format.encoding)
    async with grpc.aio.insecure_channel(target, options=FRESH) as channel:
        events = Conversation([conversation_pb2_grpc.ConversationServiceStub(channel)], config, source,
                              Sent(source.pieces(), pcm_format), Director(), pcm_format.sample_bytes, (), resume_s=0,
                              connect=lambda gateway: None, on_ready=lambda ready: opened(ready.resume_handle)).events()
        try:
            async for _ in events:
                pass
        except moshimesh.MeshError as error:
            return error.reason or str(error.code)
        return ""


STYLES = {"write": by_write, "iterator": by_iterator, "client": by_client}


async def by_node(node: str, target: str, way: Way, opened: Opened, calls: int) -> list[str]:
    """Several calls at once, of one process."""
    child = await asyncio.create_subprocess_exec(
        node, str(Path(__file__).parent / "endings.js"), "--target", target, "--calls", str(calls),
        f"--bad-after={way.bad_after}", "--pause-ms", str(way.pause_s * 1000),
        "--longer-ms", str(way.longer_s * 1000), stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    reasons = []
    async for line in child.stdout:
        said = json.loads(line)
        if "handle" in said:
            opened(said["handle"])
        else:
            reasons.append(said["reason"] or f"status {said['status']}")
    assert await child.wait() == 0
    return reasons


class Mesh(NullMesh):
    """A gateway for each way to end, so that all of them can be tried on one mesh."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gateways = {reason: free_port() for reason in WAYS}

    def running(self, reason: str) -> bool:
        """Whether its gateway runs."""
        return f"gateway-{reason}" in self.processes and self.processes[f"gateway-{reason}"].running

    async def start_gateway(self, reason: str) -> str:
        """Start it, for the first time or again; its address."""
        port, name = self.gateways[reason], f"gateway-{reason}"
        if name in self.processes:
            await self.processes[name].stop()
        await self.start_process(name, [
            sys.executable, "-m", "services.gateway", "--host", "127.0.0.1", "--port", str(port), "--codec",
            self.addresses("codec"), "--lm", self.addresses("lm"), "--redis-url", self.redis_url, *WAYS[reason].flags])
        await self.wait_ready(name, port)
        return f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh(slots=256) as running:
        yield running


@pytest.fixture
def busy() -> Iterator[None]:
    """Two processes that take all of the processor that they get."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    yield
    for other in others:
        other.kill()
        other.wait()


async def take_over(target: str, handle: str) -> None:
    """Go on with somebody's conversation, as soon as it can be found."""
    async with grpc.aio.insecure_channel(target, options=FRESH) as channel:
        while True:
            call = conversation_pb2_grpc.ConversationServiceStub(channel).Converse()
            await call.write(pb.ConverseRequest(config=pb.ConverseConfig(
                sample_rate_hertz=24_000, encoding=CONFIG.encoding, resume_handle=handle)))
            with contextlib.suppress(grpc.aio.AioRpcError):
                response = await call.read()
                if response is not grpc.aio.EOF and response.HasField("ready"):
                    call.cancel()
                    return
            await asyncio.sleep(0.5)  # a gateway bounds how often an address may resume


async def round_of(mesh: Mesh, way: Way, node: str, at_once: int) -> dict[str, list[str]]:
    """So many calls of each style, all at once; the reasons that they got."""
    target = await mesh.start_gateway(way.reason) if way.reason == "DRAINING" or not mesh.running(way.reason) else (
        f"127.0.0.1:{mesh.gateways[way.reason]}")
    takers: list[asyncio.Task[None]] = []
    opened = 0

    def on_open(handle: str) -> None:
        nonlocal opened
        opened += 1
        if way.reason == "SESSION_MOVED":
            takers.append(asyncio.create_task(take_over(target, handle)))
        elif way.reason == "DRAINING" and opened == at_once * (len(STYLES) + 1):
            mesh.processes[f"gateway-{way.reason}"].send(signal.SIGTERM)

    calls = {style: [asyncio.create_task(call(target, way, on_open)) for _ in range(at_once)]
             for style, call in STYLES.items()}
    from_node = asyncio.create_task(by_node(node, target, way, on_open, at_once))
    reasons = {style: list(await asyncio.gather(*tasks)) for style, tasks in calls.items()}
    reasons["node"] = await from_node
    await asyncio.gather(*takers)
    return reasons


async def endings(mesh: Mesh, way: Way, node: str, calls: int, at_once: int) -> dict[str, Counter[str]]:
    """How often each style heard which reason."""
    heard = {style: Counter[str]() for style in (*STYLES, "node")}
    for _ in range(calls // at_once):
        for style, reasons in (await asyncio.wait_for(round_of(mesh, way, node, at_once), 60)).items():
            heard[style].update(reasons)
    return heard


@pytest.mark.parametrize("reason", WAYS)
async def test_the_reason_is_heard(mesh: Mesh, node: str, reason: str) -> None:
    heard = await endings(mesh, WAYS[reason], node, AT_ONCE, AT_ONCE)
    assert heard == {style: {reason: AT_ONCE} for style in (*STYLES, "node")}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("reason", WAYS)
async def test_the_reason_is_heard_beside_busy_processes(mesh: Mesh, node: str, busy: None, reason: str) -> None:
    heard = await endings(mesh, WAYS[reason], node, CALLS_SLOW, AT_ONCE_SLOW)
    assert heard == {style: {reason: CALLS_SLOW} for style in (*STYLES, "node")}
