"""The delay line: many steps at once are the same as one by one."""

from __future__ import annotations

import numpy as np
import pytest

from services.lm.delays import DelayLine

DELAYS = [0, 0, 1, 2, 1, 0, 2, 1]  # text, four own, three of the user


def line() -> DelayLine:
    return DelayLine(2, DELAYS, 4, [100 + stream for stream in range(len(DELAYS))])


@pytest.mark.parametrize("before", [0, 1, 3, 9])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 40])
def test_replay(before: int, count: int) -> None:
    rng = np.random.default_rng(before * 100 + count)
    codes, generated = rng.integers(50, size=(before + count, 3)), rng.integers(50, size=(before + count, 5))
    slow, fast = line(), line()
    inputs = []
    for step in range(before + count):
        inputs.append(slow.feed(np.array([1]), codes[[step]])[0])
        slow.take(np.array([1]), generated[[step]])
    if before:
        fast.replay(1, codes[:before], generated[:before])
    assert (fast.replay(1, codes[before:], generated[before:]) == inputs[before:]).all()
    assert (fast.positions == slow.positions).all()
    assert (fast._line == slow._line).all()
