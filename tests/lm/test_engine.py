"""The engine against moshi's own loop, and sessions against each other."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from moshi.models.lm import LMModel

from services.lm.engine import LmEngine
from services.lm.layers import Unsupported
from services.lm.sampling import Sampling
from services.mesh.finite import NotFinite
from tests.lm.small_lm import Ints, random_codes, random_lm, reference_tokens

GREEDY = Sampling(text_temperature=0, audio_temperature=0)
SAMPLED = Sampling(text_temperature=0.7, audio_temperature=0.8, seed=7)
FRAMES = 200

Reference = Callable[[int, int], Ints]


@pytest.fixture(scope="module")
def engine(lm: LMModel) -> LmEngine:
    return LmEngine(lm, slots=8)


def run(engine: LmEngine, row: int, codes: Ints) -> Ints:
    """Tokens of one open row, alone."""
    return np.concatenate([engine.step([row], frame[None]) for frame in codes])


def run_together(
        engine: LmEngine, calls: dict[int, Ints], starts: dict[int, int], keep: float = 1.0) -> dict[int, Ints]:
    """Steps rows with their codes from their own start on; each takes part in a step with probability `keep`."""
    chance = np.random.default_rng(0)
    tokens: dict[int, list[Ints]] = {row: [] for row in calls}
    tick = 0
    while any(len(tokens[row]) < len(calls[row]) for row in calls):
        rows = [row for row in calls
                if tick >= starts[row] and len(tokens[row]) < len(calls[row]) and chance.random() < keep]
        chance.shuffle(rows)
        frames = [calls[row][len(tokens[row])] for row in rows]
        for row, answer in zip(rows, engine.step(rows, np.array(frames).reshape(len(rows), 8)), strict=True):
            tokens[row].append(answer)
        tick += 1
    return {row: np.stack(answers) for row, answers in tokens.items()}


def test_one_caller_gets_the_reference_tokens(engine: LmEngine, reference: Reference) -> None:
    engine.open(3, GREEDY)
    frames = 300  # beyond the context of 250: the ring wraps
    assert np.array_equal(run(engine, 3, random_codes(frames, 1)), reference(frames, 1))


def test_a_row_opened_again_gets_the_reference_tokens(engine: LmEngine, reference: Reference) -> None:
    engine.open(2, SAMPLED)
    run(engine, 2, random_codes(20, 5))
    engine.open(2, GREEDY)
    assert np.array_equal(run(engine, 2, random_codes(FRAMES, 2)), reference(FRAMES, 2))


@pytest.mark.parametrize("keep", [1.0, 0.6], ids=["every step", "some steps"])
def test_callers_who_start_at_different_moments_get_the_reference_tokens(
        engine: LmEngine, reference: Reference, keep: float) -> None:
    for row in range(8):
        engine.open(row, GREEDY)
    calls = {row: random_codes(FRAMES, row) for row in range(8)}
    tokens = run_together(engine, calls, {row: 3 * row for row in calls}, keep)
    for row in calls:
        assert np.array_equal(tokens[row], reference(FRAMES, row)), f"row {row}"


@pytest.mark.parametrize("keep", [1.0, 0.6], ids=["every step", "some steps"])
def test_a_sampled_session_does_not_depend_on_its_neighbours(engine: LmEngine, keep: float) -> None:
    codes = random_codes(FRAMES, 1)
    engine.open(0, SAMPLED)
    alone = run(engine, 0, codes)
    for row in range(8):
        engine.open(row, SAMPLED if row == 5 else Sampling(seed=100 + row, audio_top_k=row))
    calls = {row: codes if row == 5 else random_codes(FRAMES, 50 + row) for row in range(8)}
    among = run_together(engine, calls, {row: row for row in calls}, keep)
    assert np.array_equal(among[5], alone)
    assert not np.array_equal(among[4], alone)


def test_a_greedy_session_among_sampled_ones_stays_greedy(engine: LmEngine, reference: Reference) -> None:
    engine.open(0, GREEDY)
    engine.open(1, SAMPLED)
    calls = {0: random_codes(50, 0), 1: random_codes(50, 1)}
    assert np.array_equal(run_together(engine, calls, {0: 0, 1: 0})[0], reference(50, 0))


def test_seeds_make_sessions_different(engine: LmEngine) -> None:
    codes = random_codes(10, 1)
    tokens = []
    for seed in (7, 8, 2**63 - 1):
        engine.open(0, Sampling(seed=seed))
        tokens.append(run(engine, 0, codes)[1:])
    assert len({answer.tobytes() for answer in tokens}) == 3


@pytest.mark.parametrize("changes", [
    {"context": 20},
    {"card": 512, "text_card": 2048},
    {"positional_embedding": "rope_concat", "context": 40},
    {"kv_repeat": 2, "depformer_kv_repeat": 1},
    {"layer_scale": 0.3, "depformer_layer_scale": 0.7},
    {"norm": "rms_norm", "norm_emb": True},
    {"depformer_low_rank_embeddings": 32, "depformer_norm": "rms_norm_f32"},
    {"depformer_weights_per_step_schedule": [0, 1, 2, 3, 4, 4, 5, 5]},
    {"delays": [0, 0, 2, 2, 2, 2, 2, 2, 3, 0, 2, 2, 2, 2, 2, 2, 2]},
    {"text_card_out": 300}, {"depformer_multi_linear": False},
    {"n_q": 12, "dep_q": 4, "delays": [0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]},
    {"n_q": 8, "dep_q": 5, "delays": [0, 0, 1, 1, 1, 1, 0, 1, 1]},
], ids=str)
def test_other_configurations_get_the_reference_tokens(changes: dict[str, object]) -> None:
    lm = random_lm(**{"num_layers": 2, **changes})
    codes = random_codes(60, 1, lm.card, lm.n_q - lm.dep_q)
    engine = LmEngine(lm, slots=2)
    engine.open(1, GREEDY)
    assert np.array_equal(run(engine, 1, codes), reference_tokens(lm, codes))


@pytest.mark.parametrize("changes", [
    {"norm": "layer_norm"}, {"gating": "none", "depformer_gating": "silu"}, {"gating": "gelu"}, {"bias_proj": True},
    {"positional_embedding": "sin"}, {"depformer_pos_emb": "sin"}, {"demux_second_text_stream": True},
    {"causal": False}, {"kv_repeat": 2}, {"depformer_weights_per_step": False}, {"context": None},
], ids=str)
def test_what_the_engine_does_not_compute_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(Unsupported):
        LmEngine(random_lm(num_layers=1, **changes), slots=1)


def test_the_model_may_go_once_the_engine_has_it() -> None:
    lm = random_lm(num_layers=1)
    engine = LmEngine(lm, slots=1)
    engine.open(0, GREEDY)
    before = run(engine, 0, random_codes(5, 1))
    for parameter in lm.parameters():
        torch.nn.init.zeros_(parameter)
    engine.open(0, GREEDY)
    assert np.array_equal(run(engine, 0, random_codes(5, 1)), before)


def test_facts_are_the_models(lm: LMModel, engine: LmEngine) -> None:
    facts = engine.facts
    assert (facts.user_codebooks, facts.own_codebooks, facts.cardinality, facts.text_cardinality) == (8, 8, 2048, 512)
    assert (facts.delay_frames, facts.context_frames) == (1, 250)
    assert facts.kv_bytes_per_frame == 4 * 2 * 256 * 4  # layers, key and value, dim, float32
    assert facts.kv_bytes_per_slot == 250 * facts.kv_bytes_per_frame
    assert facts.weights_bytes == pytest.approx(4 * sum(p.numel() for p in lm.parameters()), rel=0.06)  # and the noise


@pytest.mark.parametrize(("rows", "codes", "message"), [
    ([0], np.zeros((1, 7), np.int64), "codes must be"),
    ([0, 0], np.zeros((2, 8), np.int64), "rows must be different"),
    ([8], np.zeros((1, 8), np.int64), "rows must be"),
    ([0], np.full((1, 8), 2048), "between 0 and 2047"),
    ([0], np.full((1, 8), -1), "between 0 and 2047"),
])
def test_bad_steps_are_refused_before_they_touch_a_row(
        engine: LmEngine, reference: Reference, rows: list[int], codes: Ints, message: str) -> None:
    engine.open(0, GREEDY)
    with pytest.raises(ValueError, match=message):
        engine.step(rows, codes)
    assert np.array_equal(run(engine, 0, random_codes(5, 1)), reference(5, 1))


@pytest.mark.parametrize(("name", "words"), [
    ("text_linear.weight", "the logits of the text are not finite"),
    ("transformer.layers.0.self_attn.in_projs.0.weight", "the outputs of the main transformer are not finite"),
    ("linears.3.weight", "the logits of codebook 3 are not finite"),
])
@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_a_model_that_computes_nothing_is_refused(name: str, words: str, value: float) -> None:
    lm = random_lm(num_layers=1, delays=[0, *[1] * 16])
    lm.get_parameter(name).fill_(value)
    with pytest.raises(NotFinite, match=words):
        LmEngine(lm, slots=2).warm_up()


def test_the_first_steps_leave_nothing_behind(lm: LMModel, reference: Reference) -> None:
    engine = LmEngine(lm, slots=2)
    engine.warm_up()
    engine.open(0, GREEDY)
    assert np.array_equal(run(engine, 0, random_codes(30, 1)), reference(30, 1))


def test_an_empty_step_is_nothing(engine: LmEngine) -> None:
    assert engine.step([], np.empty((0, 8), np.int64)).shape == (0, 9)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("changes", [
    {}, {"kv_repeat": 2, "depformer_kv_repeat": 1}, {"delays": [0, 0, 2, 2, 2, 2, 2, 2, 3, 0, 2, 2, 2, 2, 2, 2, 2]},
], ids=str)
@pytest.mark.parametrize("frames", [0, 1, 2, 4, 150])
def test_a_row_rebuilt_from_its_history_goes_on_the_same(
        frames: int, changes: dict[str, object], sampling: Sampling) -> None:
    engine = LmEngine(random_lm(num_layers=2, **changes), slots=3)
    codes = random_codes(frames + 40, 1)
    engine.open(0, sampling)
    tokens = run(engine, 0, codes)
    engine.open(2, SAMPLED)
    run(engine, 2, random_codes(30, 2))  # somebody else was here
    engine.open(2, sampling)
    list(engine.prefill(2, codes[:frames], tokens[:frames]))
    assert np.array_equal(run(engine, 2, codes[frames:]), tokens[frames:])


def test_a_row_rebuilt_after_more_than_the_context_goes_on_nearly_the_same() -> None:
    engine = LmEngine(random_lm(num_layers=2, context=100), slots=2)
    codes = random_codes(270, 1)
    engine.open(0, GREEDY)
    tokens = run(engine, 0, codes)
    engine.open(1, GREEDY)
    list(engine.prefill(1, codes[:250], tokens[:250]))
    assert engine._line.positions[1] == 250
    assert np.mean(engine.step([1], codes[250:251]) == tokens[250:251]) > 0.5


def test_neighbours_step_between_the_chunks_of_a_history() -> None:
    engine = LmEngine(random_lm(num_layers=2, context=300), slots=2)
    codes, others = random_codes(290, 1), random_codes(3, 2)
    engine.open(0, SAMPLED)
    tokens = run(engine, 0, codes)
    engine.open(1, GREEDY)
    alone = run(engine, 1, others)
    engine.open(0, GREEDY)
    engine.open(1, SAMPLED)
    chunks = engine.prefill(1, codes[:280], tokens[:280])
    among = []
    for frame in others:
        next(chunks)
        among.append(engine.step([0], frame[None]))
    assert list(chunks) == []
    assert np.array_equal(np.concatenate(among), alone)
    assert np.array_equal(run(engine, 1, codes[280:]), tokens[280:])


def test_a_history_without_its_beginning_knows_nothing_of_an_earlier_session() -> None:
    """Its first slots stay empty, but not with what somebody else has left there."""
    engine = LmEngine(random_lm(num_layers=2, context=100), slots=2)
    codes, answers = random_codes(60, 1), []
    tokens = np.random.default_rng(1).integers(0, 512, (30, 9))
    for row in range(2):
        engine.open(row, SAMPLED)
        run(engine, row, random_codes(120, 10 + row))
        engine.open(row, GREEDY)
        list(engine.prefill(row, codes[:30], tokens, 1000))
        answers.append(run(engine, row, codes[30:]))
    assert np.array_equal(*answers)


def test_a_history_of_the_wrong_shape_is_refused(engine: LmEngine) -> None:
    with pytest.raises(ValueError, match="codes and tokens must be"):
        list(engine.prefill(0, np.zeros((3, 8), np.int64), np.zeros((2, 9), np.int64)))
