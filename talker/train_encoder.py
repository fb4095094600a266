"""Codec stage 1: encoder and quantiser, judged by a throw-away head that predicts spectra from the codes.

Training encoder and decoder jointly from scratch only ever finds the energy envelope on a CPU budget; asking first for
"codes from which the spectrum can be read" gives codes that carry phonemes and pitch within minutes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from moshi.models.compression import MimiModel
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from talker import codec, spectra
from talker.config import FRAME_SAMPLES, Work
from talker.stream import Stream

N_FFT, HOP, MELS, LOW_BINS = 1024, 240, 80, slice(3, 43)  # low bins: 70 Hz to 1 kHz, where harmonics are resolved
STEPS_PER_FRAME = FRAME_SAMPLES // HOP
FEATURES = MELS + LOW_BINS.stop - LOW_BINS.start
BATCH, FRAMES = 8, 20
PEAK_LR, UNQUANTISED_SHARE, COMMIT = 1.5e-3, 0.3, 0.5
LATENTS_TO_COLLECT = 8192


def targets(pcm: Tensor) -> Tensor:
    """Log spectra [B, T, 8 * FEATURES] of pcm [B, 1, T * 1920]."""
    mag = spectra.magnitude(pcm[:, 0], N_FFT, HOP)[..., :-1]
    both = torch.cat([spectra.log_mel(mag, N_FFT, MELS, 0.02), torch.log(mag[:, LOW_BINS] + 0.1)], 1)
    batch, features, steps = both.shape
    return both.view(batch, features, steps // STEPS_PER_FRAME, STEPS_PER_FRAME).permute(0, 2, 3, 1).flatten(2)


class Head(nn.Module):
    """Causal reader of codes: this frame's latents and the previous frame's -> this frame's log spectra."""

    def __init__(self, dimension: int = 128, hidden: int = 512) -> None:
        super().__init__()
        self.context = nn.Conv1d(dimension, hidden, 2)
        self.body = nn.Sequential(nn.ELU(), nn.Conv1d(hidden, hidden, 1), nn.ELU())
        self.out = nn.Conv1d(hidden, STEPS_PER_FRAME * FEATURES, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, 128, T] -> [B, T, 8 * FEATURES]."""
        return self.out(self.body(self.context(F.pad(latents, (1, 0))))).transpose(1, 2)


def schedule(step: int, steps: int, peak: float, warmup: int = 50) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _project(mimi: MimiModel, latents: Tensor) -> Tensor:
    """What the quantiser would pass on if its codebooks were infinitely fine."""
    q = mimi.quantizer
    return sum(part.output_proj(part.input_proj(latents)) for part in (q.rvq_first, q.rvq_rest))


@torch.no_grad()
def init_codebooks(mimi: MimiModel, stream: Stream) -> None:
    """k-means of every codebook on some 8 000 collected latents (level by level, as moshi initialises them)."""
    mimi.eval()
    per_batch = BATCH * FRAMES
    latents = [codec.encode_latents(mimi, torch.from_numpy(stream.batch(BATCH, FRAMES)))
               for _ in range(LATENTS_TO_COLLECT // per_batch)]
    every = torch.cat([z.transpose(1, 2).flatten(0, 1) for z in latents]).t()[None]
    mimi.quantizer.train()
    for part in (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest):
        residual = part.input_proj(every)
        for layer in part.vq.layers:
            book = layer._codebook
            book._init_embedding(book._reshape_input(layer._rearrange_input(residual)))
            book.embedding_sum /= len(latents)  # usage per training batch, which is what the EMA tracks
            book.cluster_usage /= len(latents)
            book.register_buffer("_embedding", None, persistent=False)
            residual = residual - layer.decode(layer.encode(residual))
            book.register_buffer("_embedding", None, persistent=False)
    mimi.train()


def train(work: Work, steps: int, seed: int) -> None:
    """Write `encoder.pt`: the folded codec whose encoder and codebooks are trained (the decoder is not)."""
    done = work.path("encoder.pt")
    if done.exists():
        return
    torch.manual_seed(seed)
    stream, mimi, head = Stream(work, seed), codec.new_mimi(), Head()
    codec.lsuv(mimi.encoder, torch.from_numpy(stream.batch(BATCH, FRAMES)))
    with torch.no_grad():
        sample = targets(torch.from_numpy(stream.batch(32, FRAMES)))
        head.out.bias.copy_(sample.mean((0, 1)))
        spread = sample.std((0, 1)).mean()
    parameters = [p for name, p in mimi.named_parameters() if not name.startswith(("decoder", "upsample"))]
    optimiser = torch.optim.AdamW([*parameters, *head.parameters()], lr=PEAK_LR, betas=(0.9, 0.97), weight_decay=1e-4)
    resume, start = work.path("encoder.resume.pt"), 0
    if resume.exists():
        saved = torch.load(resume, weights_only=False)
        mimi.load_state_dict(saved["mimi"])
        head.load_state_dict(saved["head"])
        optimiser.load_state_dict(saved["optimiser"])
        stream.rng, start = saved["rng"], saved["step"]
    quantise_from = int(steps * UNQUANTISED_SHARE)
    mimi.train()
    losses = []
    for step in track(range(start, steps), total=steps - start, description="codec stage 1"):
        if step == quantise_from:
            init_codebooks(mimi, stream)
        for group in optimiser.param_groups:
            group["lr"] = schedule(step, steps, PEAK_LR)
        pcm = torch.from_numpy(stream.batch(BATCH, FRAMES))
        latents = codec.encode_latents(mimi, pcm)
        commit = torch.zeros(())
        if step < quantise_from:
            quantised = _project(mimi, latents)
        else:
            result = mimi.quantizer(latents, mimi.frame_rate)
            quantised, commit = result.x, result.penalty
        error = (head(quantised) - targets(pcm)).abs()[:, 1:].mean()
        loss = error / spread + COMMIT * commit
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([*parameters, *head.parameters()], 1.0)
        optimiser.step()
        losses.append(float(error))
        if step % 100 == 99:
            print(f"stage 1 step {step + 1}/{steps} log-spectral error {np.mean(losses[-100:]):.4f} "
                  f"commit {float(commit):.4f}", flush=True)
        if step % 500 == 499:
            torch.save({"mimi": mimi.state_dict(), "head": head.state_dict(), "optimiser": optimiser.state_dict(),
                        "rng": stream.rng, "step": step + 1}, resume)
    torch.save({"state": codec.folded(mimi), "head": head.state_dict(), "losses": losses}, done)
