"""Every test here runs on a CPU and, where there is one, on a GPU: `pytest tests/gpu -k cuda` runs the latter alone."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """The device to compute on."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    torch.set_num_threads(1)
    return str(request.param)
