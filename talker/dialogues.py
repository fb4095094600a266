"""Synthetic conversations: what the user's microphone hears, and what the talker should do about it.

A user and a rule-following talker are simulated frame by frame; the user's track is encoded by the codec, the talker's
track is strung together from the reply book. The rules are the ones in `config` (reply after 0.48 s of quiet, stop
when talked over, greet after 3 s of silence, "mm-hm" when a long turn goes on after a pause).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from talker import texts
from talker.config import (
    EPAD,
    FRAME_SAMPLES,
    GREET_AT,
    MMHM_EVERY,
    MMHM_MIN_TURN,
    PAD,
    REPLY_AFTER,
    STOP_AFTER,
)
from talker.replies import Book, Line
from talker.stream import Speech, coloured_noise

ACTIVE_RMS = 0.006  # of an utterance at synth.LEVEL_RMS (0.08): frames above this are speech
QUIET_ROOM_DB, NOISY_ROOM_DB = (-75.0, -54.0), (-48.0, -20.0)  # RMS of background noise, dBFS


@dataclass
class Turn:
    """One user turn: first active frame, first frame after it, and whether it talked over the talker."""

    start: int
    end: int
    barge_in: bool


@dataclass
class Dialogue:
    """One conversation of T frames."""

    pcm: np.ndarray  # float32 [T * 1920], the user's microphone
    own: np.ndarray  # int64 [9, T]: text and own codes
    onward: np.ndarray  # int64 [9, T]: the same, had every line been said to its end whoever talked over it
    active: np.ndarray  # bool [T]: the user speaks
    turns: list[Turn]
    said: list[tuple[int, int, int]]  # (first frame, frame after the last, line)
    noise: bool = False


def activity(pcm: np.ndarray) -> np.ndarray:
    """bool [frames]: frames of an utterance at nominal level in which there is speech."""
    frames = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    return np.sqrt(np.mean(frames**2, axis=1)) > ACTIVE_RMS


@dataclass
class Talker:
    """The rules, one frame at a time."""

    book: Book
    rng: np.random.Generator
    greets: bool
    manner: texts.Manner = texts.PLAIN
    line: Line | None = None
    index: int = 0
    at: int = 0
    said: list[tuple[int, int, int]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    codes: list[np.ndarray] = field(default_factory=list)
    cut: list[tuple[int, Line, int]] = field(default_factory=list)  # (frame, line, how much of it was said)
    in_turn: bool = False
    heard_user: bool = False
    quiet_run: int = 0
    active_run: int = 0
    turn_start: int = 0
    last_mmhm: int = 0

    def _start(self, t: int, index: int) -> None:
        self.line, self.index, self.at = self.book.lines[index], index, 0
        self.said.append((t, t + self.line.frames, index))
        if self.tokens and self.tokens[-1] == PAD:
            self.tokens[-1] = EPAD

    def step(self, t: int, active: bool) -> None:
        """Decide frame `t`, knowing whether the user is heard in it."""
        before_quiet = self.quiet_run
        self.active_run, self.quiet_run = (self.active_run + 1, 0) if active else (0, self.quiet_run + 1)
        resumed = False
        if active:
            if not self.in_turn:
                self.in_turn, self.turn_start, self.last_mmhm = True, t, t
            elif before_quiet >= 2:
                resumed = True
            self.heard_user = True
        if self.line is not None:
            talked_over = self.active_run > STOP_AFTER and self.index != texts.MMHM_LINE
            if talked_over or self.at >= self.line.frames:
                self.cut += [(t, self.line, self.at)] if talked_over else []
                start, _, index = self.said[-1]
                self.said[-1] = (start, t, index)
                self.line = None
        if self.line is None:
            if self.in_turn and self.quiet_run == REPLY_AFTER + 1:
                self.in_turn = False
                self._start(t, texts.LINES.index(str(self.rng.choice(self.manner.replies, p=self.manner.weights))))
            elif resumed and t - self.turn_start >= MMHM_MIN_TURN and t - self.last_mmhm >= MMHM_EVERY:
                self.last_mmhm = t
                self._start(t, texts.MMHM_LINE)
            elif self.greets and not self.heard_user and t == GREET_AT:
                self._start(t, texts.LINES.index(self.manner.greeting))
        if self.line is None:
            self.tokens.append(PAD)
            self.codes.append(self.book.silence)
        else:
            self.tokens.append(int(self.line.tokens[self.at]))
            self.codes.append(self.line.codes[:, self.at])
            self.at += 1

    def own(self) -> np.ndarray:
        """int64 [9, T]."""
        return np.concatenate([np.array(self.tokens)[None], np.stack(self.codes, 1)]).astype(np.int64)

    def onward(self) -> np.ndarray:
        """int64 [9, T]: `own`, but lines that were cut short go on to their end or until the next one begins."""
        out = self.own()
        starts = [start for start, _, _ in self.said] + [out.shape[1]]
        for t, line, at in self.cut:
            room = min(start for start in starts if start >= t) - t
            rest = np.concatenate([line.tokens[None, at:], line.codes[:, at:]])[:, :room]
            out[:, t : t + rest.shape[1]] = rest
        return out


class User:
    """Somebody who waits, speaks one turn, hears the reply, sometimes interrupts it."""

    def __init__(self, speech: Speech, rng: np.random.Generator, frames: int, wait: int, barge_in: float) -> None:
        self.speech, self.rng, self.barge_in = speech, rng, barge_in
        self.pcm = np.zeros(frames * FRAME_SAMPLES, np.float32)
        self.active = np.zeros(frames, bool)
        self.wait, self.talking_until, self.waited = wait, -1, 0
        self.heard, self.turns, self.interrupt_at = 0, [], None

    def _turn(self, t: int, barge_in: bool) -> None:
        rng = self.rng
        parts = int(rng.choice([1, 2, 3, 4], p=[0.5, 0.18, 0.16, 0.16]))
        gain = np.float32(10 ** (rng.uniform(-10, 5) / 20))
        at = t * FRAME_SAMPLES + int(rng.integers(FRAME_SAMPLES))
        first = last = None
        for _ in range(parts):
            pcm = self.speech.random(rng)[: max(0, len(self.pcm) - at)]
            track = np.zeros(-(-(at % FRAME_SAMPLES + len(pcm)) // FRAME_SAMPLES) * FRAME_SAMPLES, np.float32)
            track[at % FRAME_SAMPLES : at % FRAME_SAMPLES + len(pcm)] = pcm
            marks = activity(track)
            base = at // FRAME_SAMPLES
            self.active[base : base + len(marks)] |= marks[: max(0, len(self.active) - base)]
            self.pcm[at : at + len(pcm)] += pcm * gain
            hits = np.flatnonzero(marks)
            if len(hits):
                first = base + int(hits[0]) if first is None else first
                last = base + int(hits[-1]) + 1
            at += len(pcm) + int(rng.uniform(0.1, 0.35) * 24_000)
        if first is None or last is None:
            self.talking_until = t + 1
            return
        self.turns.append(Turn(first, last, barge_in))
        self.talking_until = last

    def step(self, t: int, talker: Talker) -> None:
        """Decide what to do in frame `t`, knowing what the talker has done so far."""
        if t < self.talking_until:
            return
        replies = [s for s in talker.said if s[2] != texts.MMHM_LINE]
        if len(replies) > self.heard:  # a reply has begun: interrupt it, or answer once it is over
            self.heard = len(replies)
            begin, end, _ = replies[-1]
            if self.rng.random() < self.barge_in:
                self.interrupt_at = begin + int(self.rng.integers(3, max(4, end - begin - 3)))
            self.wait = end + int(self.rng.integers(4, 50))
        if self.interrupt_at is not None and t >= self.interrupt_at:
            self.interrupt_at = None
            self._turn(t, True)
            self.wait = t + 400
        elif self.interrupt_at is None and t >= self.wait:
            self._turn(t, False)
            self.wait = t + 400


def _echo(talker: Talker, book: Book, samples: int, rng: np.random.Generator) -> np.ndarray:
    """What the loudspeaker leaks into the microphone: the talker's own voice, quieter and 40 to 250 ms late."""
    own = np.zeros(samples, np.float32)
    for start, end, index in talker.said:
        piece = book.lines[index].pcm[: (end - start) * FRAME_SAMPLES]
        at = start * FRAME_SAMPLES
        own[at : at + len(piece)] = piece[: max(0, samples - at)]
    delay = int(rng.uniform(0.04, 0.25) * 24_000)
    return np.concatenate([np.zeros(delay, np.float32), own])[:samples] * np.float32(10 ** (rng.uniform(-30, -10) / 20))


def noise_only(speech: Speech, book: Book, rng: np.random.Generator, frames: int) -> Dialogue:
    """Noise and nobody speaking: the talker stays silent, and doesn't greet either."""
    samples, kind = frames * FRAME_SAMPLES, rng.choice(["white", "pink", "babble"])
    level = 10 ** (rng.uniform(*NOISY_ROOM_DB) / 20)
    noise = speech.babble(rng, samples, level, int(rng.integers(6, 12))) if kind == "babble" else coloured_noise(
        rng, samples, kind, level)
    if kind != "babble" and rng.random() < 0.4:  # it may also stop and start; nobody is answered
        for _ in range(int(rng.integers(1, 4))):
            a = int(rng.integers(samples * 3 // 4)) + samples // 8
            noise[a : a + int(rng.integers(samples // 4))] *= 0.003
    talker = Talker(book, rng, greets=False)
    for t in range(frames):
        talker.step(t, False)
    return Dialogue(np.clip(noise, -1, 1), talker.own(), talker.onward(), np.zeros(frames, bool), [], [], noise=True)


def converse(speech: Speech, book: Book, rng: np.random.Generator, frames: int, barge_in: float = 0.5,
             echo_share: float = 0.4, silent_start: float = 0.15, manner: texts.Manner = texts.PLAIN) -> Dialogue:
    """One simulated conversation of `frames` frames."""
    silent = rng.random() < silent_start
    wait = int(rng.integers(45, 110)) if silent else int(rng.integers(1, 34))
    if silent and rng.random() < 0.3:
        wait = 10 * frames  # nobody ever speaks
    room_db = rng.uniform(*QUIET_ROOM_DB) if rng.random() < 0.6 else None
    user = User(speech, rng, frames, wait, barge_in)
    talker = Talker(book, rng, greets=True, manner=manner)
    for t in range(frames):
        user.step(t, talker)
        talker.step(t, bool(user.active[t]))
    pcm = user.pcm
    if rng.random() < echo_share:
        pcm = pcm + _echo(talker, book, len(pcm), rng)
    if room_db is not None:
        pcm = pcm + coloured_noise(rng, len(pcm), rng.choice(["white", "pink"]), 10 ** (room_db / 20))
    return Dialogue(np.clip(pcm, -1, 1), talker.own(), talker.onward(), user.active, user.turns, talker.said)
