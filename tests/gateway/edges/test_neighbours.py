"""What a caller sends can't end the calls of others."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from moshimesh.gateway.v1 import conversation_pb2 as pb
from moshimesh.lm.v1 import lm_pb2

from tests.gateway.door import Gateway, codec, lm

FRAME = bytes(4 * 1920)


def unknown_field(size: int) -> bytes:
    """A field that no message of ours has, number 1000, with `size` bytes."""
    length, rest = b"", size
    while rest > 0x7F:
        length, rest = length + bytes([rest & 0x7F | 0x80]), rest >> 7
    return b"\xc2\x3e" + length + bytes([rest]) + bytes(size)


def config(sampling: lm_pb2.Sampling) -> pb.ConverseRequest:
    return pb.ConverseRequest(config=pb.ConverseConfig(
        sample_rate_hertz=24_000, pacing=pb.PACING_OFFLINE, sampling=sampling))


async def answer(call: Any) -> None:
    """One more frame is answered."""
    await call.write(pb.ConverseRequest(audio=pb.AudioChunk(pcm=FRAME)))
    assert (await call.read()).HasField("speech")


@pytest.mark.parametrize("size", [1000, 700_000, 800_000, 1_000_000, 1_048_000])
async def test_a_config_with_a_large_unknown_field(size: int) -> None:
    async with Gateway([codec("mimi", 3)], [lm("one", "mimi", 3)]) as gateway:
        neighbour = gateway.stub.Converse()
        await neighbour.write(config(lm_pb2.Sampling()))
        assert (await neighbour.read()).HasField("ready")
        await neighbour.write(pb.ConverseRequest(audio=pb.AudioChunk(pcm=FRAME)))  # the delay line takes its answer
        await answer(neighbour)

        odd = gateway.stub.Converse()
        try:
            await odd.write(config(lm_pb2.Sampling.FromString(unknown_field(size))))
            await odd.read()
        except grpc.aio.AioRpcError as error:
            assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
        for _ in range(5):
            await answer(neighbour)
        odd.cancel()
        neighbour.cancel()
