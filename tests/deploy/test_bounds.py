"""docs/security.md says what the code does."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()
ROWS = re.findall(r"^\| (.+?) \| (.+?) \| `(services[\w.]+):(\w+)` \| (.+) \|$", TEXT, re.MULTILINE)


def test_each_bound_is_what_the_code_has() -> None:
    assert len(ROWS) > 30
    for what, value, module, name, why in ROWS:
        assert ast.literal_eval(value) == getattr(importlib.import_module(module), name), what
        assert why


def test_what_tries_a_threat_is_there() -> None:
    named = re.findall(r"tests/[\w/.]+", TEXT)
    assert len(named) > 8
    assert [path for path in named if not (ROOT / path).exists()] == []
