"""The GPU's kernels give what the CPU's operators give, and compile for the GPUs of the table.

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
def test_a_step_of_fused_kernels_is_the_networks() -> None:
    found = run("tests.lm.fused_cases")
    assert found["cases"] == {"float32": 40, "bfloat16": 40}
    assert found["max_error"]["float32"] < 2e-6
    assert found["max_error"]["bfloat16"] < 0.01, "the interpreter cuts bfloat16's digits off"
    assert found["turned_error"] < 2e-6
    assert found["draws_that_differ"] == 0
    assert found["steps"] == 8
    assert found["tokens_that_differ"] == 0
    assert found["max_new_error"] < 0.02, "int8 steps of keys may be rounded the other way"
    assert found["rounded_tokens_that_differ"] < 0.5 and found["rounded_max_new_error"] < 0.1


def test_the_7b_models_step_launches_a_third_of_what_torch_would() -> None:
    found = run("bench.gpu.launches")
    assert found["bf16"]["fused"]["all"] <= 705 < 2000 < found["bf16"]["torch's operators"]["all"]
    assert found["int8"]["fused"]["all"] <= 705


@pytest.mark.slow
def test_they_compile_for_gpus_that_are_not_here() -> None:
    kernels = run("tests.lm.compiled_kernels")
    assert len(kernels) == 10 + 32 + 30 and all(kernel["cubin_bytes"] for kernel in kernels)
    assert max(kernel["shared_bytes"] for kernel in kernels) <= 99 << 10, "an L4 has no more"
