"""The small Mimi: building it for training, waking it up (LSUV), folding and saving it for stock moshi."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from moshi.models.compression import MimiModel
from moshi.models.loaders import get_mimi
from moshi.modules.conv import NormConv1d, NormConvTranspose1d
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from talker.config import CODEBOOKS, FRAME_SAMPLES, MIMI_CONFIG, MIMI_NAME, Work


def new_mimi() -> MimiModel:
    """An untrained Mimi of our size whose convolutions carry weight norm (moshi's own inference form has none)."""
    config = copy.deepcopy(MIMI_CONFIG)
    config["seanet"]["norm"] = "weight_norm"
    return get_mimi(None, config, num_codebooks=CODEBOOKS)


def _convs(module: nn.Module) -> list[nn.Module]:
    return [getattr(m, "conv", None) or m.convtr for m in module.modules()
            if isinstance(m, (NormConv1d, NormConvTranspose1d))]


def lsuv(module: nn.Module, x: Tensor, last_std: float = 1.0) -> None:
    """Layer-sequential unit-variance init (Mishkin & Matas, arXiv 1511.06422) in one forward pass of `x`.

    Moshi's default initialisation shrinks a 16-filter SEANet's signal to nothing and it barely learns; here each
    weight-normed convolution is scaled, as the data passes, so that its output has unit standard deviation.
    """
    convs = [c for c in _convs(module) if hasattr(c, "weight_g")]
    handles = []

    def rescale(conv: nn.Module, _inputs: tuple, out: Tensor) -> Tensor:
        wanted = last_std if conv is convs[-1] else 1.0
        factor = wanted / (out.std() + 1e-6)
        conv.weight_g.data *= factor
        return out * factor

    for conv in convs:
        nn.init.orthogonal_(conv.weight_v)
        conv.weight_g.data.copy_(conv.weight_v.flatten(1).norm(dim=1).view_as(conv.weight_g))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        handles.append(conv.register_forward_hook(rescale))
    with torch.no_grad():
        module(x)
    for handle in handles:
        handle.remove()


def folded(mimi: MimiModel) -> dict[str, Tensor]:
    """State dict in moshi's inference form: weight norm folded, codebooks stored with usage 1 (safe in fp16)."""
    state = {k: v.detach().clone().contiguous() for k, v in mimi.state_dict().items()}
    for key in [k for k in state if k.endswith("weight_g")]:
        stem = key.removesuffix("_g")
        g, v = state.pop(key), state.pop(stem + "_v")
        state[stem] = v * (g / v.flatten(1).norm(dim=1).view_as(g))
    for key in [k for k in state if k.endswith("embedding_sum")]:
        usage = key.replace("embedding_sum", "cluster_usage")
        state[key] = state[key] / state[usage].clamp(min=1e-5)[:, None]
        state[usage] = torch.ones_like(state[usage])
    return state


def unfolded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `folded`: weights split into length and direction again, for `new_mimi().load_state_dict`."""
    out, wanted = dict(state), new_mimi().state_dict()
    for key in [k for k in wanted if k.endswith("weight_g")]:
        stem = key.removesuffix("_g")
        weight = out.pop(stem)
        out[stem + "_v"], out[key] = weight, weight.flatten(1).norm(dim=1).view_as(wanted[key])
    return out


def save(state: dict[str, Tensor], path: Path) -> None:
    """fp16 safetensors."""
    save_file({k: v.half() for k, v in state.items()}, path)


def adopt(folder: Path, work: Work) -> None:
    """Write `joint.pt` from the finished codec of a checkpoint folder (its fp16 weights go through unchanged)."""
    state = {k: v.float() for k, v in load_file(folder / MIMI_NAME).items()}
    torch.save({"state": state}, work.path("joint.pt"))


def plain(state: dict[str, Tensor]) -> MimiModel:
    """A folded state in eval mode, as stock moshi has it after loading (fp16 weights, float32 arithmetic)."""
    mimi = get_mimi(None, copy.deepcopy(MIMI_CONFIG), num_codebooks=CODEBOOKS)
    mimi.load_state_dict({k: v.half().float() for k, v in state.items()})
    return mimi.eval()


def half_precision() -> torch.autocast:
    """bfloat16 convolutions where the processor has them (1.7 times as fast); a no-op elsewhere."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.no_grad()
def encode_live(mimi: MimiModel, pcm: Tensor) -> Tensor:
    """Codes [B, 8, T] of pcm [B, T * 1920], frame by frame as in a call.

    Not quite the same as one long `encode` (5 % of the codes differ, mostly in the last codebooks): the streaming
    attention of moshi writes a frame's two steps into its ring of keys before the first of them attends, so that one
    sees one key less.
    """
    frames = pcm.view(len(pcm), 1, -1, FRAME_SAMPLES)
    with mimi.streaming(len(pcm)):
        return torch.cat([mimi.encode(frames[:, :, i].contiguous()) for i in range(frames.shape[2])], -1)


def encode_latents(mimi: MimiModel, pcm: Tensor) -> Tensor:
    """Unquantised latents [B, 128, T] of pcm [B, 1, T * 1920], with gradients."""
    (emb,) = mimi.encoder_transformer(mimi.encoder(pcm))
    return mimi.downsample(emb)


def decode_latents(mimi: MimiModel, latents: Tensor) -> Tensor:
    """PCM [B, 1, T * 1920] of quantised latents [B, 128, T], with gradients."""
    (emb,) = mimi.decoder_transformer(mimi.upsample(latents))
    return mimi.decoder(emb)
