"""Kinds of checkpoints beside the plain folder: fine-tuned, quantised, with hub names, and those that are refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moshi.models import loaders
from moshi.models.lm import LMModel
from moshi.modules.lora import replace_all_linear_with_lora
from moshi.utils.quantize import QLinear, replace_linear_with_qlinear
from safetensors.torch import load_file, save_file
from torch import Tensor

from scripts.random_checkpoint import write_checkpoint
from services.lm.engine import LmEngine
from services.lm.sampling import Sampling
from services.mesh.checkpoint import (
    CheckpointError,
    lm_id,
    load_lm,
    load_mimi,
    resolve,
    text_prompt_characters,
)
from tests.lm.small_lm import random_codes, reference_tokens

SCALING = 1.5


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_checkpoint(folder, seed=0)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def edit(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps(config_of(folder) | changes))


def adapters(lm: LMModel) -> dict[str, Tensor]:
    """What training would write: both factors of every linear layer."""
    torch.manual_seed(1)
    replace_all_linear_with_lora(lm, 4, SCALING)
    return {name: torch.randn_like(tensor) * 0.05 for name, tensor in lm.state_dict().items() if "lora" in name}


def write_adapters(folder: Path, target: Path) -> dict[str, Tensor]:
    lora = adapters(load_lm(resolve(str(folder)), dtype=torch.float32))
    save_file(lora, target / "lora.safetensors")
    return lora


@pytest.mark.parametrize("lora_name", [None, "lora.safetensors"])
def test_lora_answers_as_moshi_does_without_fusing(folder: Path, lora_name: str | None) -> None:
    base = lm_id(resolve(str(folder)))
    plain = reference_tokens(load_lm(resolve(str(folder)), dtype=torch.float32), random_codes(20, 1, 1024))
    write_adapters(folder, folder)
    names = {} if lora_name is None else {"lora_name": lora_name}
    edit(folder, lora=True, lora_rank=4, lora_scaling=SCALING, **names)
    info = resolve(str(folder))
    assert lm_id(info) != base
    unfused = loaders.get_moshi_lm(info.moshi_weights, info.lm_config, dtype=torch.float32,
                                   lora_weights=info.lora_weights, fuse_lora=False)
    expected = reference_tokens(unfused, random_codes(20, 1, 1024))
    engine = LmEngine(load_lm(info, dtype=torch.float32), 1)
    assert (answers(engine, random_codes(20, 1, 1024)) == expected).all()
    assert (expected != plain).any(), "the adapters must matter"


def answers(engine: LmEngine, codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    engine.open(0, Sampling(text_temperature=0, audio_temperature=0))
    return np.concatenate([engine.step([0], frame[None]) for frame in codes])


@pytest.mark.parametrize("arguments", [
    {}, {"hf_repo_id": "someone/else"}, {"hf_repo_id": None, "moshi_path": "{original}/model.safetensors"}], ids=str)
@pytest.mark.parametrize("kind", ["adapters", "merged"])
def test_what_moshi_finetune_writes(
        original: Path, tmp_path: Path, kind: str, arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """config.json of the base with three keys more, and one file of weights; the base is the hub's."""
    asked: list[str] = []

    def hub(repo: str, name: str, revision: str | None = None) -> str:
        asked.append(repo)
        return str(original / name)

    monkeypatch.setattr(loaders, "hf_hub_download", hub)
    folder = tmp_path / "run" / "checkpoints" / "checkpoint_000500" / "consolidated"
    folder.mkdir(parents=True)
    if arguments:
        paths = {key: value and value.format(original=original) for key, value in arguments.items()}
        (tmp_path / "run" / "args.yaml").write_text(json.dumps({"moshi_paths": paths}))
    (folder / "config.json").write_text(json.dumps(
        config_of(original) | {"lora": True, "lora_rank": 4, "lora_scaling": SCALING}))
    if kind == "adapters":
        lora = write_adapters(original, folder)
        name = "transformer.layers.0.gating.linear_in"
        changed = SCALING * lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]
    else:
        weights = load_file(original / "model.safetensors")
        name = "transformer.layers.0.gating.linear_in"
        changed = torch.ones_like(weights[f"{name}.weight"]).float()
        save_file(weights | {f"{name}.weight": weights[f"{name}.weight"] + 1}, folder / "consolidated.safetensors")
    lm = load_lm(resolve(str(folder)), dtype=torch.float32)
    before = load_file(original / "model.safetensors")[f"{name}.weight"].float()
    torch.testing.assert_close(lm.transformer.layers[0].gating.linear_in.weight, before + changed, atol=2e-3, rtol=0)
    load_mimi(resolve(str(folder)))
    assert set(asked) == {arguments.get("hf_repo_id") or loaders.DEFAULT_REPO}


@pytest.mark.parametrize(("changes", "words"), [
    ({"lora": True}, "config.json says lora, and there are no adapters"),
    ({"lora_name": "lora.safetensors"}, "does not say lora"),
    ({"lora_name": "other.safetensors", "lora": True}, "other.safetensors is missing"),
    ({"lora": True, "quantize": True}, "lora must be false where quantize is true"),
], ids=str)
def test_adapters_that_do_not_fit_are_refused(folder: Path, changes: dict[str, object], words: str) -> None:
    if changes.get("lora_name") == "lora.safetensors":
        save_file({"x": torch.zeros(1)}, folder / "lora.safetensors")
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=words):
        resolve(str(folder))


def test_names_of_the_hub_and_of_files_in_a_local_configuration(
        original: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "hf_hub_download", lambda repo, name, revision=None: str(original / f"{name}"))
    for file in ("model.safetensors", "mimi.safetensors", "tokenizer.model", "mimi_config.json"):
        (folder / file).unlink()
    edit(folder, moshi_name="hf://someone/tiny/model.safetensors", mimi_name=f"file://{original}/mimi.safetensors",
         tokenizer_name=f"file://{original}/tokenizer.model", mimi_config_name="hf://someone/tiny/mimi_config.json")
    info = resolve(str(folder))
    assert info.moshi_weights == original / "model.safetensors"
    assert lm_id(info) == lm_id(resolve(str(original)))


def quantise(folder: Path) -> LMModel:
    """Replaces the weights by moshi's own quantised ones; moshi's own model of them."""
    lm = load_lm(resolve(str(folder)), dtype=torch.float32)
    replace_linear_with_qlinear(lm)
    save_file({name: tensor.contiguous() for name, tensor in lm.state_dict().items()}, folder / "model.safetensors")
    edit(folder, quantize=True)
    return lm


def test_a_quantised_model_is_served_with_the_numbers_its_weights_stand_for(folder: Path) -> None:
    plain = load_lm(resolve(str(folder)), dtype=torch.float32)
    quantised = quantise(folder)
    lm = load_lm(resolve(str(folder)), dtype=torch.float32)
    x = torch.randn(5, 128)
    for name, layer in quantised.named_modules():
        if isinstance(layer, QLinear) and layer.weight.shape[1] == 128:
            served = lm.get_submodule(name).weight
            off = (served - plain.get_submodule(name).weight).abs().amax(dim=1)
            assert (off <= layer.weight_scb / 127 * 0.51).all(), name
            # moshi's own product rounds the activations to 8 bits, too.
            expected = layer(x.half()).float()
            assert (x @ served.T - expected).norm() / expected.norm() < 0.02, name
    codes = random_codes(30, 1, 1024)
    assert (answers(LmEngine(lm, 1), codes) == reference_tokens(lm, codes)).all()


@pytest.mark.parametrize("changes", [
    {"conditioners": {}}, {"conditioners": {}, "fuser": {"sum": [], "cross": [], "prepend": []}},
    {"fuser": {"cross_attention_pos_emb": False}}, {"conditioners": None, "fuser": None},
    {"lm_gen_config": None}, {"tts_config": None, "stt_config": None}, {"mimi_name": None, "extra_heads_num_heads": 0},
], ids=str)
def test_what_says_nothing_is_as_good_as_nothing(folder: Path, changes: dict[str, object]) -> None:
    if "mimi_name" in changes:
        (folder / "mimi.safetensors").rename(folder / loaders.MIMI_NAME)
    expected = load_lm(resolve(str(folder)) if "mimi_name" not in changes else _renamed(folder), dtype=torch.float32)
    edit(folder, **changes)
    info = resolve(str(folder))
    load_mimi(info)
    codes = random_codes(5, 1, 1024)
    engine = LmEngine(load_lm(info, dtype=torch.float32), 1)
    assert (answers(engine, codes) == reference_tokens(expected, codes)).all()


@pytest.mark.parametrize(("model_id", "characters"), [
    (None, 0), ({}, 0), ({"sig": "0f3a", "epoch": 3}, 0), ({"sig": "0f3a", "text_prompt_characters": 120}, 120)])
def test_a_model_says_how_long_a_text_it_was_trained_to_follow_and_moshi_loads_it(
        folder: Path, model_id: object, characters: int) -> None:
    edit(folder, model_id=model_id)
    info = resolve(str(folder))
    assert text_prompt_characters(info) == characters
    load_lm(info, dtype=torch.float32)


def _renamed(folder: Path) -> Any:
    edit(folder, mimi_name=loaders.MIMI_NAME)
    return resolve(str(folder))


@pytest.mark.parametrize(("changes", "words"), [
    ({"causal": False}, "causal must be true, got false"),
    ({"kv_repeat": 2}, r"depformer_kv_repeat must be 1, got 2 \(from kv_repeat"),
    ({"depformer_kv_repeat": 2}, "depformer_kv_repeat must be 1, got 2"),
    ({"gating": "gelu"}, 'gating must be "silu", got "gelu"'),
    ({"depformer_gating": "none"}, 'depformer_gating must be "silu", got "none"'),
    ({"norm": "layer_norm"}, 'norm must be "rms_norm" or "rms_norm_f32", got "layer_norm"'),
    ({"depformer_norm": "layer_norm"}, "depformer_norm must be null or"),
    ({"bias_proj": True}, "bias_proj must be false, got true"),
    ({"positional_embedding": "sin"}, 'positional_embedding must be "rope" or "rope_concat", got "sin"'),
    ({"depformer_pos_emb": "sin"}, 'depformer_pos_emb must be "none"'),
    ({"depformer_weights_per_step": False}, "depformer_weights_per_step must be true"),
    ({"cross_attention": True}, "cross_attention must be false"),
    ({"skip_self_attn": True}, "skip_self_attn must be false"),
    ({"demux_second_stream": True}, "demux_second_stream must be false"),
    ({"conditioners": {"description": {"type": "lut"}}}, "conditioners must be empty"),
    ({"fuser": {"sum": ["description"]}}, "fuser must be empty"),
    ({"context": None}, "context must be a whole number of at least 1, got null"),
    ({"delays": [0, 1]}, "delays must have 17 entries"),
    ({"delays": [0] * 16 + [-1]}, "delays must be a delay of 0 or more frames"),
    ({"delays": 3}, "delays must be"),
    ({"text_card_out": 9999}, "text_card_out must be at most text_card"),
    ({"depformer_weights_per_step_schedule": [0, 1]}, "schedule must have 8 entries"),
    ({"a_new_switch": 1}, "a_new_switch is a key that moshi-mesh does not know"),
    ({"lm_gen_config": {"cfg_coef": 3}}, "lm_gen_config.cfg_coef must be 1"),
    ({"lm_gen_config": {"temperature": 3}}, "lm_gen_config.temperature is a key that moshi-mesh does not know"),
    ({"lm_gen_config": [1]}, "lm_gen_config must be an object"),
    ({"model_id": {"text_prompt_characters": -1}}, "text_prompt_characters must be a whole number from 0 to 4000"),
    ({"model_id": "moshi"}, "model_id must be an object"),
    ({"tts_config": {"multistream": True}}, "tts_config.multistream must be false"),
    ({"quantize": "q8"}, 'quantize must be false or true, got "q8"'),
], ids=str)
def test_what_is_not_computed_as_moshi_does_is_refused_by_its_key(
        folder: Path, changes: dict[str, object], words: str) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=words) as caught:
        resolve(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["norm", "gating", "positional_embedding", "depformer_pos_emb", "context", "delays",
                                 "num_layers", "depformer_num_heads", "depformer_weights_per_step", "n_q", "dep_q",
                                 "card", "text_card"])
def test_a_missing_key_is_refused_where_moshis_default_would_be(folder: Path, key: str) -> None:
    config = config_of(folder)
    del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"{key} must be .*since there is no such key"):
        resolve(str(folder))


@pytest.mark.parametrize(("part", "changes", "words"), [
    ("seanet", {"pad_mode": "replicate"}, 'seanet.pad_mode must be "constant", got "replicate"'),
    ("seanet", {"causal": False}, "seanet.causal must be true"),
    ("seanet", {"activation": "ReLU"}, 'seanet.activation must be "ELU"'),
    ("seanet", {"channels": 2}, "seanet.channels must be 1"),
    ("transformer", {"causal": False}, "transformer.causal must be true"),
    ("transformer", {"gating": "silu"}, 'transformer.gating must be "none"'),
    ("transformer", {"norm": "rms_norm"}, 'transformer.norm must be "layer_norm"'),
    ("transformer", {"positional_embedding": "sin"}, 'transformer.positional_embedding must be "rope"'),
    ("transformer", {"context": None}, "transformer.context must be a whole number"),
    ("quantizer", {"a_new_switch": 1}, "quantizer.a_new_switch is a key that moshi-mesh does not know"),
], ids=str)
def test_a_mimi_that_is_not_computed_as_moshi_does_is_refused_by_its_key(
        folder: Path, part: str, changes: dict[str, object], words: str) -> None:
    path = folder / "mimi_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {part: config[part] | changes}))
    with pytest.raises(CheckpointError, match=words):
        resolve(str(folder))


@pytest.mark.parametrize(("file", "name"), [
    ("model.safetensors", "depformer_emb.0.weight"),  # of a code that no first step has
    ("mimi.safetensors", "quantizer.rvq_first.vq.layers.0._codebook.embedding_sum"),
    ("mimi.safetensors", "decoder.model.0.conv.conv.bias")])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_a_tensor_with_numbers_that_are_not_finite_is_named(folder: Path, file: str, name: str, value: float) -> None:
    weights = load_file(folder / file)
    weights[name][-1] = value
    save_file(weights, folder / file)
    info = resolve(str(folder))
    with pytest.raises(CheckpointError, match=f"its tensor {name} holds numbers that are not finite"):
        load_mimi(info)
        load_lm(info)


@pytest.mark.parametrize("key", ["moshi_name", "mimi_name"])
def test_what_moshi_would_unpickle_is_refused(folder: Path, key: str) -> None:
    (folder / "weights.pt").write_bytes(b"code that runs")
    edit(folder, **{key: "weights.pt"})
    with pytest.raises(CheckpointError, match=r"weights\.pt is no safetensors file.*save_file"):
        resolve(str(folder))


def test_a_file_for_a_folder_is_said_to_be_one(original: Path) -> None:
    with pytest.raises(CheckpointError, match="that is a file; give the folder"):
        resolve(str(original / "model.safetensors"))


def test_the_default_configurations_of_moshi_are_served() -> None:
    from services.mesh.checkpoint_config import check_lm, check_mimi

    check_lm(loaders._lm_kwargs)
    check_mimi(loaders._mimi_config)


def test_the_base_of_a_fine_tuning_is_named_in_the_log(
        original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "hf_hub_download", lambda repo, name, revision=None: str(original / name))
    (tmp_path / "config.json").write_text(json.dumps(config_of(original)))
    shutil.copy(original / "model.safetensors", tmp_path / "consolidated.safetensors")
    with caplog.at_level(logging.INFO):
        resolve(str(tmp_path))
    assert loaders.DEFAULT_REPO in caplog.text
