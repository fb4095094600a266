"""The `openai` package's own Live client, which holds a conversation at `/v1/live/sessions`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt

from services.mesh.samples import to_s16

PIECE = 1920  # samples: 80 ms
ANSWER_S = 20.0  # after the last of the caller's audio


async def try_client(url: str, pcm: npt.NDArray[np.float32]) -> bool | str:
    """Say a recording, float32 [samples] at 24 kHz, at its pace. True when sound and text came; else why not."""
    try:
        import openai
    except ImportError:
        return "not tried: the openai package is not installed"
    client: Any = openai.AsyncOpenAI(api_key="any", base_url=f"{url}/v1")
    said, piece = to_s16(pcm), 2 * PIECE
    text, loudest = "", 0
    async with client.live.connect() as connection:
        await connection.session.start(session={"model": "any", "audio": {
            "format": {"type": "audio/pcm", "rate": 24_000}}})

        async def speak() -> None:
            for at in range(0, len(said), piece):
                await connection.session.input_audio.append(audio=base64.b64encode(said[at:at + piece]).decode())
                await asyncio.sleep(PIECE / 24_000)

        speaking = asyncio.create_task(speak())
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            deadline = asyncio.get_running_loop().time() + len(pcm) / 24_000 + ANSWER_S
            while not (text.strip() and loudest and speaking.done()):
                event = await asyncio.wait_for(connection.recv(), deadline - asyncio.get_running_loop().time())
                if event.type == "error":
                    return f"an error came: {event.error.message}"
                if event.type == "session.output_audio.delta":
                    loudest = max(loudest, int(np.abs(np.frombuffer(
                        base64.b64decode(event.delta), "<i2").astype(np.int32)).max(initial=0)))
                elif event.type == "session.output_transcript.delta":
                    text += event.delta
        speaking.cancel()
    return True if text.strip() and loudest else f"got text {bool(text.strip())}, sound {bool(loudest)}"
