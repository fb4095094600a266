"""Which way to step is served on a GPU: the fastest whose first steps agree with the plain one, kernel by kernel.

A compiler, a driver or a card that we have never met may break the fast ways. Then a caller hears a slower model, not
a wrong one: what is refused is named in one line and counted.

Compared are the keys and values that a step adds to every layer's ring (each comes from all layers before it) and the
tokens (which come from the last layer, the heads and the depth transformer), over histories of noise of several
lengths: none, half a ring, one slot before it is full, and one that has been round. Every other row is greedy.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from services.lm.attention import kept, recalled
from services.lm.graphed import GraphedNetwork, uncaptured
from services.lm.linear import EightBitLinear, Product, unpacked_product
from services.lm.network import Decode, Draws, Network
from services.lm.sampling import Sampling

log = logging.getLogger(__name__)

STEPS = 3
MOST_OFF = 0.1
"""Of the norm of a layer's new keys and values. In bfloat16 another order of sums is off by some hundredths after 32
layers; what is wrong is off by about 1."""
MOST_OFF_PRODUCT = 0.02
"""Of the size of one product: bfloat16 rounds each number by less than half a hundredth."""
USUAL_TOP_K = (Sampling().text_top_k, Sampling().audio_top_k)
"""So the graphs that are captured for the check are those that calls will need."""
LEAST_EQUAL = 0.5
"""Share of tokens. Near ties may go the other way; of what is wrong, one in a thousand is equal."""


class Chosen(NamedTuple):
    """The way to step, its name, and the names of those that were refused."""

    generate: GraphedNetwork
    name: str
    refused: tuple[str, ...]


class Disagrees(Exception):
    """A way to step is off."""


Way = tuple[str, Callable[[], GraphedNetwork]]


def ways(network: Network, rings: Tensor) -> list[Way]:
    """The fastest first; the last one is the plain one."""
    def with_fused() -> GraphedNetwork:
        from services.lm.fused import FusedNetwork  # Triton, which not every torch brings

        return GraphedNetwork(network, rings, fused=FusedNetwork(network))

    def with_decode() -> GraphedNetwork:
        from services.lm.decode_attention import attend_decode

        decode: Decode = attend_decode
        return GraphedNetwork(network, rings, decode=decode)

    return [("graphs of Triton's kernels", with_fused),
            ("graphs with Triton's attention", with_decode),
            ("graphs with torch's attention", lambda: GraphedNetwork(network, rings)),
            ("no graphs", lambda: GraphedNetwork(network, rings, uncaptured))]


def choose(ways: Sequence[Way], rings: Tensor, streams: int, cardinality: int) -> Chosen:
    """The first of the ways that agrees with the last. What the rows' rings held is lost."""
    *fast, (plain_name, build_plain) = ways
    plain = build_plain()
    refused: list[str] = []
    for name, build in fast:
        try:
            way = build()
            _compare(way, plain, rings, streams, cardinality)
            return Chosen(way, name, tuple(refused))
        except Exception as error:  # whatever a compiler or a driver may raise
            log.warning("not served: %s: %s", name, _reason(error))
            refused.append(name)
    return Chosen(plain, plain_name, tuple(refused))


@torch.inference_mode()
def _compare(way: GraphedNetwork, plain: GraphedNetwork, rings: Tensor, streams: int, cardinality: int) -> None:
    slots, context = rings.shape[2], rings.shape[4]
    positions = np.resize(np.array([0, context // 2, context - 1, context + 7]), slots)
    rows = np.arange(min(4, slots))
    _fill_with_noise(rings, len(rows))
    seeds = torch.arange(slots)
    sampled = seeds[:, None] % 2
    draws = Draws(Sampling().audio_temperature * sampled.expand(-1, 2).float(),
                  torch.where(sampled > 0, torch.tensor(USUAL_TOP_K).clamp(max=cardinality), 1), seeds)
    random = np.random.default_rng(0)
    equal = []
    for _ in range(STEPS):
        tokens = random.integers(0, cardinality, (len(rows), streams))
        places = [(row, int(positions[row]) % context) for row in rows.tolist()]
        before = rings[0, :, : len(rows)].clone()  # of one layer: all would be gigabytes
        found = way(tokens, rows, positions, draws)
        ours = _new(rings, places)
        for row, place in places:
            before[:, row, :, place] = rings[0, :, row, :, place]
        if not torch.equal(before, rings[0, :, : len(rows)]):
            raise Disagrees("a step changed keys or values of other positions")
        # The plain step puts its own in the same places before it looks, so that it needs no copy of the rings.
        equal.append(found == plain(tokens, rows, positions, draws))
        for layer, (mine, right) in enumerate(zip(ours, _new(rings, places), strict=True)):
            off = float((mine - right).norm() / right.norm().clamp(min=1e-12))
            if not off < MOST_OFF:
                raise Disagrees(f"new keys and values of layer {layer} are off by {off:.3f} of their size")
        positions = positions + 1
    for kind, of_rows in (("greedy", slice(0, None, 2)), ("sampled", slice(1, None, 2))):
        share = np.mean([step[of_rows] for step in equal]) if len(rows[of_rows]) else 1
        if share < LEAST_EQUAL:
            raise Disagrees(f"only {share:.0%} of the {kind} tokens are equal")
    rings[:, :, : len(rows)] = 0


@torch.inference_mode()
def choose_products(network: Network, load: Callable[[], Product] | None = None) -> tuple[str, ...]:
    """Gives weights of 8 bits the faster product, if that agrees with torch's own; else the name of what was refused.
    Before any step is captured.
    """
    linears = [module for module in network.modules() if isinstance(module, EightBitLinear)]
    shapes = {(linear.weight.shape, linear.weight.dtype): linear for linear in linears}
    name = "Triton's products of 8 bits"
    try:
        product = (load or _triton_product)() if linears else unpacked_product
        for linear in shapes.values():
            _compare_product(product, linear)
    except Exception as error:  # whatever a compiler or a driver may raise
        log.warning("not served: %s: %s", name, _reason(error))
        return (name,)
    for linear in linears:
        linear.product = product
    return ()


def _triton_product() -> Product:
    from services.lm.eight_bit import product  # Triton, which not every torch brings

    return product


def _compare_product(product: Product, linear: EightBitLinear) -> None:
    outputs, inputs = linear.weight.shape
    generator = torch.Generator(linear.weight.device).manual_seed(0)
    for rows in (1, 40):
        x, residual = (torch.randn(rows, size, generator=generator, device=linear.weight.device)
                       for size in (inputs, outputs))
        right = unpacked_product(x, linear.weight, linear.scale, residual)
        off = float((product(x, linear.weight, linear.scale, residual) - right).norm() / right.norm())
        if not off < MOST_OFF_PRODUCT:
            raise Disagrees(f"a product of {outputs} x {inputs} is off by {off:.3f} of its size")


def _reason(error: Exception) -> str:
    """Its first line: compilers add pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _fill_with_noise(rings: Tensor, rows: int) -> None:
    dim = rings.shape[5] - (rings.dtype == torch.int8)
    generator = torch.Generator(rings.device).manual_seed(0)
    for layer in rings:
        for part in layer[:, :rows].flatten(0, 1):  # one row's keys or values at a time: float32 is four times int8
            noise = torch.randn(part.shape[0] * part.shape[1], dim, generator=generator, device=rings.device)
            part.copy_(kept(noise, rings).view_as(part))


def _new(rings: Tensor, places: list[tuple[int, int]]) -> Tensor:
    """The keys and values at places (row, slot), float32 [layers, places, 2, kv_heads, head_dim]."""
    packed = torch.stack([rings[:, :, row, :, place] for row, place in places], dim=1)
    unpacked: Tensor = recalled(packed, rings.shape[5] - (rings.dtype == torch.int8))
    return unpacked.float()
