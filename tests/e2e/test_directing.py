"""Controls of a call over real services: what moshi's own loop says if it is forced likewise, whatever is killed."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import moshimesh
import numpy as np
import numpy.typing as npt
import pytest

from harness.local_mesh import LocalMesh
from tests.e2e.calls import GREEDY, SAMPLED, call, pieces, slots_are_free
from tests.e2e.reference import reference_loop

Pcm = npt.NDArray[np.float32]
Directions = Mapping[int, Callable[[moshimesh.Director], None]]
FRAME, HOLD = 1920, 6
PADDING = 3
DELAYS = [0, 0, 1, 1, 1, 1, 1, 1, 1]  # of the bundled checkpoint's text and own codes


async def directed(target: str, pcm: Pcm, directions: Directions, after: Callable[[int], None] = lambda answers: None,
                   pause_s: float = 0.0, **options: Any) -> list[moshimesh.client.Event]:
    """An offline call that is directed right before the frames of these numbers; `after` hears of each answer."""
    director, events, answers = moshimesh.Director(), [], 0

    async def source() -> AsyncIterator[bytes]:
        number = 0
        async for piece in pieces(pcm):
            if number in directions:
                directions[number](director)
            await asyncio.sleep(pause_s)
            yield piece
            number += 1

    async with moshimesh.connect(target) as mesh:
        async for event in mesh.converse(source(), director=director, pacing="offline", encoding="f32", **options):
            events.append(event)
            if isinstance(event, moshimesh.Speech):
                answers += 1
                after(answers)
    return events


def spoken(events: list[moshimesh.client.Event]) -> list[moshimesh.Speech]:
    return [event for event in events if isinstance(event, moshimesh.Speech)]


def tokens(events: list[moshimesh.client.Event]) -> npt.NDArray[np.int64]:
    return np.array([[frame.text_token, *frame.codes] for frame in spoken(events)])


def by_step(frames: Mapping[int, list[int]]) -> dict[int, list[int]]:
    """The tokens of frames, by the step that makes them."""
    steps: dict[int, list[int]] = {}
    for frame, made in frames.items():
        for stream, delay in enumerate(DELAYS):
            steps.setdefault(frame + delay, [-1] * len(DELAYS))[stream] = made[stream]
    return steps


@pytest.mark.parametrize("at", [0, 37, 74])
async def test_an_interrupted_call_goes_on_as_moshi_s_loop_would(
        mesh_target: str, checkpoint: str, speech: Pcm, at: int) -> None:
    said = tokens(await directed(mesh_target, speech, {at: lambda director: director.interrupt()}, **GREEDY))
    first = at + max(DELAYS) - 1  # answers begin with the second frame
    silence = said[first].tolist()
    assert silence[0] == PADDING
    assert (said[first:first + HOLD] == silence).all()
    assert np.array_equal(said, reference_loop(
        checkpoint, speech, by_step(dict.fromkeys(range(at, at + HOLD), silence))).tokens)


async def test_forced_silence_is_silent(mesh_target: str, speech: Pcm) -> None:
    events = await directed(mesh_target, speech, {40: lambda director: director.interrupt(1.0)}, **GREEDY)
    answers = {frame.sequence: np.frombuffer(frame.pcm, "<f4") for frame in spoken(events)}
    assert max(np.abs(answers[number]).max() for number in range(45, 54)) < 0.01
    assert any(isinstance(event, moshimesh.Summary) for event in events)


async def test_tokens_are_greedy_from_the_frame_of_temperature_0_on(
        mesh_target: str, checkpoint: str, speech: Pcm) -> None:
    at = 40
    said = tokens(await directed(mesh_target, speech, {
        at: lambda director: director.set_sampling(text_temperature=0, audio_temperature=0)}, **SAMPLED))
    before = by_step({frame: made for frame, made in enumerate(said.tolist()) if frame < at})
    before = {step: made for step, made in before.items() if step < at}
    # What steps before `at` made of frames that were answered after it.
    assert np.array_equal(said, reference_loop(checkpoint, speech, before).tokens)


async def test_the_model_says_what_it_is_told(mesh_target: str, speech: Pcm) -> None:
    events = await directed(mesh_target, np.tile(speech, 2), {
        20: lambda director: director.say("Good evening, and welcome.")}, **GREEDY)
    assert "Good evening, and welcome." in "".join(frame.text for frame in spoken(events))


@pytest.mark.parametrize("bad", [
    lambda director: director.set_sampling(text_temperature=math.nan),
    lambda director: director.set_sampling(repetition_penalty=100.0),
    lambda director: director.interrupt(11.0), lambda director: director.say("")])
async def test_a_bad_control_ends_its_call_alone(
        mesh: LocalMesh, speech: Pcm, bad: Callable[[moshimesh.Director], None]) -> None:
    other = asyncio.create_task(call(mesh.target, speech, **GREEDY))
    with pytest.raises(moshimesh.MeshError) as caught:
        await directed(mesh.target, speech, {5: bad})
    assert caught.value.reason in ("BAD_SAMPLING", "BAD_CONTROL")
    assert "control" in caught.value.metadata.get("field", "")
    assert np.array_equal((await other).tokens, (await call(mesh.target, speech, **GREEDY)).tokens)
    assert await slots_are_free(mesh)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["lm", "codec", "gateway"])
async def test_what_is_killed_right_behind_a_control_changes_no_token(
        checkpoint: str, speech: Pcm, victim: str) -> None:
    long = np.tile(speech, 3)[:24_000 * 10]
    directions: Directions = {
        30: lambda director: director.set_sampling(text_temperature=0.3, repetition_penalty=1.4, padding_bonus=0.5),
        58: lambda director: director.say("One moment please, I will look."),
        60: lambda director: director.set_sampling(audio_temperature=0.5),
        90: lambda director: director.interrupt(1.0)}
    async with LocalMesh(checkpoint, slots=2) as mesh:
        whole = tokens(await directed(mesh.target, long, directions, **SAMPLED))
        starting: list[asyncio.Task[None]] = []

        async def start_again() -> None:
            killed = mesh.processes[victim].child
            assert killed is not None
            await killed.wait()
            await mesh.start_replica(victim)

        def kill(answers: int) -> None:
            if answers in (59, 91):
                mesh.processes[victim].send(signal.SIGKILL)
                starting.append(asyncio.create_task(start_again()))

        events = await directed(mesh.target, long, directions, kill, 0.02, **SAMPLED)
        await asyncio.gather(*starting)
        assert len(starting) == 2
        assert sum(isinstance(event, moshimesh.Resumed) for event in events) == (2 if victim == "gateway" else 0)
        assert np.array_equal(tokens(events), whole)
