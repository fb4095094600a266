"""The pages that benchmarks write, and the part that is about a checkpoint on a device."""

from __future__ import annotations

from pathlib import Path

import pytest
from moshimesh import HopTiming

from bench import checkpoint_engines, report
from bench.capacity import real_time_factor
from harness.load import Caller

SPREAD = {"min": 1.0, "median": 2.0, "max": 4.0}


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "DOCS", tmp_path)
    monkeypatch.setattr(report, "IMAGES", tmp_path / "img")
    return tmp_path


def test_a_gpus_figures_have_a_page_of_their_own(docs: Path) -> None:
    engines = {"checkpoint": "somebody/moshi", "device": "NVIDIA Thing",
               "lm": {"b1": {"lmgen": SPREAD, "bf16": SPREAD}}, "mimi": {"b1": {"torch": SPREAD, "moshi-mesh": SPREAD}}}
    path = report.write({"checkpoint_engines": engines}, "bench-gpu")
    assert path == docs / "benchmarks-gpu.md"
    page = path.read_text()
    assert "`make bench-gpu`" in page and "NVIDIA Thing" in page and "somebody/moshi" in page and "no GPU" not in page
    assert "| 1 | 2 | 2 | 1 |" in page


def test_what_does_not_fit_on_the_device_is_a_dash(docs: Path) -> None:
    engines = {"checkpoint": "c", "device": "d", "mimi": {},
               "lm": {"b1": {"lmgen": SPREAD, "bf16": SPREAD}, "b32": {"bf16": SPREAD}}}
    assert "| 32 | - | 2 | - |" in report.write({"checkpoint_engines": engines}, "bench-gpu").read_text()


@pytest.mark.slow
def test_the_checkpoints_engines_are_measured_beside_moshis(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_engines, "BATCHES", (1, 2))
    found = checkpoint_engines.run(checkpoint, "cpu", quick=True)["checkpoint_engines"]
    assert found["lm"].keys() == found["mimi"].keys() == {"b1", "b2"}
    for batch in ("b1", "b2"):
        assert found["lm"][batch].keys() == {"lmgen", "fp32", "bf16", "int8", "fp8", "int4"}
        assert found["mimi"][batch].keys() == {"torch", "moshi-mesh"}
        for times in (*found["lm"][batch].values(), *found["mimi"][batch].values()):
            assert 0 < times["min"] <= times["median"] <= times["max"]


def test_what_callers_frames_took_to_compute_against_their_length() -> None:
    def hop(compute_ms: float) -> HopTiming:
        return HopTiming("lm.step", 1.0, compute_ms, 1, 0, 0)

    people = [Caller(0, hops={0: [hop(4.0), hop(6.0)], 1: [hop(20.0)]}), Caller(1, hops={0: [hop(40.0)]}), Caller(2)]
    assert real_time_factor(people) == 4.0
    assert real_time_factor([Caller(0)]) == 0.0
