"""A caller in another language: Node, from the same .proto files, against a real mesh."""

from __future__ import annotations

import asyncio
import json
import wave
from pathlib import Path
from typing import Any

import moshimesh
import numpy as np
import pytest

STUBS = Path(__file__).resolve().parent
RATE = 24_000
FRAMES = 25  # 2 s


@pytest.fixture(scope="module")
def samples() -> np.ndarray[Any, np.dtype[np.int16]]:
    """A voice-like sweep, int16 [samples]; the last frame is only half full."""
    seconds = np.arange(RATE * FRAMES * 80 // 1000 - 960) / RATE
    tone = np.sin(2 * np.pi * (150 + 200 * seconds) * seconds) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * seconds))
    return (tone * 12_000).astype("<i2")


@pytest.fixture(scope="module")
def wav(samples: np.ndarray[Any, np.dtype[np.int16]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stubs") / "sweep.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return path


async def _run(node: str, target: str, wav: Path, *flags: str) -> dict[str, Any]:
    """What the Node client printed."""
    child = await asyncio.create_subprocess_exec(
        node, str(STUBS / "client.js"), "--target", target, "--wav", str(wav), *flags,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, err = await asyncio.wait_for(child.communicate(), 150)
    assert child.returncode == 0, err.decode()
    assert err == b"", err.decode()
    answer: dict[str, Any] = json.loads(out)
    return answer


@pytest.mark.parametrize("flags", [("--encoding", "s16"), ("--encoding", "f32", "--chunk-ms", "37")],
                         ids=["s16", "f32"])
async def test_a_call_from_node_gets_what_one_from_python_gets(
        flags: tuple[str, ...], node: str, mesh_target: str, wav: Path, samples: np.ndarray[Any, np.dtype[np.int16]]
) -> None:
    answer = await _run(node, mesh_target, wav, "--greedy", *flags)

    speech: list[moshimesh.Speech] = []
    async with moshimesh.connect(mesh_target) as mesh:
        async for event in mesh.converse(samples.tobytes(), pacing="offline", text_temperature=0, audio_temperature=0):
            if isinstance(event, moshimesh.Speech):
                speech.append(event)
    assert answer["tokens"] == [[frame.text_token, *frame.codes] for frame in speech]
    assert answer["text"] == "".join(frame.text for frame in speech)
    assert answer["ready"]["sample_rate_hertz"] == RATE
    assert answer["frames"] == len(speech) == FRAMES
    assert answer["seconds"] == pytest.approx(FRAMES * 0.08)
    assert answer["summary"] == {"frames_in": FRAMES, "frames_out": FRAMES, "frames_skipped": 0}


async def test_a_seed_from_node_is_the_seed_in_force(node: str, mesh_target: str, wav: Path) -> None:
    first, again = [await _run(node, mesh_target, wav, "--seed", "7") for _ in range(2)]
    assert first["ready"]["sampling"]["seed"] == 7
    assert first["tokens"] == again["tokens"]


@pytest.mark.parametrize(("flags", "reason"), [(("--rate", "11025"), "BAD_SAMPLE_RATE"),
                                               (("--chunk-ms", "1500"), "BAD_PCM")])
async def test_node_reads_the_reason_of_a_refusal(flags: tuple[str, ...], reason: str, node: str, mesh_target: str,
                                                  wav: Path) -> None:
    error = (await _run(node, mesh_target, wav, *flags))["error"]
    assert (error["code"], error["reason"]) == ("INVALID_ARGUMENT", reason)
    assert error["message"]
