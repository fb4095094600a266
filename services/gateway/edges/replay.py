"""Export and Replay of ConversationService: what is kept of a conversation, and stepping it again."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from moshimesh.gateway.v1 import conversation_pb2

from services.gateway.calls.callers import Caller
from services.gateway.calls.desk import Desk
from services.gateway.calls.replay import Begun, Past, Recorded
from services.gateway.edges.pcm import S16LE
from services.mesh.errors import InvalidRequest
from services.mesh.incoming import Incoming, read_config_message, read_payloads

MOST_STEPS = 250  # in one message: 20 s, 10 kB
CODES = 1 << 16  # what a history holds; the model's own bound is lower, and checked there


async def export(desk: Desk, caller: Caller, request: conversation_pb2.ExportRequest
                 ) -> conversation_pb2.ExportResponse:
    """What is kept of a conversation. Raises UnknownSession, ResumeUnavailable, TooManyResumes."""
    record = await desk.export(caller, request.resume_handle)
    history = record.history
    kept = history.steps_from(request.from_step)
    return conversation_pb2.ExportResponse(
        model_id=record.model_id, codec_id=record.codec_id, user_codebooks=history.user_codebooks,
        own_codebooks=history.own_codebooks, delay_frames=history.delay_frames, context_frames=history.context_frames,
        sampling=record.sampling, steps=conversation_pb2.RecordedSteps(
            **kept._asdict(), controls=history.controls.since(kept.first_step)),
        prompt=history.prompt)


async def replay(desk: Desk, caller: Caller, requests: Incoming[conversation_pb2.ReplayRequest]
                 ) -> AsyncGenerator[conversation_pb2.ReplayResponse, None]:
    """Step a recording again. Raises MeshError."""
    config: conversation_pb2.ReplayConfig = await read_config_message(requests)
    past = Past(config.past.first_step, config.past.user_codes, config.past.tokens, config.past.controls,
                config.prompt if config.HasField("prompt") else None)
    held = desk.replay(caller, config.model, config.sampling, past, _recorded(requests), audio=config.audio)
    async with contextlib.aclosing(held) as replayed:
        async for event in replayed:
            if isinstance(event, Begun):
                yield conversation_pb2.ReplayResponse(ready=conversation_pb2.ReplayReady(**vars(event)))
                continue
            frame = conversation_pb2.ReplayedFrame(
                step=event.step, text=event.text, text_token=event.text_token, codes=event.codes)
            if event.pcm is not None:
                frame.pcm = S16LE.encode(event.pcm)
            yield conversation_pb2.ReplayResponse(frame=frame)


async def _recorded(requests: AsyncIterator[conversation_pb2.ReplayRequest]) -> AsyncIterator[Recorded]:
    """The steps of all messages. Raises InvalidRequest."""
    async for steps in read_payloads(requests, "steps"):
        count = len(steps.sequences)
        if not 0 < count <= MOST_STEPS or len(steps.user_codes) % count:
            raise InvalidRequest("BAD_RECORDING", f"a message must have 1 to {MOST_STEPS} steps, with a sequence and "
                                 f"the user's codes of each; got {count} and {len(steps.user_codes)} codes",
                                 field="steps", accepted=f"1..{MOST_STEPS} steps")
        if max(steps.user_codes, default=0) >= CODES:
            raise InvalidRequest("BAD_RECORDING", f"codes are below {CODES}", field="steps.user_codes",
                                 accepted=f"0..{CODES - 1}")
        width = len(steps.user_codes) // count
        controls = {each.step: each.controls for each in steps.controls}
        for number in range(count):
            step = steps.first_step + number
            yield Recorded(step, list(steps.user_codes[number * width:(number + 1) * width]), controls.get(step))
