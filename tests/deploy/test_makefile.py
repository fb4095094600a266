"""The commands of the README: listed, quoted, and no more installed than they need."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from scripts.check_manifests import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
# Not those of the make that runs this test.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
ODD = "it's a \"file\" $HOME `x` & co.wav"


def planned(tmp_path: Path, *arguments: str) -> list[list[str]]:
    """The commands that make would run in an environment that does not exist yet, each as its words."""
    done = subprocess.run(["make", "--dry-run", f"VENV={tmp_path}/venv", *arguments], cwd=ROOT, capture_output=True,
                          text=True, check=True, env=ENVIRONMENT)
    return [shlex.split(line) for line in done.stdout.replace("\\\n", " ").splitlines() if line]


def installed(commands: list[list[str]]) -> list[str]:
    """The requirement files that are installed, in order."""
    return [command[-1].removeprefix("requirements/") for command in commands if "pip" in command]


def test_help_lists_every_target() -> None:
    (phony,) = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True,
                          env=ENVIRONMENT).stdout
    targets = re.findall(r"^([a-z-]+):(?! [A-Z]+ =)", MAKEFILE, re.MULTILINE)  # not the variables of one target
    assert sorted(phony.replace("\\", "").split()) == sorted(targets)
    assert [line.split()[0] for line in said.splitlines()] == targets
    assert all(len(line.split()) > 1 for line in said.splitlines())


@pytest.mark.parametrize(("target", "variable", "flag"), [
    ("demo", "WAV", "--wav"), ("demo", "CHECKPOINT", "--checkpoint"), ("run", "CHECKPOINT", "--checkpoint"),
    ("run", "DEVICE", "--device"), ("run", "TRACE", "--trace"), ("trace", "WAV", "--wav"),
    ("trace", "TARGET", "--target"), ("trace", "CHECKPOINT", "--checkpoint"), ("soak", "CHECKPOINT", "--checkpoint"),
    ("profile", "CHECKPOINT", "--checkpoint"), ("bench-gpu", "CHECKPOINT", "--checkpoint"),
])
def test_a_value_reaches_its_command_as_it_is(target: str, variable: str, flag: str, tmp_path: Path) -> None:
    value = ODD.replace("$", "$$")  # make's own way to write it
    command = planned(tmp_path, target, f"{variable}={value}")[-1]
    assert command[command.index(flag) + 1] == ODD


def test_every_variable_of_a_caller_is_quoted() -> None:
    ours = {"VENV", "PY", "PIP", "TORCH_CPU", "MAKEFILE_LIST", "QUICK", "CI", "TORCH", "WITHOUT_MODELS",
            "PYTEST", "NEVER_TWICE"}
    recipes = "\n".join(line for line in MAKEFILE.splitlines() if line.startswith("\t"))
    bare = re.sub(r"\$\(call quoted,\$\([A-Z_]+\)[a-z]?\)|\$\(if \$\([A-Z]+\),", "", recipes)
    assert set(re.findall(r"\$\(([A-Z_]+)\)", bare)) <= ours


def test_a_run_installs_what_a_run_needs(tmp_path: Path) -> None:
    for target in ("run", "demo", "env"):
        assert installed(planned(tmp_path, target)) == ["run.txt", "moshi.txt"]
    for target in ("test", "lint"):
        assert installed(planned(tmp_path, target)) == ["run.txt", "moshi.txt", "dev.txt"]
    assert installed(planned(tmp_path, "test-short")) == ["short.txt"]


def test_what_is_installed_stays(tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    for stamp in (".python", ".run", ".dev"):
        (tmp_path / "venv" / stamp).touch()
    for target in ("demo", "lint"):
        assert installed(planned(tmp_path, target)) == []


def test_development_tools_are_not_for_a_run() -> None:
    def listed(*names: str) -> str:
        return "".join((ROOT / "requirements" / name).read_text() for name in names)

    for tool in ("mypy", "buf-bin", "kubectl", "hadolint", "ruff", "pytest"):
        assert tool not in listed("run.txt", "engine.txt", "gateway.txt")
        assert tool in listed("dev.txt", "test.txt")


def test_torch_alone_comes_from_pytorch_when_asked(tmp_path: Path) -> None:
    first, *others = [command for command in planned(tmp_path, "demo", "TORCH=cpu") if "pip" in command]
    assert first[first.index("--index-url") + 1] == "https://download.pytorch.org/whl/cpu"
    assert first[-1] == "requirements/torch.txt"
    assert (ROOT / "requirements" / "torch.txt").read_text().splitlines()[-1].startswith("torch>=")
    assert others and not any("--index-url" in command for command in others)


@pytest.mark.parametrize("wrong", ["TORCH=gpu", "VENV=a b"])
def test_a_wrong_value_is_refused(wrong: str) -> None:
    done = subprocess.run(["make", "--dry-run", "env", wrong], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert wrong.split("=")[1] in done.stderr


@pytest.mark.slow
def test_other_pythons_are_told(tmp_path: Path) -> None:
    old = tmp_path / "my python"
    old.write_text('#!/bin/sh\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(["make", "env", f"VENV={tmp_path}/venv", f"PYTHON={old}"], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    assert done.returncode != 0
    assert "needs Python 3.10 to 3.14" in done.stdout
