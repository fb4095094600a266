"""`make trust`: fuzz, isolation, overload, leaks and privacy in one run; writes out/trust.json.

    python -m scripts.trust [--quick]
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
QUICK_EXAMPLES, EXAMPLES = 300, 100_000  # per parser; those over a wire get a share of it
RUNS = {
    "fuzz": ["tests/fuzz"],
    "isolation and overload": ["tests/gateway/edges/test_isolation.py", "tests/gateway/edges/test_neighbours.py"],
    "rude callers": ["tests/gateway/edges/web/test_rude.py", "tests/gateway/trust/test_rude_callers.py"],
    "invariants": ["tests/mesh/test_invariants.py"],
    "privacy": ["tests/e2e/test_secrets.py"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_EXAMPLES} inputs a parser")
    parser.add_argument("--only", choices=RUNS, help="one of the parts")
    options = parser.parse_args()
    examples = int(os.environ.get("FUZZ_EXAMPLES") or (QUICK_EXAMPLES if options.quick else EXAMPLES))
    OUT.mkdir(exist_ok=True)
    fuzzed, figures = OUT / "fuzz.json", OUT / "trust_figures.jsonl"
    for old in (fuzzed, figures):
        old.unlink(missing_ok=True)
    environment = {**os.environ, "FUZZ_EXAMPLES": str(examples), "FUZZ_JSON": str(fuzzed),
                   "TRUST_FIGURES": str(figures)}
    parts: dict[str, dict[str, object]] = {}
    for name, paths in RUNS.items():
        if options.only not in (None, name):
            continue
        began = time.monotonic()
        # A test of 100 000 inputs takes longer than any other: a hang is what one input does (tests/fuzz/budget.py).
        run = subprocess.run([sys.executable, "-m", "pytest", "-q", "--timeout", "36000", *paths], env=environment)
        parts[name] = {"held": run.returncode == 0, "took_s": round(time.monotonic() - began, 1)}
    found = {"quick": options.quick, "inputs_per_parser": examples, "parts": parts,
             "parsers": json.loads(fuzzed.read_text()) if fuzzed.exists() else {},
             "figures": [json.loads(line) for line in figures.read_text().splitlines()] if figures.exists() else []}
    (OUT / "trust.json").write_text(json.dumps(found, indent=1) + "\n")
    for name, part in parts.items():
        print(f"{name:28}{'held' if part['held'] else 'NOT HELD':10}{part['took_s']:>8} s")
    if not all(part["held"] for part in parts.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
