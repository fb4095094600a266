"""Codec stage 2: the decoder alone, from codes that the finished encoder has cached.

Loss: log-mel distance at two resolutions (floor 0.05), spectral convergence, the mismatch of band envelopes that
STOI listens to, a little waveform distance.
"""

from __future__ import annotations

import numpy as np
import torch
from moshi.models.compression import MimiModel
from rich.progress import track
from torch import Tensor, nn

from talker import codec, replies, spectra, tokenizer
from talker.config import CODEBOOKS, FRAME_SAMPLES, Work
from talker.stream import Stream
from talker.train_encoder import schedule

SEGMENTS, SEGMENT_FRAMES = 300, 250  # 100 minutes of cached codes
REPLY_SEGMENTS = 8
RESOLUTIONS = ((512, 48), (1536, 100))  # (n_fft, mels)
FLOOR = 0.05
BATCH, FRAMES, SETTLE = 8, 16, 3  # the first SETTLE frames of a crop lack their past and carry no loss
REPLY_SHARE = 0.2
PEAK_LR = 4e-4


def frozen_encoder(work: Work, source: str) -> MimiModel:
    """The codec of `encoder.pt` or `joint.pt` rounded through fp16, exactly as it will ship (codes depend on it)."""
    return codec.plain(torch.load(work.path(source), weights_only=False)["state"])


def reply_segment(book: replies.Book, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(codes [8, 250], pcm [250 * 1920]) of lines between silences as the language model strings them together; one
    in four is cut short, as in a barge-in."""
    codes = np.repeat(book.silence[:, None], SEGMENT_FRAMES, 1)
    pcm = np.zeros(SEGMENT_FRAMES * FRAME_SAMPLES, np.float32)
    at = int(rng.integers(4, 12))
    while True:
        line = book.lines[int(rng.integers(len(book.lines)))]
        if at + line.frames >= SEGMENT_FRAMES:
            return codes, pcm
        keep = line.frames if rng.random() < 0.75 else int(rng.integers(2, line.frames))
        codes[:, at : at + keep] = line.codes[:, :keep]
        said = line.pcm[: keep * FRAME_SAMPLES].copy()
        if keep < line.frames:
            said[-480:] *= np.linspace(1, 0, 480, dtype=np.float32)
        pcm[at * FRAME_SAMPLES : (at + keep) * FRAME_SAMPLES] = said
        at += keep + int(rng.integers(3, 20))


def cache(work: Work, mimi: MimiModel, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes [S, 8, 250] int16, pcm [S, 250 * 1920] int16); the first REPLY_SEGMENTS hold replies."""
    codes_path, pcm_path = work.path("cache/codes.npy"), work.path("cache/pcm.npy")
    if not codes_path.exists():
        stream = Stream(work, seed, reply_share=0.0, noise_share=0.1)
        book = replies.build(work, mimi, tokenizer.load(work))
        codes = np.zeros((REPLY_SEGMENTS + SEGMENTS, CODEBOOKS, SEGMENT_FRAMES), np.int16)
        pcm = np.zeros((len(codes), SEGMENT_FRAMES * FRAME_SAMPLES), np.int16)
        for i in track(range(len(codes)), description="caching codes"):
            if i < REPLY_SEGMENTS:
                codes[i], wave = reply_segment(book, stream.rng)
            else:
                wave = stream.crop(SEGMENT_FRAMES * FRAME_SAMPLES)
                with torch.no_grad():
                    codes[i] = mimi.encode(torch.from_numpy(wave)[None, None])[0].numpy()
            pcm[i] = (wave * 32767).astype(np.int16)
        np.save(pcm_path, pcm)
        np.save(codes_path, codes)
    return np.load(codes_path), np.load(pcm_path, mmap_mode="r")


def spectral_loss(said: Tensor, wanted: Tensor) -> Tensor:
    """Multi-resolution log-mel L1 plus spectral convergence of [B, T] PCM."""
    loss = torch.zeros(())
    for n_fft, mels in RESOLUTIONS:
        a, b = (spectra.magnitude(x, n_fft, n_fft // 4) for x in (said, wanted))
        mel_a, mel_b = (spectra.log_mel(m, n_fft, mels, FLOOR) for m in (a, b))
        convergence = (a - b).flatten(1).norm(dim=1) / (b.flatten(1).norm(dim=1) + 5.0)
        loss = loss + (mel_a - mel_b).abs().mean() + 0.5 * convergence.mean()
    return loss / len(RESOLUTIONS)


def speech_loss(said: Tensor, wanted: Tensor) -> Tensor:
    """Everything the decoder is asked for, for [B, T] PCM."""
    waveform = (said - wanted).abs().mean()
    return spectral_loss(said, wanted) + spectra.envelope_mismatch(said, wanted) + 0.5 * waveform


class Crops:
    """Random (codes, pcm) crops of the cache, REPLY_SHARE of them from the reply segments."""

    def __init__(self, codes: np.ndarray, pcm: np.ndarray, seed: int, frames: int = FRAMES) -> None:
        self.codes, self.pcm, self.frames = codes, pcm, frames
        self.rng = np.random.default_rng(seed)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """codes int64 [size, 8, frames], pcm float32 [size, frames * 1920]."""
        codes, pcm = [], []
        for _ in range(size):
            reply = self.rng.random() < REPLY_SHARE
            i = int(self.rng.integers(0, REPLY_SEGMENTS) if reply else self.rng.integers(REPLY_SEGMENTS, len(self.pcm)))
            t = int(self.rng.integers(SEGMENT_FRAMES - self.frames + 1))
            codes.append(self.codes[i, :, t : t + self.frames])
            pcm.append(self.pcm[i, t * FRAME_SAMPLES : (t + self.frames) * FRAME_SAMPLES])
        waves = np.stack(pcm).astype(np.float32) / 32767
        return torch.from_numpy(np.stack(codes).astype(np.int64)), torch.from_numpy(waves)


def trainable(mimi: MimiModel) -> list[nn.Parameter]:
    """The decoder's side: quantiser output projections stay, everything after them learns."""
    return [p for name, p in mimi.named_parameters() if name.startswith(("decoder", "upsample"))]


def train(work: Work, steps: int, seed: int) -> None:
    """Stage 2: write `decoder.pt`, the state of the whole codec (weight norm unfolded) with a first decoder."""
    if work.path("decoder.pt").exists():
        return
    torch.manual_seed(seed)
    frozen = frozen_encoder(work, "encoder.pt")
    crops = Crops(*cache(work, frozen, seed), seed)
    mimi = codec.new_mimi()
    mimi.load_state_dict(codec.unfolded(frozen.state_dict()))
    with torch.no_grad():
        latents = mimi.quantizer.decode(crops.batch(BATCH)[0])
        (emb,) = mimi.decoder_transformer(mimi.upsample(latents))
        codec.lsuv(mimi.decoder, emb, last_std=0.08)
    optimiser = torch.optim.AdamW(trainable(mimi), lr=PEAK_LR, betas=(0.8, 0.98), weight_decay=1e-4)
    resume, start = work.path("decoder.resume.pt"), 0
    if resume.exists():
        saved = torch.load(resume, weights_only=False)
        mimi.load_state_dict(saved["mimi"])
        optimiser.load_state_dict(saved["optimiser"])
        crops.rng, start = saved["rng"], saved["step"]
    mimi.train()
    mimi.quantizer.eval()
    skip, losses = SETTLE * FRAME_SAMPLES, []
    for step in track(range(start, steps), total=steps - start, description="codec stage 2"):
        for group in optimiser.param_groups:
            group["lr"] = schedule(step, steps, PEAK_LR)
        batch, wanted = crops.batch(BATCH)
        with torch.no_grad():
            latents = mimi.quantizer.decode(batch)
        with codec.half_precision():
            said = codec.decode_latents(mimi, latents)
        loss = speech_loss(said.float()[:, 0, skip:], wanted[:, skip:])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable(mimi), 1.0)
        optimiser.step()
        losses.append(float(loss))
        if step % 100 == 99:
            print(f"stage 2 step {step + 1}/{steps} loss {np.mean(losses[-100:]):.4f}", flush=True)
        if step % 500 == 499:
            torch.save({"mimi": mimi.state_dict(), "optimiser": optimiser.state_dict(), "rng": crops.rng,
                        "step": step + 1}, resume)
    torch.save(mimi.state_dict(), work.path("decoder.pt"))
