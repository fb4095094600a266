"""Every published Moshi checkpoint loads, or is refused in one clear line: their shapes, small and random.

What moshi-finetune writes, LoRA adapters and weights of 8 bits are in test_checkpoint_kinds.py.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts.random_checkpoint import FILES, LM_CONFIG, random_lm, write_checkpoint
from services.lm.engine import LmEngine
from services.lm.sampling import Sampling
from services.mesh.checkpoint import CheckpointError, load_lm, load_mimi, resolve
from tests.lm.small_lm import random_codes, reference_tokens

# Hibiki's switches beside Moshi's: depth weights shared by the later codebooks, low-rank embeddings, longer delays.
HIBIKI = LM_CONFIG | {
    "depformer_weights_per_step_schedule": [0, 1, 2, 3, 4, 4, 4, 4], "depformer_low_rank_embeddings": 32,
    "delays": [0, 0, 2, 2, 2, 2, 2, 2, 2, 0, 2, 2, 2, 2, 2, 2, 2]}
DESCRIBED = {"conditioners": {"description": {"type": "lut", "lut": {"n_bins": 31, "dim": 16, "tokenizer": "noop"}}},
             "fuser": {"cross_attention_pos_emb": False, "sum": ["description"], "prepend": [], "cross": []}}


@pytest.fixture(scope="module")
def moshiko(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("published") / "moshiko"
    write_checkpoint(folder, seed=0)
    return folder


@pytest.fixture
def folder(moshiko: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(moshiko, tmp_path / "copy"))


def rewrite(folder: Path, config: dict[str, Any]) -> None:
    """A language model of this configuration in the folder."""
    torch.manual_seed(1)
    with torch.no_grad():
        model = random_lm(config)
    save_file({name: value.bfloat16().contiguous() for name, value in model.state_dict().items()},
              folder / FILES["moshi_name"])
    (folder / "config.json").write_text(json.dumps(FILES | {"model_type": "moshi"} | config))


def steps_as_moshi(folder: Path) -> bool:
    info = resolve(str(folder))
    load_mimi(info)
    lm = load_lm(info, dtype=torch.float32)
    codes = random_codes(12, 1, lm.card, lm.n_q - lm.dep_q)
    engine = LmEngine(lm, 1)
    engine.open(0, Sampling(text_temperature=0, audio_temperature=0))
    answers = np.concatenate([engine.step([0], frame[None]) for frame in codes])
    return bool((answers == reference_tokens(lm, codes)).all())


def test_moshiko_and_moshika_for_pytorch_in_bf16(folder: Path) -> None:
    rewrite(folder, LM_CONFIG)
    assert steps_as_moshi(folder)


def test_the_old_names_of_the_first_release(folder: Path) -> None:
    """Its attention's projections were parameters, not layers; candle's bf16 checkpoint has the same."""
    weights = load_file(folder / FILES["moshi_name"])
    old = {name.replace(".in_projs.0.weight", ".in_proj_weight").replace(".out_projs.0.weight", ".out_proj.weight")
           if name.startswith("transformer.") else name: value for name, value in weights.items()}
    assert old.keys() != weights.keys()
    save_file(old, folder / FILES["moshi_name"])
    assert steps_as_moshi(folder)


def test_hibiki_without_its_conditions(folder: Path) -> None:
    rewrite(folder, HIBIKI)
    assert steps_as_moshi(folder)


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_hibiki_with_conditions_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(FILES | {"model_type": "hibiki"} | HIBIKI | DESCRIBED))
    assert "conditioners must be empty" in refused(folder)


def test_a_model_that_speaks_for_the_caller_too_is_refused(folder: Path) -> None:
    """PersonaPlex: its depth transformer has 16 codebooks, eight of which are the caller's."""
    (folder / "config.json").write_text(json.dumps(FILES | {"model_type": "moshi"} | LM_CONFIG | {"dep_q": 16}))
    assert "dep_q 16 of n_q 16 leaves no codebooks for the user" in refused(folder)


def test_gguf_is_refused(folder: Path) -> None:
    (folder / "model.q8.gguf").write_bytes(b"GGUF")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"moshi_name": "model.q8.gguf"}))
    assert "model.q8.gguf is GGUF" in refused(folder)
    (folder / "config.json").unlink()
    assert "model.q8.gguf is of Moshi's Rust or MLX programs; take the same model's checkpoint for PyTorch" in refused(
        folder)


@pytest.mark.parametrize(("name", "words"), [
    ("depformer.slices.0.linear_in.weight", "layout of Moshi's MLX program"),
    ("transformer.layers.0.self_attn.in_proj.scales", "layout of Moshi's MLX program"),
    ("depformer.0.linear_in.weight", "layout of Moshi's Rust program")])
def test_the_layouts_of_other_programs_are_refused(folder: Path, name: str, words: str) -> None:
    weights = load_file(folder / FILES["moshi_name"])
    save_file(weights | {name: torch.zeros(1)}, folder / FILES["moshi_name"])
    assert words in refused(folder)
