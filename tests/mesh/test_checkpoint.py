"""Checkpoints load from a folder in the official format, and a bad one is refused with one line that helps."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from moshi.models import LMGen, loaders
from moshi.utils.compile import no_compile
from safetensors.torch import load_file, save_file

from scripts.random_checkpoint import write_checkpoint
from services.mesh import fingerprint
from services.mesh.checkpoint import CheckpointError, codec_id, lm_id, load_lm, load_mimi, load_tokenizer, resolve


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_checkpoint(folder, seed=0)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_loads_as_fp32(original: Path) -> None:
    info = resolve(str(original))
    mimi, lm = load_mimi(info), load_lm(info, dtype=torch.float32)
    assert {parameter.dtype for parameter in (*mimi.parameters(), *lm.parameters())} == {torch.float32}
    assert (mimi.num_codebooks, mimi.frame_size) == (8, 1920)
    assert load_tokenizer(info).get_piece_size() == lm.text_card


def test_stock_moshi_loads_it_too(original: Path) -> None:
    mimi_config = json.loads((original / "mimi_config.json").read_text())
    assert loaders.get_mimi(original / "mimi.safetensors", mimi_config).cardinality == 1024


def test_the_hub_is_never_asked_about_a_folder(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "hf_hub_download", lambda *args, **kwargs: pytest.fail("asked the hub"))
    load_mimi(resolve(str(original)))


def test_the_same_seed_gives_the_same_checkpoint(original: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny", seed=0)
    for file in original.iterdir():
        assert file.read_bytes() == (tmp_path / "tiny" / file.name).read_bytes(), file.name


def ids(folder: Path) -> tuple[str, str]:
    info = resolve(str(folder))
    return codec_id(info), lm_id(info)


def test_ids_do_not_depend_on_the_names_of_folders_and_files(original: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(original, tmp_path / "renamed"))
    (other / "model.safetensors").rename(other / "weights.safetensors")
    edit(other / "config.json", moshi_name="weights.safetensors")
    codec, lm = ids(original)
    assert (codec, lm) == ids(other)
    assert re.fullmatch("mimi@[0-9a-f]{12}", codec) and re.fullmatch("moshi@[0-9a-f]{12}", lm)


@pytest.mark.parametrize("whole_bytes", [fingerprint.WHOLE_BYTES, 0], ids=["whole", "sampled"])
def test_ids_hear_of_every_tensor(folder: Path, whole_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "WHOLE_BYTES", whole_bytes)
    for file in ("mimi.safetensors", "model.safetensors"):
        weights = load_file(folder / file)
        known = {fingerprint.safetensors_digest(folder / file)}
        for name, tensor in weights.items():
            save_file(weights | {name: torch.full_like(tensor, torch.nan)}, folder / "changed.safetensors")
            known.add(fingerprint.safetensors_digest(folder / "changed.safetensors"))
        assert len(known) == len(weights) + 1, file


def test_the_order_of_tensors_makes_no_difference(tmp_path: Path) -> None:
    one, two = torch.arange(6.0).view(2, 3), torch.arange(4)
    header = {"one": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
              "two": {"dtype": "I64", "shape": [4], "data_offsets": [24, 56]}}
    save_file({"one": one, "two": two}, tmp_path / "by_the_library.safetensors")
    text = json.dumps(header).encode()
    (tmp_path / "by_hand.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + one.numpy().tobytes() + two.numpy().tobytes())
    assert len({fingerprint.safetensors_digest(path) for path in tmp_path.iterdir()}) == 1


def test_another_mimi_is_another_codec_and_another_model(original: Path, folder: Path) -> None:
    codec, lm = ids(original)
    weights = load_file(folder / "mimi.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, folder / "mimi.safetensors")
    assert ids(folder)[0] != codec and ids(folder)[1] != lm


@pytest.mark.parametrize("changes", [{"layer_scale": 0.5}, {"lm_gen_config": {"temp": 0.1}}], ids=str)
def test_another_configuration_is_another_model_of_the_same_codec(
        original: Path, folder: Path, changes: dict[str, object]) -> None:
    edit(folder / "config.json", **changes)
    codec, lm = ids(original)
    assert ids(folder)[0] == codec and ids(folder)[1] != lm


def test_greedy_tokens_depend_on_the_callers_codes(original: Path) -> None:
    lm = load_lm(resolve(str(original)), dtype=torch.float32)
    spoken = []
    for seed in range(2):
        user = torch.randint(lm.card, (8, 20), generator=torch.Generator().manual_seed(seed))
        generator = LMGen(lm, use_sampling=False)
        with torch.no_grad(), no_compile(), generator.streaming(1):  # compiling takes longer than all steps
            steps = [generator.step(user[None, :, [frame]]) for frame in range(20)]
        spoken.append(np.stack([step[0, :, 0].numpy() for step in steps if step is not None]))
    assert (spoken[0] != spoken[1]).mean() > 0.5
    assert all(len(np.unique(stream)) > 5 for stream in spoken[0].T)


def damage_weights(folder: Path) -> None:
    (folder / "mimi.safetensors").write_bytes(b"not safetensors at all")


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


@pytest.mark.parametrize(("damage", "words"), [
    (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    (lambda folder: (folder / "config.json").write_text("[]"), "must hold a JSON object"),
    (lambda folder: (folder / "mimi_config.json").write_text("nope"), "mimi_config.json cannot be read as JSON"),
    (lambda folder: (folder / "mimi.safetensors").unlink(), "mimi.safetensors is missing"),
    (lambda folder: (folder / "tokenizer.model").unlink(), "tokenizer.model is missing"),
    (lambda folder: (folder / "tokenizer.model").write_bytes(b"x"), "the tokenizer does not load"),
    (lambda folder: edit(folder / "config.json", text_card=32000), "512 pieces and text_card is 32000"),
    (lambda folder: edit(folder / "config.json", card=2048), "card 2048 and Mimi has 1024 bins"),
    (lambda folder: edit(folder / "config.json", n_q=40, dep_q=20, delays=[0] * 41),
     "speaks 20 codebooks and Mimi has 8"),
    (lambda folder: edit(folder / "config.json", dep_q=0),
     r"dep_q must be at least 1 \(a model without a depth transformer does not speak\), got 0"),
    (lambda folder: edit(folder / "config.json", dep_q=16), "leaves no codebooks"),
    (lambda folder: edit(folder / "config.json", card="many"), 'card must be a whole number.*, got "many"'),
    (lambda folder: (folder / "config.json").write_text("[" * 100_000), "cannot be read as JSON"),
    (lambda folder: edit(folder / "config.json", num_heads=7), "num_heads must divide dim, which is .*, got 7"),
    (lambda folder: edit(folder / "config.json", depformer_num_heads=7), "must divide depformer_dim"),
    (lambda folder: edit(folder / "config.json", dim=256), "the language model does not load"),
    (damage_weights, "Mimi does not load"),
    (truncate_weights, "the language model does not load"),
])
def test_a_bad_folder_is_refused_with_one_line(folder: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        info = resolve(str(folder))
        load_mimi(info)
        load_lm(info)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_refused_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder; give a folder"):
        resolve(str(tmp_path / "nowhere"))


def test_an_unreachable_hub_is_refused_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise LocalEntryNotFoundError("Cannot find the file in the cache.\nCheck your connection.")

    monkeypatch.setattr(loaders, "hf_hub_download", unreachable)
    with pytest.raises(CheckpointError, match="the hub did not provide it") as caught:
        resolve("kyutai/moshiko-pytorch-bf16")
    assert "\n" not in str(caught.value)


def test_the_hubs_files_make_a_checkpoint(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "hf_hub_download", lambda repo, name, revision=None: str(original / name))
    info = resolve("someone/tiny")
    assert info.mimi_weights == original / "mimi.safetensors"
    assert lm_id(info).startswith("moshi@")
