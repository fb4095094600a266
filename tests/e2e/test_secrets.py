"""Whole calls through real processes that log all they can: no secret of them is left anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.whole_call import leaks


@pytest.mark.slow
async def test_no_secret_of_a_call_is_left_in_logs_spans_metrics_redis_or_ps(tmp_path: Path) -> None:
    assert await leaks(tmp_path) == []
