"""`make trust`: fuzz, isolation, overload, soak, invariants and privacy in one run; writes out/trust.json.

    python -m scripts.trust [--quick] [--only PART ...]

Fuzzing is two things: FUZZ_INPUTS inputs on each parser in process, which a coverage-guided fuzzer makes
(scripts/fuzz.py), and a fiftieth of that by Hypothesis on each parser and, over sockets, on each door. It runs beside
the other parts, which wait more than they compute. What a part prints is in out/trust.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

OUT = Path("out")
LOGS = OUT / "trust"
QUICK_INPUTS, INPUTS = 2000, 100_000  # per parser
OVER_SOCKETS = 50  # a socket takes 100 times as long as the code behind it: one in so many inputs goes that way
QUICK_SOAK, SOAK = "40s", "60m"
PYTEST = ["-m", "pytest", "-q", "--timeout", "36000"]  # 100 000 inputs take long; a hang is what one input does
FUZZ, SOCKETS, SOAKED = "fuzz", "fuzz over sockets", "soak"
LANES = (
    (FUZZ, SOCKETS),
    ("isolation and overload", "rude callers", "invariants", "privacy", SOAKED),
)
TESTS = {
    SOCKETS: ["tests/fuzz"],
    "isolation and overload": ["tests/gateway/edges/test_isolation.py", "tests/gateway/edges/test_neighbours.py",
                               "tests/gateway/calls/test_overload.py"],
    "rude callers": ["tests/gateway/edges/web/test_rude.py", "tests/gateway/trust/test_rude_callers.py"],
    "invariants": ["tests/mesh/test_invariants.py"],
    "privacy": ["tests/e2e/test_secrets.py"],
}
FOUND = {"parsers": OUT / "fuzz.json", "over_sockets": OUT / "fuzz_sockets.json", "soak": OUT / "soak.json"}
FIGURES = OUT / "trust_figures.jsonl"  # what tests note


def command(part: str, inputs: int, quick: bool) -> list[str]:
    """What runs a part."""
    if part == FUZZ:  # one core is for the other lane
        jobs = max(1, (os.cpu_count() or 1) - 1)
        return ["-m", "scripts.fuzz", "--inputs", str(inputs), "--jobs", str(jobs)]
    if part == SOAKED:
        return ["-m", "bench.soak", "--duration", QUICK_SOAK if quick else SOAK]
    return [*PYTEST, *TESTS[part]]


def run(parts: Sequence[str], inputs: int, quick: bool) -> dict[str, dict[str, object]]:
    """Run some parts, one after the other."""
    environment = {**os.environ, "FUZZ_EXAMPLES": str(inputs // OVER_SOCKETS), "FUZZ_JSON": str(FOUND["over_sockets"]),
                   "TRUST_FIGURES": str(FIGURES)}
    found: dict[str, dict[str, object]] = {}
    for part in parts:
        began = time.monotonic()
        log = LOGS / f"{part.replace(' ', '_')}.log"
        with log.open("wb") as file:
            ended = subprocess.run([sys.executable, *command(part, inputs, quick)], env=environment, stdout=file,
                                   stderr=subprocess.STDOUT)
        held, took_s = ended.returncode == 0, round(time.monotonic() - began, 1)
        found[part] = {"held": held, "took_s": took_s}
        print(f"{part:28}{'held' if held else 'NOT HELD':10}{took_s:>8} s", "" if held else f"  see {log}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_INPUTS} inputs a parser, a soak of {QUICK_SOAK}")
    parser.add_argument("--only", choices=[part for lane in LANES for part in lane], nargs="+",
                        help="some of the parts")
    options = parser.parse_args()
    inputs = int(os.environ.get("FUZZ_INPUTS") or (QUICK_INPUTS if options.quick else INPUTS))
    LOGS.mkdir(parents=True, exist_ok=True)
    for old in (*FOUND.values(), FIGURES):
        old.unlink(missing_ok=True)
    lanes = [[part for part in lane if part in (options.only or lane)] for lane in LANES]
    began = time.monotonic()
    with ThreadPoolExecutor(len(lanes)) as pool:
        ran = pool.map(lambda lane: run(lane, inputs, options.quick), lanes)
        parts = {part: result for results in ran for part, result in results.items()}
    found = {"quick": options.quick, "took_s": round(time.monotonic() - began, 1), "inputs_per_parser": inputs,
             "parts": parts,
             **{name: json.loads(path.read_text()) if path.exists() else {} for name, path in FOUND.items()},
             "figures": [json.loads(line) for line in FIGURES.read_text().splitlines()] if FIGURES.exists() else []}
    (OUT / "trust.json").write_text(json.dumps(found, indent=1) + "\n")
    if not all(part["held"] for part in parts.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
