"""`/v1/realtime` with the talking checkpoint: OpenAI's own client, and a telephone that sends a whole recording."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from harness.local_mesh import ROOT, LocalMesh
from harness.realtime_clients import try_client
from harness.recordings import RATE_HZ, read_recording
from services.gateway.edges.g711 import MU_LAW
from services.gateway.edges.resampling import Resampler

pytestmark = pytest.mark.slow


async def test_openai_s_client_holds_a_conversation_and_interrupts_it(mesh: LocalMesh) -> None:
    pytest.importorskip("openai")
    worked, seen = await try_client("openai_realtime", mesh.url, "any key", Path(sys.executable))
    assert worked is True, (worked, seen)
    assert seen["statuses"].count("cancelled") == 2 and all(seen["transcripts"])


async def test_a_telephone_is_answered(mesh: LocalMesh) -> None:
    """8 kHz in eight bits a sample, all of the question in one message, and then nothing: silence is heard."""
    sound = np.frombuffer(read_recording(ROOT / "samples" / "question-1.wav"), "<i2").astype(np.float32) / 32768
    question = MU_LAW.encode(Resampler(RATE_HZ, 8000).resample(sound))
    telephone = {"format": {"type": "audio/pcmu"}}
    heard: list[dict[str, Any]] = []
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{mesh.url}/v1/realtime") as socket:

        async def listen() -> None:
            while not heard or heard[-1]["type"] != "response.done":
                heard.append(json.loads((await socket.receive()).data))

        await socket.send_str(json.dumps({"type": "session.update", "session": {
            "type": "realtime", "audio": {"input": telephone, "output": telephone}}}))
        await socket.send_str(json.dumps({"type": "input_audio_buffer.append",
                                          "audio": base64.b64encode(question).decode()}))
        await asyncio.wait_for(listen(), 60)
    types = [message["type"] for message in heard]
    assert "input_audio_buffer.speech_stopped" in types
    answer = b"".join(base64.b64decode(message["delta"]) for message in heard
                      if message["type"] == "response.output_audio.delta")
    assert len(answer) > 8000 // 2 and np.abs(MU_LAW.decode(answer)).max() > 0.05
    assert heard[-1]["response"]["status"] == "completed"
    assert heard[-1]["response"]["output"][0]["content"][0]["transcript"]
