"""One parser of tests/fuzz/parsers.py against inputs that a coverage-guided fuzzer makes (atheris), in this process.

    python -m tests.fuzz.guided "JWKS" FOLDER --runs 100000

FOLDER is the corpus, and gets what is new. Where atheris is not installed the corpus is changed by chance. Each second
a line of JSON says how far it is; the last one has "done". scripts/fuzz.py reads them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.fuzz.faults import Faults
from tests.fuzz.inputs import changed_at_random

try:
    import atheris
except ImportError:
    atheris = None  # no wheel for this Python

HANG_S = 10.0
FAILED = Path("out/fuzz")  # inputs that have failed
MOST_BYTES = 4096  # of an input: longer ones only repeat
SETTLED = 0.2  # share of the inputs after which memory and files should stay what they are


class Watch:
    """Calls a parser, counts, and says how far it is."""

    def __init__(self, parser: Callable[[bytes], None], runs: int, failed: Path) -> None:
        self._parser, self._runs, self._failed = parser, runs, failed
        self._faults = Faults()
        logging.getLogger().addHandler(self._faults)
        self._process = psutil.Process()
        self._told_at = time.monotonic()
        self._settled: tuple[float, int] | None = None
        self.facts: dict[str, float | str | bool] = {
            "inputs": 0, "crashes": 0, "hangs": 0, "internal": 0, "slowest_s": 0}
        self._done = False

    def __call__(self, data: bytes) -> None:
        """One input. Raises what the parser raises, so that the fuzzer keeps the input."""
        if self._done:  # atheris runs a little more than it is asked to
            return
        began = time.monotonic()
        try:
            self._parser(data)
        except Exception:
            traceback.print_exc()
            self._end("crashes", data)
            raise
        now = time.monotonic()
        self.facts["inputs"] += 1  # type: ignore[operator]
        self.facts["slowest_s"] = max(float(self.facts["slowest_s"]), now - began)
        if self._faults.seen:
            self._end("internal", data)
            raise AssertionError(self._faults.seen[0])
        if now - began > HANG_S:
            self._end("hangs", data)
            raise AssertionError(f"took {now - began:.1f} s")
        if self._settled is None and int(self.facts["inputs"]) >= SETTLED * self._runs:
            self._settled = self._held()
        if self.facts["inputs"] == self._runs:
            self._end("")
        elif now - self._told_at > 1:
            self._told_at = now
            self._tell()

    def _held(self) -> tuple[float, int]:
        return self._process.memory_info().rss / 1e6, self._process.num_fds()

    def _end(self, kind: str, data: bytes = b"") -> None:
        if kind:
            self.facts[kind] = 1
            self._failed.write_bytes(data)
        rss, fds = self._held()
        before = self._settled or (rss, fds)
        self.facts |= {"grown_mb": round(rss - before[0], 1), "grown_fds": fds - before[1], "done": True,
                       "slowest_s": round(float(self.facts["slowest_s"]), 3), "guided": atheris is not None}
        self._done = True
        self._tell()

    def _tell(self) -> None:
        sys.stdout.write(json.dumps(self.facts) + "\n")
        sys.stdout.flush()


def instrumented() -> contextlib.AbstractContextManager[object]:
    """Modules that are imported within are watched by atheris."""
    if atheris is None:
        return contextlib.nullcontext()
    # Not protobuf's generated code, and nothing of the tests': what counts is which of our branches an input reaches.
    return atheris.instrument_imports(include=["services", "jwt"])  # type: ignore[no-any-return]


def by_chance(corpus: list[bytes], dice: random.Random) -> Iterator[bytes]:
    """Each input of a corpus, then changed ones, without end."""
    yield from corpus
    while True:
        yield changed_at_random(dice.choice(corpus), dice)[:MOST_BYTES]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("parser")
    options.add_argument("corpus", type=Path)
    options.add_argument("--runs", type=int, default=100_000)
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())  # else Python prints each warning
    with instrumented():
        from tests.fuzz.parsers import PARSERS
        PARSERS[asked.parser](b"")  # some import more when they are called first
    FAILED.mkdir(parents=True, exist_ok=True)
    watch = Watch(PARSERS[asked.parser], asked.runs, FAILED / f"{asked.corpus.name}.input")
    if atheris is None:
        corpus = [path.read_bytes() for path in sorted(asked.corpus.iterdir())] or [b""]
        for _, data in zip(range(asked.runs), by_chance(corpus, random.Random(asked.seed)), strict=False):
            watch(data)
        return
    # What it prints of its own goes to stderr. It runs a few inputs more than it is asked to.
    atheris.Setup([sys.argv[0], f"-runs={asked.runs + 1000}", f"-seed={asked.seed}", f"-max_len={MOST_BYTES}",
                   f"-timeout={round(3 * HANG_S)}", "-rss_limit_mb=4096", "-verbosity=0", "-keep_seed=1",
                   f"-artifact_prefix={FAILED}/", str(asked.corpus)], watch)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
