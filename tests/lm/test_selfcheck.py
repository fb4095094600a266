"""The check at a GPU's start, on a CPU: fakes stand in for the kernel and for the capture."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from services.lm.attention import attend_filled, places
from services.lm.engine import LmEngine
from services.lm.graphed import GraphedNetwork, uncaptured
from services.lm.linear import EightBitLinear, Packing, Precision, Product, unpacked_product
from services.lm.network import Bends, Draws, Network, Shapes
from services.lm.selfcheck import choose, choose_products
from services.lm.sizing import KvPrecision
from services.mesh.cuda_graphs import Replay
from tests.lm.small_lm import random_lm

Decode = Callable[[Tensor, Tensor, Tensor], Tensor]


def right(heads: Tensor, ring: Tensor, positions: Tensor) -> Tensor:
    """What the Triton kernel gives: rows of negative positions take no part."""
    rows = (positions >= 0).nonzero().flatten()
    answer = torch.zeros(len(heads), heads.shape[1] * heads.shape[2] - 2 * ring.shape[2] * heads.shape[2])
    if len(rows):
        at = places(ring, rows, positions[rows])
        answer[rows] = attend_filled(heads[rows], ring, rows, positions[rows], at)
    return answer


def one_key_short(heads: Tensor, ring: Tensor, positions: Tensor) -> Tensor:
    return right(heads, ring, positions) * 0.5


def writes_elsewhere(heads: Tensor, ring: Tensor, positions: Tensor) -> Tensor:
    answer = right(heads, ring, positions)
    ring[0, 1, 0, 3] += 1
    return answer


def not_compiled(heads: Tensor, ring: Tensor, positions: Tensor) -> Tensor:
    raise RuntimeError("PassManager::run failed\nand ten pages more")


def no_numbers(heads: Tensor, ring: Tensor, positions: Tensor) -> Tensor:
    return right(heads, ring, positions) * torch.nan


def pick(engine: LmEngine, decode: Decode) -> str:
    network, rings = engine._network, engine._rings
    chosen = choose([("fast", lambda: GraphedNetwork(network, rings, uncaptured, decode)),
                     ("plain", lambda: GraphedNetwork(network, rings, uncaptured))], rings, 17, 512)
    assert chosen.refused == (("fast",) if chosen.name == "plain" else ())
    return chosen.name


@pytest.mark.parametrize("kv_precision", ["fp32", "bf16", "int8"])
def test_a_way_that_agrees_is_served(kv_precision: KvPrecision) -> None:
    engine = LmEngine(random_lm(num_layers=2, context=40), 5, kv_precision=kv_precision)
    assert pick(engine, right) == "fast"
    assert not engine._rings.any(), "the check leaves nothing behind"


def test_a_way_that_draws_other_tokens_is_refused() -> None:
    """Greedy ones alone would not show that temperature, top-k or noise are off."""
    engine = LmEngine(random_lm(num_layers=2, context=40), 4)
    network, rings = engine._network, engine._rings

    def greedy(tokens: Tensor, rings: Tensor, positions: Tensor, draws: Draws, bends: Bends | None) -> Tensor:
        found: Tensor = network(tokens, rings, torch.arange(len(tokens)), positions, draws._replace(
            temperature=torch.zeros_like(draws.temperature)), Shapes(40, network.cardinalities), bends, right)
        return found

    chosen = choose([("fused", lambda: GraphedNetwork(network, rings, uncaptured, fused=greedy)),
                     ("plain", lambda: GraphedNetwork(network, rings, uncaptured))], rings, 17, 512)
    assert (chosen.name, chosen.refused) == ("plain", ("fused",))


@pytest.mark.parametrize(("decode", "words"), [
    (one_key_short, "new keys and values of layer 1 are off by"), (no_numbers, "off by nan"),
    (writes_elsewhere, "a step changed keys or values of other positions"),
    (not_compiled, "PassManager::run failed")])
def test_a_broken_one_is_refused_in_one_line_and_the_plain_one_served(
        decode: Decode, words: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = LmEngine(random_lm(num_layers=2, context=40), 3)
    with caplog.at_level(logging.WARNING):
        assert pick(engine, decode) == "plain"
    assert [record.getMessage() for record in caplog.records] == [caplog.messages[0]]
    assert words in caplog.text and "ten pages" not in caplog.text


def eight_bits(precision: Precision = "fp8") -> Network:
    """As a GPU packs them."""
    lm = random_lm(num_layers=1, context=40)
    with torch.no_grad():
        return Network(lm, Packing(torch.device("cpu"), precision))


def products(network: Network) -> set[Product]:
    return {module.product for module in network.modules() if isinstance(module, EightBitLinear)}


def test_a_product_of_8_bits_that_agrees_is_served() -> None:
    def another(*arguments: Any) -> Tensor:
        return unpacked_product(*arguments) * 1.001

    network = eight_bits()
    assert choose_products(network, lambda: another) == ()
    assert products(network) == {another}


@pytest.mark.parametrize("broken", [
    lambda *arguments: unpacked_product(*arguments) * 1.1, lambda x, weight, scale, residual: x * torch.nan, None])
def test_a_product_that_is_off_or_does_not_compile_is_refused(broken: Product | None, caplog: pytest.LogCaptureFixture
                                                              ) -> None:
    def load() -> Product:
        if broken is None:
            raise ImportError("No module named 'triton'")
        return broken

    network = eight_bits()
    assert choose_products(network, load) == ("Triton's products of 8 bits",)
    assert products(network) == {unpacked_product}
    assert len(caplog.messages) == 1 and "\n" not in caplog.text.strip()


def test_other_weights_have_no_product_to_choose() -> None:
    assert choose_products(eight_bits("bf16"), lambda: pytest.fail("not asked for")) == ()


def test_a_way_whose_capture_fails_is_refused() -> None:
    def capture(run: Replay) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing")

    engine = LmEngine(random_lm(num_layers=1, context=40), 1)
    engine._generate = engine._choose(lambda network, rings: [
        ("graphs", lambda: GraphedNetwork(network, rings, capture)),
        ("no graphs", lambda: GraphedNetwork(network, rings, uncaptured))])
    assert (engine.way, engine.refused_ways) == ("no graphs", ("graphs",))
    engine.warm_up()
