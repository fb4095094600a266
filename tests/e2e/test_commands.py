"""The commands that people run: the demo and the load generator, against a running mesh."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import sys
import wave
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


async def run(folder: Path, module: str, *flags: str) -> tuple[int, str]:
    """Exit code and output of `python -m module flags` in a folder."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "protos" / "python")])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *flags, cwd=folder, env={**os.environ, "PYTHONPATH": path},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_the_demo_leaves_what_it_promises(mesh_target: str, tmp_path: Path) -> None:
    sample = ROOT / "samples" / "question-1.wav"
    code, output = await run(tmp_path, "scripts.demo", "--target", mesh_target, "--wav", str(sample), "--pacing",
                             "offline")
    assert code == 0, output
    assert "Moshi said" in output
    figures = json.loads((tmp_path / "out" / "demo.json").read_text())
    with wave.open(str(sample)) as question, wave.open(str(tmp_path / "out" / "reply.wav")) as reply:
        assert figures["frames"] == -(-question.getnframes() // 1920) == reply.getnframes() // 1920
    assert figures["text"]
    for hop in ("gateway.ingest", "codec.encode", "lm.step", "codec.decode", "gateway.emit"):
        for part in ("queue", "compute"):
            assert set(figures["hops"][hop][part]) == {"p50_ms", "p95_ms", "max_ms"}
    assert (tmp_path / "out" / "frames.png").read_bytes().startswith(b"\x89PNG")


async def test_the_demo_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    (tmp_path / "not.wav").write_text("hello")
    code, output = await run(tmp_path, "scripts.demo", "--wav", "not.wav")
    assert code != 0
    assert output.strip().startswith("demo: not.wav can't be read"), output


async def test_load(mesh_target: str, tmp_path: Path) -> None:
    code, output = await run(tmp_path, "bench.load", "--target", mesh_target, "--callers", "3", "--ramp", "1s",
                             "--duration", "2s", "--wav", str(ROOT / "samples"))
    assert code == 0, output
    with (tmp_path / "out" / "load.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["caller"] for row in rows] == ["0", "1", "2"]
    assert all(int(row["frames"]) > 20 and not row["error"] for row in rows)
    figures = json.loads((tmp_path / "out" / "load.json").read_text())
    assert (figures["callers"], figures["errors"]) == (3, 0)
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
