"""Says at the end how many inputs were tried; writes it to FUZZ_JSON if that is set."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.budget import tallies


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    run = {parser: dataclasses.asdict(tally) for parser, tally in sorted(tallies.items()) if tally.tried}
    if not run or not (path := os.environ.get("FUZZ_JSON")):
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(run, indent=1) + "\n")
    terminalreporter.write_line(f"{'parser':28}{'inputs':>9}{'failures':>10}{'hangs':>7}")
    for parser, tally in run.items():
        terminalreporter.write_line(f"{parser:28}{tally['tried']:9}{tally['failures']:10}{tally['hangs']:7}")
