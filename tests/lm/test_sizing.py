"""What is reckoned beforehand is what an engine then takes."""

from typing import get_args

import pytest

from services.lm.engine import LmEngine
from services.lm.linear import Precision
from services.lm.sizing import KvPrecision, slots_that_fit
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
    assert slots_that_fit(lm, free, precision, kv_precision) == 3
    assert slots_that_fit(lm, free - 9, precision, kv_precision) == 2


def test_no_room_for_one_slot_is_refused() -> None:
    lm = random_lm(**CHANGES)
    facts = LmEngine(lm, 1).facts
    needed = -(-(facts.weights_bytes + facts.kv_bytes_per_slot) * 10 // 9)
    assert slots_that_fit(lm, needed, "fp32", "fp32") == 1
    with pytest.raises(ValueError, match=f"one slot needs {needed} bytes .* but {needed - 9} are free"):
        slots_that_fit(lm, needed - 9, "fp32", "fp32")
