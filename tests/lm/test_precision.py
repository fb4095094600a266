"""Lower precisions stay close to float32, and a session stays independent of its neighbours in all of them."""

import numpy as np
import pytest
import torch
from small_lm import random_codes, random_lm

from services.lm.engine import LmEngine
from services.lm.linear import Packing, Precision
from services.lm.sampling import Sampling


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-6), ("bf16", 0.01), ("int8", 0.02)])
def test_products(precision: Precision, error: float) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(48, 336, generator=generator), torch.randn(5, 336, generator=generator)
    residual = torch.randn(5, 48, generator=generator)
    linear = Packing(torch.device("cpu"), precision).linear(weight)
    exact = x @ weight.t()
    assert float((linear(x) - exact).norm() / exact.norm()) < error
    assert float((linear.add(residual, x) - residual - exact).norm() / exact.norm()) < error
    assert linear(x).dtype == linear.add(residual, x).dtype == torch.float32


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_session_does_not_depend_on_its_neighbours(precision: Precision) -> None:
    engine = LmEngine(random_lm(num_layers=2), slots=8, precision=precision)
    codes = random_codes(40, 1)
    engine.open(0, Sampling(seed=7))
    alone = np.concatenate([engine.step([0], frame[None]) for frame in codes])
    for row in range(8):
        engine.open(row, Sampling(seed=7 if row == 5 else row))
    others = [random_codes(40, 10 + row) for row in range(8)]
    others[5] = codes
    among = np.stack([engine.step(range(8), np.stack(frames))[5] for frames in zip(*others, strict=True)])
    assert np.array_equal(among, alone)


def test_int8_weights_take_less_room() -> None:
    lm = random_lm(num_layers=1)
    precisions: list[Precision] = ["fp32", "bf16", "int8"]
    fp32, bf16, int8 = (LmEngine(lm, 1, precision=precision).facts.weights_bytes for precision in precisions)
    assert int8 < bf16 < 0.6 * fp32


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, int8, got fp8"):
        LmEngine(random_lm(num_layers=1), 1, precision="fp8")  # type: ignore[arg-type]
