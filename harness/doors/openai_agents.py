"""`openai-agents`' realtime session: the strictest of the parsers, which also plays back by the clock."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from agents.realtime import RealtimeAgent, RealtimeModelSendInterrupt, RealtimeRunner
from speaking import RATE_HZ, Conversation, Microphone, arguments, run


class Agents(Conversation):
    """What the session told."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._sound = 0

    async def listen(self, session: Any) -> None:
        """Note what the session tells."""
        async for event in session:
            self.events.append(event)
            if event.type == "audio":
                self._sound += len(event.audio.data)
                self.heard_bytes += len(event.audio.data)
            elif event.type in ("audio_end", "audio_interrupted"):
                self._sound = 0
                self.interruptions += event.type == "audio_interrupted"

    @property
    def speaking(self) -> bool:
        """See Conversation."""
        return self._sound > RATE_HZ

    @property
    def answers(self) -> int:
        """See Conversation."""
        return sum(status == "completed" for status in self.statuses)

    @property
    def barged_in(self) -> bool:
        """See Conversation."""
        return self.interruptions > 0 and "cancelled" in self.statuses

    @property
    def cancelled(self) -> int:
        """See Conversation."""
        return sum(done["status_details"] is not None and done["status_details"]["reason"] == "client_cancelled"
                   for done in self._done)

    @property
    def statuses(self) -> list[str]:
        """Of the responses."""
        return [done["status"] for done in self._done]

    @property
    def _done(self) -> list[dict[str, Any]]:
        raw = [event.data.data for event in self.events
               if event.type == "raw_model_event" and event.data.type == "raw_server_event"]
        return [message["response"] for message in raw if message["type"] == "response.done"]

    @property
    def facts(self) -> dict[str, Any]:
        """See Conversation."""
        history = [event.history for event in self.events if event.type == "history_updated"]
        errors = [str(event.error) for event in self.events if event.type == "error"]
        errors += [str(event.data.exception) for event in self.events
                   if event.type == "raw_model_event" and event.data.type == "exception"]
        return {"events": Counter(event.type for event in self.events), "errors": errors, "statuses": self.statuses,
                "transcripts": [part.transcript for item in (history[-1] if history else ())
                                if item.role == "assistant" for part in item.content]}


async def main() -> None:
    """Hold the conversation."""
    options, heard, microphone = arguments(), Agents(), Microphone()
    runner = RealtimeRunner(RealtimeAgent(name="Moshi", instructions="Be kind."))
    url = f"{options.url.replace('http', 'ws', 1)}/v1/realtime?model=gpt-realtime"
    async with await runner.run(model_config={"url": url, "api_key": options.key}) as session:
        listening = asyncio.create_task(heard.listen(session))
        streaming = asyncio.create_task(microphone.stream(session.send_audio))
        try:
            await heard.hold(options, microphone, lambda: session.model.send_event(
                RealtimeModelSendInterrupt(force_response_cancel=True)))
        finally:
            streaming.cancel()
            listening.cancel()
            await asyncio.gather(streaming, listening, return_exceptions=True)


run(main)
