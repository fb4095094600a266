"""A random checkpoint of Moshi's own 7 B shape: python -m bench.gpu.random_7b FOLDER [--small] [--device cuda]

With --small of a shape that a CPU can step. The weights are noise, made on the device: on a CPU 7 billion of them would
take minutes. What they are costs a step nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from moshi.models import loaders
from moshi.models.lm import LMModel
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2 as pieces

from scripts.random_checkpoint import CARD, CODEBOOKS, FILES, MIMI_CONFIG, train_tokenizer

SEVEN_B: dict[str, Any] = dict(loaders._lm_kwargs)
SMALL: dict[str, Any] = SEVEN_B | {
    "dim": 128, "num_heads": 4, "num_layers": 2, "context": 50, "card": CARD, "text_card": 512, "depformer_dim": 64,
    "depformer_num_heads": 4, "depformer_num_layers": 1, "depformer_dim_feedforward": 264}


def random_lm(config: dict[str, Any], dtype: torch.dtype, device: str, home: str = "cpu") -> LMModel:
    """Made on the device, and kept at home: on the CPU a GPU has more room for an engine."""
    lm: LMModel = loaders.get_moshi_lm(None, dict(config), device="meta", dtype=dtype).to_empty(device=home)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            noise = torch.empty(parameter.shape, device=device, dtype=parameter.dtype)
            if name.endswith("alpha"):
                noise.uniform_(0.5, 1.5, generator=generator)
            else:
                noise.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
            parameter.copy_(noise)
    return lm.eval().requires_grad_(False)


def tokenizer_of(entries: int) -> bytes:
    """The small checkpoints' tokenizer with pieces that nothing is made of, up to so many."""
    model = pieces.ModelProto.FromString(train_tokenizer())
    model.pieces.extend(pieces.ModelProto.SentencePiece(piece=f"\u2581{number}", score=-1e6 - number)
                        for number in range(entries - len(model.pieces)))
    model.trainer_spec.vocab_size = entries
    return bytes(model.SerializeToString())


def write(folder: Path, small: bool, device: str) -> None:
    """config.json and the files that it names."""
    config, mimi_config = (SMALL, MIMI_CONFIG) if small else (SEVEN_B, loaders._mimi_config)
    folder.mkdir(parents=True, exist_ok=True)
    lm = random_lm(config, torch.bfloat16, device)
    save_file(lm.state_dict(), folder / FILES["moshi_name"])
    torch.manual_seed(0)
    mimi = loaders.get_mimi(None, mimi_config, num_codebooks=CODEBOOKS)
    save_file({name: value.contiguous() for name, value in mimi.state_dict().items()}, folder / FILES["mimi_name"])
    (folder / FILES["tokenizer_name"]).write_bytes(tokenizer_of(config["text_card"]))
    np.save(folder / "speech_table.npy", np.zeros((CODEBOOKS, config["card"]), np.int8))
    (folder / FILES["mimi_config_name"]).write_text(json.dumps(mimi_config))
    (folder / "config.json").write_text(json.dumps(FILES | {"model_type": "moshi"} | config))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    write(options.folder, options.small, options.device)
