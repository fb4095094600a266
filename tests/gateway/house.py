"""A gateway's desk in this process, with all that it needs: a real Redis, and replicas that compute little."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.callers import Audio, Caller, CallerLimits, Control, Input, New, Opening
from services.gateway.calls.desk import Desk
from services.gateway.calls.events import Event, Ready, Speech
from services.gateway.calls.limits import Limits
from services.gateway.calls.resources import Resources
from services.gateway.calls.voices import Voices
from services.gateway.calls.waiting import WaitingLine
from services.gateway.peers.fleet import Fleet
from services.gateway.peers.replicas import Replicas, codec_facts, lm_facts
from services.gateway.sessions.sessions import Sessions
from services.gateway.store import Store
from tests.gateway.fake_codec import FRAME, FakeCodec, codes_of
from tests.gateway.fake_lm import DELAY, Checksum, FakeLm
from tests.gateway.fake_observer import Heard
from tests.until import until

CALLER = Caller.with_key("", "127.0.0.1", "test")
OPENING = Opening(New(lm_pb2.Sampling(seed=1)), live=False)
FRAMES = 30


class House:
    """`async with` opens it. Several may share a Redis and replicas, as gateways do."""

    def __init__(self, redis_url: str, *, codec: FakeCodec | None = None, lm: FakeLm | None = None,
                 spare_lms: Sequence[FakeLm] = (), voices: str = "",
                 calls_per_key: int = 0, idle_s: float = 60.0, longest_call_s: float = 3600.0) -> None:
        self.codec, self.lm = codec or FakeCodec(), lm or FakeLm()
        self._voices = voices
        self._lms = [self.lm, *spare_lms]
        self.store = Store(redis_url)
        self.observers: list[Heard] = []
        self._calls_per_key, self._idle_s, self._longest_call_s = calls_per_key, idle_s, longest_call_s

    async def __aenter__(self) -> House:
        await self.store.connect()
        pools = (Replicas("codec", await self.codec.start(), codec_facts),
                 Replicas("lm", ",".join([await lm.start() for lm in self._lms]), lm_facts))
        for pool in pools:
            await pool.connect(time.monotonic() + 5)
        self.fleet = Fleet(*pools)
        self.sessions = Sessions(self.store, f"gateway {id(self)}", grace_s=60)
        self.line = WaitingLine(self.store, most_waiting=1)
        self.desk = Desk(
            Resources(self.fleet, self.sessions, self.line,
                      longest_call_s=self._longest_call_s, idle_s=self._idle_s, stall_s=5.0,
                      voices=Voices(self._voices)),
            Limits(self.store), self._watch, drain_s=5.0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.desk.close()
        for pool in (self.fleet.codec, self.fleet.lm):
            await pool.close()
        await self.codec.kill()
        for lm in self._lms:
            await lm.kill()
        await self.store.close()

    async def replace_lm(self) -> None:
        """Kill the language model's first replica, and start another one in its place."""
        port = self.lm.port
        await self.lm.kill()
        self._lms.remove(self.lm)
        self.lm = FakeLm()
        self._lms.append(self.lm)
        await self.lm.start(port)

    def hold(self, opening: Opening, inputs: AsyncIterator[Input]) -> AsyncIterator[Event]:
        caller = dataclasses.replace(CALLER, limits=CallerLimits(calls=self._calls_per_key))
        return self.desk.hold(caller, opening, inputs)

    def _watch(self, call_id: str, caller: Caller, opening: Opening) -> Heard:
        self.observers.append(Heard())
        return self.observers[-1]


def frame(number: int) -> np.ndarray:
    """The caller's frame of this number, float32 [FRAME]."""
    return np.arange(number, number + FRAME, dtype=np.float32)


def expected(frames: int, controls: Mapping[int, lm_pb2.StepControls] = MappingProxyType({}),
             prompt: lm_pb2.StepPrompt | None = None) -> list[list[int]]:
    """What the model answers to so many frames, with controls at some of them and a prompt before them, and to the
    silence that flushes its delay line.
    """
    model = Checksum(prompt)
    said = [model.step(codes_of(frame(number)), controls.get(number)) for number in range(frames)]
    said += [model.step(codes_of(np.zeros(FRAME))) for _ in range(DELAY)]
    return [tokens for tokens in said if tokens is not None]


async def spoken(first: int, last: int, then: asyncio.Event | None = None,
                 controls: Mapping[int, Sequence[Control]] = MappingProxyType({})) -> AsyncIterator[Input]:
    """The caller's frames of these numbers, one a piece, each after its controls; then silence on the wire until an
    event comes.
    """
    for number in range(first, last):
        for control in controls.get(number, ()):
            yield control
        yield Audio(frame(number))
    if then is not None:
        await then.wait()


async def cut_off(house: House, answers: int, opening: Opening = OPENING,
                  controls: Mapping[int, Sequence[Control]] = MappingProxyType({})) -> tuple[Ready, list[Speech]]:
    """A call that the caller's network ends after so many answers."""
    said: list[Speech] = []
    async with contextlib.aclosing(house.hold(opening, spoken(0, FRAMES, asyncio.Event(), controls))) as events:
        async for event in events:
            if isinstance(event, Ready):
                ready = event
            elif isinstance(event, Speech):
                said.append(event)
                if len(said) == answers:
                    break
    await until(lambda: not house.sessions._live)  # its last record is in Redis
    return ready, said
