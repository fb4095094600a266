"""Handlers as plain functions of messages, called over real gRPC."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
import pytest
from moshimesh.lm.v1 import lm_pb2

from services.mesh.errors import REASON_KEY, NoFreeSlot
from services.mesh.incoming import Incoming, Sender
from services.mesh.logs import Sparing
from services.mesh.serving import RunningStreams, Service, register
from tests.until import until

DESCRIPTOR = lm_pb2.DESCRIPTOR.services_by_name["LmService"]
GARBAGE = b"\xff"


class Recalling:
    """Each session's id tells Step what to do."""

    def __init__(self, stall_s: float = 10.0) -> None:
        self.service = Service(DESCRIPTOR, {"GetInfo": self.get_info, "Step": self.step}, stall_s)
        self.requests: list[Incoming[lm_pb2.StepRequest]] = []
        self.running = 0

    async def get_info(self, request: lm_pb2.GetInfoRequest, sender: Sender) -> lm_pb2.GetInfoResponse:
        raise NoFreeSlot("none")

    async def step(self, requests: Incoming[lm_pb2.StepRequest]) -> AsyncGenerator[lm_pb2.StepResponse, None]:
        self.requests.append(requests)
        self.running += 1
        try:
            async for request in requests:
                if request.config.session_id == "bug":
                    raise ZeroDivisionError
                while request.config.session_id == "much":
                    yield lm_pb2.StepResponse(step=lm_pb2.StepFrame(text="x" * 100_000))
                yield lm_pb2.StepResponse(summary=lm_pb2.StepSummary(frames=len(request.step.frame.codes)))
        finally:
            self.running -= 1


async def serve(recalling: Recalling) -> tuple[grpc.aio.Server, grpc.aio.Channel]:
    server = grpc.aio.server()
    register(server, recalling.service, RunningStreams())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, grpc.aio.insecure_channel(f"127.0.0.1:{port}")


@pytest.fixture
async def served() -> AsyncIterator[tuple[Recalling, grpc.aio.Channel]]:
    recalling = Recalling()
    server, channel = await serve(recalling)
    yield recalling, channel
    await channel.close()
    await server.stop(0)


def raw_step(channel: grpc.aio.Channel, **options: Any) -> Any:
    """A call of Step that sends and reads bytes."""
    return channel.stream_stream("/moshimesh.lm.v1.LmService/Step")(**options)


def config(session_id: str) -> bytes:
    data: bytes = lm_pb2.StepRequest(config=lm_pb2.StepConfig(session_id=session_id)).SerializeToString()
    return data


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), dict(caught.value.trailing_metadata())[REASON_KEY]


async def test_a_handler_sees_who_calls(served) -> None:
    recalling, channel = served
    call = raw_step(channel, metadata=(("x-api-key", "first"), ("x-api-key", "second"), ("x-bin", b"1")))
    await call.write(config("one"))
    await call.read()
    requests = recalling.requests[0]
    assert requests.sender.metadata["x-api-key"] == "first"
    assert "x-bin" not in requests.sender.metadata
    assert requests.sender.peer.startswith("ipv4:127.0.0.1")
    call.cancel()
    await until(lambda: not recalling.running)


async def test_an_error_becomes_a_status_and_a_bug_tells_nothing(served) -> None:
    _, channel = served
    info = channel.unary_unary("/moshimesh.lm.v1.LmService/GetInfo")
    assert await refusal(info(b"")) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_FREE_SLOT")
    call = raw_step(channel)
    await call.write(config("bug"))
    assert await refusal(call.read()) == (grpc.StatusCode.INTERNAL, "INTERNAL")


async def test_what_can_not_be_parsed_is_the_callers_error_and_costs_one_line(
        served, caplog: pytest.LogCaptureFixture) -> None:
    recalling, channel = served
    caplog.set_level(logging.INFO)
    info = channel.unary_unary("/moshimesh.lm.v1.LmService/GetInfo")
    for _ in range(20):
        assert await refusal(info(GARBAGE)) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_MESSAGE")
        first, later = raw_step(channel), raw_step(channel)
        await first.write(GARBAGE)
        assert await refusal(first.read()) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_MESSAGE")
        await later.write(config("one"))
        await later.read()
        await later.write(GARBAGE)
        assert await refusal(later.read()) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_MESSAGE")
    ours = [record for record in caplog.records if record.name.startswith("services.")]
    assert len(ours) <= 1  # one in ten seconds, and other tests may have had it
    await until(lambda: not recalling.running)


async def test_a_caller_who_does_not_read_is_ended() -> None:
    recalling = Recalling(stall_s=0.2)
    server, channel = await serve(recalling)
    call = raw_step(channel)
    await call.write(config("much"))
    await until(lambda: recalling.running == 1)
    await until(lambda: recalling.running == 0)
    await channel.close()
    await server.stop(0)


async def test_handlers_are_those_of_the_contract() -> None:
    recalling = Recalling()
    with pytest.raises(ValueError, match=r"methods \['GetInfo', 'Step'\], but handlers for \['Step'\]"):
        Service(DESCRIPTOR, {"Step": recalling.step}, 1.0)
    with pytest.raises(ValueError, match="Other"):
        Service(DESCRIPTOR, {**recalling.service.handlers, "Other": recalling.step}, 1.0)


def test_lines_that_anybody_can_cause_are_few_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    sparing = Sparing(logging.getLogger("sparing"), 10.0, lambda: now)
    for second in range(25):
        now = float(second)
        sparing.warning("odd thing %d", second)
    assert [record.getMessage() for record in caplog.records] == [
        "odd thing 0", "odd thing 10 (and 9 lines like this one before)",
        "odd thing 20 (and 9 lines like this one before)"]
