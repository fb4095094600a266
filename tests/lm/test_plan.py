"""The table of GPUs says what the design reckons for Moshi's own 7 B."""

from dataclasses import replace

import pytest
from moshi.models import loaders

from services.lm.gpus import GPUS, gpu_named
from services.lm.linear import Precision
from services.lm.plan import Row, plan, shape_of, table
from services.lm.sizing import KvPrecision
from tests.lm.small_lm import random_lm

Kind = tuple[str, Precision, KvPrecision]


@pytest.fixture(scope="module")
def rows() -> dict[Kind, Row]:
    return {(row.gpu.name, row.precision, row.kv_precision): row for row in plan(shape_of(loaders._lm_kwargs), [3000])}


def test_what_a_step_of_the_7b_model_reads(rows: dict[Kind, Row]) -> None:
    assert rows["H100 80 GB", "bf16", "bf16"].size.streamed_bytes == pytest.approx(14.75e9, rel=0.002)
    assert rows["H100 80 GB", "int8", "int8"].size.streamed_bytes == pytest.approx(7.37e9, rel=0.002)
    assert rows["H100 80 GB", "bf16", "bf16"].size.slot_bytes == 3000 * (512 << 10)


@pytest.mark.parametrize(("kv_precision", "count", "floor_ms"), [
    ("bf16", 1, 4.9), ("bf16", 32, 19.4), ("int8", 32, 11.9), ("int8", 64, 19.4)])
def test_the_floor_on_an_h100(rows: dict[Kind, Row], kv_precision: KvPrecision, count: int, floor_ms: float) -> None:
    # The design's keys and values have no scales; with them int8 is 0.8 % more.
    assert rows["H100 80 GB", "bf16", kv_precision].floor_ms(count) == pytest.approx(floor_ms, rel=0.012)


def test_84_rows_fit_80_gb_with_8_bit_keys_and_values(rows: dict[Kind, Row]) -> None:
    assert rows["H100 80 GB", "bf16", "int8"].slots == rows["A100 80 GB", "bf16", "int8"].slots == 84
    assert rows["H100 80 GB", "bf16", "bf16"].slots == 41
    assert rows["H200", "bf16", "int8"].slots >= 128
    assert rows["L4", "bf16", "bf16"].slots == 2
    assert all(row.floor_ms(row.slots) < 80 for row in rows.values())


def test_a_model_that_does_not_fit_has_no_slots_and_the_table_says_so() -> None:
    lm = random_lm(num_layers=1, context=40)
    rows = list(plan(lm, [20, 40]))
    assert len(rows) == len(GPUS) * 4 * 2 and all(isinstance(row, Row) for row in rows)
    assert "does not fit" in table([replace(rows[0], slots=0)])
    assert table(rows).count("\n") == len(rows) + 1


@pytest.mark.parametrize(("cuda", "name"), [
    ("NVIDIA H100 80GB HBM3", "H100 80 GB"), ("NVIDIA L40S", "L40S"), ("NVIDIA L4", "L4"),
    ("NVIDIA A100-SXM4-80GB", "A100 80 GB"), ("NVIDIA A10", "A10"), ("NVIDIA A10G", None), ("NVIDIA L40", None)])
def test_a_gpu_is_known_by_cudas_name(cuda: str, name: str | None) -> None:
    gpu = gpu_named(cuda)
    assert (gpu.name if gpu else None) == name
