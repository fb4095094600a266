"""`make trust`: fuzz, isolation, overload, leaks and privacy in one run; writes out/trust.json.

    python -m scripts.trust [--quick]

Fuzzing is two things: FUZZ_INPUTS inputs on each parser in process, which a coverage-guided fuzzer makes
(scripts/fuzz.py), and a fiftieth of that by Hypothesis on each parser and, over sockets, on each door.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

OUT = Path("out")
QUICK_INPUTS, INPUTS = 5000, 100_000  # per parser
OVER_SOCKETS = 50  # a socket takes 100 times as long as the code behind it: one in so many inputs goes that way
RUNS = {
    "fuzz": ["-m", "scripts.fuzz"],
    "fuzz over sockets": ["tests/fuzz"],
    "isolation and overload": ["tests/gateway/edges/test_isolation.py", "tests/gateway/edges/test_neighbours.py"],
    "rude callers": ["tests/gateway/edges/web/test_rude.py", "tests/gateway/trust/test_rude_callers.py"],
    "invariants": ["tests/mesh/test_invariants.py"],
    "privacy": ["tests/e2e/test_secrets.py"],
}


def read(path: Path) -> object:
    """What a part has written, if it has run."""
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_INPUTS} inputs a parser")
    parser.add_argument("--only", choices=RUNS, nargs="+", help="some of the parts")
    options = parser.parse_args()
    inputs = int(os.environ.get("FUZZ_INPUTS") or (QUICK_INPUTS if options.quick else INPUTS))
    OUT.mkdir(exist_ok=True)
    guided, over_sockets, figures = OUT / "fuzz.json", OUT / "fuzz_sockets.json", OUT / "trust_figures.jsonl"
    for old in (guided, over_sockets, figures):
        old.unlink(missing_ok=True)
    environment = {**os.environ, "FUZZ_EXAMPLES": str(inputs // OVER_SOCKETS), "FUZZ_JSON": str(over_sockets),
                   "TRUST_FIGURES": str(figures)}
    parts: dict[str, dict[str, object]] = {}
    for name, what in RUNS.items():
        if name not in (options.only or RUNS):
            continue
        began = time.monotonic()
        # A test of 100 000 inputs takes longer than any other: a hang is what one input does (tests/fuzz/budget.py).
        run = subprocess.run([sys.executable, *([*what, "--inputs", str(inputs)] if name == "fuzz" else [
            "-m", "pytest", "-q", "--timeout", "36000", *what])], env=environment)
        parts[name] = {"held": run.returncode == 0, "took_s": round(time.monotonic() - began, 1)}
    found = {"quick": options.quick, "inputs_per_parser": inputs, "parts": parts,
             "parsers": read(guided), "over_sockets": read(over_sockets),
             "figures": [json.loads(line) for line in figures.read_text().splitlines()] if figures.exists() else []}
    (OUT / "trust.json").write_text(json.dumps(found, indent=1) + "\n")
    for name, part in parts.items():
        print(f"{name:28}{'held' if part['held'] else 'NOT HELD':10}{part['took_s']:>8} s")
    if not all(part["held"] for part in parts.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
