"""Sessions that begin with a voice and a text: what moshi's own loop says when it is forced to begin likewise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from moshi.models.lm import LMModel
from moshimesh.lm.v1 import lm_pb2

from services.lm.directing import DRAWN
from services.lm.engine import LmEngine
from services.lm.prompts import SILENT_FRAMES
from services.mesh.errors import from_rpc_error
from tests.lm.small_lm import Ints, random_codes, random_lm
from tests.lm.test_directing import forced_by_step, reference
from tests.lm.test_server import GREEDY, SAMPLED, SLOTS, Replica, Session, history_of, say

CONTEXT, STEPS, PADDING = 120, 40, 3
SILENCE = list(range(20, 28))
VOICE = random_codes(15, 9)
PROMPT = lm_pb2.StepPrompt(text="be kind", voice_codes=VOICE.flatten().tolist(), silence_codes=SILENCE)
TEXT = [ord(letter) for letter in "bekind"]


def frames_of_prompt() -> Ints:
    texts = [PADDING] * (len(VOICE) + SILENT_FRAMES) + TEXT + [PADDING] * SILENT_FRAMES
    own = np.tile(SILENCE, (len(texts), 1))
    own[:len(VOICE)] = VOICE
    return np.concatenate([np.array(texts)[:, None], own], axis=1)


class Prompted(Session):
    """A session that begins with a prompt."""

    def __init__(self, replica: Replica, sampling: lm_pb2.Sampling, prompt: lm_pb2.StepPrompt = PROMPT,
                 history: lm_pb2.StepHistory | None = None) -> None:
        super().__init__(replica, sampling, history)
        self._config.config.prompt.CopyFrom(prompt)


@pytest.fixture(scope="module")
def lm() -> LMModel:
    return random_lm(num_layers=2, context=CONTEXT)


@pytest.fixture(scope="module")
async def replica(lm: LMModel) -> AsyncIterator[Replica]:
    async with Replica(LmEngine(lm, SLOTS)) as replica:
        yield replica


async def said(session: Session, codes: Ints, controls: dict[int, Any] | None = None) -> Ints:
    await session.open()
    tokens = await session.steps(codes, controls or {})
    session.call.cancel()
    return tokens


async def test_a_prompted_session_says_what_moshi_s_loop_says(
        lm: LMModel, replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, frames = random_codes(STEPS, 1), frames_of_prompt()
    first = await said(Prompted(replica, GREEDY), codes)
    kept = await said(Prompted(replica, GREEDY), codes)  # from the row that the first one has left
    everything = np.concatenate([np.tile(SILENCE, (len(frames), 1)), codes])
    expected = reference(lm, everything, forced_by_step(lm, 0, frames, len(everything)), monkeypatch)[len(frames):]
    assert np.array_equal(first[1:], expected[1:])
    assert (first[0] < 0).all(), "the prompt's last frame is not the session's"
    assert np.array_equal(kept, first)
    assert await replica.free(SLOTS)


async def test_a_kept_prompt_is_not_computed_again(
        lm: LMModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LmEngine(lm, SLOTS)
    prefilled, prefill = [], engine.prefill
    monkeypatch.setattr(engine, "prefill", lambda *past: prefilled.append(len(past[1])) or prefill(*past))
    async with Replica(engine) as replica:
        for _ in range(3):
            await said(Prompted(replica, SAMPLED), random_codes(2, 1))
        assert prefilled == [len(frames_of_prompt())]
        other = lm_pb2.StepPrompt(text="x" * 45, silence_codes=SILENCE)
        for _ in range(2):  # together they are more than what is kept
            await said(Prompted(replica, SAMPLED, other), random_codes(2, 1))
            await said(Prompted(replica, SAMPLED, lm_pb2.StepPrompt(text="y" * 45, silence_codes=SILENCE)),
                       random_codes(2, 1))
        assert len(prefilled) == 3
        await said(Prompted(replica, SAMPLED), random_codes(2, 1))
        assert len(prefilled) == 4


@pytest.mark.parametrize("before", [0, 1, 2, 5, 30])
async def test_a_prompted_session_goes_on_at_another_replica(lm: LMModel, replica: Replica, before: int) -> None:
    codes, controls = random_codes(STEPS, 1), {0: say("dg"), 4: say("jm")}
    whole = await said(Prompted(replica, SAMPLED), codes, controls)
    past = history_of(codes[:before], whole[:before], CONTEXT)
    past.controls.extend(lm_pb2.StepControlsAt(step=step, controls=control)
                         for step, control in controls.items() if step < before)
    async with Replica(LmEngine(lm, SLOTS)) as other:
        moved = Prompted(other, SAMPLED, history=past)
        later = {step - before: control for step, control in controls.items()}
        assert np.array_equal(await said(moved, codes[before:], later), whole[before:])


async def test_a_long_session_goes_on_without_what_it_has_forgotten(lm: LMModel, replica: Replica) -> None:
    """Steps keep their numbers, on which the noise depends."""
    codes = random_codes(3 * CONTEXT, 1)
    whole = await said(Prompted(replica, SAMPLED), codes)
    past = history_of(codes[:-20], whole[:-20], CONTEXT)
    assert past.first_step
    moved = await said(Prompted(replica, SAMPLED, history=past), codes[-20:])
    without = await said(Session(replica, SAMPLED, past), codes[-20:])
    assert (moved == whole[-20:]).mean() > (without == whole[-20:]).mean()


async def test_neighbours_do_not_notice(replica: Replica) -> None:
    codes = random_codes(STEPS, 3)
    alone = await said(Session(replica, SAMPLED), codes)
    together = await asyncio.gather(said(Session(replica, SAMPLED), codes), said(Prompted(
        replica, GREEDY, lm_pb2.StepPrompt(text="another one", silence_codes=SILENCE)), codes))
    assert np.array_equal(together[0], alone)


async def test_an_empty_prompt_is_none(replica: Replica) -> None:
    codes = random_codes(10, 3)
    assert np.array_equal(await said(Prompted(replica, GREEDY, lm_pb2.StepPrompt()), codes),
                          await said(Session(replica, GREEDY), codes))


@pytest.mark.parametrize(("bad", "field"), [
    (lm_pb2.StepPrompt(text="x" * 4001, silence_codes=SILENCE), "text"),
    (lm_pb2.StepPrompt(text="x" * 60, silence_codes=SILENCE), "text"),
    (lm_pb2.StepPrompt(voice_codes=[1] * 8 * 60, silence_codes=SILENCE), "voice_codes"),
    (lm_pb2.StepPrompt(voice_codes=[1] * 9, silence_codes=SILENCE), "voice_codes"),
    (lm_pb2.StepPrompt(voice_codes=[2048] * 8, silence_codes=SILENCE), "voice_codes"),
    (lm_pb2.StepPrompt(text="hello"), "silence_codes"),
    (lm_pb2.StepPrompt(text="hello", silence_codes=[2048] * 8), "silence_codes")],
    ids=["long text", "half a context of text", "half a context of voice", "no frames", "no code", "no silence",
         "no code of silence"])
async def test_a_bad_prompt_is_refused(replica: Replica, bad: lm_pb2.StepPrompt, field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await Prompted(replica, GREEDY, bad).open()
    error = from_rpc_error(caught.value, "lm")
    assert (error.reason, error.metadata["field"]) == ("BAD_PROMPT", f"config.prompt.{field}")
    assert await replica.free(SLOTS)


def test_nothing_of_the_prompt_is_drawn() -> None:
    assert (frames_of_prompt() != DRAWN).all()
