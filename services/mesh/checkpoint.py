"""Moshi checkpoints in Moshi's own format: from a local folder or from the hub, refused with one clear line.

The only file of services/mesh that imports moshi: the gateway, which has no torch, must not import it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import sentencepiece
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from moshi.models import loaders
from moshi.models.compression import MimiModel
from moshi.models.lm import LMModel
from moshi.models.loaders import CheckpointInfo
from safetensors import SafetensorError

from services.mesh.fingerprint import safetensors_digest

Loaded = TypeVar("Loaded")


class CheckpointError(ValueError):
    """The checkpoint cannot be served; the message says what is wrong with it and what to do, in one line."""


def resolve(checkpoint: str) -> CheckpointInfo:
    """The files and configuration of `checkpoint`, a local folder or a hub id, once they fit together.

    Local folders never ask the hub. No weights are read here. Raises CheckpointError.
    """
    folder = Path(checkpoint).expanduser()
    info = _from_folder(folder) if folder.is_dir() else _from_hub(checkpoint)
    for path in (info.moshi_weights, info.mimi_weights, info.tokenizer, info.lora_weights):
        if path is not None and not path.is_file():
            raise CheckpointError(f"checkpoint {checkpoint}: {path.name} is missing; "
                                  "add the file, or correct its name in config.json")
    _check_parts_fit(checkpoint, info)
    return info


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
    return _load("Mimi", info.mimi_weights, lambda: info.get_mimi(device=device))


def load_lm(info: CheckpointInfo, device: torch.device | str = "cpu",
            dtype: torch.dtype = torch.bfloat16) -> LMModel:
    """The language model, its weights converted to `dtype` whatever they are stored in. Raises CheckpointError."""
    return _load("the language model", info.moshi_weights, lambda: info.get_moshi(device=device, dtype=dtype))


def load_tokenizer(info: CheckpointInfo) -> sentencepiece.SentencePieceProcessor:
    """The text tokenizer. Raises CheckpointError."""
    tokenizer: sentencepiece.SentencePieceProcessor = _load("the tokenizer", info.tokenizer, info.get_text_tokenizer)
    return tokenizer


def _from_folder(folder: Path) -> CheckpointInfo:
    config = _read_json(folder / "config.json")

    def local(key: str, default: str | None = None) -> Path | None:
        name = config.get(key, default)
        return None if name is None else folder / str(name)

    mimi_config = local("mimi_config_name")
    if mimi_config is not None:
        _read_json(mimi_config)
    # Paths, not strings: from_hf_repo takes a plain name for a file of the hub repository.
    return CheckpointInfo.from_hf_repo(
        folder.name,
        moshi_weights=local("moshi_name", loaders.MOSHI_NAME),
        mimi_weights=local("mimi_name", loaders.MIMI_NAME),
        tokenizer=local("tokenizer_name", loaders.TEXT_TOKENIZER_NAME),
        config_path=folder / "config.json",
        mimi_config_path=mimi_config,
        lora_weights=local("lora_name"),
    )


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
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path.parent}: {path.name} cannot be read as JSON "
                              f"({_first_line(error)})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {path.parent}: {path.name} must hold a JSON object")
    return content


def _check_parts_fit(checkpoint: str, info: CheckpointInfo) -> None:
    """Mimi, the language model and the tokenizer agree on their sizes."""
    lm, mimi = lm_config(info), mimi_config(info)
    try:
        codebooks, own, card, text_card = (int(lm[key]) for key in ("n_q", "dep_q", "card", "text_card"))
        entries, mimi_codebooks = int(mimi["quantizer"]["bins"]), int(mimi["quantizer"]["n_q"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {checkpoint}: its configuration lacks {error}; moshi-mesh needs "
                              "n_q, dep_q, card, text_card and Mimi's quantizer n_q and bins") from None
    if not 0 < own < codebooks:
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
