"""The `openai` package's realtime client."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from typing import Any

from openai import AsyncOpenAI
from speaking import RATE_HZ, Conversation, Microphone, arguments, run, until


class Connection(Conversation):
    """What the connection told."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._sound = 0

    async def listen(self, connection: Any) -> None:
        """Note what the connection tells."""
        async for event in connection:
            self.events.append(event)
            if event.type in ("response.created", "response.done"):
                self._sound = 0
            elif event.type == "response.output_audio.delta":
                self._sound += len(base64.b64decode(event.delta))
                self.heard_bytes += len(base64.b64decode(event.delta))
            elif event.type == "input_audio_buffer.speech_started":
                self.interruptions += self._sound > 0

    @property
    def speaking(self) -> bool:
        """See Conversation."""
        return self._sound > RATE_HZ

    @property
    def answers(self) -> int:
        """See Conversation."""
        return sum(response.status == "completed" for response in self._done)

    @property
    def barged_in(self) -> bool:
        """See Conversation."""
        return bool(self._cancelled("turn_detected"))

    @property
    def cancelled(self) -> int:
        """See Conversation."""
        return self._cancelled("client_cancelled")

    def _cancelled(self, reason: str) -> int:
        return sum(response.status == "cancelled" and response.status_details.reason == reason
                   for response in self._done)

    @property
    def _done(self) -> list[Any]:
        return [event.response for event in self.events if event.type == "response.done"]

    @property
    def facts(self) -> dict[str, Any]:
        """See Conversation."""
        return {"events": Counter(event.type for event in self.events),
                "errors": [str(event) for event in self.events if event.type == "error"],
                "statuses": [response.status for response in self._done],
                "transcripts": [event.transcript for event in self.events
                                if event.type == "response.output_audio_transcript.done"]}


async def main() -> None:
    """Hold the conversation."""
    options, heard, microphone = arguments(), Connection(), Microphone()
    client = AsyncOpenAI(base_url=f"{options.url}/v1", api_key=options.key)
    async with client.realtime.connect(model="gpt-realtime") as connection:

        async def send(piece: bytes) -> None:
            await connection.input_audio_buffer.append(audio=base64.b64encode(piece).decode())

        listening = asyncio.create_task(heard.listen(connection))
        await until(lambda: heard.events, "session.created")
        await connection.session.update(session={"type": "realtime", "instructions": "Be kind."})
        streaming = asyncio.create_task(microphone.stream(send))
        try:
            await heard.hold(options, microphone, connection.response.cancel)
        finally:
            streaming.cancel()
            listening.cancel()
            await asyncio.gather(streaming, listening, return_exceptions=True)


run(main)
