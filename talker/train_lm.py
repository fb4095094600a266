"""The small Moshi: an RQ-Transformer that learns the rules of the synthetic conversations."""

from __future__ import annotations

import numpy as np
import torch
from moshi.models.lm import LMModel
from moshi.models.lm_utils import _delay_sequence
from moshi.models.loaders import get_moshi_lm
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from talker import codec, dialogues, replies, tokenizer
from talker.config import CARD, CODEBOOKS, LM_CONFIG, PAD, TEXT_CARD, Work
from talker.stream import Speech
from talker.train_decoder import frozen_encoder
from talker.train_encoder import schedule

DONE = "lm.pt"
FRAMES, BATCH = 300, 6
ENCODE_BATCH = 16
NOISE_SHARE = 0.12
PEAK_LR = 2e-3
OWN_CORRUPTION, USER_CORRUPTION = 0.03, 0.02  # share of input codes replaced by random ones
FALLING_WEIGHT = 4.0  # loss weight of the first frames of silence after speech, and of all that come too late
BEGINNING_WEIGHT = 10.0  # loss weight of the first two frames of a line, in calls with a prompt
OVERRUN_SHARE, LONGEST_OVERRUN = 0.65, 8  # how often, and how many frames, the past goes on after an interruption
APART_SHARE = 0.3  # of which text and audio go on for different times
SILENT_WEIGHT = 0.25  # loss weight of frames in which the talker is silent


def make_dialogues(work: Work, count: int, seed: int) -> np.ndarray:
    """int16 [count, 26, 300]: text, own codes, user codes, and text and own codes of a talker that never stops."""
    target = work.path("cache/dialogues.npy")
    if target.exists():
        return np.load(target)
    mimi, rng, speech = frozen_encoder(work, "joint.pt"), np.random.default_rng(seed), Speech(work, "train")
    book = replies.build(work, mimi, tokenizer.load(work))
    out = np.zeros((count, 2 + 3 * CODEBOOKS, FRAMES), np.int16)
    for first in track(range(0, count, ENCODE_BATCH), description="dialogues"):
        talks = [dialogues.noise_only(speech, book, rng, FRAMES) if rng.random() < NOISE_SHARE
                 else dialogues.converse(speech, book, rng, FRAMES) for _ in range(min(ENCODE_BATCH, count - first))]
        heard = codec.encode_live(mimi, torch.from_numpy(np.stack([t.pcm for t in talks])))
        for i, (talk, user) in enumerate(zip(talks, heard.numpy(), strict=True)):
            out[first + i] = np.concatenate([talk.own, user, talk.onward])
        print(f"dialogues {first + len(talks)}/{count}", flush=True)
    np.save(target, out)
    return out


def corrupt(codes: Tensor, share: float | Tensor, card: int) -> Tensor:
    """Codes of which so many are random; `share` may be a tensor, for shares of their own."""
    swap = torch.rand(codes.shape) < share
    return torch.where(swap, torch.randint_like(codes, card), codes)


def overrun(own: Tensor, onward: Tensor) -> Tensor:
    """A past [B, 9, T] in which the talker stopped later than the rule says, or only its text or its audio did.

    Trained on the rule's own past alone, a model that misses the one frame in which to stop finds itself in a past it
    has never seen, and the surest continuation of half a line is its other half. With these pasts, and the rule's
    silence as what is wanted, every frame after an interruption teaches to stop.
    """
    spoken = (own != onward).any(1)
    count = spoken.cumsum(1)
    late = count - count.masked_fill(spoken, 0).cummax(1).values  # 1, 2, 3.. in the frames after each interruption
    longest = torch.randint(1, LONGEST_OVERRUN + 1, (2, len(own), 1)) * (torch.rand(1, len(own), 1) < OVERRUN_SHARE)
    audio = longest[0]
    text = torch.where(torch.rand(audio.shape) < APART_SHARE, longest[1], audio)
    goes_on = torch.stack([late <= text] + [late <= audio] * CODEBOOKS, 1) & spoken[:, None]
    return torch.where(goes_on, onward, own)


def losses(lm: LMModel, data: Tensor, given: Tensor, silence: Tensor,
           audio_share: float = 1.0) -> tuple[Tensor, Tensor]:
    """(text, audio) cross-entropies of dialogues [B, 26, T] behind their first `given` [B] frames; the past is slightly
    corrupted so that one odd sample at run time doesn't derail a reply, and overruns interruptions; the targets are
    clean. `audio_share` of the frames in the middle of lines and of silence are learnt as audio."""
    split = 1 + CODEBOOKS
    codes, onward = data[:, : split + CODEBOOKS], data[:, split + CODEBOOKS :]
    initial = lm._get_initial_token().expand(len(codes), -1, -1)

    def delayed(own: Tensor, user: Tensor) -> Tensor:
        return torch.cat([initial, _delay_sequence(lm.delays, torch.cat([own, user], 1), initial)], 2)

    def corrupted(own: Tensor) -> Tensor:
        return torch.cat([own[:, :1], corrupt(own[:, 1:], OWN_CORRUPTION, CARD)], 1)

    own, user = codes[:, :split], codes[:, split:]
    heard = corrupt(user, USER_CORRUPTION, CARD)
    late = overrun(own, onward)
    clean, past, now = delayed(own, user), delayed(corrupted(late), heard), delayed(corrupted(own), heard)
    hidden, text_logits = lm.forward_text(past[:, :, :-1])
    # The depth transformer is most of the cost: run it on the frames with speech and a sample of the silent ones.
    audio, inputs = (x[:, :, 1:].transpose(0, 1).flatten(1) for x in (clean, now))  # [17, B * T]
    quiet = (audio[1:split] == silence[:, None]).all(0)
    # Falling silent is a few frames in a thousand, and the hardest to learn when it is a barge-in that asks for it.
    by_call = F.pad(quiet.view(len(codes), -1), (3, 0), value=True)
    falling = (quiet.view(len(codes), -1) & ~by_call.unfold(1, 4, 1).all(2)).flatten()
    falling |= (delayed(late, user) != clean)[:, :split, 1:].any(1).flatten()
    learnt = (torch.arange(data.shape[-1]) >= given[:, None]).flatten()
    # What a prompt asks for shows in how a line begins only: the rest follows from that.
    begins = ~quiet.view(len(codes), -1) & by_call[:, 2:-1] & (given > 0)[:, None]
    begins = (begins | F.pad(begins, (1, 0))[:, :-1]).flatten()
    text = clean[:, 0, 1:].flatten()
    text_weight = torch.where(text == PAD, SILENT_WEIGHT, 1.0).masked_fill(falling, FALLING_WEIGHT)
    text_weight = text_weight.masked_fill(begins, BEGINNING_WEIGHT) * learnt
    text_loss = F.cross_entropy(text_logits[:, 0].flatten(0, 1), text, reduction="none")
    sampled = torch.rand(quiet.shape) < torch.where(quiet, SILENT_WEIGHT, 1.0) * audio_share
    keep = (learnt & (begins | falling | sampled)).nonzero()[:, 0]
    logits = lm.forward_depformer_training(inputs[None, :, keep], hidden.flatten(0, 1)[None, keep])[0]
    wanted = audio[1:split, keep].masked_fill(audio[1:split, keep] >= CARD, -100)
    audio_loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="none")
    audio_weight = torch.where(falling[keep], FALLING_WEIGHT, 1.0).masked_fill(begins[keep], BEGINNING_WEIGHT)
    audio_weight = audio_weight.expand_as(wanted).flatten()
    return ((text_loss * text_weight).sum() / text_weight.sum(),
            (audio_loss * audio_weight).sum() / audio_weight.sum())


def train(work: Work, steps: int, count: int, seed: int) -> None:
    """Write `lm.pt`: the language model's state dict."""
    done = work.path(DONE)
    if done.exists():
        return
    torch.manual_seed(seed)
    data = make_dialogues(work, count, seed)
    book = replies.build(work, frozen_encoder(work, "joint.pt"), tokenizer.load(work))
    silence = torch.from_numpy(book.silence)
    lm = get_moshi_lm(None, LM_CONFIG, dtype=torch.float32)
    assert lm.text_card == TEXT_CARD
    optimiser = torch.optim.AdamW(lm.parameters(), lr=PEAK_LR, betas=(0.9, 0.97), weight_decay=0.02)
    rng, resume, start = np.random.default_rng(seed), work.path("lm.resume.pt"), 0
    if resume.exists():
        saved = torch.load(resume, weights_only=False)
        lm.load_state_dict(saved["lm"])
        optimiser.load_state_dict(saved["optimiser"])
        rng, start = saved["rng"], saved["step"]
    lm.train()
    history = []
    for step in track(range(start, steps), total=steps - start, description="language model"):
        for group in optimiser.param_groups:
            group["lr"] = schedule(step, steps, PEAK_LR, warmup=100)
        rows = rng.integers(len(data), size=BATCH)
        text, audio = losses(lm, torch.from_numpy(data[rows].astype(np.int64)), torch.zeros(BATCH), silence)
        optimiser.zero_grad(set_to_none=True)
        (text + audio).backward()
        nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimiser.step()
        history.append((float(text), float(audio)))
        if step % 100 == 99:
            recent = np.mean(history[-100:], 0)
            print(f"lm step {step + 1}/{steps} text {recent[0]:.4f} audio {recent[1]:.4f}", flush=True)
        if step % 500 == 499:
            torch.save({"lm": lm.state_dict(), "optimiser": optimiser.state_dict(), "rng": rng, "step": step + 1},
                       resume)
    torch.save(lm.state_dict(), done)
