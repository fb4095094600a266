"""Lower precisions stay close to float32, and a session stays independent of its neighbours in all of them."""

from typing import Any, get_args

import numpy as np
import pytest
import torch

from services.lm.attention import kept, recalled
from services.lm.engine import LmEngine
from services.lm.linear import EightBitLinear, Packing, Precision, Unavailable
from services.lm.network import Network
from services.lm.sampling import Sampling
from services.lm.sizing import KV_TYPES, KvPrecision
from tests.lm.small_lm import random_codes, random_lm


@pytest.mark.parametrize(("precision", "error"), [
    ("fp32", 1e-6), ("bf16", 0.01), ("int8", 0.02), ("fp8", 0.04), ("int4", 0.1)])
def test_products(precision: Precision, error: float) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(48, 352, generator=generator), torch.randn(5, 352, generator=generator)
    residual = torch.randn(5, 48, generator=generator)
    linear = Packing(torch.device("cpu"), precision).linear(weight)
    exact = x @ weight.t()
    assert float((linear(x) - exact).norm() / exact.norm()) < error
    assert float((linear.add(residual, x) - residual - exact).norm() / exact.norm()) < error
    assert linear(x).dtype == linear.add(residual, x).dtype == torch.float32


@pytest.mark.parametrize(("outputs", "inputs"), [(40, 64), (48, 80)], ids=str)
def test_what_int4_cannot_have_is_int8(outputs: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(outputs, inputs, generator=generator), torch.randn(5, inputs, generator=generator)
    linear, int8 = (Packing(torch.device("cpu"), precision).linear(weight) for precision in ("int4", "int8"))
    assert torch.equal(linear(x), int8(x))


@pytest.mark.parametrize("options", [
    {"precision": "bf16"}, {"precision": "int8"}, {"precision": "fp8"}, {"precision": "int4"},
    {"kv_precision": "bf16"}, {"kv_precision": "int8"},
], ids=str)
def test_a_session_does_not_depend_on_its_neighbours(options: dict[str, Any]) -> None:
    engine = LmEngine(random_lm(num_layers=2), slots=8, **options)
    codes = random_codes(40, 1)
    engine.open(0, Sampling(seed=7))
    alone = np.concatenate([engine.step([0], frame[None]) for frame in codes])
    for row in range(8):
        engine.open(row, Sampling(seed=7 if row == 5 else row))
    others = [random_codes(40, 10 + row) for row in range(8)]
    others[5] = codes
    among = np.stack([engine.step(range(8), np.stack(frames))[5] for frames in zip(*others, strict=True)])
    assert np.array_equal(among, alone)


@pytest.mark.parametrize("precision", get_args(Precision))
def test_tracing_keeps_what_the_network_computes(precision: Precision) -> None:
    engine = LmEngine(random_lm(num_layers=1, context=20), slots=3, precision=precision)
    rows, draws = torch.arange(3), engine._draws
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 512, (3, 17)))
    with torch.inference_mode():
        plain = engine._network(tokens, engine._rings, rows, torch.zeros_like(rows))
    positions = np.zeros(3, np.int64)
    assert np.array_equal(engine._generate(tokens.numpy(), rows.numpy(), positions, draws), plain.numpy())


def test_fewer_bits_take_less_room() -> None:
    lm = random_lm(num_layers=1)
    fp32, bf16, int8, fp8, int4 = (
        LmEngine(lm, 1, precision=precision).facts.weights_bytes for precision in get_args(Precision))
    assert int4 < int8 == fp8 < bf16 < 0.6 * fp32


@pytest.mark.parametrize(("kind", "error"), [("bf16", 0.003), ("int8", 0.013)])
def test_a_ring_gives_back_nearly_what_it_keeps(kind: KvPrecision, error: float) -> None:
    new = torch.randn(500, 32, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 4, 500)[:, None]
    new[7] = 0
    packed = kept(new, torch.empty(0, dtype=KV_TYPES[kind]))
    off = (recalled(packed, 32) - new).norm(dim=1) / new.norm(dim=1).clamp(min=1e-12)
    assert float(off.max()) < error


def test_a_row_with_int8_keys_rebuilt_from_its_history_has_the_same_ring() -> None:
    engine = LmEngine(random_lm(num_layers=2, context=40), slots=2, kv_precision="int8")
    codes, greedy = random_codes(35, 1), Sampling(text_temperature=0, audio_temperature=0)
    engine.open(0, greedy)
    tokens = np.concatenate([engine.step([0], frame[None]) for frame in codes])
    engine.open(1, greedy)
    list(engine.prefill(1, codes, tokens))
    exact, rebuilt = recalled(engine._rings, 32)[:, :, :2].unbind(2)
    assert float((rebuilt - exact).norm() / exact.norm()) < 0.005  # a step up or down here and there


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, int8, fp8, int4, got fp4"):
        LmEngine(random_lm(num_layers=1), 1, precision="fp4")  # type: ignore[arg-type]


def test_unknown_kv_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="kv_precision must be one of fp32, bf16, int8, got int4"):
        LmEngine(random_lm(num_layers=1), 1, kv_precision="int4")  # type: ignore[arg-type]


def test_a_gpu_whose_instructions_do_not_unpack_fp8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(Unavailable, match=r"fp8 needs a GPU of compute capability 8\.9 .* has 8\.0; take int8"):
        Packing(torch.device("cuda"), "fp8")
    Packing(torch.device("cuda"), "int8")


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_weights_of_8_bits_as_a_gpu_keeps_them_are_nearly_those_of_the_model(kind: torch.dtype) -> None:
    weight = torch.randn(48, 352, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 3, 48)[:, None]
    weight[7] = 0
    linear = EightBitLinear(weight, torch.device("cpu"), kind)
    kept_weight = linear.weight.float() * linear.scale.float()[:, None]
    off = (kept_weight - weight).norm(dim=1) / weight.norm(dim=1).clamp(min=1e-12)
    assert float(off.max()) < (0.011 if kind == torch.int8 else 0.03)


@pytest.mark.parametrize("precision", get_args(Precision))
def test_all_weights_are_packed_where_they_are_to_be(precision: Precision) -> None:
    """On a device without data, where an operation that takes in a tensor of another device fails."""
    packing = Packing(torch.device("meta"), precision)
    with torch.no_grad():
        network = Network(random_lm(num_layers=1, layer_scale=0.1, depformer_layer_scale=0.1), packing)
    assert {buffer.device.type for buffer in network.buffers()} == {"meta"}
