"""What is read back: journals that somebody has changed, checkpoints from anywhere, and what peers send in a tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import grpc
import pytest
from hypothesis import strategies as st
from moshimesh.journal.v1 import journal_pb2
from moshimesh.lm.v1 import lm_pb2
from moshimesh.tunnel.v1 import tunnel_pb2

from services.gateway.sessions.records import seal_chunk
from services.gateway.sessions.sealing import Handle
from tests.fuzz.budget import fuzz
from tests.fuzz.inputs import mutated, values, written
from tests.fuzz.parsers import (
    CHUNKS,
    FACTS,
    PARSERS,
    SEPARATOR,
    a_record,
    checkpoint_json,
    history_chunks,
    journals,
    safetensors,
)
from tests.fuzz.test_wire import protos
from tests.gateway.door import lm
from tests.served import Served
from tests.until import until

OTHER = seal_chunk(Handle.new(), a_record().history, 0, 1.0)


@fuzz("journals in Redis", facts=st.one_of(st.just(FACTS), mutated(FACTS), st.sampled_from(CHUNKS)),
      chunks=st.lists(st.one_of(st.sampled_from([*CHUNKS, FACTS, OTHER]), mutated(*CHUNKS)), max_size=4))
def test_a_journal_that_was_tampered_with_truncated_or_swapped_is_refused(facts: bytes, chunks: list[bytes]) -> None:
    journals(SEPARATOR.join([facts, *chunks]))


@fuzz("chunks of a history", chunks=st.lists(st.one_of(
    protos(journal_pb2.Chunk), st.builds(
        lambda first, steps, skip: journal_pb2.Chunk(
            first_step=first, first_sequence=first, user_codes=bytes(4 * steps), tokens=bytes(8 * max(steps - 1, 0)),
            skipped=[journal_pb2.SkippedFrames(step=skip, frames=skip)]),
        st.sampled_from([0, 1, 2, 2**32 - 1]), st.integers(0, 5), st.integers(0, 2**20))), max_size=4))
def test_a_chunk_continues_a_history_or_is_refused(chunks: list[journal_pb2.Chunk]) -> None:
    history_chunks(SEPARATOR.join(chunk.SerializeToString() for chunk in chunks))


@fuzz("checkpoints' JSON", config=values(
    ("dim", "num_heads", "num_layers", "n_q", "card", "dep_q", "delays", "context", "depformer_dim", "conditioners",
     "causal", "gating", "norm", "text_card", "lora", "quantize"), ("rms_norm", "silu")))
def test_a_configuration_is_served_or_refused_by_name(config: object) -> None:
    checkpoint_json(written(config).encode())


_TENSORS = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()


@fuzz("safetensors", data=mutated(len(_TENSORS).to_bytes(8, "little") + _TENSORS + bytes(8)))
def test_a_file_of_weights_has_a_digest_or_is_refused(data: bytes) -> None:
    safetensors(data)


@pytest.fixture(scope="module")
async def served() -> AsyncIterator[Served]:
    async with lm("one", "mimi", 2) as served:
        yield served


_STEP = "/moshimesh.lm.v1.LmService/Step"
_CONFIG = lm_pb2.StepRequest(config=lm_pb2.StepConfig(session_id="s")).SerializeToString()
_Item = tunnel_pb2.RequestItem
_GOOD = [tunnel_pb2.TunnelRequest(items=[_Item(call=1, open=_STEP), _Item(call=1, message=_CONFIG)]),
         tunnel_pb2.TunnelRequest(items=[_Item(call=1, half_close=tunnel_pb2.Nothing())]),
         tunnel_pb2.TunnelRequest(items=[_Item(call=2, open="/no/Method"), _Item(call=1, cancel=tunnel_pb2.Nothing())])]


REQUESTS = st.lists(st.one_of(
    st.sampled_from([message.SerializeToString() for message in _GOOD]),
    protos(tunnel_pb2.TunnelRequest).map(lambda message: message.SerializeToString()),
    mutated(*[message.SerializeToString() for message in _GOOD])), max_size=6)


@fuzz("messages of tunnels", requests=REQUESTS)
def test_a_tunnel_without_a_socket_ends(requests: list[bytes]) -> None:
    PARSERS["messages of tunnels"](SEPARATOR.join(requests).replace(_STEP.encode(), b"/moshimesh.codec.v1.CodecService/"
                                                                    b"Encode"))


@fuzz("tunnels", share=0.3, requests=REQUESTS)
async def test_a_tunnel_of_anything_ends_and_gives_its_slots_back(served: Served, requests: list[bytes]) -> None:
    async def sent() -> AsyncIterator[bytes]:
        for request in requests:
            yield request

    call = served.channel.stream_stream("/moshimesh.tunnel.v1.TunnelService/Tunnel")(sent(), timeout=8)
    with contextlib.suppress(asyncio.TimeoutError, TimeoutError, grpc.aio.AioRpcError):
        async with asyncio.timeout(0.05) if hasattr(asyncio, "timeout") else contextlib.nullcontext():
            async for _ in call:
                pass
    call.cancel()
    batcher = served.service.batchers[0]  # type: ignore[attr-defined]
    await until(lambda: batcher.free == batcher.total)
