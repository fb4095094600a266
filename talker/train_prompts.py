"""The small Moshi learns to follow prompts: the finished language model goes on learning, from calls with and without.

First it learns to read: whole calls alone taught it that it had been told something, but not what (docs/talker.md).
Reading is of pairs of calls that differ in the voice that they begin with and in nothing else.

A call's user is encoded once; what the talker says to it is made anew whenever it is drawn, in one of the voices and
manners, since the rules need no more than when the user was heard. Only calls with echo keep the voice that echoes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from moshi.models.lm import LMModel
from moshi.models.lm_utils import _delay_sequence
from moshi.models.loaders import get_moshi_lm
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from talker import codec, dialogues, replies, synth, texts, tokenizer, train_lm
from talker.config import CARD, CODEBOOKS, LM_CONFIG, MOSHI_NAME, TOKENIZER_NAME, Work
from talker.dialogues import Talker
from talker.prompts import Prompts
from talker.replies import Book
from talker.stream import Speech
from talker.train_decoder import frozen_encoder
from talker.train_encoder import schedule
from talker.train_lm import (
    BATCH,
    ENCODE_BATCH,
    FRAMES,
    NOISE_SHARE,
    OWN_CORRUPTION,
    USER_CORRUPTION,
    corrupt,
    losses,
)

PEAK_LR = 1e-3
PLAIN_SHARE = 0.4  # of calls that ask for nothing else; most of them have no prompt
OTHER_VOICE_SHARE, OTHER_MANNER_SHARE = 0.45, 0.7  # of the others
NEEDLESS_VOICE, NEEDLESS_TEXT = 0.35, 0.2  # how often a prompt asks for what would be without it
REMEMBERED_SHARE = 0.12  # of prompted calls that are shown without the prompt, from behind their first line
ECHO_SHARE, SILENT_START = 0.3, 0.25
READING_PAIRS, READING_ALONE, READING_FRAMES = 5, 2, 150  # a step's pairs of calls, and calls without a voice
READING_MANNERS = (0.3, 0.35, 0.35)  # of what is read; the first asks for nothing
READING_TEXT = 0.4  # how often a voice that talks as usual comes with a text
READING_WEIGHT = 60.0  # loss weight of the first text token of a line, which is what a text decides
FIRST_CODE_WEIGHT, OTHER_CODES_WEIGHT = 8.0, 0.3  # of a line's first code, which a voice decides, and of all others
READING_LINES, READING_SILENCE = 0.15, 0.03  # of a line's frames behind its third, and of silence, that are learnt
BLURRED_SHARE, BLUR = 0.4, 0.35  # of calls that are read, in which this share of the own past is random
AUDIO_SHARE = 0.4  # of whole calls' frames in which the audio is learnt, except where a line begins or ends
DONE, RESUME = "prompted.pt", "prompted.resume.pt"


@dataclass(frozen=True)
class Calls:
    """Encoded calls: what the user said, and what the talker of one voice and manner did."""

    user: np.ndarray  # int16 [N, 8, T]
    active: np.ndarray  # bool [N, T]: the user speaks
    own: np.ndarray  # int16 [N, 9, T]
    onward: np.ndarray  # int16 [N, 9, T]
    kind: np.ndarray  # int16 [N, 2]: voice and manner
    echo: np.ndarray  # bool [N]: that voice is in the user's codes
    noise: np.ndarray  # bool [N]: nobody speaks, the talker neither


@dataclass(frozen=True)
class Drawn:
    """What the talker does in a call: text and own codes, as it should and as if it never stopped, int64 [9, T]."""

    own: np.ndarray
    onward: np.ndarray
    first_line_ends: int | None


def draw_kind(rng: np.random.Generator) -> tuple[int, int]:
    """A voice and a manner."""
    if rng.random() < PLAIN_SHARE:
        return 0, 0
    voice = int(rng.integers(1, len(synth.REPLY_VOICES))) if rng.random() < OTHER_VOICE_SHARE else 0
    manner = int(rng.integers(1, len(texts.MANNERS))) if rng.random() < OTHER_MANNER_SHARE else 0
    return voice, manner


class Rows:
    """Training rows out of encoded calls."""

    def __init__(self, calls: Calls, books: list[Book], prompts: Prompts, rng: np.random.Generator) -> None:
        self.rng = rng
        self._calls, self._books, self._prompts = calls, books, prompts

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 [size, 26, T] for `losses`, and the frames [size] at the beginning of each that are given."""
        rows, given = zip(*(self.row() for _ in range(size)), strict=True)
        return torch.from_numpy(np.stack(rows)), torch.tensor(given)

    def row(self) -> tuple[np.ndarray, int]:
        """One call behind its prompt, cut to T frames, and how many of them nobody need learn to say."""
        rng, calls = self.rng, self._calls
        at = int(rng.integers(len(calls.user)))
        voice, manner = map(int, calls.kind[at]) if calls.echo[at] else draw_kind(rng)
        talker, frames = self._talker(rng, at, voice, manner), calls.user.shape[-1]
        call = np.concatenate([talker.own, calls.user[at], talker.onward]).astype(np.int64)
        if (voice or manner) and talker.first_line_ends and rng.random() < REMEMBERED_SHARE:
            return call, talker.first_line_ends
        wanted_voice = voice if voice or rng.random() < NEEDLESS_VOICE else None
        wanted_manner = manner if manner or rng.random() < NEEDLESS_TEXT else None
        prompt = self._prompts.draw(rng, wanted_voice, wanted_manner)
        before = np.concatenate([prompt, prompt[: len(talker.own)]])
        return np.concatenate([before, call], 1)[:, :frames], prompt.shape[1]

    def reading(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As `batch`, of short calls that all begin with a prompt; rows 2i and 2i + 1 are pairs."""
        read = [row for _ in range(READING_PAIRS) for row in self._read(range(len(self._books)))]
        read += [row for _ in range(READING_ALONE) for row in self._read([None])]
        rows, given = zip(*read, strict=True)
        return torch.from_numpy(np.stack(rows)), torch.tensor(given)

    def _read(self, voices: Iterable[int | None]) -> list[tuple[np.ndarray, int]]:
        """One call, behind each of these voices and the same text; None: behind the text alone."""
        rng, calls = self.rng, self._calls
        at = int(rng.choice(np.flatnonzero(~calls.echo & ~calls.noise)))
        manner, luck = int(rng.choice(len(READING_MANNERS), p=READING_MANNERS)), int(rng.integers(1 << 31))
        silent_on_manner = not manner and rng.random() > READING_TEXT
        rows = []
        for voice in voices:
            same = np.random.default_rng(luck)
            prompt = self._prompts.draw(same, voice, None if silent_on_manner and voice is not None else manner)
            call = np.concatenate([self._talker(same, at, voice or 0, manner).own, calls.user[at]]).astype(np.int64)
            rows.append((np.concatenate([prompt, call], 1)[:, :READING_FRAMES], prompt.shape[1]))
        return rows

    def _talker(self, rng: np.random.Generator, at: int, voice: int, manner: int) -> Drawn:
        calls = self._calls
        if calls.echo[at]:
            return Drawn(calls.own[at], calls.onward[at], None)
        talker = Talker(self._books[voice], rng, greets=not calls.noise[at], manner=texts.MANNERS[manner])
        for t, active in enumerate(calls.active[at].tolist()):
            talker.step(t, active)
        lines = [end for _, end, line in talker.said if line != texts.MMHM_LINE]
        return Drawn(talker.own(), talker.onward(), lines[0] if lines else None)


def make_calls(work: Work, books: list[Book], mimi, count: int, seed: int) -> Calls:
    """`count` calls, cached."""
    target = work.path("cache/prompted.npz")
    if not target.exists():
        _encode(target, books, mimi, Speech(work, "train"), np.random.default_rng(seed), count)
    with np.load(target) as saved:
        return Calls(**saved)


def _encode(target: Path, books: list[Book], mimi, speech: Speech, rng: np.random.Generator, count: int) -> None:
    made: dict[str, list[np.ndarray]] = {}
    for first in track(range(0, count, ENCODE_BATCH), description="prompted calls"):
        talks = []
        for _ in range(min(ENCODE_BATCH, count - first)):
            voice, manner = draw_kind(rng)
            noise = rng.random() < NOISE_SHARE
            echo = not noise and rng.random() < ECHO_SHARE
            talk = dialogues.noise_only(speech, books[voice], rng, FRAMES) if noise else dialogues.converse(
                speech, books[voice], rng, FRAMES, echo_share=float(echo), silent_start=SILENT_START,
                manner=texts.MANNERS[manner])
            talks.append(talk)
            for name, value in (("active", talk.active), ("own", talk.own.astype(np.int16)), ("noise", np.bool_(noise)),
                                ("onward", talk.onward.astype(np.int16)), ("echo", np.bool_(echo)),
                                ("kind", np.array([voice, manner], np.int16))):
                made.setdefault(name, []).append(value)
        heard = codec.encode_live(mimi, torch.from_numpy(np.stack([talk.pcm for talk in talks])))
        made.setdefault("user", []).extend(heard.numpy().astype(np.int16))
        print(f"prompted calls {first + len(talks)}/{count}", flush=True)
    np.savez(target, **{name: np.stack(values) for name, values in made.items()})


def blurred(own: Tensor, given: Tensor) -> Tensor:
    """A past [B, 9, T] of which so much is random, in some calls, that it doesn't tell whose voice it is."""
    share = torch.where(torch.rand(len(own), 1, 1) < BLURRED_SHARE, BLUR, OWN_CORRUPTION)
    behind = (torch.arange(own.shape[-1]) >= given[:, None])[:, None]
    return torch.cat([own[:, :1], corrupt(own[:, 1:], torch.where(behind, share, OWN_CORRUPTION), CARD)], 1)


def reading_losses(lm: LMModel, data: Tensor, given: Tensor, silence: Tensor) -> tuple[Tensor, Tensor]:
    """(text, audio) cross-entropies of calls [B, 17, T] behind their first `given` [B] frames, most of it where lines
    begin."""
    split = 1 + CODEBOOKS
    own, user = data[:, :split], data[:, split:]
    initial = lm._get_initial_token().expand(len(data), -1, -1)

    def delayed(own: Tensor, user: Tensor) -> Tensor:
        return torch.cat([initial, _delay_sequence(lm.delays, torch.cat([own, user], 1), initial)], 2)

    past = delayed(blurred(own, given), corrupt(user, USER_CORRUPTION, CARD))
    hidden, logits = lm.forward_text(past[:, :, :-1])
    learnt = torch.arange(data.shape[-1]) >= given[:, None]
    spoken = (own[:, 1:] != silence[:, None]).any(1)
    begins = spoken & ~F.pad(spoken, (1, 0))[:, :-1] & learnt
    text = F.cross_entropy(logits[:, 0].flatten(0, 1), own[:, 0].flatten(), reduction="none").view(begins.shape)
    text_weight = torch.where(begins, READING_WEIGHT, 1.0) * learnt
    early = begins | F.pad(begins, (1, 0))[:, :-1] | F.pad(begins, (2, 0))[:, :-2]
    sampled = torch.rand(spoken.shape) < torch.where(spoken, READING_LINES, READING_SILENCE)
    keep = (learnt & (early | sampled)).flatten().nonzero()[:, 0]
    wanted = delayed(own, user)[:, :, 1:].transpose(0, 1).flatten(1)[:, keep]
    codes = lm.forward_depformer_training(wanted[None], hidden.flatten(0, 1)[None, keep])[0]
    wanted = wanted[1:split].masked_fill(wanted[1:split] >= CARD, -100)
    audio = F.cross_entropy(codes.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="none")
    audio_weight = torch.full(wanted.shape, OTHER_CODES_WEIGHT)
    audio_weight[0] = torch.where(begins.flatten()[keep], FIRST_CODE_WEIGHT, 1.0)
    audio_weight = audio_weight.flatten()
    return ((text * text_weight).sum() / text_weight.sum(), (audio * audio_weight).sum() / audio_weight.sum())


def adopt(folder: Path, work: Work) -> None:
    """Write `prompted.pt` and the tokenizer from a checkpoint folder."""
    torch.save({k: v.float() for k, v in load_file(folder / MOSHI_NAME).items()}, work.path(DONE))
    shutil.copy(folder / TOKENIZER_NAME, work.path(TOKENIZER_NAME))


def train(work: Work, reading_steps: int, steps: int, count: int, seed: int) -> None:
    """Write `prompted.pt`: the state dict of `lm.pt`'s language model after its calls with prompts."""
    done, resume, start = work.path(DONE), work.path(RESUME), 0
    if done.exists():
        return
    torch.manual_seed(seed)
    mimi, words = frozen_encoder(work, "joint.pt"), tokenizer.load(work)
    books = [replies.build(work, mimi, words, voice) for voice in range(len(synth.REPLY_VOICES))]
    calls = make_calls(work, books, mimi, count, seed)
    rows = Rows(calls, books, Prompts(work, mimi, words, books[0].silence, seed), np.random.default_rng(seed))
    silence = torch.from_numpy(books[0].silence)
    lm = get_moshi_lm(None, LM_CONFIG, dtype=torch.float32)
    lm.load_state_dict(torch.load(work.path(train_lm.DONE), weights_only=False))
    optimiser = torch.optim.AdamW(lm.parameters(), lr=PEAK_LR, betas=(0.9, 0.97), weight_decay=0.02)
    if resume.exists():
        saved = torch.load(resume, weights_only=False)
        lm.load_state_dict(saved["lm"])
        optimiser.load_state_dict(saved["optimiser"])
        rows.rng, start = saved["rng"], saved["step"]
    lm.train()
    for step in track(range(start, reading_steps + steps), description="prompts"):
        reads = step < reading_steps
        for group in optimiser.param_groups:
            group["lr"] = PEAK_LR if reads else schedule(step - reading_steps, steps, PEAK_LR)
        parts = reading_losses(lm, *rows.reading(), silence) if reads else losses(
            lm, *rows.batch(BATCH), silence, AUDIO_SHARE)
        optimiser.zero_grad(set_to_none=True)
        sum(parts).backward()
        nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 49:
            print(f"{'reading' if reads else 'prompts'} step {step + 1}/{reading_steps + steps}",
                  *(f"{float(part.detach()):.4f}" for part in parts), flush=True)
            torch.save({"lm": lm.state_dict(), "optimiser": optimiser.state_dict(), "rng": rows.rng, "step": step + 1},
                       resume)
    torch.save(lm.state_dict(), done)
