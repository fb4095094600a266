"""Moshi checkpoints in Moshi's own format: from a local folder or from the hub, refused with one clear line.

The only file of services/mesh that imports moshi: the gateway, which has no torch, must not import it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import sentencepiece
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from moshi.models import loaders
from moshi.models.compression import MimiModel
from moshi.models.lm import LMModel
from moshi.models.loaders import CheckpointInfo
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from services.mesh.checkpoint_config import (
    TEXT_PROMPT_CHARACTERS,
    ConfigRefused,
    check_generation,
    check_lm,
    check_mimi,
    check_model_id,
)
from services.mesh.fingerprint import safetensors_digest
from services.mesh.finite import first_not_finite
from services.mesh.quantised import dequantised

log = logging.getLogger(__name__)

# What moshi takes for safetensors; it would unpickle anything else.
SAFETENSORS = (".safetensors", ".sft", ".sfts")
# What moshi-finetune writes beside config.json: adapters, or a whole model.
FINE_TUNED_ADAPTERS, FINE_TUNED_MODEL = "lora.safetensors", "consolidated.safetensors"

TAKE_INSTEAD = ("take the same model's checkpoint for PyTorch, such as kyutai/moshiko-pytorch-bf16 or "
                "kyutai/moshiko-pytorch-q8")

Loaded = TypeVar("Loaded")
Model = TypeVar("Model", bound=nn.Module)


class CheckpointError(ValueError):
    """The checkpoint cannot be served; the message says what is wrong with it and what to do, in one line."""


def resolve(checkpoint: str) -> CheckpointInfo:
    """The files and configuration of `checkpoint`, a local folder or a hub id, once they fit together.

    A local folder asks the hub only for what it names as hf://, and for the base of a fine-tuning. No weights are read
    here. Raises CheckpointError.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_file():
        raise CheckpointError(f"checkpoint {checkpoint}: that is a file; give the folder that holds it and config.json")
    info = _from_folder(folder) if folder.is_dir() else _from_hub(checkpoint)
    for path in (info.moshi_weights, info.mimi_weights, info.tokenizer, info.lora_weights):
        if path is not None and not path.is_file():
            raise CheckpointError(f"checkpoint {checkpoint}: {path.name} is missing; "
                                  "add the file, or correct its name in config.json")
    for path in (info.moshi_weights, info.mimi_weights, info.lora_weights):
        if path is not None and path.suffix == ".gguf":
            raise CheckpointError(f"checkpoint {checkpoint}: {path.name} is GGUF, of Moshi's Rust server; "
                                  f"{TAKE_INSTEAD}")
        if path is not None and path.suffix not in SAFETENSORS:
            raise CheckpointError(f"checkpoint {checkpoint}: {path.name} is no safetensors file, and reading another "
                                  "kind can run code that it holds; save its tensors with safetensors.torch.save_file "
                                  "and name that file in config.json")
    info = _tidied(info)
    try:
        check_lm(lm_config(info))
        check_mimi(mimi_config(info))
        check_generation(info.lm_gen_config)
        check_model_id(info.model_id)
        if info.tts_config.get("multistream"):
            raise ConfigRefused("tts_config.multistream must be false, got true")
    except ConfigRefused as error:
        raise CheckpointError(f"checkpoint {checkpoint}: {error}") from None
    _check_lora(checkpoint, info)
    _check_layout(checkpoint, info.moshi_weights)
    _check_parts_fit(checkpoint, info)
    return replace(info, lm_config={key: value for key, value in lm_config(info).items()
                                    if key not in ("conditioners", "fuser")})


def codec_id(info: CheckpointInfo) -> str:
    """A name for this Mimi, its weights and its configuration, such as "mimi@5f0c12ab34de": equal on every replica.

    Whatever folder or file it came from. Raises CheckpointError.
    """
    return _name("mimi", [mimi_config(info)], [info.mimi_weights])


def lm_id(info: CheckpointInfo) -> str:
    """A name for this language model with its tokenizer, and for the codec that it speaks: "moshi@5f0c12ab34de".

    Whatever folder or files they came from. Raises CheckpointError.
    """
    weights = [info.moshi_weights] if info.lora_weights is None else [info.moshi_weights, info.lora_weights]
    facts = [lm_config(info), info.lm_gen_config, info.tokenizer.read_bytes().hex(), codec_id(info)]
    return _name(info.model_type, facts, weights)


def text_prompt_characters(info: CheckpointInfo) -> int:
    """The longest text prompt that the model was trained to follow; 0: it was trained without, or does not say."""
    return cast(int, info.model_id.get(TEXT_PROMPT_CHARACTERS, 0))


def lm_config(info: CheckpointInfo) -> dict[str, Any]:
    """The language model's configuration; moshi's own 7B where the checkpoint has none."""
    return cast(dict[str, Any], loaders._lm_kwargs if info.lm_config is None else info.lm_config)


def mimi_config(info: CheckpointInfo) -> dict[str, Any]:
    """Mimi's configuration; moshi's own where the checkpoint has none."""
    return cast(dict[str, Any], loaders._mimi_config if info.mimi_config is None else info.mimi_config)


def check_device(device: str) -> None:
    """Refuse a device that torch does not know or that is not there. Raises ValueError."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"--device {device}: no such device; use cpu, cuda or cuda:1") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch finds no CUDA device here; use --device cpu") from None


def load_mimi(info: CheckpointInfo, device: torch.device | str = "cpu") -> MimiModel:
    """Mimi in fp32, with as many codebooks in use as the language model speaks. Raises CheckpointError."""
    return _load_model("Mimi", info.mimi_weights, lambda: info.get_mimi(device=device))


def load_lm(info: CheckpointInfo, device: torch.device | str = "cpu",
            dtype: torch.dtype = torch.bfloat16) -> LMModel:
    """The language model, its weights converted to `dtype` whatever they are stored in. Raises CheckpointError.

    LoRA adapters are fused into them. Of weights in 8 bits each gets the number that it stands for: moshi's own product
    rounds the activations, too, which here they are not.
    """
    def read() -> LMModel:
        if not lm_config(info).get("quantize"):
            return info.get_moshi(device=device, dtype=dtype, fuse_lora=True)
        lm = loaders.get_moshi_lm(None, lm_config(info) | {"quantize": False}, device="meta", dtype=dtype)
        lm.load_state_dict(dequantised(load_file(info.moshi_weights), dtype), assign=True)
        return lm.to(device)

    return _load_model("the language model", info.moshi_weights, read)


def load_tokenizer(info: CheckpointInfo) -> sentencepiece.SentencePieceProcessor:
    """The text tokenizer. Raises CheckpointError."""
    tokenizer: sentencepiece.SentencePieceProcessor = _load("the tokenizer", info.tokenizer, info.get_text_tokenizer)
    return tokenizer


def _from_folder(folder: Path) -> CheckpointInfo:
    if not (folder / "config.json").exists() and (foreign := [*folder.glob("*.gguf"), *folder.glob("model.q[48].*")]):
        raise CheckpointError(f"checkpoint {folder}: {foreign[0].name} is of Moshi's Rust or MLX programs; "
                              f"{TAKE_INSTEAD}")
    config = _read_json(folder / "config.json")
    adapters, merged = (folder / name for name in (FINE_TUNED_ADAPTERS, FINE_TUNED_MODEL))
    base = None
    if adapters.is_file() or merged.is_file():
        base = _base_of(folder)

    def local(key: str, default: str | None = None) -> Path | None:
        name = config.get(key)
        name = default if name is None else str(name)
        if name is None:
            return None
        if name.startswith("file://"):
            return Path(name.removeprefix("file://"))
        if name.startswith("hf://"):
            return _download(folder, name)
        if base is not None and not (folder / name).exists():
            return _download(folder, base.get(key, f"hf://{base['repo']}/{name}"))
        return folder / name

    mimi = local("mimi_config_name")
    if mimi is not None:
        _read_json(mimi)
    # moshi-finetune names its base's files in config.json, not those that it wrote.
    is_merged = merged.is_file() and not (folder / str(config.get("moshi_name", loaders.MOSHI_NAME))).is_file()
    lora = local("lora_name")
    if lora is None and config.get("lora") and adapters.is_file():
        lora = adapters
    # Paths, not strings: from_hf_repo takes a plain name for a file of the hub repository.
    info = CheckpointInfo.from_hf_repo(
        folder.name,
        moshi_weights=merged if is_merged else local("moshi_name", loaders.MOSHI_NAME),
        mimi_weights=local("mimi_name", loaders.MIMI_NAME),
        tokenizer=local("tokenizer_name", loaders.TEXT_TOKENIZER_NAME),
        config_path=folder / "config.json",
        mimi_config_path=mimi,
        lora_weights=lora,
    )
    if is_merged and lora is None and info.lm_config is not None:
        info.lm_config["lora"] = False  # its adapters are in the weights already
    return info


def _base_of(folder: Path) -> dict[str, str]:
    """Where the files of a fine-tuned model's base are: what moshi-finetune kept in args.yaml, else moshi's own base.

    "repo" is the hub's, and keys of config.json are there if a file is named on its own.
    """
    base = {"repo": str(loaders.DEFAULT_REPO)}
    # run_dir/args.yaml and run_dir/checkpoints/checkpoint_000500/consolidated/
    arguments = folder.resolve().parent.parent.parent / "args.yaml"
    if arguments.is_file():
        try:
            paths = yaml.safe_load(arguments.read_text())["moshi_paths"]
            for key, argument in (("repo", "hf_repo_id"), ("moshi_name", "moshi_path"), ("mimi_name", "mimi_path"),
                                  ("tokenizer_name", "tokenizer_path")):
                if paths.get(argument):
                    base[key] = str(paths[argument])
        except (yaml.YAMLError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"checkpoint {folder}: {arguments} names no moshi_paths; moshi-finetune writes them, "
                                  "and the model's base is looked for there") from None
    log.info("%s is a fine-tuned model; what it lacks comes from %s", folder, base["repo"])
    return base


def _download(folder: Path, name: str) -> Path:
    """A file of the hub named hf://owner/repository/file, or a path."""
    try:
        path: Path = loaders.hf_get(name)
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError, IndexError) as error:
        raise CheckpointError(f"checkpoint {folder}: the hub did not provide {name} ({_first_line(error)}); check the "
                              "name and the network, or put the file into the folder") from None
    return path


def _tidied(info: CheckpointInfo) -> CheckpointInfo:
    """A null where an object may be counts as missing."""
    return replace(info, lm_gen_config=info.lm_gen_config or {}, tts_config=info.tts_config or {},
                   stt_config=info.stt_config or {}, model_id=info.model_id or {},
                   lm_config=dict(lm_config(info)))


def _check_lora(checkpoint: str, info: CheckpointInfo) -> None:
    lora = bool(lm_config(info).get("lora"))
    if lora and info.lora_weights is None:
        raise CheckpointError(f"checkpoint {checkpoint}: config.json says lora, and there are no adapters; add "
                              f"{FINE_TUNED_ADAPTERS}, name them as lora_name, or set lora to false if the weights "
                              "hold them")
    if info.lora_weights is not None and not lora:
        raise CheckpointError(f"checkpoint {checkpoint}: config.json names lora_name and does not say lora; set lora "
                              "to true, with its lora_rank and lora_scaling, or leave lora_name out")


def _check_layout(checkpoint: str, weights: Path) -> None:
    """Refuse weights under the names of Moshi's MLX and Rust programs, which pack some of them otherwise, too."""
    try:
        with cast(Any, safe_open)(weights, "pt") as file:
            names = set(file.keys())
    except (OSError, SafetensorError):
        return  # said when the name of the model is made of it
    if any(name.startswith("depformer.slices.") or name.endswith((".scales", ".biases")) for name in names):
        raise CheckpointError(f"checkpoint {checkpoint}: {weights.name} is in the layout of Moshi's MLX program; "
                              f"{TAKE_INSTEAD}")
    if any(name.startswith("depformer.0.") for name in names):
        raise CheckpointError(f"checkpoint {checkpoint}: {weights.name} is in the layout of Moshi's Rust program; "
                              f"{TAKE_INSTEAD}")


def _from_hub(checkpoint: str) -> CheckpointInfo:
    try:
        with warnings.catch_warnings():
            # Without an answer from the hub, moshi warns about a repository without config.json; we say it below.
            warnings.simplefilter("ignore", UserWarning)
            return CheckpointInfo.from_hf_repo(checkpoint)
    except HFValidationError:
        raise CheckpointError(f"checkpoint {checkpoint}: no such folder; give a folder that holds config.json, "
                              "or a hub id such as kyutai/moshiko-pytorch-bf16") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"checkpoint {checkpoint}: its configuration is not JSON ({error})") from None
    # LocalEntryNotFoundError: the hub did not answer and the file is not in its cache.
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"checkpoint {checkpoint}: no such folder, and the hub did not provide it "
                              f"({_first_line(error)}); check the name and the network") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path.parent}: {path.name} is missing; a checkpoint folder needs it "
                              "to name its files") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path.parent}: {path.name} cannot be read as JSON "
                              f"({_first_line(error)})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {path.parent}: {path.name} must hold a JSON object")
    return content


def _check_parts_fit(checkpoint: str, info: CheckpointInfo) -> None:
    """Mimi, the language model and the tokenizer agree on their sizes."""
    lm, mimi = lm_config(info), mimi_config(info)
    codebooks, own, card, text_card = (int(lm[key]) for key in ("n_q", "dep_q", "card", "text_card"))
    entries, mimi_codebooks = int(mimi["quantizer"]["bins"]), int(mimi["quantizer"]["n_q"])
    if own >= codebooks:
        raise CheckpointError(f"checkpoint {checkpoint}: dep_q {own} of n_q {codebooks} leaves no codebooks for "
                              "the user; moshi-mesh serves models that listen and speak")
    if card != entries:
        raise CheckpointError(f"checkpoint {checkpoint}: the language model has card {card} and Mimi has "
                              f"{entries} bins; they must be of one family")
    if max(own, codebooks - own) > mimi_codebooks:
        raise CheckpointError(f"checkpoint {checkpoint}: the language model speaks {max(own, codebooks - own)} "
                              f"codebooks and Mimi has {mimi_codebooks}; they must be of one family")
    pieces = load_tokenizer(info).get_piece_size()
    if pieces != text_card:
        raise CheckpointError(f"checkpoint {checkpoint}: {info.tokenizer.name} has {pieces} pieces and text_card "
                              f"is {text_card}; name the tokenizer that the model was trained with")


def _load_model(part: str, path: Path, read: Callable[[], Model]) -> Model:
    model = _load(part, path, read)
    name = first_not_finite(itertools.chain(model.named_parameters(), model.named_buffers()))
    if name is not None:
        raise CheckpointError(f"{path}: its tensor {name} holds numbers that are not finite; the file is damaged, or "
                              "its training has failed")
    return model


def _load(part: str, path: Path, read: Callable[[], Loaded]) -> Loaded:
    try:
        return read()
    except (RuntimeError, SafetensorError, TypeError, KeyError, AssertionError, OSError) as error:
        raise CheckpointError(f"{path}: {part} does not load ({_first_line(error)}); "
                              "the file is damaged or belongs to another config.json") from None


def _first_line(error: BaseException) -> str:
    """The first line of an error that says something: load_state_dict's first one only announces the others."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading"):
        del lines[0]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _name(head: str, facts: Sequence[Any], weights: Iterable[Path]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for path in weights:
        try:
            digest.update(safetensors_digest(path))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: it does not load ({_first_line(error)}); the file is damaged") from None
    return f"{head}@{digest.hexdigest()[:12]}"
