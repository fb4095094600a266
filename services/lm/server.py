"""The language model's gRPC face: the user's codes in, the model's text and codes out."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from moshimesh.audio.v1 import audio_pb2
from moshimesh.lm.v1 import lm_pb2

from services.lm.controls import ControlReader, sampled
from services.lm.directing import Directed
from services.lm.past import Past, read_past
from services.lm.prompts import KeptRows, Prompt, read_prompt
from services.lm.sampling import Sampling
from services.lm.saying import Tokenizer
from services.lm.text import TextStream
from services.mesh import logs
from services.mesh.batching import USUAL, Batcher, BatchingOptions
from services.mesh.incoming import Incoming, Sender, read_config_message, read_payloads
from services.mesh.recorder import HopRecorder
from services.mesh.samples import check_frame_codes, check_session_id
from services.mesh.serving import Service
from services.mesh.telemetry import FrameTracer
from services.mesh.timings import answer_context, check_context
from services.mesh.tunnel import TunnelServer

if TYPE_CHECKING:  # this file speaks gRPC, that one torch
    from services.lm.engine import LmEngine, RowCopy

DESCRIPTOR = lm_pb2.DESCRIPTOR.services_by_name["LmService"]


@dataclass(frozen=True)
class Opening:
    """How a session draws its tokens, what it begins with, and its past if it comes from another replica."""

    sampling: Sampling
    prompt: Prompt | None
    past: Past | None


@dataclass(frozen=True)
class CodesItem:
    """One frame of the user's codes [user_codebooks], its context, and what is decided about the step."""

    codes: Sequence[int]
    context: audio_pb2.FrameContext
    directed: Directed | None


class LmStepper:
    """Lets a batcher drive the model."""

    def __init__(self, engine: LmEngine) -> None:
        self.slots = engine.slots
        self._engine = engine
        self._kept: KeptRows[RowCopy] = KeptRows(engine.facts.context_frames)  # the memory of one more slot

    def open(self, row: int, settings: Opening) -> Iterator[None]:
        """Clear a row, give it its sampling, and rebuild its past, that before its first step included."""
        prompt, past = settings.prompt, settings.past
        self._engine.open(row, settings.sampling)
        if prompt is not None and past is None:
            if (kept := self._kept.get(prompt)) is not None:
                self._engine.restore_row(row, kept)
                self._engine.direct(row, Directed(tokens=prompt.tokens), 0)  # its last codes are yet to be made
            else:
                yield from self._rebuild(row, prompt.before(None, self._engine.facts.delay_frames))
                self._kept.put(prompt, self._engine.copy_row(row))
        elif past is not None:
            yield from self._rebuild(row, prompt.before(past, self._engine.facts.delay_frames) if prompt else past)

    def _rebuild(self, row: int, past: Past) -> Iterator[None]:
        return self._engine.prefill(row, past.codes, past.tokens, past.first_step, past.controls)

    def step(self, rows: Sequence[int], items: Sequence[CodesItem]) -> Sequence[tuple[CodesItem, list[int]]]:
        """Each item with its tokens, text first; negative while the delay line fills."""
        for row, item in zip(rows, items, strict=True):
            if item.directed is not None:
                self._engine.direct(row, item.directed)
        tokens: list[list[int]] = self._engine.step(
            rows, np.array([item.codes for item in items], dtype=np.int64)).tolist()
        return list(zip(items, tokens, strict=True))


class LmServer:
    """Step over one engine."""

    def __init__(self, engine: LmEngine, tokenizer: Tokenizer, defaults: Sampling, model_id: str, codec_id: str,
                 tracer: FrameTracer, stall_s: float,
                 options: BatchingOptions = USUAL, text_prompt_characters: int = 0) -> None:
        """`codec_id` names the codec that the model was trained with; `text_prompt_characters` is the longest text
        prompt that it was trained to follow.
        """
        self._batcher: Batcher[Opening, CodesItem, tuple[CodesItem, list[int]]] = Batcher(
            "lm", LmStepper(engine), options)
        self._recorder = HopRecorder(tracer, audio_pb2.HOP_LM_STEP, engine.slots, model_id, self._batcher.recent)
        service = Service(DESCRIPTOR, {"GetInfo": self.get_info, "Step": self.step}, stall_s)
        self._instance_id = str(uuid.uuid4())
        self._tunnel = TunnelServer(service, self._recorder.keep)
        self.services = (service, self._tunnel.service)
        self.facts = engine.facts
        self._ids = {"model_id": model_id, "codec_id": codec_id}
        self._text_prompt_characters = text_prompt_characters
        self._tokenizer = tokenizer
        self._defaults = defaults
        self._tracer = tracer

    @property
    def batchers(self) -> Sequence[Batcher[Any, Any, Any]]:
        """The batcher that runs its engine, to be measured."""
        return (self._batcher,)

    def drain(self) -> None:
        """Take no new sessions."""
        self._tunnel.drain()
        self._batcher.draining = True

    async def close(self) -> None:
        """Stop the engine."""
        await self._batcher.close()
        self._tracer.close()

    async def get_info(self, request: lm_pb2.GetInfoRequest, sender: Sender) -> lm_pb2.GetInfoResponse:
        """Facts about the model, and its room."""
        facts = self.facts
        return lm_pb2.GetInfoResponse(
            **self._ids, user_codebooks=facts.user_codebooks, own_codebooks=facts.own_codebooks,
            cardinality=facts.cardinality, text_cardinality=facts.text_cardinality, delay_frames=facts.delay_frames,
            context_frames=facts.context_frames, slots_total=self._batcher.total, slots_free=self._batcher.free,
            weights_bytes=facts.weights_bytes, kv_bytes_per_frame=facts.kv_bytes_per_frame,
            draining=self._batcher.draining, instance_id=self._instance_id, precision=facts.precision,
            kv_precision=facts.kv_precision, floor_ms=facts.floor_ms,
            text_prompt_characters=self._text_prompt_characters)

    async def step(self, requests: Incoming[lm_pb2.StepRequest]) -> AsyncGenerator[lm_pb2.StepResponse, None]:
        """One session's steps."""
        config: lm_pb2.StepConfig = await read_config_message(requests)
        session_id = check_session_id(config.session_id)
        logs.bind(session_id)
        sampling = read_sampling(config.sampling, self._defaults)
        reader = ControlReader(self.facts, self._tokenizer, sampling)
        past = read_past(config.history, self.facts, reader) if config.HasField("history") else None
        prompt = read_prompt(config.prompt, self.facts, self._tokenizer)
        # A step that completes a frame of the prompt answers nothing, as the first steps of all sessions.
        silent = max(self.facts.delay_frames - (past.first_step + len(past.codes) if past else 0), 0)
        text = TextStream(self._tokenizer, self.facts.silent_text_tokens)
        if past is not None:
            text.recall(past.tokens[:, 0].tolist())
        frames = 0
        with self._batcher.lease(session_id, Opening(sampling, prompt, past)) as slot:
            await slot.opened()
            yield lm_pb2.StepResponse(ready=lm_pb2.StepReady(
                **self._ids, user_codebooks=self.facts.user_codebooks,
                own_codebooks=self.facts.own_codebooks, cardinality=self.facts.cardinality,
                delay_frames=self.facts.delay_frames, context_frames=self.facts.context_frames,
                sampling=lm_pb2.Sampling(**asdict(reader.sampling)),
                silent_text_tokens=self.facts.silent_text_tokens))
            async for answer in slot.serve(self._items(requests, reader)):
                item, (text_token, *codes) = answer.result
                frames += 1
                self._recorder.record(item.context, answer.timing, slot.row, slot.tenant)
                frame = audio_pb2.CodeFrame(context=answer_context(item.context, audio_pb2.HOP_LM_STEP, answer.timing))
                step = lm_pb2.StepFrame(frame=frame)
                if text_token >= 0 and frames > silent:
                    step.frame.codes.extend(codes)
                    step.text_token = text_token
                    step.text = text.say(text_token)
                yield lm_pb2.StepResponse(step=step)
        yield lm_pb2.StepResponse(summary=lm_pb2.StepSummary(frames=frames))

    async def _items(self, requests: AsyncIterator[lm_pb2.StepRequest], reader: ControlReader
                     ) -> AsyncIterator[CodesItem]:
        async for step in read_payloads(requests, "step"):
            directed = reader.read(step.controls, "step.controls") if step.HasField("controls") else None
            check_frame_codes(step.frame.codes, self.facts.user_codebooks, self.facts.cardinality, "step.frame.codes")
            yield CodesItem(step.frame.codes, check_context(step.frame.context, "step.frame.context"), directed)


def read_sampling(wire: lm_pb2.Sampling, defaults: Sampling) -> Sampling:
    """The sampling that a caller asked for, with the model's defaults for what is unset and a drawn seed."""
    sampling = sampled(defaults, wire, "config.sampling")
    return sampling if wire.HasField("seed") else replace(sampling, seed=secrets.randbits(32))
