"""Controls of steps: kept with them, forgotten with them, and in force beyond them."""

from __future__ import annotations

import random

from moshimesh.lm.v1 import lm_pb2

from services.gateway.sessions.controls import STEPS_PER_SAID_BYTE, merged
from services.gateway.sessions.history import History

HOLD = lm_pb2.ForcedTokens(text_token=3, codes=[1, 2], frames=5)
SAY = lm_pb2.Say(text="good evening")
WARM, COLD = lm_pb2.Sampling(text_temperature=2, text_top_k=7), lm_pb2.Sampling(text_temperature=0)


def the_history(steps: int, controls: dict[int, lm_pb2.StepControls], context: int = 1000) -> History:
    history = History(1, 1, 1, context)
    for step in range(steps):
        history.append(2 * step, [step % 9], [5, step % 7] if step else None, controls.get(step))
    return history


def at(step: int, **controls: object) -> lm_pb2.StepControlsAt:
    return lm_pb2.StepControlsAt(step=step, controls=lm_pb2.StepControls(**controls))  # type: ignore[arg-type]


def test_later_controls_of_a_frame_win() -> None:
    one = lm_pb2.StepControls(sampling=WARM, forced=HOLD)
    both = lm_pb2.StepControls(sampling=lm_pb2.Sampling(text_temperature=0, text_top_k=7), say=SAY)
    assert merged(one, lm_pb2.StepControls(sampling=COLD, say=SAY)) == both
    assert merged(one, lm_pb2.StepControls(forced=HOLD)).forced.codes == [1, 2]
    assert merged(one, lm_pb2.StepControls()) == one


def test_what_is_in_force_outlives_its_step() -> None:
    said = {3: lm_pb2.StepControls(sampling=WARM), 10: lm_pb2.StepControls(say=SAY),
            20: lm_pb2.StepControls(sampling=COLD)}
    controls = the_history(500, said).controls
    cold = lm_pb2.Sampling(text_temperature=0, text_top_k=7)
    assert controls.since(0) == [at(step, sampling=one.sampling) if one.HasField("sampling") else at(step, say=SAY)
                                 for step, one in said.items()]
    assert controls.since(15) == [at(10, sampling=WARM, say=SAY), at(20, sampling=COLD)]
    assert controls.since(30) == [at(10, sampling=cold, say=SAY)]
    assert controls.since(10 + STEPS_PER_SAID_BYTE * (len(SAY.text) + 1) + 1) == [at(10, sampling=cold)]
    assert the_history(50, {3: lm_pb2.StepControls(forced=HOLD)}).controls.since(40) == [at(3)]


def test_old_controls_leave_with_their_steps_but_for_what_is_in_force() -> None:
    rng = random.Random(1)
    said = {step: lm_pb2.StepControls(sampling=lm_pb2.Sampling(text_top_k=rng.randrange(9)))
            for step in range(5000) if rng.random() < 0.1}
    history = the_history(5000, said, context=300)
    kept = history.controls.by_step()
    assert len(kept) < 150
    assert min(kept) <= history.first_step
    proto = history.to_proto()
    assert proto.controls[0].controls == said[max(step for step in said if step < proto.first_step)]


def test_a_journal_brings_them_even_if_its_first_chunks_are_gone() -> None:
    said = {3: lm_pb2.StepControls(sampling=WARM), 40: lm_pb2.StepControls(forced=HOLD)}
    history = the_history(60, said)
    whole, late = History(1, 1, 1, 1000), History(1, 1, 1, 1000)
    for first, steps in ((0, 20), (20, 42), (42, 60)):
        chunk = the_history(steps, said).chunk(first)
        whole.extend(chunk)
        if first:
            late.extend(chunk)
    assert whole.to_proto() == history.to_proto()
    assert late.controls.since(42) == history.controls.since(42) == [at(40, sampling=WARM, forced=HOLD)]


def test_a_session_that_goes_back_meets_its_controls_again() -> None:
    said = {3: lm_pb2.StepControls(sampling=WARM), 7: lm_pb2.StepControls(forced=HOLD),
            9: lm_pb2.StepControls(say=SAY)}
    history = the_history(12, said)
    history.rewind(14)  # the frame of step 7
    assert history.controls.by_step() == {3: said[3]}
    assert history.controls.ahead == {14: said[7], 18: said[9]}
