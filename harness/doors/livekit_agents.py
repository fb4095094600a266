"""LiveKit's agents with its OpenAI plugin: an AgentSession without a room, with a microphone and a speaker of ours."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from livekit import rtc
from livekit.agents import Agent, AgentSession
from livekit.agents.voice import io
from livekit.plugins import openai
from speaking import PIECE_BYTES, RATE_HZ, Conversation, Microphone, arguments, run


class Input(io.AudioInput):
    """The microphone."""

    def __init__(self) -> None:
        super().__init__(label="microphone")
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()

    async def hear(self, piece: bytes) -> None:
        """The microphone has heard this."""
        self._pieces.put_nowait(piece)

    async def __anext__(self) -> rtc.AudioFrame:
        piece = await self._pieces.get()
        return rtc.AudioFrame(data=piece, sample_rate=RATE_HZ, num_channels=1, samples_per_channel=PIECE_BYTES // 2)


class Speaker(io.AudioOutput):
    """Plays by the clock."""

    def __init__(self) -> None:
        super().__init__(label="speaker", capabilities=io.AudioOutputCapabilities(pause=False), sample_rate=RATE_HZ)
        self.captured_s, self._began = 0.0, 0.0
        self.heard_bytes = 0
        self.endings: list[bool] = []  # of answers: interrupted or not
        self._finishing: asyncio.TimerHandle | None = None

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        """See AudioOutput."""
        await super().capture_frame(frame)
        if not self.captured_s:
            self._began = time.monotonic()
            self.on_playback_started(created_at=time.time())
        self.captured_s += frame.duration
        self.heard_bytes += len(frame.data.cast("b"))

    def flush(self) -> None:
        """See AudioOutput."""
        super().flush()
        if self.captured_s:
            left_s = max(self._began + self.captured_s - time.monotonic(), 0.0)
            self._finishing = asyncio.get_running_loop().call_later(left_s, self._finish, self.captured_s, False)

    def clear_buffer(self) -> None:
        """See AudioOutput."""
        if self.captured_s:
            self._finish(min(time.monotonic() - self._began, self.captured_s), True)

    def _finish(self, position_s: float, interrupted: bool) -> None:
        if self._finishing is not None:
            self._finishing.cancel()
        self.captured_s, self._finishing = 0.0, None
        self.endings.append(interrupted)
        self.on_playback_finished(playback_position=position_s, interrupted=interrupted)


class LiveKit(Conversation):
    """What the session told."""

    def __init__(self, speaker: Speaker) -> None:
        self._speaker = speaker
        self.received: list[dict[str, Any]] = []
        self.sent: list[str] = []
        self.errors: list[str] = []

    @property
    def heard_bytes(self) -> int:  # type: ignore[override]
        """See Conversation."""
        return self._speaker.heard_bytes

    @property
    def interruptions(self) -> int:  # type: ignore[override]
        """See Conversation."""
        return self._speaker.endings.count(True)

    @property
    def speaking(self) -> bool:
        """See Conversation."""
        return self._speaker.captured_s > 0.5 and "response.done" not in {
            event["type"] for event in self.received[-3:]}

    @property
    def answers(self) -> int:
        """See Conversation."""
        return self._speaker.endings.count(False)

    @property
    def barged_in(self) -> bool:
        """See Conversation."""
        return True in self._speaker.endings

    @property
    def cancelled(self) -> int:
        """See Conversation."""
        return sum(event["type"] == "response.done" and event["response"]["status"] == "cancelled"
                   and event["response"]["status_details"]["reason"] == "client_cancelled" for event in self.received)

    @property
    def facts(self) -> dict[str, Any]:
        """See Conversation."""
        return {"events": Counter(event["type"] for event in self.received), "sent": Counter(self.sent),
                "errors": self.errors, "playbacks": self._speaker.endings,
                "statuses": [event["response"]["status"] for event in self.received
                             if event["type"] == "response.done"],
                "transcripts": [event["transcript"] for event in self.received
                                if event["type"] == "response.output_audio_transcript.done"]}


async def main() -> None:
    """Hold the conversation."""
    options, microphone, speaker, heard = arguments(), Microphone(), Speaker(), Input()
    client = LiveKit(speaker)
    session: AgentSession[None] = AgentSession(llm=openai.realtime.RealtimeModel(
        base_url=f"{options.url}/v1", api_key=options.key))
    session.input.audio, session.output.audio = heard, speaker
    session.on("error", lambda event: client.errors.append(
        f"recoverable={event.error.recoverable} {event.error.error}"))
    agent = Agent(instructions="Be kind.")
    await session.start(agent)
    realtime = agent.realtime_llm_session
    realtime.on("openai_server_event_received", lambda event: client.received.append(dict(event)))
    realtime.on("openai_client_event_queued", lambda event: client.sent.append(event["type"]))
    streaming = asyncio.create_task(microphone.stream(heard.hear))

    async def cancel() -> None:
        await session.interrupt()

    try:
        await client.hold(options, microphone, cancel)
    finally:
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)
        await session.aclose()


run(main)
