"""The command `moshimesh`, as a process, against a gateway that does what a test says."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import wave
from pathlib import Path

import pytest
from moshimesh.cli.talk import PIECE, Speaker

from tests.client.gateway import Gateway, serving
from tests.client.test_director import Tells

PYTHON = Path(__file__).resolve().parents[2] / "protos" / "python"


async def _moshimesh(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Its exit code, and what it prints to stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "moshimesh.cli", *arguments, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(PYTHON), **environment})
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    path = tmp_path / "question.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 24_000, 0, "NONE", ""))
        file.writeframes(b"\x01\x00\x02\x00" * 4800)
    return path


async def test_info_lists_the_models() -> None:
    async with serving(Gateway()) as target:
        code, out, _ = await _moshimesh("info", "--target", target, "--json")
        assert (code, [json.loads(line)["model_id"] for line in out.splitlines()]) == (0, ["test-1", "test-2"])


async def test_call_sends_the_first_channel_and_prints_what_happens(wav: Path) -> None:
    gateway = Gateway()
    async with serving(gateway) as target:
        code, out, _ = await _moshimesh("call", str(wav), "--json", MOSHIMESH_TARGET=target, MOSHIMESH_KEY="mm_secret")
    assert code == 0
    assert b"".join(gateway.pieces) == b"\x01\x00" * 4800
    assert gateway.keys == ["mm_secret"]
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["Ready", "Summary"]


async def test_events_are_shown_when_asked_for(wav: Path) -> None:
    async with serving(Tells()) as target:
        _, _, quiet = await _moshimesh("call", str(wav), "--target", target)
        _, _, told = await _moshimesh("call", str(wav), "--target", target, "--events")
    assert "user speech started" not in quiet
    assert "[0.96 s user speech started]" in told


@pytest.mark.parametrize(("arguments", "complaint"), [
    (("info", "--target", "localhost:1"), "nobody answers at localhost:1; start a mesh with `make run`"),
    (("info", "--target", "nowhere"), "target must name a gateway as host:port"),
    (("call", "missing.wav"), "missing.wav can't be read as WAV: No such file"),
    (("call", __file__), "can't be read as WAV: "),
    (("info", "--key-file", "missing.key"), "missing.key can't be read: No such file"),
])
async def test_what_goes_wrong_is_one_line_that_says_what_to_do(arguments: tuple[str, ...], complaint: str) -> None:
    code, out, err = await _moshimesh(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("moshimesh: ") and complaint in err and err.count("\n") == 1


def test_an_interrupted_voice_fades_out() -> None:
    speaker = Speaker()
    loud = (10_000).to_bytes(2, "little") * 1920
    for sequence in range(3):
        speaker.add(sequence, loud)
    assert speaker.read(2 * PIECE) == loud[:2 * PIECE]
    speaker.drop()
    faded = memoryview(speaker.read(4 * PIECE)).cast("h")
    assert faded[0] == 10_000 and faded[PIECE // 2] == 5_000 and not any(faded[PIECE:])
    assert max(abs(one - other) for one, other in itertools.pairwise(faded)) < 100
    assert speaker.played == 0


def test_a_voice_begins_when_two_frames_are_there_and_never_lags_by_more_than_six() -> None:
    speaker = Speaker()
    speaker.add(0, b"\x01\x00" * 1920)
    assert not any(speaker.read(2 * PIECE))
    for sequence in range(1, 10):
        speaker.add(sequence, b"\x01\x00" * 1920)
    speaker.read(2 * PIECE)
    assert speaker.played == 4
