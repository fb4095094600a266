"""`make fuzz`: so many inputs on each parser, made by a coverage-guided fuzzer; writes out/fuzz.json.

    python -m scripts.fuzz [--inputs 100000] [--only NAME] [--keep]

Each parser has a process of its own, as many at a time as there are cores. They begin with the corpus in
tests/fuzz/corpus; --keep puts there what reaches something new, as few and as short inputs as do that. The figures of
each parser are written when it ends, so that a run that is stopped has those of the parsers before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.fuzz.corpora import keep, kept, least, slug
from tests.fuzz.parsers import PARSERS

OUT = Path("out/fuzz.json")
FAILED = {"crashes": 0, "hangs": 0, "internal": 0}


async def fuzzed(name: str, inputs: int, keeping: bool, progress: Progress) -> dict[str, Any]:
    """What became of one parser's inputs."""
    task = progress.add_task(name, total=inputs)
    with TemporaryDirectory() as temporary:
        corpus = Path(temporary) / slug(name)
        corpus.mkdir()
        for number, one in enumerate(kept(name)):
            (corpus / str(number)).write_bytes(one)
        began, facts = time.monotonic(), dict[str, Any](FAILED, inputs=0)
        with (OUT.parent / "fuzz" / f"{slug(name)}.log").open("wb") as log:
            fuzzer = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.fuzz.guided", name, str(corpus), "--runs", str(inputs),
                stdout=asyncio.subprocess.PIPE, stderr=log)
        assert fuzzer.stdout is not None
        async for line in fuzzer.stdout:
            if line.startswith(b"{"):
                facts = json.loads(line)
                progress.update(task, completed=facts["inputs"])
        await fuzzer.wait()
        facts["took_s"] = round(time.monotonic() - began, 1)
        if not facts.pop("done", False):  # killed, by libFuzzer's own alarm (70) or for its memory
            facts["hangs" if fuzzer.returncode == 70 else "crashes"] += 1
        if keeping and not any(facts[kind] for kind in FAILED):
            keep(name, least(PARSERS[name], (path.read_bytes() for path in corpus.iterdir())))
    return facts


async def all_of(names: list[str], inputs: int, keeping: bool, jobs: int) -> dict[str, dict[str, Any]]:
    """Each parser's facts, which are in OUT as soon as it has ended."""
    room = asyncio.Semaphore(jobs)
    found: dict[str, dict[str, Any]] = {}
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        async def one(name: str) -> None:
            async with room:
                found[name] = await fuzzed(name, inputs, keeping, progress)
                write(found)

        await asyncio.gather(*map(one, names))
    return found


def write(found: dict[str, dict[str, Any]]) -> None:
    """The figures of the parsers that have ended."""
    OUT.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="for each parser")
    parser.add_argument("--only", choices=PARSERS, metavar="NAME", help="one of the parsers")
    parser.add_argument("--keep", action="store_true", help="put what is new into the corpus of the repository")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    options = parser.parse_args()
    (OUT.parent / "fuzz").mkdir(parents=True, exist_ok=True)
    found = asyncio.run(all_of([options.only] if options.only else list(PARSERS), options.inputs, options.keep,
                               options.jobs))
    table = Table("parser", *(kind for kind in ("inputs", *FAILED)), "s", "slowest s", "MB grown", "files left")
    for name, facts in found.items():
        table.add_row(name, *(str(facts.get(key, "?")) for key in (
            "inputs", *FAILED, "took_s", "slowest_s", "grown_mb", "grown_fds")))
    Console().print(table)
    if bad := [name for name, facts in found.items() if any(facts[kind] for kind in FAILED)]:
        raise SystemExit(f"failed: {', '.join(bad)}; their inputs are in {OUT.parent / 'fuzz'}")


if __name__ == "__main__":
    main()
