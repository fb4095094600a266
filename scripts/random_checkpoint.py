"""A small untrained checkpoint in Moshi's own format, loadable by the stock moshi package: for tests and benches.

    python scripts/random_checkpoint.py --out DIR [--seed 0]

It says nothing sensible, but every part reacts to its input: speech gives varied codes, the language model's greedy
tokens depend on the user's audio, and its codes decode to sound. Equal seeds give equal files.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from moshi.models import LMModel, MimiModel, loaders
from safetensors.torch import save_file
from torch import Tensor, nn

CODEBOOKS, CARD, TEXT_CARD = 8, 1024, 512
CALIBRATION_S, SAMPLE_RATE_HZ = 20, 24_000

MIMI_CONFIG: dict[str, Any] = loaders._mimi_config | {
    "seanet": loaders._seanet_kwargs | {"dimension": 128, "n_filters": 16},
    "transformer": loaders._transformer_kwargs | {
        "d_model": 128, "num_layers": 2, "dim_feedforward": 512, "input_dimension": 128, "output_dimensions": [128]},
    "quantizer": {"dimension": 64, "n_q": CODEBOOKS, "bins": CARD, "input_dimension": 128, "output_dimension": 128},
}
LM_CONFIG: dict[str, Any] = loaders._lm_kwargs | {
    "dim": 128, "num_heads": 4, "num_layers": 4, "context": 250, "card": CARD, "text_card": TEXT_CARD,
    "n_q": 2 * CODEBOOKS, "dep_q": CODEBOOKS,
    "depformer_dim": 64, "depformer_dim_feedforward": int(4.125 * 64), "depformer_num_heads": 4,
    "depformer_num_layers": 2,
}
FILES = {"moshi_name": "model.safetensors", "mimi_name": "mimi.safetensors", "tokenizer_name": "tokenizer.model",
         "mimi_config_name": "mimi_config.json"}

SUBJECTS = ("the caller,my sister,an old friend,the engineer,every listener,our neighbour,a quiet child,the doctor,"
            "somebody,your teacher,the whole village")
VERBS = ("asked about,remembers,would like to visit,talked over,dreamt of,wrote down,paid for,never mentioned,"
         "is looking for,photographed,cannot forget,explained,keeps")
OBJECTS = ("the morning train,a small garden,yesterday's weather,the price of bread,her first concert,the long bridge,"
           "twelve blue umbrellas,this question,a museum full of clocks")
ENDINGS = ("before lunch.,and laughed.,in the evening?,with great care.,twenty times.,on the telephone.,for no reason!,"
           "because we should.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; made when missing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_checkpoint(options.out, options.seed)
    print(f"wrote {options.out}")


def write_checkpoint(folder: Path, seed: int = 0, own_codebooks: int = CODEBOOKS, user_codebooks: int = CODEBOOKS
                     ) -> None:
    """Writes config.json and the files it names into `folder`.

    The language model speaks and hears so many codebooks, at most CODEBOOKS each.
    """
    lm_config = LM_CONFIG | {
        "n_q": own_codebooks + user_codebooks, "dep_q": own_codebooks,
        "delays": [0, *[0, *[1] * (own_codebooks - 1)], *[0, *[1] * (user_codebooks - 1)]]}
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    with torch.no_grad():
        _save(random_mimi(), folder / FILES["mimi_name"])
        _save(random_lm(lm_config), folder / FILES["moshi_name"])
    (folder / FILES["tokenizer_name"]).write_bytes(train_tokenizer())
    # Random codes say nothing of speech.
    np.save(folder / "speech_table.npy", np.zeros((CODEBOOKS, CARD), np.int8))
    (folder / FILES["mimi_config_name"]).write_text(json.dumps(MIMI_CONFIG, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(FILES | {"model_type": "moshi"} | lm_config, indent=2) + "\n")


def random_mimi(config: dict[str, Any] = MIMI_CONFIG, layer_scale: float = 0.3) -> MimiModel:
    """A Mimi whose codebooks fit what its random encoder makes of speech-like sound.

    `layer_scale`: how much each layer of its transformers adds. With the stock 0.01 they would hardly have a say.
    """
    mimi: MimiModel = loaders.get_mimi(None, config, num_codebooks=CODEBOOKS)
    for name, parameter in mimi.named_parameters():
        if name.endswith("scale"):
            parameter.fill_(layer_scale)
        elif parameter.dim() >= 2:
            # The stock initialisation shrinks the signal layer by layer until only the biases are left.
            fan_in = parameter.numel() // parameter.shape[0] if "convtr" not in name else 2 * parameter.shape[0]
            nn.init.normal_(parameter, std=1.2 / math.sqrt(fan_in))
    latent = mimi.encode_to_latent(speech_like(CALIBRATION_S), quantize=False)
    for rvq in (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest):
        rvq.input_proj.weight.div_(rvq.input_proj(latent).std())
        _fit_codebooks(rvq.vq.layers, rvq.input_proj(latent))
    loudness = mimi.decode(torch.randint(mimi.cardinality, (1, CODEBOOKS, 50))).std()
    mimi.decoder.model[-1].conv.conv.weight.mul_(0.1 / loudness)
    return mimi


def speech_like(seconds: int) -> Tensor:
    """Syllables of gliding pitch, vowel-like colour and some breath, float32 [1, 1, samples]."""
    count = seconds * SAMPLE_RATE_HZ
    syllables = seconds * 4

    def track(low: float, high: float) -> Tensor:
        steps = torch.empty(1, 1, syllables).uniform_(low, high)
        return nn.functional.interpolate(steps, size=count, mode="linear")[0, 0]

    phase = torch.cumsum(track(80, 300), 0) * (2 * math.pi / SAMPLE_RATE_HZ)
    sound = 0.02 * torch.randn(count)
    for harmonic in range(1, 16):
        sound += track(-0.5, 1.0).clamp(min=0) / harmonic * torch.sin(harmonic * phase)
    return (0.2 * sound * track(-0.3, 1.0).clamp(min=0))[None, None]


def _fit_codebooks(layers: nn.ModuleList, residual: Tensor) -> None:
    """Draws each level's entries from a Gaussian fitted to the residual [1, dimension, frames] it will see."""
    for layer in layers:
        samples = residual[0].T
        spread = torch.linalg.cholesky(torch.cov(samples.T) + 1e-6 * torch.eye(samples.shape[1]))
        codebook = layer._codebook
        entries = torch.randn(len(codebook.embedding_sum), samples.shape[1])
        codebook.embedding_sum.copy_(samples.mean(0) + entries @ spread.T)
        codebook._initialized.fill_(1)
        residual = residual - layer.decode(layer.encode(residual))


def random_lm(config: dict[str, Any]) -> LMModel:
    """A language model that listens: the stock initialisation, with louder attention and depth transformer."""
    lm: LMModel = loaders.get_moshi_lm(None, config, dtype=torch.float32)
    for name, parameter in lm.named_parameters():
        if parameter.dim() == 2 and (".layers." in name or name.startswith("depformer_in")):
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))
    return lm


def train_tokenizer() -> bytes:
    """A SentencePiece model of exactly TEXT_CARD pieces; as in Moshi's own, 0 is <unk> and 3 is padding."""
    parts = [words.split(",") for words in (SUBJECTS, VERBS, OBJECTS, ENDINGS)]
    sentences = [" ".join(part[index * step % len(part)] for part, step in zip(parts, (1, 3, 5, 11), strict=True))
                 for index in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=TEXT_CARD, model_type="bpe",
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, minloglevel=2)
    return model.getvalue()


def _save(model: nn.Module, path: Path) -> None:
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, path)


if __name__ == "__main__":
    main()
