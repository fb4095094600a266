"""The wheel for backend teams stays light, runs on every Python that we name, and goes beside what they have."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.gateway import Gateway, serving

WHEEL = Path(__file__).resolve().parents[2] / "protos" / "python"
MINORS = range(10, 15)  # of Python 3
OLDEST = ("grpcio==1.76.0", "protobuf==6.31.1")  # what the wheel's metadata allows, and its stubs were made for
# Voice stacks that a backend may run in the same process.
NEIGHBOURS = ("pipecat-ai", "livekit-agents", "nvidia-riva-client", "google-cloud-speech")
CALL = """
import asyncio, sys, moshimesh
from google import protobuf
async def main(target):
    async with moshimesh.connect(target) as mesh:
        info = await mesh.info()
        events = [event async for event in mesh.converse(bytes(9600), pacing="offline")]
        print(info.model_id, events[-1].frames_in, protobuf.__version__.split(".")[0])
asyncio.run(main(sys.argv[1]))
"""


def pip(python: str | Path, *arguments: str) -> None:
    """Skips the test where the package index can't be reached."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    if done.returncode and re.search(r"No matching distribution found for (grpcio|protobuf|setuptools)", done.stderr):
        pytest.skip(f"needs a package index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def interpreter(minor: int) -> str | None:
    """A Python 3 of this minor version on this machine."""
    if sys.version_info[:2] == (3, minor):
        return sys.executable
    for candidate in (f"python3.{minor}", *map(str, Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3"))):
        try:
            done = subprocess.run([candidate, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True,
                                  text=True, check=False)
        except OSError:
            continue
        if done.stdout.split() == ["3", str(minor)]:
            return candidate
    return None


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The wheel's source without what an earlier build has left there, and which would get into this one."""
    return Path(shutil.copytree(WHEEL, tmp_path / "source", ignore=shutil.ignore_patterns("build", "*.egg-info")))


def venv(folder: Path, python: str) -> Path:
    subprocess.run([python, "-m", "venv", str(folder)], check=True, capture_output=True)
    return folder / "bin" / "python"


def test_it_declares_two_dependencies() -> None:
    (line,) = re.findall(r"^dependencies = \[(.*)\]$", (WHEEL / "pyproject.toml").read_text(), re.MULTILINE)
    assert {re.match(r"[a-z]+", entry.strip(' "')).group() for entry in line.split('", "')} == {"grpcio", "protobuf"}


def test_it_imports_nothing_else() -> None:
    stubs = (WHEEL / "moshimesh").rglob("*_pb2*.py")
    modules = [".".join(path.relative_to(WHEEL).with_suffix("").parts) for path in stubs]
    heavy = {"numpy", "torch", "redis", "pydantic", "opentelemetry", "services"}
    script = (f"import sys; sys.path.insert(0, {str(WHEEL)!r}); import moshimesh, {', '.join(modules)}; "
              f"loaded = {{name.partition('.')[0] for name in sys.modules}}; "
              f"print(*sorted(loaded & {heavy!r}), 'google.rpc' in sys.modules)")
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert found.stdout.split() == ["False"]


def test_its_stubs_are_those_of_the_oldest_runtime_that_it_allows() -> None:
    for path in (WHEEL / "moshimesh").rglob("*_pb2.py"):
        assert "# Protobuf Python Version: 6.31.1" in path.read_text(), path
    for path in (WHEEL / "moshimesh").rglob("*_pb2_grpc.py"):
        assert "GRPC_GENERATED_VERSION = '1.76.0'" in path.read_text(), path
    assert '"grpcio>=1.76,<2", "protobuf>=6.31.1,<8"' in (WHEEL / "pyproject.toml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("minor", MINORS)
@pytest.mark.parametrize("versions", [OLDEST, ("grpcio", "protobuf")], ids=["oldest", "newest"])
async def test_it_makes_a_call_on_every_python(minor: int, versions: tuple[str, ...], source: Path,
                                                tmp_path: Path) -> None:
    found = interpreter(minor)
    if found is None:
        pytest.skip(f"no Python 3.{minor} on this machine")
    python = venv(tmp_path / "venv", found)
    pip(python, "install", "--quiet", str(source), *versions)
    gateway = Gateway()
    async with serving(gateway) as target:
        child = await asyncio.create_subprocess_exec(str(python), "-W", "error", "-c", CALL, target, cwd="/",
                                                     stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        out, err = await asyncio.wait_for(child.communicate(), 60)
    major = "6" if versions is OLDEST else "7"
    assert out.decode().split() == ["test", "3", major], err.decode()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("neighbour", NEIGHBOURS)
def test_it_goes_beside(neighbour: str, source: Path, tmp_path: Path) -> None:
    """pip finds versions of both that agree."""
    python = venv(tmp_path / "venv", sys.executable)
    report = tmp_path / "report.json"
    pip(python, "install", "--quiet", "--dry-run", "--report", str(report), str(source), neighbour)
    chosen = {entry["metadata"]["name"].lower().replace("_", "-"): entry["metadata"]["version"]
              for entry in json.loads(report.read_text())["install"]}
    assert {"moshimesh", neighbour, "grpcio", "protobuf"} <= chosen.keys()
