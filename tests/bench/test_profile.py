"""What `make profile` makes of its measurements, and that it measures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from torch import nn
from torch.profiler import ProfilerActivity, profile

from bench.profile import Engines, run
from bench.profile_report import OperatorCost, Part, Stage, Tick, as_json, attribute, bottleneck, draw, scaled, sentence
from bench.ranges import Operators, Place, Ranges, operators

COST = OperatorCost(eager_ms=0.003, real_ms=0.001)


def test_what_the_bare_network_costs_more_is_taken_off_before_shares_are_read() -> None:
    # 100 operators cost 0.2 ms more when they are called from Python
    parts = attribute(2.0, {"few": 1.0, "many": 1.2}, {"few": Operators(0, 0), "many": Operators(100, 0)}, COST)
    assert parts["few"].ms == pytest.approx(1.0)
    assert parts["many"] == Part(pytest.approx(1.0), pytest.approx(0.9), pytest.approx(0.1), 100, 1.2)


def test_a_part_that_is_nothing_but_operators_is_all_launch() -> None:
    (part,) = attribute(0.05, {"tiny": 0.3}, {"tiny": Operators(100, 0)}, COST).values()
    assert (part.compute_ms, part.launch_ms) == (pytest.approx(0.0), pytest.approx(0.05))


def test_on_a_gpu_kernels_are_compute_and_the_rest_is_launch() -> None:
    parts = attribute(10.0, {"main": 30.0, "depth": 60.0}, {"main": Operators(100, 3.0), "depth": Operators(300, 1.0)},
                      COST, kernels_ms=4.0)
    assert parts["main"] == Part(pytest.approx(4.5), pytest.approx(3.0), pytest.approx(1.5), 100, 30.0)
    assert parts["depth"] == Part(pytest.approx(5.5), pytest.approx(1.0), pytest.approx(4.5), 300, 60.0)


def test_shares_add_up_even_when_nothing_was_seen() -> None:
    assert scaled({"a": 0.0, "b": 0.0}, 3.0) == {"a": 1.5, "b": 1.5}
    assert sum(scaled({"a": 1.0, "b": 2.0}, 3.0).values()) == pytest.approx(3.0)


def tick(encode: float = 1.0, lm: float = 1.0, decode: float = 1.0, launch: float = 0.0, copies: float = 0.0,
         wait: float = 0.0) -> Tick:
    """So many ms of one part in each engine; `launch` is the share of it that is launch."""
    stages = {name: Stage(ms + copies, copies, wait, {"transformer": Part(ms, ms * (1 - launch), ms * launch, 9, ms)})
              for name, ms in (("encode", encode), ("lm", lm), ("decode", decode))}
    return Tick(8, stages)


@pytest.mark.parametrize(("measured", "expected"), (
    (tick(encode=2.0), ("Mimi", "encode: transformer", "compute")),
    (tick(decode=2.0, launch=0.7), ("Mimi", "decode: transformer", "launch")),
    (tick(lm=9.0), ("LM", "lm: transformer", "compute")),
    (tick(lm=9.0, copies=20.0, encode=0.1, decode=0.1), ("Mimi", "encode: transformer", "copies")),
    (tick(wait=5.0), ("wait", "encode", "wait")),
))
def test_the_bottleneck_is_named(measured: Tick, expected: tuple[str, str, str]) -> None:
    assert bottleneck(measured) == expected
    assert sentence(measured).startswith("At 8 callers the bottleneck is ")
    assert sentence(measured).count("\n") == 0


def test_the_sentence_says_who_what_and_how_much() -> None:
    assert sentence(tick(lm=9.0, launch=0.7)) == (
        "At 8 callers the bottleneck is LM (9.0 of a tick's 11.0 ms), most of all the language model's transformer "
        "(9.0 ms); 70% of it is launch: the overhead of calling operators, not what they compute.")


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + 1


def test_ranges_are_exclusive_and_leave_nothing_behind() -> None:
    now = iter(range(100))
    module = Outer()
    ranges = Ranges(clock=lambda: float(next(now)))
    with ranges.at([Place(module, "forward", "outer"), Place(module.inner, "forward", "inner")]):
        module(torch.zeros(1, 4))
    assert dict(ranges.seconds) == {"outer": 2.0, "inner": 1.0}  # a second between any two looks at the clock
    assert "forward" not in vars(module) and "forward" not in vars(module.inner)
    module(torch.zeros(1, 4))
    assert dict(ranges.seconds) == {"outer": 2.0, "inner": 1.0}


def test_operators_count_where_they_were_called() -> None:
    module = Outer()
    ranges = Ranges()
    with (ranges.at([Place(module, "forward", "outer"), Place(module.inner, "forward", "inner")]), torch.no_grad(),
          profile(activities=[ProfilerActivity.CPU]) as profiled):
        module(torch.zeros(1, 4))
    found = operators(profiled.events(), ("outer", "inner"))
    assert {label: one.count for label, one in found.items()} == {"outer": 1, "inner": 1}  # add; linear, not its parts


def test_the_engines_of_the_service_are_profiled_and_put_back(checkpoint: str, tmp_path: Path) -> None:
    with Progress(disable=True) as progress:
        results = run(checkpoint, "cpu", (1,), True, progress)
    (one,) = results["ticks"]
    assert set(one.stages["lm"].parts) == {"main transformer", "depth transformer", "sampling"}
    for name in ("encode", "decode"):
        assert set(one.stages[name].parts) == {"past", "convolutions", "transformer", "quantizer"}
    for stage in one.stages.values():
        parts = sum(part.ms for part in stage.parts.values()) + stage.copies_ms
        assert parts == pytest.approx(stage.ms)
        assert stage.compute_ms + stage.launch_ms + stage.copies_ms == pytest.approx(stage.ms)
        assert all(part.operators > 0 for part in stage.parts.values())
    document = json.loads(json.dumps(as_json(results)))
    assert document["ticks"]["1"]["bottleneck"]["who"] in ("Mimi", "LM", "wait")
    draw(results["ticks"] + [dataclasses.replace(one, callers=64)], tmp_path / "profile.png")
    assert (tmp_path / "profile.png").stat().st_size > 10_000


def test_the_bare_network_says_the_same_as_the_recorded_one(checkpoint: str) -> None:
    engines, bare = Engines(checkpoint, "cpu", 2), Engines(checkpoint, "cpu", 2)
    rows = [0, 1]
    with bare.eager("lm"), bare.eager("encode"):
        assert (bare.encoder.step(rows, bare.pcm) == engines.encoder.step(rows, engines.pcm)).all()
        for _ in range(3):
            assert (bare.lm.step(rows, bare.user) == engines.lm.step(rows, engines.user)).all()
