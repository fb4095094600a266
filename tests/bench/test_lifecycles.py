"""Random lives of sessions leave no slot taken; `make chaos` runs ten thousand."""

from __future__ import annotations

import pytest

from bench.lifecycles import run


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [1])
async def test_no_slot_leaks(seed: int) -> None:
    assert sum((await run(1000, seed)).values()) == 1000
