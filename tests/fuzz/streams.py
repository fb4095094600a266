"""Streams of messages below the socket: the code that reads them is the product's, and what is behind it hears all and
computes nothing. So it runs at thousands of streams a second; tests/fuzz/test_wire.py has the same over sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import Any

from moshimesh.codec.v1 import codec_pb2
from moshimesh.gateway.v1 import conversation_pb2 as pb
from moshimesh.tunnel.v1 import tunnel_pb2

from services.gateway.calls.replay import Begun, Past
from services.gateway.edges.grpc import GrpcEdge
from services.gateway.sessions.history import History
from services.gateway.trust.gate import OpenGate
from services.mesh.errors import InvalidRequest, MeshError
from services.mesh.incoming import Incoming, Sender, parser
from services.mesh.serving import Service
from services.mesh.tunnel import TunnelServer
from tests.gateway.edges.web.realtime.told import READY

MOST_MESSAGES = 32
_loops: list[asyncio.AbstractEventLoop] = []


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end in this process's own loop; one for all, since making one takes longer than most inputs. Raises
    AssertionError when a task is left over.
    """
    if not _loops:
        _loops.append(asyncio.new_event_loop())
    result = _loops[0].run_until_complete(work)
    if asyncio.all_tasks(_loops[0]):  # what was cancelled last has its turn
        _loops[0].run_until_complete(_turns(3))
        assert not (left := asyncio.all_tasks(_loops[0])), left
    return result


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Listener:
    """A desk that takes every call and reads it to its end."""

    async def info(self) -> Any:
        """What the edge asks a mesh for."""
        return READY

    async def hold(self, caller: Any, opening: Any, inputs: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        """Ready, and nothing else is said."""
        yield READY
        async for _ in inputs:
            pass

    async def replay(self, caller: Any, model: str, sampling: Any, past: Past, steps: AsyncIterator[Any],
                     *, audio: bool) -> AsyncGenerator[Any, None]:
        """As Desk.replay does up to the first step."""
        try:
            History(2, 3, 1, 20).begin(past.first_step, past.user_codes, past.tokens, past.controls)
        except ValueError as error:
            raise InvalidRequest("BAD_RECORDING", f"config.past: {error}", field="config.past") from None
        yield Begun("moshi", READY.sample_rate_hertz, 1, sampling)
        async for _ in steps:
            pass


_CALLER = Sender({}, "ipv4:1.2.3.4:5")
_EDGE = GrpcEdge(Listener(), OpenGate(), 5.0)  # type: ignore[arg-type]


async def _messages(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    for part in parts[:MOST_MESSAGES]:
        yield part


async def _to_the_end(answers: AsyncGenerator[Any, None]) -> None:
    with contextlib.suppress(MeshError):
        async with contextlib.aclosing(answers) as told:
            async for answer in told:
                answer.SerializeToString()


def converse(parts: Sequence[bytes]) -> None:
    """A stream of ConverseRequests."""
    run(_to_the_end(_EDGE.converse(Incoming(_messages(parts), parser(pb.ConverseRequest), _CALLER))))


def replay(parts: Sequence[bytes]) -> None:
    """A stream of ReplayRequests."""
    run(_to_the_end(_EDGE.replay(Incoming(_messages(parts), parser(pb.ReplayRequest), _CALLER))))


async def _encode(requests: Incoming[codec_pb2.EncodeRequest]) -> AsyncGenerator[codec_pb2.EncodeResponse, None]:
    async for request in requests:
        yield codec_pb2.EncodeResponse(frame={"context": request.frame.context})  # type: ignore[arg-type]


async def _refuse(requests: Incoming[codec_pb2.DecodeRequest]) -> AsyncGenerator[codec_pb2.DecodeResponse, None]:
    async for _ in requests:
        yield codec_pb2.DecodeResponse()
        raise InvalidRequest("BAD_FRAME", "no")


async def _info(request: codec_pb2.GetInfoRequest, sender: Sender) -> codec_pb2.GetInfoResponse:
    return codec_pb2.GetInfoResponse()


_CODEC = Service(codec_pb2.DESCRIPTOR.services_by_name["CodecService"],
                 {"GetInfo": _info, "Encode": _encode, "Decode": _refuse}, 5.0)


async def _tunnel(parts: Sequence[bytes]) -> None:
    server = TunnelServer(_CODEC)
    read = asyncio.Event()

    async def messages() -> AsyncIterator[bytes]:
        async for part in _messages(parts):
            yield part
        await asyncio.sleep(0)  # its calls have had a turn
        read.set()
        await asyncio.Event().wait()  # a tunnel stays open until its gateway hangs up

    answering = asyncio.create_task(_to_the_end(server.tunnel(
        Incoming(messages(), parser(tunnel_pb2.TunnelRequest)))))
    reading = asyncio.create_task(read.wait())
    await asyncio.wait((answering, reading), return_when=asyncio.FIRST_COMPLETED)
    for task in (answering, reading):
        task.cancel()
    for ended in await asyncio.gather(answering, reading, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended


def tunnel(parts: Sequence[bytes]) -> None:
    """A tunnel's messages to a service that echoes."""
    run(_tunnel(parts))
