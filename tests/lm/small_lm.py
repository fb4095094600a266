"""A small random language model in Moshi's shape, and the reference loop over it."""

from typing import Any

import numpy as np
import torch
from moshi.models.lm import LMGen, LMModel
from moshi.utils.compile import no_compile
from numpy.typing import NDArray

Ints = NDArray[np.int64]

N_Q, DEP_Q = 16, 8
DELAYS = [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]


def random_lm(**changes: Any) -> LMModel:
    """A random `LMModel` with the real model's switches (see `moshi.models.loaders._lm_kwargs`), only smaller."""
    config: dict[str, Any] = {
        "dim": 256, "num_heads": 8, "num_layers": 4, "hidden_scale": 4.125, "context": 250, "max_period": 10000,
        "text_card": 512, "existing_text_padding_id": 3, "n_q": N_Q, "dep_q": DEP_Q, "card": 2048,
        "causal": True, "layer_scale": None, "gating": "silu", "norm": "rms_norm_f32",
        "positional_embedding": "rope", "depformer_dim": 128, "depformer_dim_feedforward": int(4.125 * 128),
        "depformer_num_heads": 4, "depformer_num_layers": 2, "depformer_layer_scale": None,
        "depformer_multi_linear": True, "depformer_context": 8, "depformer_max_period": 10000,
        "depformer_gating": "silu", "depformer_pos_emb": "none", "depformer_weights_per_step": True,
        "delays": DELAYS,
    }
    torch.manual_seed(0)
    lm = LMModel(**{**config, **changes}).eval()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if name.endswith("alpha"):  # moshi starts norms at 1: a forgotten scale would go unseen
                parameter.copy_(torch.empty_like(parameter).uniform_(0.5, 1.5))
    lm.requires_grad_(False)
    return lm


def random_codes(frames: int, seed: int, card: int = 2048, codebooks: int = N_Q - DEP_Q) -> Ints:
    """A caller's codes [frames, codebooks]."""
    return np.random.default_rng(seed).integers(0, card, (frames, codebooks))


def reference_tokens(lm: LMModel, codes: Ints) -> Ints:
    """What moshi's own loop generates greedily for one caller: tokens [frames, 9], -2 while the delay line fills."""
    generator = LMGen(lm, use_sampling=False)
    tokens = []
    with torch.no_grad(), no_compile(), generator.streaming(1):  # a user's machine may have no C++ compiler
        for frame in codes:
            step = generator.step(torch.from_numpy(frame)[None, :, None])
            tokens.append(np.full(1 + lm.dep_q, -2) if step is None else step[0, :, 0].numpy().copy())
    return np.stack(tokens)
