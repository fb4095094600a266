"""Turn-taking on held-out voices and sentences, judged from the PCM that comes back, through any `converse`."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
from rich.progress import track

from talker import ears, texts
from talker.config import EPAD, FRAME_SAMPLES, GREET_AT, MMHM_MIN_TURN, PAD, REPLY_AFTER, SAMPLE_RATE_HZ, Work
from talker.dialogues import activity
from talker.loop import Answer, Converse
from talker.stream import Speech, coloured_noise

FRAMES = 275  # 22 s
LONGEST_LINE = 40
EARLY, LATE, STOP_WITHIN = 3, 5, 3
SPEAKING_RMS = 0.01  # the talker's lines are at 0.08


@dataclass
class Script:
    """What one caller will do, fixed beforehand: PCM, and per turn (first frame, frame after the last, barge-in)."""

    pcm: np.ndarray
    turns: list[tuple[int, int, bool]]


def script(speech: Speech, rng: np.random.Generator, barge_in: bool, parts: int = 1,
           pauses_s: tuple[float, float] = (0.1, 0.3)) -> Script:
    """Turns of `parts` sentences with pauses between them; barge-ins 0.4 to 0.8 s into the reply."""
    out = Script(np.zeros(FRAMES * FRAME_SAMPLES, np.float32), [])
    at = int(rng.integers(6, 30)) * FRAME_SAMPLES + int(rng.integers(FRAME_SAMPLES))
    interrupting = False
    while True:
        turn, start = [], at
        for _ in range(parts):
            pcm = speech.random(rng)
            turn += [pcm, np.zeros(int(rng.uniform(*pauses_s) * SAMPLE_RATE_HZ), np.float32)]
        wave = np.concatenate(turn[:-1])
        if (start + len(wave)) // FRAME_SAMPLES + REPLY_AFTER + LONGEST_LINE > FRAMES:
            return out
        offset = start % FRAME_SAMPLES
        marks = activity(np.concatenate([np.zeros(offset, np.float32), wave, np.zeros(FRAME_SAMPLES, np.float32)]))
        hits = np.flatnonzero(marks) + start // FRAME_SAMPLES
        out.pcm[start : start + len(wave)] += wave * np.float32(10 ** (rng.uniform(-6, 3) / 20))
        out.turns.append((int(hits[0]), int(hits[-1]) + 1, interrupting))
        reply = out.turns[-1][1] + REPLY_AFTER
        interrupting = barge_in and not interrupting
        wait = int(rng.integers(5, 11)) if interrupting else LONGEST_LINE
        at = (reply + wait) * FRAME_SAMPLES + int(rng.integers(FRAME_SAMPLES))


def speaking(answer: Answer) -> np.ndarray:
    """bool [frames]: the talker is heard; dips of up to 3 frames inside a line are bridged."""
    frames = answer.pcm[: len(answer.pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    loud = np.sqrt(np.mean(frames**2, axis=1)) > SPEAKING_RMS
    hits = np.flatnonzero(loud)
    for a, b in itertools.pairwise(hits):
        if b - a <= 4:
            loud[a:b] = True
    return loud


def onsets(loud: np.ndarray) -> np.ndarray:
    """Frames in which the talker begins to be heard."""
    return np.flatnonzero(loud & ~np.concatenate([[False], loud[:-1]]))


def runs(loud: np.ndarray) -> list[tuple[int, int]]:
    """(first frame, frame after the last) of everything said."""
    ends = np.flatnonzero(loud & ~np.concatenate([loud[1:], [False]])) + 1
    return list(zip(onsets(loud).tolist(), ends.tolist(), strict=True))


def many(converse: Converse, pcms: list[np.ndarray], size: int = 16, what: str = "calls") -> list[Answer]:
    """All calls, in batches where `converse` can."""
    batch = getattr(converse, "batch", None) or (lambda group: [converse(p) for p in group])
    groups = [pcms[i : i + size] for i in range(0, len(pcms), size)]
    return [answer for group in track(groups, description=what) for answer in batch(group)]


def finished(plan: Script, answer: Answer) -> list[bool]:
    """For every line that nobody talked over (and that the call's end didn't cut): was its last word said? Keeps a
    talker that just breaks off from looking like one that stops when it should."""
    said = runs(speaking(answer))
    whole = [*LINE_TOKENS.values(), MMHM_TOKENS]
    return [[t for t in answer.frames[max(0, a - 3) : b + 1] if t not in (EPAD, PAD)] in whole for a, b in said
            if b < len(answer.frames) - 2 and not any(barge and a < start <= b + 2 for start, _, barge in plan.turns)]


def judge(scripts: list[Script], answers: list[Answer]) -> dict:
    """Shares of turns in which the rules were kept."""
    in_window, quiet, stopped, delays, ended = [], [], [], [], []
    for plan, answer in zip(scripts, answers, strict=True):
        loud = speaking(answer)
        said = runs(loud)
        ended += finished(plan, answer)
        for start, end, barge_in in plan.turns:
            rule = end + REPLY_AFTER
            near = [a for a, _ in said if rule - EARLY <= a <= rule + LATE]
            in_window.append(bool(near))
            delays += [(near[0] - end) * FRAME_SAMPLES / SAMPLE_RATE_HZ] if near else []
            heard_from = start + STOP_WITHIN + 1 if barge_in else start
            back_channel = end - start >= MMHM_MIN_TURN
            quiet.append(not any(start < a < end and not (back_channel and b - a <= 12) for a, b in said)
                         and (barge_in or not loud[heard_from:end].any() or back_channel))
            if barge_in and loud[start - 1 : start + 1].any():  # there was something to stop
                stopped.append(not loud[start + STOP_WITHIN : start + STOP_WITHIN + 4].any())
    return {
        "dialogues": len(scripts), "turns": len(in_window), "reply_in_window": float(np.mean(in_window)),
        "quiet_while_user_speaks": float(np.mean(quiet)), "stop_within_3": float(np.mean(stopped)),
        "barge_ins": len(stopped), "replies_finished": float(np.mean(ended)),
        "reply_delay_s": float(np.median(delays)) if delays else None,
    }


def turn_taking(converse: Converse, work: Work, dialogues: int = 104,
                seed: int = 77) -> tuple[dict, list[Answer], list[Script]]:
    """`dialogues` scripted calls with held-out voices saying held-out sentences, every second one with barge-ins."""
    speech, rng = Speech(work, "heldout_voice"), np.random.default_rng(seed)
    scripts = [script(speech, rng, barge_in=i % 2 == 1, parts=1 + (i % 4 == 0)) for i in range(dialogues)]
    answers = many(converse, [s.pcm for s in scripts], what="turn-taking")
    return judge(scripts, answers), answers, scripts


def noise_starts(converse: Converse, work: Work, minutes: float = 10.0, seed: int = 5) -> int:
    """How often the talker begins to speak in white, pink and babble noise at -40, -30 and -22 dBFS."""
    rng, speech = np.random.default_rng(seed), Speech(work, "heldout_voice")
    cases = [(kind, db) for db in (-40, -30, -22) for kind in ("white", "pink", "babble")]
    samples = int(minutes * 60 / len(cases) * SAMPLE_RATE_HZ)
    pcms = [speech.babble(rng, samples, 10 ** (db / 20)) if kind == "babble"
            else coloured_noise(rng, samples, kind, 10 ** (db / 20)) for kind, db in cases]
    return sum(len(onsets(speaking(a))) for a in many(converse, pcms, what="noise"))


def greeting_and_mmhm(converse: Converse, work: Work, seed: int = 6) -> dict:
    """Silent calls are greeted within the window around 3 s; turns of several sentences get an "mm-hm"."""
    rng, speech = np.random.default_rng(seed), Speech(work, "heldout_voice")
    silent = [coloured_noise(rng, 100 * FRAME_SAMPLES, "white", 10 ** (db / 20))
              for db in (-90, -80, -70, -65, -62, -60)]
    greeted = []
    for answer in many(converse, silent, what="silence"):
        greeted.append(any(-EARLY <= a - GREET_AT <= LATE for a in onsets(speaking(answer))))
    long = [script(speech, rng, barge_in=False, parts=4, pauses_s=(0.24, 0.34)) for _ in range(16)]
    heard = []
    for plan, answer in zip(long, many(converse, [s.pcm for s in long], what="long turns"), strict=True):
        said = runs(speaking(answer))
        heard += [any(start < a < end for a, _ in said) for start, end, _ in plan.turns if end - start > 75]
    return {"greeted": float(np.mean(greeted)), "mmhm_in_long_turns": float(np.mean(heard)), "long_turns": len(heard)}


def replies_heard(answers: list[Answer], scripts: list[Script], per_line: int = 3) -> dict:
    """Which lines were said, and for each whether the recogniser wrote it down word for word (majority of up to
    `per_line` uninterrupted instances)."""
    instances: dict[str, list[str]] = {}
    for plan, answer in zip(scripts, answers, strict=True):
        loud = speaking(answer)
        for start, end in runs(loud):
            if end - start < 10 or any(a - 2 <= end <= b + 2 and barge for a, b, barge in plan.turns):
                continue
            wave = answer.pcm[max(0, start - 1) * FRAME_SAMPLES : (end + 2) * FRAME_SAMPLES]
            shown = _said_in(answer, start, end)
            if shown is not None and len(instances.setdefault(shown, [])) < per_line:
                instances[shown].append(ears.transcribe(wave))
    verdict = {}
    for line, heard in sorted(instances.items()):
        right = sum(ears.word_errors(line, h)[0] == 0 for h in heard)
        verdict[line] = {"heard": heard, "word_for_word": right * 2 > len(heard)}
    understood = sum(v["word_for_word"] for v in verdict.values())
    return {"lines": verdict, "kinds_said": len(verdict), "replies_understood": understood}


def _said_in(answer: Answer, start: int, end: int) -> str | None:
    """The line whose text tokens fill these frames, by the number of distinct shared tokens."""
    tokens = Counter(answer.frames[max(0, start - 2) : end])
    known = getattr(answer, "line_tokens", None) or LINE_TOKENS
    if not known:
        return None
    scores = {line: sum((Counter(t) & tokens).values()) / len(t) for line, t in known.items()}
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] > 0.7 else None


LINE_TOKENS: dict[str, list[int]] = {}
MMHM_TOKENS: list[int] = []


def know_lines(tokenizer) -> None:
    """Remember every line's tokens, so that what was said can be told from the text stream."""
    LINE_TOKENS.update({line: [t for w in line.split() for t in tokenizer.encode(w)] for line in texts.LINES
                        if line != texts.MMHM})
    MMHM_TOKENS[:] = tokenizer.encode(texts.MMHM)
