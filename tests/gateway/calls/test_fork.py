"""A copy of a conversation in slots of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.callers import Control, Forked, Opening, SetSampling
from services.gateway.calls.events import Event, Ready, Speech
from services.gateway.sessions.sealing import Handle
from services.mesh.errors import UnknownSession
from tests.gateway.house import FRAMES, OPENING, House, cut_off, expected, spoken
from tests.until import until

COLD = lm_pb2.Sampling(text_temperature=0)
TOLD: dict[int, Sequence[Control]] = {2: [SetSampling(COLD)], 12: [SetSampling(lm_pb2.Sampling(text_top_k=3))]}
TAKEN = {2: lm_pb2.StepControls(sampling=COLD), 12: lm_pb2.StepControls(sampling=lm_pb2.Sampling(text_top_k=3))}


def tokens(events: Sequence[Event]) -> list[list[int]]:
    return [[one.text_token, *one.codes] for one in events if isinstance(one, Speech)]


async def test_a_copy_with_the_same_settings_says_the_same_and_the_other_one_does_not_notice(house: House) -> None:
    more = asyncio.Event()
    said: list[Event] = []

    async def parent() -> None:
        async def inputs():  # type: ignore[no-untyped-def]
            async for given in spoken(0, 15, controls=TOLD):
                yield given
            await more.wait()
            async for given in spoken(15, FRAMES):
                yield given

        async for event in house.hold(OPENING, inputs()):
            said.append(event)

    going_on = asyncio.create_task(parent())
    await until(lambda: len(tokens(said)) == 14)
    await until(lambda: house.sessions.lag_s == 0)
    ready = said[0]
    assert isinstance(ready, Ready)
    copy = [event async for event in house.hold(Opening(Forked(ready.resume_handle, 15), live=False),
                                                spoken(15, FRAMES))]
    more.set()
    await going_on
    assert isinstance(copy[0], Ready) and copy[0].resume_handle != ready.resume_handle
    assert copy[0].next_sequence == 15
    assert tokens(said) == expected(FRAMES, TAKEN)
    assert tokens(copy) == expected(FRAMES, TAKEN)[14:]


async def test_a_copy_goes_its_own_way_from_where_it_is_made(house: House) -> None:
    ready, _ = await cut_off(house, 20, controls=TOLD)
    asked = Forked(ready.resume_handle, 10, 9, lm_pb2.Sampling(seed=5, audio_temperature=0))
    copy = [event async for event in house.hold(Opening(asked, live=False), spoken(
        10, FRAMES, controls={14: [SetSampling(COLD)]}))]
    own = {2: TAKEN[2], 10: lm_pb2.StepControls(sampling=lm_pb2.Sampling(audio_temperature=0)),
           14: lm_pb2.StepControls(sampling=COLD)}
    assert isinstance(copy[0], Ready) and copy[0].sampling.seed == 5
    assert tokens(copy) == expected(FRAMES, own)[9:]


async def test_a_copy_can_be_resumed_and_copied(house: House) -> None:
    ready, _ = await cut_off(house, 20)
    copy = house.hold(Opening(Forked(ready.resume_handle, 10, 9), live=False), spoken(10, 12, asyncio.Event()))
    copied = await anext(copy)
    assert isinstance(copied, Ready)
    await copy.aclose()  # type: ignore[attr-defined]
    await until(lambda: not house.sessions._live)
    again = [event async for event in house.hold(Opening(Forked(copied.resume_handle, 10, 9), live=False),
                                                 spoken(10, FRAMES))]
    assert tokens(again) == expected(FRAMES)[9:]


@pytest.mark.parametrize("handle", ["", "guessed", Handle.new().text], ids=["empty", "no handle", "nobody's"])
async def test_nobody_copies_a_conversation_without_its_handle(house: House, handle: str) -> None:
    with pytest.raises(UnknownSession):
        await anext(house.hold(Opening(Forked(handle), live=False), spoken(0, 1)))
