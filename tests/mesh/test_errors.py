"""Errors on their way: to a status, through a tunnel, and back."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from services.mesh import errors
from services.mesh.errors import DOMAIN, InvalidRequest, MeshError, NoFreeSlot, PeerLost, from_rpc_error, from_status

ROOT = Path(__file__).resolve().parents[2]


def kinds() -> list[type[MeshError]]:
    found, seen = [MeshError], []
    while found:
        seen.append(found.pop())
        found += seen[-1].__subclasses__()
    return [kind for kind in seen if kind.__module__ == errors.__name__ and not kind.__name__.startswith("_")]


def test_a_status_has_code_reason_and_what_to_do() -> None:
    status = InvalidRequest("BAD_PCM", "too loud", field="audio.pcm", accepted="-1..1").to_status()
    assert (status.code, status.message) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "too loud")
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("BAD_PCM", DOMAIN)
    assert dict(info.metadata) == {"field": "audio.pcm", "accepted": "-1..1"}
    assert len(status.details) == 1


def test_when_to_try_again_is_said() -> None:
    status = NoFreeSlot("full").to_status()
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry) and retry.retry_delay.ToMilliseconds() == 1000


@pytest.mark.parametrize("error", [NoFreeSlot("full", slots=3), InvalidRequest("BAD_CODES", "no", field="frame.codes")])
def test_a_peer_s_refusal_is_passed_on_as_it_is(error: MeshError) -> None:
    passed = from_status(error.code.value[0], error.message, error.to_status().SerializeToString(), "lm")
    assert (passed.code, passed.reason, passed.message) == (error.code, error.reason, error.message)
    assert (passed.metadata, passed.retry_after_s) == (error.metadata, error.retry_after_s)
    assert passed.to_status() == error.to_status()


def test_a_peer_that_says_nothing_of_itself_has_failed() -> None:
    assert from_status(13, "oops", b"", "lm").reason == "PEER_FAILED"


@pytest.mark.parametrize(("code", "details"), [
    (grpc.StatusCode.UNAVAILABLE, "connection refused"), (grpc.StatusCode.CANCELLED, ""),
    (grpc.StatusCode.INTERNAL, "Internal error from Core")])
def test_a_connection_that_is_gone_is_a_lost_peer(code: grpc.StatusCode, details: str) -> None:
    nothing = grpc.aio.Metadata()
    error = from_rpc_error(grpc.aio.AioRpcError(code, nothing, nothing, details=details), "lm")
    assert isinstance(error, PeerLost) and error.metadata == {"peer": "lm"}


def test_every_error_is_in_the_tree_at_the_top_of_its_file_and_in_the_protocol_s_table() -> None:
    table = (ROOT / "docs" / "protocol.md").read_text()
    for kind in kinds():
        assert re.search(rf"\b{kind.__name__}\b", errors.__doc__ or ""), kind
        if kind.reason != MeshError.reason:
            assert f"`{kind.reason}`" in table, kind
