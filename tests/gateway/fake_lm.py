"""A language model that is a checksum: each answer depends on every code that its session has heard and on every
control of its steps, in order.

Served through real gRPC on real ports, so that stages move between real replicas in milliseconds.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator

import grpc
from moshimesh.audio.v1 import audio_pb2
from moshimesh.lm.v1 import lm_pb2

from services.mesh.errors import Draining, NoFreeSlot
from services.mesh.incoming import Incoming, Sender, read_config_message, read_payloads
from services.mesh.serving import RunningStreams, Service, register
from services.mesh.tls import Identity
from services.mesh.tunnel import TunnelServer

USER, OWN, DELAY, CONTEXT, PADDING = 2, 2, 1, 1000, 3


class Checksum:
    """The model's state."""

    def __init__(self, prompt: lm_pb2.StepPrompt | None = None) -> None:
        self.steps = 0
        self._state = 17
        for byte in prompt.SerializeToString(deterministic=True) if prompt else b"":
            self._state = (self._state * 31 + byte) % 65_521

        self._forced: dict[int, list[int]] = {}  # by step

    def step(self, codes: list[int], controls: lm_pb2.StepControls | None = None) -> list[int] | None:
        if controls is not None:
            codes = [*codes, *controls.SerializeToString(deterministic=True)]
            forced = [controls.forced.text_token, *controls.forced.codes]
            frames = controls.forced.frames if controls.HasField("forced") else 0
            self._forced |= {self.steps + DELAY + frame: forced for frame in range(frames)}
        for code in codes:
            self._state = (self._state * 31 + code) % 65_521
        self.steps += 1
        drawn = [self._state % 500, self._state % 64, self._state // 64 % 64]
        return None if self.steps <= DELAY else self._forced.get(self.steps - 1, drawn)


class FakeLm:
    """One replica."""

    def __init__(self, slots: int = 8) -> None:
        self.slots, self.held = slots, 0
        self.instance_id = str(uuid.uuid4())
        self.opened: list[int] = []  # the steps of history that each session brought
        self.prompts: list[lm_pb2.StepPrompt] = []  # and its prompt, empty for none
        self.text_prompt_characters = 0
        self.draining = False
        self.speaks = False  # whether its tokens are words or padding
        self.opening_s = 0.0  # how long it takes to rebuild a row
        self.opening_until = asyncio.Event()  # and what it takes besides
        self.opening_until.set()
        self.answering = asyncio.Event()  # cleared: it hangs with its connections alive
        self.answering.set()
        service = Service(lm_pb2.DESCRIPTOR.services_by_name["LmService"],
                          {"GetInfo": self.get_info, "Step": self.step}, stall_s=5.0)
        self._tunnel = TunnelServer(service)
        self._services = (service, self._tunnel.service)

    async def start(self, port: int = 0, host: str = "127.0.0.1", tls: Identity | None = None) -> str:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        for service in self._services:
            register(self._server, service, RunningStreams())
        self.port = (self._server.add_insecure_port(f"{host}:{port}") if tls is None else
                     self._server.add_secure_port(f"{host}:{port}", tls.server_credentials()))
        await self._server.start()
        return f"127.0.0.1:{self.port}"

    async def kill(self) -> None:
        await self._server.stop(0)

    def drain(self) -> None:
        self.draining = True
        self._tunnel.drain()

    async def get_info(self, request: lm_pb2.GetInfoRequest, sender: Sender) -> lm_pb2.GetInfoResponse:
        await self.answering.wait()
        return lm_pb2.GetInfoResponse(model_id="checksum", codec_id="codec", instance_id=self.instance_id,
                                      user_codebooks=USER, own_codebooks=OWN,
                                      delay_frames=DELAY, context_frames=CONTEXT, slots_total=self.slots,
                                      slots_free=self.slots - self.held, draining=self.draining,
                                      text_prompt_characters=self.text_prompt_characters)

    async def step(self, requests: Incoming[lm_pb2.StepRequest]) -> AsyncGenerator[lm_pb2.StepResponse, None]:
        config = await read_config_message(requests)
        if self.draining:
            raise Draining("this replica is stopping")
        if self.held == self.slots:
            raise NoFreeSlot("full")
        self.held += 1
        try:
            model, frames = Checksum(config.prompt if config.HasField("prompt") else None), 0
            codes, past = list(config.history.user_codes), {at.step: at.controls for at in config.history.controls}
            for begin in range(0, len(codes), USER):
                model.step(codes[begin:begin + USER], past.get(begin // USER))
            self.opened.append(model.steps)
            self.prompts.append(config.prompt)
            await asyncio.sleep(self.opening_s)
            await self.opening_until.wait()
            yield lm_pb2.StepResponse(ready=lm_pb2.StepReady(
                model_id="checksum", codec_id="codec", user_codebooks=USER, own_codebooks=OWN, cardinality=64,
                delay_frames=DELAY, sampling=config.sampling, context_frames=CONTEXT,
                silent_text_tokens=[PADDING, 0] if self.speaks else []))
            async for asked in read_payloads(requests, "step"):
                frame = asked.frame
                await self.answering.wait()
                tokens = model.step(list(frame.codes), asked.controls if asked.HasField("controls") else None)
                frames += 1
                step = lm_pb2.StepFrame(frame=audio_pb2.CodeFrame(context=frame.context))
                if tokens is not None:
                    step.text_token = tokens[0]
                    step.text = f" {tokens[0]}" if self.speaks and tokens[0] != PADDING else ""
                    step.frame.codes.extend(tokens[1:])
                yield lm_pb2.StepResponse(step=step)
            yield lm_pb2.StepResponse(summary=lm_pb2.StepSummary(frames=frames))
        finally:
            self.held -= 1
