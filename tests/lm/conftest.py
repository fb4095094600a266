"""What the engine's tests share."""

from collections.abc import Callable

import pytest
import torch
from moshi.models.lm import LMModel

from tests.lm.small_lm import Ints, random_codes, random_lm, reference_tokens


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """As the service runs; and threads only get in each other's way in matrices this small."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lm() -> LMModel:
    """The small random model; nobody may change it."""
    return random_lm()


@pytest.fixture(scope="session")
def reference(lm: LMModel) -> Callable[[int, int], Ints]:
    """Reference tokens of (frames, seed of the codes) for the small model, computed once."""
    known: dict[int, Ints] = {}

    def tokens(frames: int, seed: int) -> Ints:
        if len(known.get(seed, ())) < frames:
            known[seed] = reference_tokens(lm, random_codes(frames, seed))
        return known[seed][:frames]

    return tokens
