"""Write the checkpoint folder in Moshi's official format, and load it the way stock moshi does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from moshi.models.loaders import CheckpointInfo
from safetensors.torch import save_file

from services.mesh.checkpoint_config import TEXT_PROMPT_CHARACTERS
from talker import card, codec, texts
from talker.config import (
    LM_CONFIG,
    MIMI_CONFIG,
    MIMI_CONFIG_NAME,
    MIMI_NAME,
    MOSHI_NAME,
    TOKENIZER_NAME,
    Work,
)

LONGEST_ASKED = max(len(text) for manner in texts.MANNERS for text in manner.asked)
GENERATION = {"temp": 0.7, "temp_text": 0.7, "top_k": 50, "top_k_text": 25}


def write(work: Work, out: Path, lm_weights: str) -> None:
    """Fill `out` with config, weights (fp16) and tokenizer; `lm_weights` is the language model's file in `work`."""
    out.mkdir(parents=True, exist_ok=True)
    codec.save(torch.load(work.path("joint.pt"), weights_only=False)["state"], out / MIMI_NAME)
    lm = torch.load(work.path(lm_weights), weights_only=False)
    save_file({k: v.half().contiguous() for k, v in lm.items()}, out / MOSHI_NAME)
    shutil.copy(work.path(TOKENIZER_NAME), out / TOKENIZER_NAME)
    (out / MIMI_CONFIG_NAME).write_text(json.dumps(MIMI_CONFIG, indent=2) + "\n")
    config = {
        **LM_CONFIG, "model_type": "moshi", "moshi_name": MOSHI_NAME, "mimi_name": MIMI_NAME,
        "mimi_config_name": MIMI_CONFIG_NAME, "tokenizer_name": TOKENIZER_NAME, "lm_gen_config": GENERATION,
        "model_id": {"sig": "moshi-mesh-talker", "epoch": 2, TEXT_PROMPT_CHARACTERS: LONGEST_ASKED},
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    card.write(out)


def checkpoint(folder: Path) -> CheckpointInfo:
    """The local folder through moshi's own loader. (`mimi_config_name` alone would be looked up on the hub.)"""
    return CheckpointInfo.from_hf_repo(
        "local", moshi_weights=folder / MOSHI_NAME, mimi_weights=folder / MIMI_NAME, tokenizer=folder / TOKENIZER_NAME,
        config_path=folder / "config.json", mimi_config_path=folder / MIMI_CONFIG_NAME,
    )


def total_bytes(folder: Path) -> int:
    """Size of everything in the checkpoint folder."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
