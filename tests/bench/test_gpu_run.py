"""The script for a CUDA machine in its short form: on a CPU, with what is installed. `make gpu-dry` runs all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.capacity import full_record
from bench.gpu.random_7b import tokenizer_of, write
from services.gateway.sessions.records import open_record, seal_chunk, seal_facts
from services.gateway.sessions.sealing import Handle
from services.mesh.checkpoint import load_lm, load_mimi, resolve
from tests.conftest import ROOT

PARTS = ("checkpoint", "steps", "capacity")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_part_writes_its_result() -> None:
    done = subprocess.run(
        ["bash", "bench/gpu/run.sh", "--device", "cpu", "--small", "--installed", "--only", ",".join(PARTS)],
        cwd=ROOT, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (ROOT / "out/gpu/parts.jsonl").read_text().splitlines()
    assert [json.loads(line)["part"] for line in lines] == list(PARTS)
    equal, steps = (json.loads((ROOT / f"out/gpu/{name}.json").read_text())["result"] for name in ("equal", "steps"))
    assert equal["equal_next_tokens"] == 1, "in float32, moshi's own tokens"
    assert {(one["precision"], one["rows"]) for one in steps if "rows" in one} == {
        (precision, rows) for precision in ("bf16", "int8", "fp8", "int4") for rows in (1, 2)}
    capacity = json.loads((ROOT / "out/gpu/capacity.json").read_text())
    assert capacity["history_steps"] == 51, "as much as the model remembers, and its delay"
    assert capacity["loads"][0]["errors"] == 0 and capacity["loads"][0]["frames"] > 0


def test_the_random_checkpoint_loads_and_its_conversation_of_noise_is_one_that_the_gateway_reads(tmp_path: Path
                                                                                                 ) -> None:
    write(tmp_path, small=True, device="cpu")
    info = resolve(str(tmp_path))
    load_lm(info)
    load_mimi(info)
    record, handle = full_record(str(tmp_path)), Handle.new()
    chunk = seal_chunk(handle, record.history, 0, 0.0)
    read = open_record(handle, seal_facts(handle, record), [chunk])
    assert read.history.steps == read.history.next_sequence == 51
    assert read.history.to_proto() == record.history.to_proto()


def test_a_tokenizer_has_as_many_pieces_as_the_7b_model() -> None:
    import sentencepiece

    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_of(32_000))
    assert tokenizer.get_piece_size() == 32_000
    assert tokenizer.pad_id() == 3
