"""The section of docs/benchmarks.md about the page: written by `make page-check`, kept by `make bench`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BENCHMARKS = Path("docs/benchmarks.md")
HEADING = "## The page in a browser"
_ROWS = {
    "heard_correlation": ("what the mesh heard, beside the microphone's recording: correlation", "> 0.9"),
    "discontinuities": ("clicks in what was played", "0"),
    "underruns_clean": ("underruns without a bad network, in 13 s", "0"),
    "delay_ms_clean": ("delay of the jitter buffer without a bad network, ms", ""),
    "concealed_share_jitter": ("jitter of 30 ms each way and a stall of 200 ms every 5 s: share concealed", "< 0.02"),
    "underruns_jitter": ("the same: underruns in 30 s with six stalls", "≤ 12"),
    "added_delay_ms_jitter": ("the same: delay added by the jitter buffer, ms", "< 300"),
    "interrupt_silence_ms": ("from Interrupt to silence below -50 dBFS, ms", "< 200"),
    "resume_after_cut_s": ("after a cut of 3 s: from the network's return to the call's, s", ""),
    "first_load_kb": ("first load, unpacked, kB", "< 150"),
    "leaks_after_20_cycles": ("audio contexts, microphones, sockets and slots left after 20 calls", "0"),
}


def write(figures: Mapping[str, Any], path: Path = BENCHMARKS) -> None:
    """Put these figures into the page, in place of those before."""
    rows = [f"| {what} | **{figures[name]}** | {goal} |" for name, (what, goal) in _ROWS.items() if name in figures]
    section = [HEADING, "", "Written by `make page-check`: headless Chromium with a microphone that says "
               "`samples/demo.wav`, and a gateway whose model speaks a tone, on the same cores. The machine's load was "
               f"{figures['load']:.0f} on {os.cpu_count()} cores; more than one each makes frames late by itself.", "",
               "| what | measured | goal |", "| --- | --- | --- |", *rows]
    before = path.read_text().partition(HEADING)[0].rstrip()
    path.write_text("\n".join([before, "", *section, ""]))


def kept(path: Path = BENCHMARKS) -> str:
    """The section as it is, for who writes the rest of the page; empty if there is none."""
    _, found, rest = path.read_text().partition(HEADING) if path.exists() else ("", "", "")
    return found + rest


if __name__ == "__main__":
    write(json.loads(Path(sys.argv[1]).read_text()))
