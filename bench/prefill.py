"""How much faster a row is rebuilt from its history than by stepping it again: `python -m bench.prefill`.

A random model in Moshi's shape that remembers 3000 frames, as Moshi does: four minutes of a call. Greedy, one row, one
thread, CPU time. Both ways end in the same state, which the next step shows.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from bench.lm_engine import GREEDY, random_codes, random_lm
from bench.spread import spread
from services.lm.engine import LmEngine

FRAMES = 3000


def prefill_speedup(repeats: int) -> dict[str, float]:
    """Time to step a history over time to prefill it: min, median and max of the repeats."""
    torch.set_num_threads(1)
    engine = LmEngine(random_lm(context=FRAMES), 2)
    engine.warm_up()
    codes = random_codes(FRAMES + 1, 1)[:, 0]
    ratios = []
    for _ in range(repeats):
        engine.open(0, GREEDY)
        begin = time.thread_time()
        tokens = np.concatenate([engine.step([0], frame[None]) for frame in codes[:FRAMES]])
        stepped = time.thread_time() - begin
        begin = time.thread_time()
        engine.open(1, GREEDY)
        for _ in engine.prefill(1, codes[:FRAMES], tokens):
            pass
        ratios.append(stepped / (time.thread_time() - begin))
        if not np.array_equal(*engine.step([0, 1], codes[[FRAMES, FRAMES]])):
            raise RuntimeError("the rebuilt row goes on differently")
    return spread(ratios)


if __name__ == "__main__":
    print(prefill_speedup(3))
