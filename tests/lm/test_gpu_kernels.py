"""The GPU's attention and its products of 8 bits give what the CPU's give, and compile for the GPUs of the table.

Triton decides at its import whether it interprets, so each runs in a process of its own.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")  # a CPU's torch does not bring it

ROOT = Path(__file__).parents[2]


def run(module: str) -> Any:
    done = subprocess.run([sys.executable, "-m", module], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_shape_and_length_gives_what_the_cpu_gives() -> None:
    found = run("tests.lm.attention_cases")
    assert found["cases"] >= 60
    assert found["max_error"] < 2e-5
    assert found["max_new_error"] == 0, "what is remembered is the same to the bit"
    assert found["others_untouched"]


def test_products_of_8_bits_are_those_of_the_unpacked_weights() -> None:
    found = run("tests.lm.product_cases")
    assert found["cases"] == 16
    assert found["max_error"] < 1e-6


@pytest.mark.slow
def test_they_compile_for_gpus_that_are_not_here() -> None:
    kernels = run("tests.lm.compiled_kernels")
    assert len(kernels) == 10 + 32 and all(kernel["cubin_bytes"] for kernel in kernels)
    assert max(kernel["shared_bytes"] for kernel in kernels) <= 99 << 10, "an L4 has no more"
