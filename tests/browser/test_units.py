"""The parts of the page that need no browser, in node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parent / "unit"


@pytest.mark.skipif(shutil.which("node") is None, reason="no node; on Debian: apt-get install nodejs")
def test_the_parts_of_the_page_in_node() -> None:
    command = ["node", "--test", *map(str, sorted(UNIT.glob("*.test.mjs")))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
