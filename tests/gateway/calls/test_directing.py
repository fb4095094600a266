"""Controls on their way through a gateway: in force at their frame, whatever happens to the call."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence

import numpy as np
import pytest
from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.callers import (
    Audio,
    Control,
    Input,
    Interrupt,
    Opening,
    PlayedOut,
    Resumed,
    Say,
    SetSampling,
)
from services.gateway.calls.directing import CONTROLS_BURST, CONTROLS_PER_S
from services.gateway.calls.events import Event, Heard, Ready, Speech, Summary
from services.gateway.path.observer import Change
from services.gateway.sessions.sealing import Handle
from services.mesh.errors import InvalidRequest, TooManyControls
from tests.gateway.fake_codec import FRAME, RATE, SILENCE
from tests.gateway.fake_lm import DELAY, PADDING, FakeLm
from tests.gateway.house import FRAMES, OPENING, House, cut_off, expected, frame, spoken
from tests.gateway.redis_server import RedisServer
from tests.until import until

COLD = lm_pb2.Sampling(text_temperature=0)
WARM = lm_pb2.Sampling(text_temperature=2, repetition_penalty=1.5)
HOLD = lm_pb2.ForcedTokens(text_token=PADDING, codes=SILENCE, frames=3)
# Two in one frame, two whose effects overlap, one before the first frame and one behind the last.
GIVEN: dict[int, Sequence[Control]] = {
    0: [SetSampling(WARM)], 9: [SetSampling(COLD), Interrupt(200)], 10: [Say("hello")], 12: [Interrupt(161)],
    20: [SetSampling(WARM), SetSampling(COLD)]}
TAKEN = {0: lm_pb2.StepControls(sampling=WARM), 9: lm_pb2.StepControls(sampling=COLD, forced=HOLD),
         10: lm_pb2.StepControls(say=lm_pb2.Say(text="hello")), 12: lm_pb2.StepControls(forced=HOLD),
         20: lm_pb2.StepControls(sampling=lm_pb2.Sampling(text_temperature=0, repetition_penalty=1.5))}


def tokens(events: Sequence[Event]) -> list[list[int]]:
    return [[one.text_token, *one.codes] for one in events if isinstance(one, Speech)]


@pytest.fixture
async def house(redis_server: RedisServer) -> AsyncIterator[House]:
    async with House(redis_server.url, lm=speaking()) as house:
        yield house


def speaking() -> FakeLm:
    """A model that says which of its tokens are padding."""
    lm = FakeLm()
    lm.speaks = True
    return lm


async def test_a_control_takes_effect_at_the_next_frame(house: House) -> None:
    said = tokens([event async for event in house.hold(OPENING, spoken(0, FRAMES, controls=GIVEN))])
    assert said == expected(FRAMES, TAKEN)
    assert said != expected(FRAMES)


@pytest.mark.parametrize("samples", [1, FRAME // 2, FRAME - 1, FRAME + 3])
async def test_a_control_amid_a_frame_takes_effect_at_that_frame(house: House, samples: int) -> None:
    """At the first frame that is cut after it came, of which some samples may have come before."""
    pcm = np.concatenate([frame(number) for number in range(FRAMES)])

    async def inputs() -> AsyncIterator[Input]:
        yield Audio(pcm[:samples])
        yield Interrupt(240)
        for begin in range(samples, len(pcm), 50):
            yield Audio(pcm[begin:begin + 50])

    said = tokens([event async for event in house.hold(OPENING, inputs())])
    assert said == expected(FRAMES, {samples // FRAME: lm_pb2.StepControls(forced=HOLD)})


async def test_a_control_behind_the_last_audio_is_heard_with_the_silence_that_follows(house: House) -> None:
    async def inputs() -> AsyncIterator[Input]:
        async for given in spoken(0, 5):
            yield given
        yield SetSampling(COLD)

    said = tokens([event async for event in house.hold(OPENING, inputs())])
    assert said[:-1] == expected(5)[:-1]
    assert said[-1] != expected(5)[-1]


@pytest.mark.parametrize("answers", [1, 8, 9, 10, 11, 12, 14, 20, 22])
@pytest.mark.parametrize("repeats", [False, True], ids=["once", "repeated"])
@pytest.mark.parametrize("back", [0, 1, 3])
async def test_a_call_that_is_resumed_has_each_control_once(
        house: House, redis_server: RedisServer, answers: int, repeats: bool, back: int) -> None:
    """The caller may repeat them with the audio around them, and need not for those that the mesh has heard."""
    ready, said = await cut_off(house, answers, controls=GIVEN)
    async with House(redis_server.url, lm=speaking()) as there:
        back = min(back, answers)
        last = said[-1].context.sequence - back
        said = said[:len(said) - back]
        first = max(last - 4, 0) if repeats else last + 1
        opening = Opening(Resumed(ready.resume_handle, first, last), live=False)
        controls = GIVEN if repeats else await _unheard(there, ready)
        events = [event async for event in there.hold(opening, spoken(opening.first_sequence, FRAMES,
                                                                      controls=controls))]
        assert tokens(said) + tokens(events) == expected(FRAMES, TAKEN)


async def _unheard(house: House, ready: Ready) -> Mapping[int, Sequence[Control]]:
    """What the mesh has not written of what was given."""
    _, record = await house.sessions.read(Handle(ready.resume_handle))
    return {number: controls for number, controls in GIVEN.items() if number >= record.history.next_sequence}


@pytest.mark.parametrize("answers", [8, 9, 10, 12, 13])
async def test_a_replica_that_is_lost_right_behind_a_control_changes_no_token(
        redis_server: RedisServer, answers: int) -> None:
    spare = speaking()
    async with House(redis_server.url, lm=speaking(), spare_lms=[spare]) as house:
        said: list[Event] = []
        async for event in house.hold(OPENING, spoken(0, FRAMES, controls=GIVEN)):
            said.append(event)
            if isinstance(event, Speech) and len(tokens(said)) == answers:  # an event that follows kills nobody more
                await (house.lm if house.lm.held else spare).kill()
        assert tokens(said) == expected(FRAMES, TAKEN)
        assert Change.FAILED_OVER in house.observers[0].changes


async def test_an_interruption_makes_whole_frames_of_silence(house: House) -> None:
    events = [event async for event in house.hold(OPENING, spoken(0, 12, controls={4: [Interrupt()]}))]
    speech = {one.context.sequence: one for one in events if isinstance(one, Speech)}
    silent = [number for number, one in speech.items() if [one.text_token, *one.codes] == [PADDING, *SILENCE]]
    assert silent == list(range(4 + DELAY, 4 + DELAY + 6))


async def test_a_storm_of_controls_ends_its_call_and_no_other(house: House) -> None:
    other = asyncio.create_task(_all(house, spoken(0, FRAMES)))

    async def storm() -> AsyncIterator[Input]:
        yield Audio(frame(0))
        for step in itertools.count():
            yield SetSampling(lm_pb2.Sampling(text_top_k=step % 100))

    with pytest.raises(TooManyControls):
        await _all(house, storm())
    assert tokens(await other) == expected(FRAMES)
    await until(lambda: house.lm.held == 0)


async def test_who_repeats_minutes_of_audio_with_its_controls_is_no_storm(house: House) -> None:
    async def inputs() -> AsyncIterator[Input]:
        for number in range(400):
            for _ in range(int(CONTROLS_BURST) if number == 0 else int(CONTROLS_PER_S * FRAME / RATE)):
                yield PlayedOut(number)
            yield Audio(frame(number % 50))

    assert isinstance((await _all(house, inputs()))[-1], Summary)


@pytest.mark.parametrize(("bad", "field"), [
    (Interrupt(0), "control.interrupt.hold_ms"), (Interrupt(10_001), "control.interrupt.hold_ms"),
    (Say(""), "control.say.text"), (Say(" \n"), "control.say.text"), (Say("x" * 1001), "control.say.text")], ids=str)
async def test_a_bad_control_ends_the_call_and_says_why(house: House, bad: Control, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await _all(house, spoken(0, 5, controls={2: [bad]}))
    assert (caught.value.reason, caught.value.metadata["field"]) == ("BAD_CONTROL", field)


async def test_what_was_played_is_told_from_what_was_only_said(house: House) -> None:
    said: list[Speech] = []
    heard: list[Heard] = []
    played = asyncio.Event()

    async def inputs() -> AsyncIterator[Input]:
        yield PlayedOut(99)  # before the first answer: nothing was played
        for number in range(10):
            yield Audio(frame(number))
        await played.wait()
        for sequence in (5, 99, 2):
            yield PlayedOut(sequence)
        yield Audio(frame(10))

    async for event in house.hold(OPENING, inputs()):
        if isinstance(event, Speech):
            said.append(event)
            if len(said) == 9:
                played.set()
        elif isinstance(event, Heard):
            heard.append(event)
    texts = {one.context.sequence: one.text for one in said}
    first, rest, nothing = heard
    assert (first.sequence, first.text) == (5, "".join(texts[number] for number in range(1, 6)))
    assert first.unheard.startswith(texts[6])
    assert rest.text == first.unheard
    assert (rest.sequence, nothing) == (9, Heard(9, "", ""))


async def _all(house: House, inputs: AsyncIterator[Input]) -> list[Event]:
    return [event async for event in house.hold(OPENING, inputs)]
