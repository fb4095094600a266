"""A slot, a row or a session that nobody holds any more is found, counted once and named; what is on its way is not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from harness.null_services import NullEngine
from services.lm.sampling import Sampling
from services.lm.server import LmStepper, Opening
from services.mesh.batching import Batcher
from services.mesh.invariants import Invariants, Violation, of_slots
from services.mesh.metrics import Metrics


@pytest.fixture
async def batcher() -> AsyncIterator[Batcher[Any, Any, Any]]:
    engine: Any = NullEngine(2, np.zeros(9, np.int64), 1)
    batcher: Batcher[Any, Any, Any] = Batcher("lm", LmStepper(engine))
    yield batcher
    await batcher.close()


@contextlib.asynccontextmanager
async def watching(*checks: Any, every_s: float = 3600.0) -> AsyncIterator[Invariants]:
    invariants = Invariants(Metrics(), ["slots"], checks, every_s)
    yield invariants
    await invariants.close()


async def test_a_slot_whose_call_has_ended_is_named_once(batcher: Batcher[Any, Any, Any],
                                                         caplog: pytest.LogCaptureFixture) -> None:
    async def forgets() -> Any:
        lease = batcher.lease("one", Opening(Sampling(), None, None))
        lease.__enter__()
        return lease

    async with watching(of_slots([batcher])) as invariants:
        with batcher.lease("good", Opening(Sampling(), None, None)):
            lease = await asyncio.create_task(forgets())
            assert invariants.look() == []
            assert invariants.look() == [Violation("slots", "row 1 of lm is held by a call that has ended")]
            assert invariants.look() == []
            lease.__exit__(None, None, None)
        assert [invariants.look(), invariants.look()] == [[], []]
    assert caplog.text.count("row 1 of lm is held by a call that has ended") == 1


async def test_a_row_that_is_neither_free_nor_held_is_named(batcher: Batcher[Any, Any, Any]) -> None:
    batcher._free.remove(1)
    async with watching(of_slots([batcher])) as invariants:
        invariants.look()
        assert [one.invariant for one in invariants.look()] == ["slots"]


async def test_what_does_not_agree_for_a_moment_is_nothing() -> None:
    wrong = [Violation("rows", "rows", "1"), Violation("line", "line"), Violation("rows", "rows", "2")]
    async with watching(lambda: [wrong.pop()] if wrong else []) as invariants:
        assert [invariants.look() for _ in range(4)] == [[]] * 4


async def test_numbers_that_change_do_not_hide_it() -> None:
    numbers = iter(range(9))
    async with watching(lambda: [Violation("rows", "rows", str(next(numbers)))]) as invariants:
        assert [len(invariants.look()) for _ in range(3)] == [0, 1, 0]


async def test_a_check_that_fails_does_not_end_the_others(caplog: pytest.LogCaptureFixture) -> None:
    looked = asyncio.Event()

    def fails() -> list[Violation]:
        if caplog.records:
            looked.set()
        raise ValueError("no")

    async with watching(fails, every_s=0.01):
        await asyncio.wait_for(looked.wait(), 20)
