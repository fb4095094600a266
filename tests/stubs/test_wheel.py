"""The wheel for backend teams stays light: grpcio and protobuf, nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

WHEEL = Path(__file__).resolve().parents[2] / "protos" / "python"


def test_it_declares_two_dependencies() -> None:
    (line,) = re.findall(r"^dependencies = \[(.*)\]$", (WHEEL / "pyproject.toml").read_text(), re.MULTILINE)
    assert {re.match(r"[a-z]+", entry.strip(' "')).group() for entry in line.split('", "')} == {"grpcio", "protobuf"}


def test_it_imports_nothing_else() -> None:
    modules = [".".join(path.relative_to(WHEEL).with_suffix("").parts) for path in WHEEL.rglob("*_pb2*.py")]
    heavy = {"numpy", "torch", "redis", "pydantic", "opentelemetry", "services"}
    script = (f"import sys; sys.path.insert(0, {str(WHEEL)!r}); import moshimesh, {', '.join(modules)}; "
              f"loaded = {{name.partition('.')[0] for name in sys.modules}}; "
              f"print(*sorted(loaded & {heavy!r}), 'google.rpc' in sys.modules)")
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert found.stdout.split() == ["False"]
