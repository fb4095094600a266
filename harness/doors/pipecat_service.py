"""Pipecat's OpenAI realtime service in a pipeline, with a microphone and a speaker of ours."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

from loguru import logger
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMRunFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.realtime import events, llm
from pipecat.workers.runner import WorkerRunner
from speaking import RATE_HZ, Conversation, Microphone, arguments, run


class Speaker(FrameProcessor):
    """Plays at once what comes, and says so up the pipeline, as a transport does."""

    def __init__(self) -> None:
        super().__init__()
        self.sound, self.heard_bytes, self.interruptions = 0, 0, 0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """See FrameProcessor."""
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSStartedFrame):
            await self.push_frame(BotStartedSpeakingFrame(), FrameDirection.UPSTREAM)
        elif isinstance(frame, TTSAudioRawFrame):
            self.sound += len(frame.audio)
            self.heard_bytes += len(frame.audio)
        elif isinstance(frame, TTSStoppedFrame | InterruptionFrame):
            self.interruptions += isinstance(frame, InterruptionFrame) and self.sound > 0
            if self.sound:
                await self.push_frame(BotStoppedSpeakingFrame(), FrameDirection.UPSTREAM)
            self.sound = 0
        await self.push_frame(frame, direction)


class Service(Conversation):
    """What the service told."""

    def __init__(self, speaker: Speaker) -> None:
        self._speaker = speaker
        self.received: list[dict[str, Any]] = []
        self.errors: list[str] = []

    @property
    def heard_bytes(self) -> int:  # type: ignore[override]
        """See Conversation."""
        return self._speaker.heard_bytes

    @property
    def interruptions(self) -> int:  # type: ignore[override]
        """See Conversation."""
        return self._speaker.interruptions

    @property
    def speaking(self) -> bool:
        """See Conversation."""
        return self._speaker.sound > RATE_HZ

    @property
    def answers(self) -> int:
        """See Conversation."""
        return self._statuses.count("completed")

    @property
    def barged_in(self) -> bool:
        """See Conversation."""
        return self._speaker.interruptions > 0 and "cancelled" in self._statuses

    @property
    def cancelled(self) -> int:
        """See Conversation."""
        return sum((done["status_details"] or {}).get("reason") == "client_cancelled" for done in self._done)

    @property
    def _done(self) -> list[dict[str, Any]]:
        return [event["response"] for event in self.received if event["type"] == "response.done"]

    @property
    def _statuses(self) -> list[str]:
        return [response["status"] for response in self._done]

    @property
    def facts(self) -> dict[str, Any]:
        """See Conversation."""
        return {"events": Counter(event["type"] for event in self.received), "errors": self.errors,
                "statuses": self._statuses,
                "transcripts": [event["transcript"] for event in self.received
                                if event["type"] == "response.output_audio_transcript.done"]}


async def main() -> None:
    """Hold the conversation."""
    options, microphone, speaker = arguments(), Microphone(), Speaker()
    client = Service(speaker)
    logger.remove()
    logger.add(lambda line: client.errors.append(str(line)), level="ERROR")
    parse = events.parse_server_event

    def noted(text: str) -> Any:
        event = parse(text)
        client.received.append(json.loads(text))
        return event

    events.parse_server_event = noted
    service = llm.OpenAIRealtimeLLMService(
        api_key=options.key, base_url=f"{options.url.replace('http', 'ws', 1)}/v1/realtime",
        settings=llm.OpenAIRealtimeLLMService.Settings(system_instruction="Be kind."))
    context = LLMContextAggregatorPair(LLMContext())
    worker = PipelineWorker(
        Pipeline([context.user(), service, speaker, context.assistant()]),
        params=PipelineParams(audio_in_sample_rate=RATE_HZ, audio_out_sample_rate=RATE_HZ))
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    await worker.queue_frame(LLMRunFrame())

    async def send(piece: bytes) -> None:
        await worker.queue_frame(InputAudioRawFrame(audio=piece, sample_rate=RATE_HZ, num_channels=1))

    streaming = asyncio.create_task(microphone.stream(send))
    try:
        await client.hold(options, microphone, lambda: service.send_client_event(events.ResponseCancelEvent()))
    finally:
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)
        await worker.cancel()
        await asyncio.gather(running, return_exceptions=True)


run(main)
