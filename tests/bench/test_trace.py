"""`make trace`, as somebody would run it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from harness.local_mesh import ROOT


async def trace(*flags: str) -> tuple[int, str]:
    """Exit code and output of `python -m bench.trace`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "protos" / "python")]),
                   "COLUMNS": "110"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.trace", *flags, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT)
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.slow
async def test_a_call_becomes_a_waterfall_and_can_be_looked_at_again(tmp_path: Path) -> None:
    picture = tmp_path / "trace.png"
    code, output = await trace("--seconds", "1", "--pacing", "offline", "--out", str(picture))
    assert code == 0, output
    for hop in ("gateway.ingest", "codec.encode", "lm.step", "codec.decode", "gateway.emit"):
        assert hop in output
    assert "13 frames" in output or "14 frames" in output  # the frame that only fills the delay line may be one
    assert picture.stat().st_size > 10_000
    code, output = await trace("--otlp-json", str(tmp_path / "trace.json"), "--frame", "5", "--out", str(picture))
    assert code == 0, output
    assert output.startswith("frame 5, ")


@pytest.mark.parametrize(("flags", "advice"), (
    (["--otlp-json", "/nowhere.json"], "give a file of OTLP/JSON spans"),
    (["--target", "localhost:1", "--port", "0"], "is a mesh running there?"),
    (["--checkpoint", "/nowhere"], "no such folder; give a folder"),
    (["--wav", "README.md"], "can't be read as a sound file"),
    (["--callers", "0"], "must be at least 1, got 0"),
))
async def test_an_error_is_one_line_that_says_what_to_do(flags: list[str], advice: str) -> None:
    code, output = await trace(*flags)
    assert code != 0
    assert advice in output
    assert "Traceback" not in output
