"""Every size, seed and budget of the talker in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SAMPLE_RATE_HZ = 24_000
FRAME_SAMPLES = 1920  # 80 ms
FRAME_HZ = SAMPLE_RATE_HZ / FRAME_SAMPLES
CODEBOOKS = 8
CARD = 1024  # entries per codebook
CONTEXT_FRAMES = 250  # what the language model attends to, 20 s

TEXT_CARD = 512
EPAD, PAD = 0, 3  # Moshi's text-stream padding: PAD while quiet, EPAD just before a word

SEANET = {
    "channels": 1, "dimension": 128, "causal": True, "n_filters": 16, "n_residual_layers": 1,
    "activation": "ELU", "compress": 2, "dilation_base": 2, "disable_norm_outer_blocks": 0,
    "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 3, "norm": "none",
    "pad_mode": "constant", "ratios": [8, 6, 5, 4], "true_skip": True,
}
MIMI_CONFIG = {
    "sample_rate": SAMPLE_RATE_HZ,
    "channels": 1,
    "frame_rate": FRAME_HZ,
    "seanet": SEANET,
    "quantizer": {
        "dimension": 64, "n_q": CODEBOOKS, "bins": CARD, "input_dimension": 128, "output_dimension": 128,
    },
    "transformer": {
        "d_model": 128, "num_heads": 4, "num_layers": 2, "causal": True, "layer_scale": 0.1, "context": 24,
        "conv_layout": True, "max_period": 10000, "gating": "none", "norm": "layer_norm",
        "positional_embedding": "rope", "dim_feedforward": 512, "input_dimension": 128,
        "output_dimensions": [128],
    },
}
LM_CONFIG = {
    "dim": 128, "text_card": TEXT_CARD, "existing_text_padding_id": PAD, "n_q": 2 * CODEBOOKS,
    "dep_q": CODEBOOKS, "card": CARD, "num_heads": 4, "num_layers": 3, "hidden_scale": 4.125,
    "causal": True, "layer_scale": None, "context": CONTEXT_FRAMES, "max_period": 10000, "gating": "silu",
    "norm": "rms_norm_f32", "positional_embedding": "rope", "depformer_dim": 64,
    "depformer_dim_feedforward": 192, "depformer_num_heads": 2, "depformer_num_layers": 1,
    "depformer_layer_scale": None, "depformer_multi_linear": True, "depformer_context": 8,
    "depformer_max_period": 10000, "depformer_gating": "silu", "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
}
MOSHI_NAME = "model.safetensors"
MIMI_NAME = "mimi.safetensors"
MIMI_CONFIG_NAME = "mimi.json"
TOKENIZER_NAME = "tokenizer.model"


@dataclass(frozen=True)
class Budget:
    """How much of everything; together under 90 minutes on two cores."""

    speech_min: float = 120.0  # asked for; utterances turn out a little shorter
    encoder_steps: int = 1600
    decoder_steps: int = 1500
    joint_steps: int = 1650
    dialogues: int = 960
    lm_steps: int = 800
    prompted_calls: int = 256
    reading_steps: int = 200
    prompted_steps: int = 600


@dataclass(frozen=True)
class Work:
    """Where intermediate files live; nothing in here is committed."""

    root: Path

    def path(self, name: str) -> Path:
        """A file of that name under the work folder, whose parent exists."""
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


# Rules of the conversation, in frames of 80 ms.
REPLY_AFTER = 6  # 0.48 s of quiet after the user's last frame
GREET_AT = 38  # 3.04 s into a call in which nobody spoke
STOP_AFTER = 1  # frames of reply still said once the user talks over it
MMHM_MIN_TURN = 50  # a back-channel needs a user turn of at least 4 s
MMHM_EVERY = 50
