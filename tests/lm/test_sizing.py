"""What is reckoned beforehand is what an engine then takes."""

from typing import get_args

import pytest

from services.lm.engine import LmEngine
from services.lm.linear import Precision
from services.lm.sizing import GPU_SPARE_BYTES, KvPrecision, size_of
from tests.lm.small_lm import random_lm

CHANGES = {"num_layers": 1, "context": 40, "depformer_low_rank_embeddings": 32, "kv_repeat": 2,
           "depformer_kv_repeat": 1}


@pytest.mark.parametrize("kv_precision", get_args(KvPrecision))
@pytest.mark.parametrize("precision", get_args(Precision))
def test_as_many_slots_as_an_engine_has_room_for(precision: Precision, kv_precision: KvPrecision) -> None:
    lm = random_lm(**CHANGES)
    engine = LmEngine(lm, 3, precision=precision, kv_precision=kv_precision)
    facts = engine.facts
    assert facts.kv_bytes_per_slot * 3 == engine._rings.nbytes
    free = -(-(facts.weights_bytes + engine._rings.nbytes) * 10 // 9)
    assert size_of(lm, precision, kv_precision).slots_in(free, on_gpu=False) == 3
    assert size_of(lm, precision, kv_precision).slots_in(free - 9, on_gpu=False) == 2


def test_no_room_for_one_slot_is_refused() -> None:
    lm = random_lm(**CHANGES)
    facts = LmEngine(lm, 1).facts
    needed = -(-(facts.weights_bytes + facts.kv_bytes_per_slot) * 10 // 9)
    size = size_of(lm, "fp32", "fp32")
    assert size.slots_in(needed, on_gpu=False) == 1
    with pytest.raises(ValueError, match=f"one slot needs {needed} bytes .* but {needed - 9} are free"):
        size.slots_in(needed - 9, on_gpu=False)


def test_a_gpu_spares_bytes_and_the_memory_of_one_slot_more() -> None:
    size = size_of(random_lm(**CHANGES), "bf16", "int8")
    free = size.weights_bytes + 4 * size.slot_bytes + GPU_SPARE_BYTES
    assert (size.slots_in(free, on_gpu=True), size.slots_in(free - 1, on_gpu=True)) == (3, 2)
    with pytest.raises(ValueError, match=r"one slot needs .* bytes to spare"):
        size.slots_in(GPU_SPARE_BYTES, on_gpu=True)
