"""Forced tokens and changes of sampling, against moshi's own loop that is forced and changed likewise."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from moshi.models import lm as moshi_lm
from moshi.models.lm import LMGen, LMModel
from moshi.utils.compile import no_compile

from services.lm.delays import UNGENERATED, DelayLine
from services.lm.directing import DRAWN, Directed, DirectedAt, ForcedFrames
from services.lm.engine import LmEngine
from services.lm.sampler import reshaped
from services.lm.sampling import Sampling
from tests.lm.small_lm import DELAYS, Ints, random_codes, random_lm

GREEDY = Sampling(text_temperature=0, audio_temperature=0, seed=7)
SAMPLED = Sampling(text_temperature=0.7, audio_temperature=0.8, seed=7)
PADDING, SILENCE = 3, [11, 12, 13, 14, 15, 16, 17, 18]
STEPS, AT, HOLD = 60, 25, 6
INTERRUPTION = np.tile([PADDING, *SILENCE], (HOLD, 1))


def reference(lm: LMModel, codes: Ints, forced: Ints, monkeypatch: pytest.MonkeyPatch, *,
              shape: Callable[[int, torch.Tensor], torch.Tensor] = lambda step, logits: logits) -> Ints:
    """What moshi's loop answers, greedily, if each step [steps] makes `forced` [steps, streams] where that is not
    DRAWN; `shape` changes the text's logits [entries] of a step.
    """
    made = 0

    def sample(logits: torch.Tensor, *_: object) -> torch.Tensor:
        nonlocal made
        step, stream = divmod(made, 1 + lm.dep_q)
        made += 1
        token = int(forced[step, stream])
        if token == DRAWN:
            flat = logits.flatten()
            token = int((shape(step, flat) if stream == 0 else flat).argmax())
        return torch.full(logits.shape[:-1], token)

    monkeypatch.setattr(moshi_lm, "sample_token", sample)
    generator, tokens = LMGen(lm, use_sampling=False), []
    with torch.no_grad(), no_compile(), generator.streaming(1):
        for frame in codes:
            answer = generator.step(torch.from_numpy(frame)[None, :, None])
            tokens.append(np.full(1 + lm.dep_q, UNGENERATED) if answer is None else answer[0, :, 0].numpy().copy())
    return np.stack(tokens)


def forced_by_step(lm: LMModel, at: int, frames: Ints, steps: int) -> Ints:
    """The tokens of frames from `at` on, by the step that makes them."""
    forced = np.full((steps, 1 + lm.dep_q), DRAWN)
    for stream, delay in enumerate(lm.delays[:1 + lm.dep_q]):
        forced[at + delay:at + delay + len(frames), stream] = frames[:, stream]
    return forced


def run(engine: LmEngine, row: int, codes: Ints, controls: Sequence[DirectedAt] = (), first: int = 0) -> Ints:
    """Tokens of an open row, alone."""
    at = {control.step: control.directed for control in controls}
    tokens = []
    for step, frame in enumerate(codes, first):
        if step in at:
            engine.direct(row, at[step])
        tokens.append(engine.step([row], frame[None])[0])
    return np.stack(tokens)


def generated(lm: LMModel, tokens: Ints) -> Ints:
    """What each step made, from what it answered."""
    return DelayLine(1, lm.delays, lm.dep_q, [0] * len(lm.delays)).generated(tokens)


@pytest.fixture(scope="module")
def engine(lm: LMModel) -> LmEngine:
    return LmEngine(lm, slots=4)


@pytest.mark.parametrize("at", [0, 1, AT])
def test_an_interruption_makes_whole_frames_of_silence_and_the_call_goes_on_as_moshi_would(
        lm: LMModel, engine: LmEngine, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    codes = random_codes(STEPS, 1)
    engine.open(2, GREEDY)
    tokens = run(engine, 2, codes, [DirectedAt(at, Directed(tokens=INTERRUPTION))])
    assert np.array_equal(tokens, reference(lm, codes, forced_by_step(lm, at, INTERRUPTION, STEPS), monkeypatch))
    first = at + max(DELAYS)  # the answer that has the interrupted frame
    assert np.array_equal(tokens[first:first + HOLD], INTERRUPTION)


@pytest.mark.parametrize("changes", [
    {"delays": [0, 0, 2, 2, 2, 2, 2, 2, 3, 0, 2, 2, 2, 2, 2, 2, 2]},
    {"n_q": 12, "dep_q": 4, "delays": [0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]}], ids=str)
def test_other_delays(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = random_lm(num_layers=2, **changes)
    codes, frames = random_codes(STEPS, 1, codebooks=lm.n_q - lm.dep_q), INTERRUPTION[:, :1 + lm.dep_q]
    engine = LmEngine(lm, slots=1)
    engine.open(0, GREEDY)
    tokens = run(engine, 0, codes, [DirectedAt(AT, Directed(tokens=frames))])
    assert np.array_equal(tokens, reference(lm, codes, forced_by_step(lm, AT, frames, STEPS), monkeypatch))


def test_text_that_is_forced_leaves_the_codes_to_the_model(
        lm: LMModel, engine: LmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, said = random_codes(STEPS, 1), np.full((10, 9), DRAWN)
    said[:, 0] = [0, 77, 78, PADDING, PADDING, 0, 79, PADDING, PADDING, PADDING]
    engine.open(0, GREEDY)
    tokens = run(engine, 0, codes, [DirectedAt(AT, Directed(tokens=said))])
    assert np.array_equal(tokens, reference(lm, codes, forced_by_step(lm, AT, said, STEPS), monkeypatch))
    assert np.array_equal(tokens[AT + 1:AT + 11, 0], said[:, 0])


def test_from_the_frame_of_temperature_0_on_tokens_are_greedy(
        lm: LMModel, engine: LmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = random_codes(STEPS, 1)
    engine.open(1, SAMPLED)
    tokens = run(engine, 1, codes, [DirectedAt(AT, Directed(GREEDY))])
    before = np.full((STEPS, 9), DRAWN)
    before[:AT] = generated(lm, tokens)[:AT]
    assert np.array_equal(tokens, reference(lm, codes, before, monkeypatch))
    engine.open(1, SAMPLED)
    assert not np.array_equal(run(engine, 1, codes), tokens)


def test_the_repetition_penalty_is_that_of_moshis_rust_server(
        lm: LMModel, engine: LmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, penalty, most = random_codes(STEPS, 1), 1.5, 5
    engine.open(0, GREEDY)
    engine.step([0], codes[:1])
    engine.open(0, GREEDY)
    tokens = run(engine, 0, codes, [DirectedAt(AT, Directed(
        Sampling(text_temperature=0, audio_temperature=0, seed=7, repetition_penalty=penalty,
                 repetition_penalty_context=most)))])
    texts = generated(lm, tokens)[:, 0]

    def shape(step: int, logits: torch.Tensor) -> torch.Tensor:
        if step < AT:
            return logits
        spoken = [text for text in texts[:step].tolist() if text not in (PADDING, 0)]
        for text in set(spoken[-most:]):
            logits[text] = logits[text] / penalty if logits[text] >= 0 else logits[text] * penalty
        return logits

    free = np.full((STEPS, 9), DRAWN)
    assert np.array_equal(tokens, reference(lm, codes, free, monkeypatch, shape=shape))
    assert not np.array_equal(tokens, reference(lm, codes, free, monkeypatch))


def test_the_padding_bonus_multiplies_the_chance_of_padding() -> None:
    temperature, bonus = 0.7, 1.3
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    before = torch.softmax(logits / temperature, dim=-1)
    shaped = reshaped(logits, PADDING, torch.tensor([[temperature * bonus], [0], [temperature * bonus]]),
                      torch.ones(3, 1), torch.zeros(3, 4, dtype=torch.int64))
    odds = torch.softmax(shaped / temperature, dim=-1) / before
    assert torch.allclose(odds[0, PADDING] / odds[0, 0], torch.tensor(bonus).exp())
    assert torch.equal(shaped[1], logits[1])


def test_with_a_padding_bonus_the_model_says_less(lm: LMModel, engine: LmEngine) -> None:
    codes = random_codes(100, 1)

    def padded(bonus: float) -> int:
        engine.open(0, Sampling(text_temperature=3, text_top_k=0, seed=7, padding_bonus=bonus))
        return int((run(engine, 0, codes)[1:, 0] == PADDING).sum())

    few, many = padded(0), padded(8)
    assert few < 5 < 50 < many


def test_neighbours_of_a_directed_session_keep_their_tokens(lm: LMModel, engine: LmEngine) -> None:
    codes = random_codes(STEPS, 1)
    alone = []
    for row in (0, 1):
        engine.open(row, (GREEDY, SAMPLED)[row])
        alone.append(run(engine, row, codes))
    for row in range(3):
        engine.open(row, (GREEDY, SAMPLED, SAMPLED)[row])
    together = []
    for step, frame in enumerate(codes):
        if step == AT:
            engine.direct(2, Directed(Sampling(padding_bonus=3, repetition_penalty=2, seed=7), INTERRUPTION))
        together.append(engine.step([0, 1, 2], np.stack([frame] * 3)))
    assert np.array_equal(np.stack(together)[:, :2], np.stack(alone, axis=1))


def test_a_row_that_is_opened_again_is_free(lm: LMModel, engine: LmEngine) -> None:
    codes = random_codes(20, 1)
    engine.open(3, SAMPLED)
    free = run(engine, 3, codes)
    engine.open(3, SAMPLED)
    run(engine, 3, codes[:3], [DirectedAt(1, Directed(
        Sampling(padding_bonus=9, repetition_penalty=3), np.tile(INTERRUPTION, (9, 1))))])
    engine.open(3, SAMPLED)
    assert np.array_equal(run(engine, 3, codes), free)
    assert 3 not in engine._forced
    assert 3 not in engine._shaped


@pytest.mark.parametrize("before", [1, 19, 20, 21, 22, 25, 26, 27, 33, 34, 50])
def test_a_row_is_rebuilt_with_what_was_decided(lm: LMModel, engine: LmEngine, before: int) -> None:
    """Before, right at, amid and after changes of sampling, an interruption, and a text that it cut off."""
    shaped = Sampling(text_temperature=0.9, seed=7, repetition_penalty=1.7, padding_bonus=0.5)
    said = np.full((30, 9), DRAWN)
    said[:, 0] = np.arange(100, 130)
    controls = [DirectedAt(1, Directed(shaped)), DirectedAt(20, Directed(GREEDY, said)),
                DirectedAt(26, Directed(shaped, INTERRUPTION)), DirectedAt(33, Directed(SAMPLED))]
    codes = random_codes(STEPS, 1)
    engine.open(0, SAMPLED)
    tokens = run(engine, 0, codes, controls)
    engine.open(1, SAMPLED)
    past = [control for control in controls if control.step < before]
    list(engine.prefill(1, codes[:before], tokens[:before], 0, past))
    assert np.array_equal(run(engine, 1, codes[before:], controls, before), tokens[before:])


def test_forced_frames_are_replaced_from_a_frame_on() -> None:
    forced = ForcedFrames([0, 0, 2])
    forced.put(5, np.array([[1, 2, 3]] * 4))
    forced.put(7, np.array([[7, 8, 9]]))
    assert [forced.at(step).tolist() for step in range(4, 12)] == [
        [-1, -1, -1], [1, 2, -1], [1, 2, -1], [7, 8, 3], [-1, -1, 3], [-1, -1, 9], [-1, -1, -1], [-1, -1, -1]]
    assert not forced.over(9)
    assert forced.over(10)
