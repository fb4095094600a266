"""What `make doors` takes for a failure."""

from __future__ import annotations

from typing import Any

import pytest

from bench.doors import failed

GOOD: dict[str, Any] = {
    "moshi_client": True, "pipecat": "not tried: no such package", "same_reply": {"8000": True},
    "chat_same_reply": True, "tokens_equal_24k": True, "resample_floor_db": -127.3, "rotation_calls_lost": 0,
    "rotation_frames_lost": 0, "refused": {"no_key": True}, "secrets_found": 0, "websocket_cpu_ratio": 1.04}


def test_all_that_holds_and_a_client_that_could_not_be_tried_is_no_failure() -> None:
    assert failed(GOOD) == []


@pytest.mark.parametrize(("name", "result"), [
    ("moshi_client", "no text came"), ("moshi_client", False), ("same_reply", {"8000": True, "16000": False}),
    ("chat_same_reply", False), ("tokens_equal_24k", False), ("resample_floor_db", -79.9), ("rotation_calls_lost", 1),
    ("rotation_frames_lost", 1), ("refused", {"no_key": True, "alg_none": False}), ("secrets_found", 1),
    ("websocket_cpu_ratio", 1.51)])
def test_what_does_not_hold_is_named(name: str, result: Any) -> None:
    assert failed(GOOD | {name: result}) == [name]
