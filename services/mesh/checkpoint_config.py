"""Which configurations are served: an allow-list of every key that moshi reads, with the values that are computed as
moshi computes them. What is not named here is refused by its name, rather than served with other tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class ConfigRefused(ValueError):
    """A configuration that moshi-mesh does not serve; the message names the key and the accepted values."""


@dataclass(frozen=True)
class Rule:
    """What a key may be, in words and as a check, and what moshi takes where it is missing."""

    words: str
    accepts: Callable[[Any], bool]
    default: Any = None

    def check(self, key: str, config: Mapping[str, Any], inherited: str = "") -> None:
        """Refuse a value; `inherited` is the key that moshi falls back to. Raises ConfigRefused."""
        value = config.get(key, config.get(inherited, self.default))
        if not self.accepts(value):
            source = ("" if key in config else
                      f" (from {inherited}, since there is no {key})" if inherited in config else
                      " (since there is no such key)" if self.default is None else
                      " (moshi's default, since there is no such key)")
            raise ConfigRefused(f"{key} must be {self.words}, got {json.dumps(value)}{source}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(default: int | None = None) -> Rule:
    return Rule("a whole number of at least 1", _is_count, default)


def _positive(default: float | None = None) -> Rule:
    return Rule("a number above 0", lambda value: _is_number(value) and value > 0, default)


def _token(default: int) -> Rule:
    return Rule("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool), default)


def _optional(rule: Rule) -> Rule:
    return Rule(f"null or {rule.words}", lambda value: value is None or rule.accepts(value))


def _one_of(*values: Any, default: Any = None) -> Rule:
    return Rule(" or ".join(json.dumps(value) for value in values),
                lambda value: any(value is known or (isinstance(known, str) and value == known) for known in values),
                default)


def _counts(words: str, least: int) -> Rule:
    return Rule(words, lambda value: isinstance(value, list) and all(
        isinstance(entry, int) and not isinstance(entry, bool) and entry >= least for entry in value))


_FLAG = _one_of(False, True, default=False)
_OFF = _one_of(False, default=False)
_NUMBER = Rule("a number", _is_number)
_WITHOUT_EFFECT = Rule("anything", lambda value: True)
_RMS_NORM = _one_of("rms_norm", "rms_norm_f32")
_NO_CONDITIONERS = Rule("empty: moshi-mesh serves models without conditions", lambda value: not value)

LM: dict[str, Rule] = {
    "dim": _count(128), "num_heads": _count(8), "num_layers": _count(), "hidden_scale": _positive(4),
    "context": _count(), "max_period": _positive(10_000), "n_q": _count(), "card": _count(),
    "dep_q": Rule("at least 1 (a model without a depth transformer does not speak)", _is_count),
    "text_card": _count(), "text_card_out": _optional(_count()),
    "delays": _counts("a delay of 0 or more frames for each stream", 0),
    "existing_text_padding_id": _token(3), "existing_text_end_padding_id": _token(0),
    "causal": _one_of(True, default=True), "layer_scale": _optional(_NUMBER), "kv_repeat": _count(1),
    "norm": Rule(_RMS_NORM.words, _RMS_NORM.accepts, "layer_norm"), "norm_emb": _FLAG, "bias_proj": _OFF,
    "gating": _one_of("silu", default="none"), "positional_embedding": _one_of("rope", "rope_concat", default="sin"),
    "cross_attention": _OFF, "skip_self_attn": _OFF,
    "demux_second_stream": _OFF, "demux_second_text_stream": _OFF,
    "depformer_dim": _count(256), "depformer_num_heads": _count(), "depformer_num_layers": _count(),
    "depformer_dim_feedforward": Rule("null, a whole number or a list of them", lambda value: value is None or all(
        map(_is_count, value if isinstance(value, list) else [value]))),
    "depformer_kv_repeat": Rule("1", lambda value: value == 1, 1), "depformer_layer_scale": _optional(_NUMBER),
    "depformer_gating": _one_of("silu", default="none"), "depformer_norm": _one_of(
        None, "rms_norm", "rms_norm_f32"),
    "depformer_pos_emb": _one_of("none", default="sin"), "depformer_multi_linear": _FLAG,
    "depformer_weights_per_step": _one_of(True, default=False), "depformer_skip_self_attn": _OFF,
    "depformer_weights_per_step_schedule": _optional(_counts("a list of weights' numbers", 0)),
    "depformer_low_rank_embeddings": _optional(_count()),
    "quantize": _FLAG, "lora": _FLAG, "lora_rank": _count(128), "lora_scaling": Rule("a number", _is_number, 2.0),
    "conditioners": _NO_CONDITIONERS,
    "fuser": Rule(_NO_CONDITIONERS.words, lambda value: value is None or not any(
        value.get(method) for method in ("sum", "cross", "prepend"))),
    # Heads beside the streams, of which no token is made.
    "extra_heads_num_heads": _WITHOUT_EFFECT, "extra_heads_dim": _WITHOUT_EFFECT,
    # moshi replaces or ignores these for the models that are left.
    "depformer_causal": _WITHOUT_EFFECT, "depformer_context": _WITHOUT_EFFECT, "depformer_max_period": _WITHOUT_EFFECT,
    "positional_scale": _WITHOUT_EFFECT, "betas": _WITHOUT_EFFECT, "gradient_checkpointing": _WITHOUT_EFFECT,
}

SEANET: dict[str, Rule] = {
    "channels": Rule("1", lambda value: value == 1, 1), "dimension": _count(128), "n_filters": _count(32),
    "n_residual_layers": _count(3), "kernel_size": _count(7), "residual_kernel_size": _count(3),
    "last_kernel_size": _count(7), "compress": _count(2), "dilation_base": _count(2),
    "ratios": Rule("a list of whole numbers of at least 1", lambda value: isinstance(value, list) and all(
        map(_is_count, value)), [8, 5, 4, 2]),
    "causal": _one_of(True, default=False), "true_skip": _one_of(False, True, default=True),
    "activation": _one_of("ELU", default="ELU"),
    "activation_params": Rule('{"alpha": 1.0}', lambda value: value == {"alpha": 1.0}, {"alpha": 1.0}),
    "norm": _one_of("none", default="none"), "pad_mode": _one_of("constant", default="reflect"),
    "norm_params": _WITHOUT_EFFECT, "disable_norm_outer_blocks": _WITHOUT_EFFECT,
}
TRANSFORMER: dict[str, Rule] = {
    "d_model": _count(), "num_heads": _count(), "num_layers": _count(), "dim_feedforward": _count(2048),
    "context": _count(), "input_dimension": _count(), "max_period": _positive(10_000),
    "output_dimensions": Rule("a list of one whole number", lambda value: isinstance(value, list) and len(value) == 1
                              and _is_count(value[0])),
    "causal": _one_of(True, default=False), "layer_scale": _optional(_NUMBER),
    "conv_layout": _one_of(True, default=False), "gating": _one_of("none", default="none"),
    "norm": _one_of("layer_norm", default="layer_norm"), "positional_embedding": _one_of("rope", default="sin"),
    "kv_repeat": Rule("1", lambda value: value == 1, 1), "cross_attention": _OFF, "skip_self_attn": _OFF,
    "positional_scale": _WITHOUT_EFFECT, "betas": _WITHOUT_EFFECT,
}
QUANTIZER: dict[str, Rule] = {
    "dimension": _count(128), "input_dimension": _count(), "output_dimension": _count(), "n_q": _count(),
    "n_q_semantic": _count(1), "bins": _count(),
    # Of training.
    "q_dropout": _WITHOUT_EFFECT, "no_quantization_rate": _WITHOUT_EFFECT, "decay": _WITHOUT_EFFECT,
    "threshold_usage_ratio": _WITHOUT_EFFECT, "replaced_usage_ratio": _WITHOUT_EFFECT,
    "codebook_offset": _WITHOUT_EFFECT, "generator_seed": _WITHOUT_EFFECT,
}
MIMI: dict[str, Rule] = {
    "sample_rate": _count(), "frame_rate": _positive(), "channels": Rule("1", lambda value: value == 1)}
GENERATION: dict[str, Rule] = {
    "temp": _NUMBER, "temp_text": _NUMBER, "top_k": Rule("a whole number", lambda value: isinstance(value, int)),
    "top_k_text": Rule("a whole number", lambda value: isinstance(value, int)),
    "use_sampling": _one_of(True, False), "cfg_coef": Rule("1: moshi-mesh has no guidance", lambda value: value == 1),
    "check": _WITHOUT_EFFECT, "support_out_of_sync": _WITHOUT_EFFECT,
}

# What moshi-mesh asks of a checkpoint besides what moshi reads. It is in `model_id`, the only place where moshi takes
# what it does not know and does not compute with it.
TEXT_PROMPT_CHARACTERS = "text_prompt_characters"
_TEXT_PROMPT = Rule("a whole number from 0 to 4000", lambda value: type(value) is int and 0 <= value <= 4000, 0)


def check_model_id(config: Mapping[str, Any]) -> None:
    """Refuse what a checkpoint can't say of itself. Raises ConfigRefused."""
    if not isinstance(config, dict):
        raise ConfigRefused(f"model_id must be an object, got {json.dumps(config)}")
    _TEXT_PROMPT.check(TEXT_PROMPT_CHARACTERS, config)


def check_lm(config: Mapping[str, Any]) -> None:
    """Refuse a language model whose tokens would not be moshi's. Raises ConfigRefused."""
    _refuse_unknown("", config, LM)
    for key, rule in LM.items():
        # What the depth transformer does not say for itself it has from the model.
        rule.check(key, config, key.removeprefix("depformer_") if key in _INHERITING else "")
    for part in ("", "depformer_"):
        _check_heads(f"{part}dim", f"{part}num_heads", config, LM)
    own, streams = config["dep_q"], config["n_q"] + 1
    if len(config["delays"]) != streams:
        raise ConfigRefused(f"delays must have {streams} entries (text and n_q codebooks), got {len(config['delays'])}")
    schedule = config.get("depformer_weights_per_step_schedule")
    if schedule is not None and len(schedule) != own:
        raise ConfigRefused(f"depformer_weights_per_step_schedule must have {own} entries (dep_q), got {len(schedule)}")
    if (config.get("text_card_out") or 1) > config["text_card"]:
        raise ConfigRefused(f"text_card_out must be at most text_card, got {config['text_card_out']}")
    if config.get("quantize") and config.get("lora"):
        raise ConfigRefused("lora must be false where quantize is true")


_INHERITING = ("depformer_kv_repeat", "depformer_gating", "depformer_layer_scale", "depformer_num_layers")


def check_mimi(config: Mapping[str, Any]) -> None:
    """Refuse a Mimi whose codes or sound would not be moshi's. Raises ConfigRefused."""
    parts = {"seanet": SEANET, "transformer": TRANSFORMER, "quantizer": QUANTIZER}
    _check_all("", {key: value for key, value in config.items() if key not in parts}, MIMI, ignore_unknown=True)
    for part, rules in parts.items():
        if not isinstance(config.get(part), dict):
            raise ConfigRefused(f"{part} must be an object, got {json.dumps(config.get(part))}")
        _check_all(f"{part}.", config[part], rules)
    _check_heads("d_model", "num_heads", config["transformer"], TRANSFORMER)


def check_generation(config: Mapping[str, Any]) -> None:
    """Refuse defaults of sampling that moshi-mesh does not have. Raises ConfigRefused."""
    if not isinstance(config, dict):
        raise ConfigRefused(f"lm_gen_config must be an object, got {json.dumps(config)}")
    _refuse_unknown("lm_gen_config.", config, GENERATION)
    for key, value in config.items():
        if not GENERATION[key].accepts(value):
            raise ConfigRefused(f"lm_gen_config.{key} must be {GENERATION[key].words}, got {json.dumps(value)}")


def _check_heads(width: str, heads: str, config: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Refuse a width that can't be divided among the heads. Raises ConfigRefused."""
    features, count = (config.get(key, rules[key].default) for key in (width, heads))
    if features % count:
        raise ConfigRefused(f"{heads} must divide {width}, which is {features}, got {count}")


def _check_all(prefix: str, config: Mapping[str, Any], rules: Mapping[str, Rule], ignore_unknown: bool = False) -> None:
    if not ignore_unknown:
        _refuse_unknown(prefix, config, rules)
    named = {prefix + key: value for key, value in config.items()}
    for key, rule in rules.items():
        rule.check(prefix + key, named)


def _refuse_unknown(prefix: str, config: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    for key in config:
        if key not in rules:
            raise ConfigRefused(f"{prefix}{key} is a key that moshi-mesh does not know; remove it if the model is the "
                                "same without it")
