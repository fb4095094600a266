"""What the language model's engine must give on every device, its fast ways included: a small model's tokens.

On a GPU the engine has chosen its way as it does at a start; on a CPU it is the traced one.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from services.lm import sampler
from services.lm.attention import recalled
from services.lm.engine import LmEngine
from services.lm.sampling import Sampling
from services.lm.sizing import KvPrecision
from tests.lm.small_lm import Ints, random_codes, random_lm, reference_tokens

GREEDY = Sampling(text_temperature=0, audio_temperature=0)
CONTEXT = 40


@functools.cache
def engine_on(device: str, slots: int = 4, **options: Any) -> LmEngine:
    engine = LmEngine(random_lm(num_layers=2, context=CONTEXT), slots, device=device,
                      **{"precision": "fp32", "kv_precision": "fp32"} | options)
    engine.warm_up()
    return engine


def answers(engine: LmEngine, codes: Ints, row: int = 0) -> Ints:
    return np.concatenate([engine.step([row], frame[None]) for frame in codes])


def test_greedy_tokens_are_those_of_moshis_own_loop(device: str) -> None:
    codes = random_codes(60, 1)  # longer than the context: the ring has been round
    engine = engine_on(device)
    engine.open(0, GREEDY)
    found, expected = answers(engine, codes), reference_tokens(random_lm(num_layers=2, context=CONTEXT), codes)
    # In float32 a GPU adds in another order: where two tokens are as good as equal it may take the other one, and then
    # goes its own way. Before that, all are equal.
    if device == "cpu":
        assert np.array_equal(found, expected)
    else:
        assert (found == expected)[:20].all()


def test_the_fast_way_is_the_one_that_is_served(device: str) -> None:
    engine = engine_on(device)
    assert engine.refused_ways == ()
    assert engine.way == ("traced" if device == "cpu" else "graphs of Triton's kernels")


def test_rows_that_come_and_go_get_what_they_would_have_got_alone(device: str) -> None:
    engine = engine_on(device)
    codes = [random_codes(30, seed) for seed in range(3)]
    alone = []
    for row in range(3):
        engine.open(row, Sampling(seed=row))
        alone.append(answers(engine, codes[row], row))
    for row in range(3):
        engine.open(row, Sampling(seed=row))
    together: list[list[Ints]] = [[], [], []]
    for frame in range(36):
        rows = [row for row in (2, 0, 1) if 3 * row <= frame < 30 + 3 * row]
        found = engine.step(rows, np.stack([codes[row][frame - 3 * row] for row in rows]))
        for row, tokens in zip(rows, found, strict=True):
            together[row].append(tokens)
    for row in range(3):
        same = np.stack(together[row]) == alone[row]
        assert same.all() if device == "cpu" else same[:15].all()


def test_a_row_that_is_rebuilt_goes_on_as_the_one_that_was_lost(device: str) -> None:
    engine = engine_on(device)
    codes = random_codes(39, 1)
    engine.open(0, GREEDY)
    tokens = answers(engine, codes[:30])
    engine.open(1, GREEDY)
    list(engine.prefill(1, codes[:30], tokens))
    went_on, rebuilt = (answers(engine, codes[30:], row) for row in (0, 1))
    assert (went_on == rebuilt)[: None if device == "cpu" else 5].all()


@pytest.mark.parametrize(("kv_precision", "most_off"), [("bf16", 0.02), ("int8", 0.04)])
def test_keys_and_values_of_fewer_bits_stay_within_their_bound(device: str, kv_precision: KvPrecision, most_off: float
                                                               ) -> None:
    """What the last layer remembers of the same tokens, beside float32."""
    codes = random_codes(35, 1)
    exact, short = engine_on(device), engine_on(device, kv_precision=kv_precision)
    exact.open(0, GREEDY)
    tokens = answers(exact, codes)
    made = exact._line.generated(tokens)
    short.open(0, GREEDY)
    for frame, right in zip(codes, made, strict=True):
        short.step([0], frame[None])
        short._line.amend(0, right)
    kept, expected = (recalled(engine._rings[-1:, :, :1, :, :30], 32).float() for engine in (short, exact))
    assert float((kept - expected).norm() / expected.norm()) < most_off


def test_draws_follow_the_softmax_of_the_logits(device: str) -> None:
    """4000 seeds of one step: the text token's shares beside the probabilities, by the chi-square test."""
    logits = torch.randn(16, generator=torch.Generator().manual_seed(3)).to(device)
    seeds = torch.arange(4000, device=device)
    table = sampler.gumbel_table(16).to(device)
    starts = sampler.window_starts(seeds, torch.full_like(seeds, 7), torch.zeros(1, dtype=torch.int64, device=device))
    noise = sampler.noise(table, starts, 16)[:, 0]
    temperature = torch.full((4000, 1), 0.8, device=device)
    drawn = sampler.draw_by_threshold(logits.expand(4000, -1).contiguous(), noise, temperature,
                                      torch.full((4000, 1), 16, device=device), 16)
    expected = torch.softmax(logits / 0.8, -1).cpu() * 4000
    counts = torch.bincount(drawn.flatten().cpu(), minlength=16)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 37.7, "15 degrees of freedom: one in a thousand is larger"


def test_a_seed_draws_the_same_tokens_again(device: str) -> None:
    engine = engine_on(device)
    codes = random_codes(15, 2)
    drawn = []
    for row, seed in ((0, 5), (1, 5), (2, 6)):
        engine.open(row, Sampling(seed=seed))
        drawn.append(answers(engine, codes, row))
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_graphs_share_one_pool_of_memory(device: str) -> None:
    if device == "cpu":
        pytest.skip("a CPU has no graphs")
    engine = engine_on(device, slots=64)
    generate = engine._generate
    assert len(generate._graphs) >= 6
    before = torch.cuda.memory_reserved(device)
    generate.prepare((25, 250))
    assert torch.cuda.memory_reserved(device) == before, "nothing more is captured"
