"""The shortest soak: callers at every door come and go while a replica is killed; nothing is held at the end."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench.soak import DOORS, problems, soak


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_nothing_is_held_when_the_callers_have_gone() -> None:
    found = await soak(argparse.Namespace(checkpoint="checkpoints/talker", device="cpu", callers=0, duration=6.0,
                                          wav=Path("samples")))
    assert len(found.calls) == DOORS and found.kills and (not found.failures or found.overloads)
    assert problems(found, 6.0) == []
    gateway = found.watched.facts("gateway")
    assert gateway["files_end"] <= gateway["files_before"] + 4 and gateway["threads_end"] <= gateway["threads_before"]
