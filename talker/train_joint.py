"""Codec stage 3: encoder, quantiser and decoder together, now that each has somewhere to start from.

The spectral head of stage 1 stays on as a guide.
"""

from __future__ import annotations

import numpy as np
import torch
from rich.progress import track
from torch import nn

from talker import codec
from talker.config import FRAME_SAMPLES, Work
from talker.stream import Stream
from talker.train_decoder import SETTLE, speech_loss
from talker.train_encoder import COMMIT, Head, schedule, targets

BATCH, FRAMES = 8, 16
PEAK_LR, HEAD_WEIGHT = 4e-4, 0.4


def train(work: Work, steps: int, seed: int) -> None:
    """Write `joint.pt`, the finished codec (folded), from `encoder.pt` and `decoder.pt`."""
    done = work.path("joint.pt")
    if done.exists():
        return
    torch.manual_seed(seed)
    stream, mimi, head = Stream(work, seed + 3, reply_share=0.15, noise_share=0.2), codec.new_mimi(), Head()
    mimi.load_state_dict(torch.load(work.path("decoder.pt"), weights_only=False))
    head.load_state_dict(torch.load(work.path("encoder.pt"), weights_only=False)["head"])
    parameters = [*mimi.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=PEAK_LR, betas=(0.8, 0.98), weight_decay=1e-4)
    resume, start = work.path("joint.resume.pt"), 0
    if resume.exists():
        saved = torch.load(resume, weights_only=False)
        mimi.load_state_dict(saved["mimi"])
        head.load_state_dict(saved["head"])
        optimiser.load_state_dict(saved["optimiser"])
        stream.rng, start = saved["rng"], saved["step"]
    mimi.train()
    skip, losses = SETTLE * FRAME_SAMPLES, []
    for step in track(range(start, steps), total=steps - start, description="codec stage 3"):
        for group in optimiser.param_groups:
            group["lr"] = schedule(step, steps, PEAK_LR)
        pcm = torch.from_numpy(stream.batch(BATCH, FRAMES))
        with codec.half_precision():
            latents = codec.encode_latents(mimi, pcm)
        result = mimi.quantizer(latents.float(), mimi.frame_rate)
        with codec.half_precision():
            said = codec.decode_latents(mimi, result.x)
        said, wanted = said.float()[:, 0, skip:], pcm[:, 0, skip:]
        spectral = speech_loss(said, wanted)
        readable = (head(result.x) - targets(pcm)).abs()[:, 1:].mean()
        loss = spectral + HEAD_WEIGHT * readable + COMMIT * result.penalty
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append((float(spectral), float(readable)))
        if step % 100 == 99:
            a, b = np.mean(losses[-100:], 0)
            print(f"stage 3 step {step + 1}/{steps} loss {a:.4f} log-spectral error {b:.4f}", flush=True)
        if step % 500 == 499:
            torch.save({"mimi": mimi.state_dict(), "head": head.state_dict(), "optimiser": optimiser.state_dict(),
                        "rng": stream.rng, "step": step + 1}, resume)
    torch.save({"state": codec.folded(mimi)}, done)
