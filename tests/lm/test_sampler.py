"""Draws follow the softmax over the top-k, and their noise depends on the session alone."""

import math

import pytest
import torch
from torch import Tensor

from services.lm import sampler
from services.lm.sampling import MAX_SEED, Sampling

ENTRIES = 64


def expected(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """Softmax at a temperature over the k largest logits."""
    kept = logits.topk(top_k)
    return torch.zeros(len(logits)).scatter(0, kept.indices, torch.softmax(kept.values / temperature, 0))


def draw(logits: Tensor, temperature: float, top_k: int, draws: int, stream: int = 3) -> Tensor:
    """Tokens [draws] of one session at as many steps."""
    table = sampler.gumbel_table(ENTRIES)
    starts = sampler.window_starts(torch.full((draws,), 7), torch.arange(draws), torch.arange(9))
    starts = starts[:, stream : stream + 1]
    tokens: Tensor = sampler.draw_by_rejection(
        logits.expand(draws, -1), sampler.noise(table, starts, ENTRIES)[:, 0], torch.full((draws, 1), temperature),
        torch.full((draws, 1), top_k))
    return tokens.squeeze(1)


@pytest.mark.parametrize("temperature", [0.5, 0.8, 2.0])
@pytest.mark.parametrize("top_k", [1, 5, 25, ENTRIES])
def test_draws_follow_the_softmax_over_the_top_k(temperature: float, top_k: int) -> None:
    logits = torch.randn(ENTRIES, generator=torch.Generator().manual_seed(3))
    draws = 200_000
    counts = torch.bincount(draw(logits, temperature, top_k, draws), minlength=ENTRIES)
    wanted = expected(logits, temperature, top_k) * draws
    assert counts[wanted == 0].sum() == 0
    kept = wanted > 5
    freedom = max(int(kept.sum()) - 1, 1)
    chi_square = float(((counts - wanted)[kept] ** 2 / wanted[kept]).sum())
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)  # about 1 in 10 000 if the draws are right


def test_temperature_zero_takes_the_largest() -> None:
    logits = torch.randn(ENTRIES, generator=torch.Generator().manual_seed(3))
    assert (draw(logits, 0.0, 25, 100) == logits.argmax()).all()


@pytest.mark.parametrize("top_k", [1, 3, 17, ENTRIES])
def test_both_ways_to_draw_agree(top_k: int) -> None:
    generator = torch.Generator().manual_seed(top_k)
    logits = torch.randn(500, ENTRIES, generator=generator)
    starts = torch.randint(sampler.WINDOWS, (500, 1, 2), generator=generator)
    noise = sampler.noise(sampler.gumbel_table(ENTRIES), starts, ENTRIES)[:, 0]
    temperature = torch.rand(500, 1, generator=generator)
    top_ks = torch.randint(1, top_k + 1, (500, 1), generator=generator)
    assert torch.equal(sampler.draw_by_rejection(logits, noise, temperature, top_ks),
                       sampler.draw_by_threshold(logits, noise, temperature, top_ks, top_k))


def test_noise_depends_on_seed_step_and_codebook_and_on_nothing_else() -> None:
    seeds, steps, streams = torch.tensor([0, 1, MAX_SEED]), torch.tensor([0, 1, 10**6]), torch.arange(9)
    rows = torch.cartesian_prod(seeds, steps)
    starts = sampler.window_starts(rows[:, 0], rows[:, 1], streams)
    assert starts.min() >= 0 and starts.max() < sampler.WINDOWS
    assert len(torch.unique(starts.flatten(0, 1), dim=0)) == 9 * 9
    assert torch.equal(starts[4:5], sampler.window_starts(rows[4:5, 0], rows[4:5, 1], streams))


def test_draws_of_neighbouring_steps_and_codebooks_are_unrelated() -> None:
    logits, draws = torch.zeros(ENTRIES), 100_000
    tokens = draw(logits, 1.0, ENTRIES, draws).float()
    other = draw(logits, 1.0, ENTRIES, draws, stream=4).float()
    for a, b in ((tokens[1:], tokens[:-1]), (tokens, other)):
        assert abs(float(torch.corrcoef(torch.stack((a, b)))[0, 1])) < 4 / math.sqrt(draws)


def test_mix_is_splitmix64() -> None:
    """First outputs for seed 0, as published with the algorithm."""
    keys = torch.arange(1, 4) * (0x9E3779B97F4A7C15 - 2**64)
    assert [value % 2**64 for value in sampler.mix(keys).tolist()] == [
        0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("field", [
    {"text_temperature": -0.1}, {"audio_temperature": math.nan}, {"audio_temperature": math.inf},
    {"text_top_k": -1}, {"seed": -1}, {"seed": 2**63},
])
def test_bad_sampling_is_refused_by_name(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        Sampling(**field)  # type: ignore[arg-type]
