"""The dry run of bench/gpu/run.sh on a CPU: python -m bench.gpu.dry --python PYTHON [--out out/gpu-dry.json]

PYTHON is one that has what the CUDA machine has (requirements/gpu-machine.txt), and nothing else. Writes what came out:
attention_cases and attention_max_error of the decode attention in Triton's interpreter, offline_install, the state of
each of script_parts, and the published kinds of checkpoints that were loaded or refused in a line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

RESULTS = Path("out/gpu")
KINDS = Path("out/gpu-kinds.xml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/gpu-dry.json"))
    options = parser.parse_args()
    for old in RESULTS.glob("*"):
        old.unlink()
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(["bash", "bench/gpu/run.sh", "--device", "cpu", "--small"], check=False,
                   env=clean | {"PYTHON": str(options.python.absolute())})
    parts = [json.loads(line) for line in _read("parts.jsonl").splitlines()]
    attention = _last_json(_read("attention.log"))
    loaded, refused = _checkpoints()
    result = {"attention_cases": attention.get("cases", 0), "attention_max_error": attention.get("max_error"),
              "offline_install": bool(parts), "script_parts": {part["part"]: part["state"] for part in parts},
              "checkpoints_loaded": loaded, "checkpoints_refused_clearly": refused}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if not parts or any(part["state"] != "ok" for part in parts):
        raise SystemExit("the dry run failed; see out/gpu")


def _read(name: str) -> str:
    path = RESULTS / name
    return path.read_text() if path.exists() else ""


def _last_json(text: str) -> dict[str, Any]:
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            return dict(json.loads(line))
    return {}


def _checkpoints() -> tuple[list[str], list[str]]:
    """The tests that passed, by what they are about."""
    subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junitxml={KINDS}",
                    "tests/mesh/test_published_checkpoints.py", "tests/mesh/test_checkpoint_kinds.py"], check=False)
    passed = [case.get("name", "") for case in ElementTree.parse(KINDS).iter("testcase") if not len(case)]
    names = [name.removeprefix("test_").replace("_", " ") for name in passed]
    return [name for name in names if "refused" not in name], [name for name in names if "refused" in name]


if __name__ == "__main__":
    main()
