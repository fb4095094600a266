"""Sections of docs/benchmarks.md that have a command of their own; `make bench` keeps them.

    python -m bench.sections page|direct FIGURES.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = Path("docs/benchmarks.md")


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, and a table of figures."""

    heading: str
    about: str
    """May name figures as `str.format` does."""
    rows: Mapping[str, tuple[str, str]]
    """By the name of the figure: what it is, and what it is to be."""


SECTIONS = {
    "page": Section(
        "## The page in a browser",
        "Written by `make page-check`: headless Chromium with a microphone that says `samples/demo.wav`, and a gateway "
        "whose model speaks a tone, on the same cores. The machine's load was {load:.0f}; more than one for each core "
        "makes frames late by itself.",
        {"heard_correlation": ("what the mesh heard, beside the microphone's recording: correlation", "> 0.9"),
         "discontinuities": ("clicks in what was played", "0"),
         "underruns_clean": ("underruns without a bad network, in 13 s", "0"),
         "delay_ms_clean": ("delay of the jitter buffer without a bad network, ms", ""),
         "concealed_share_jitter": (
             "jitter of 30 ms each way and a stall of 200 ms every 5 s: share concealed", "< 0.02"),
         "underruns_jitter": ("the same: underruns in 30 s with six stalls", "≤ 12"),
         "added_delay_ms_jitter": ("the same: delay added by the jitter buffer, ms", "< 300"),
         "interrupt_silence_ms": ("from Interrupt to silence below -50 dBFS, ms", "< 200"),
         "resume_after_cut_s": ("after a cut of 3 s: from the network's return to the call's, s", ""),
         "first_load_kb": ("first load, unpacked, kB", "< 150"),
         "leaks_after_20_cycles": ("audio contexts, microphones, sockets and slots left after 20 calls", "0")}),
    "direct": Section(
        "## Directing and following a call",
        "Written by `make direct-check`, with the bundled checkpoint, and voices, sentences and kinds of noise that "
        "nothing was learnt from. docs/decisions.md has the same with other seeds, and where the limit is.",
        {"interrupted_within_3": ("barge-ins reported as `interrupted` within 3 frames, share", "≥ 0.95"),
         "reply_started_in_window": ("turns of the user that are answered in time, share", "≥ 0.95"),
         "user_precision": ("the user's speech in clean recordings: precision", "≥ 0.95"),
         "user_recall": ("the same: recall", "≥ 0.95"),
         "user_precision_10db": ("the same 10 dB above noise: precision", "≥ 0.9"),
         "user_recall_10db": ("the same: recall", "≥ 0.9"),
         "noise_starts": ("speech that was heard in 10 minutes of noise", "0"),
         "silero_user_precision_10db": ("silero-vad, 10 dB above noise: precision", ""),
         "silero_user_recall_10db": ("the same: recall", ""),
         "silero_noise_starts": ("silero-vad: speech in 10 minutes of noise", ""),
         "interrupt_exact": ("after an `interrupt`: tokens of moshi's own loop that is forced likewise", "True"),
         "control_survives_kill": ("after kill -9 right behind a control: the same tokens", "True"),
         "fork_equal": ("a fork with the same seed: the same tokens, and its parent's", "True"),
         "replay_equal": ("a call of 5 minutes amid losses of replicas, stepped again: the same tokens", "True"),
         "replay_losses": ("the same: replicas that were killed under it", ""),
         "voice_open_extra_ms": ("opening with a known voice takes longer by, ms", "< 50"),
         "late_because_of_prompt": ("late frames of 8 live callers because of prompts of 10 s beside them", "0"),
         "event_cpu_cost": ("what events cost of the gateway's CPU time", "< 0.03")}),
}


def write(section: Section, figures: Mapping[str, Any], path: Path = BENCHMARKS) -> None:
    """Put these figures into the page, in place of those before."""
    rows = [f"| {what} | **{figures[name]}** | {goal} |" for name, (what, goal) in section.rows.items()
            if name in figures]
    text = "\n".join([section.heading, "", section.about.format(**figures), "", "| what | measured | goal |",
                      "| --- | --- | --- |", *rows])
    before, found, after = _around(path.read_text(), section)
    path.write_text("\n\n".join(part.strip() for part in (before, text, after if found else "") if part.strip()) + "\n")


def kept(path: Path = BENCHMARKS) -> str:
    """The sections as they are, for who writes the rest of the page; empty if there are none."""
    page = path.read_text() if path.exists() else ""
    parts = [_around(page, section) for section in SECTIONS.values()]
    return "\n\n".join(found.strip() for _, found, _ in parts if found)


def _around(page: str, section: Section) -> tuple[str, str, str]:
    """What comes before a section, the section, and what comes after it."""
    before, heading, rest = page.partition(section.heading)
    body, mark, after = rest.partition("\n## ")
    return before, heading + body, mark + after


if __name__ == "__main__":
    write(SECTIONS[sys.argv[1]], json.loads(Path(sys.argv[2]).read_text()))
