"""What the documents name exists: files, modules, flags, targets of make."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.check_manifests import CONFIGS, ROOT

PAGES = sorted(str(path.relative_to(ROOT)) for pattern in (
    "*.md", "docs/*.md", "deploy/**/*.md", "protos/python/*.md", "samples/*.md") for path in ROOT.glob(pattern))
OURS = ("bench", "deploy", "docs", "harness", "protos", "requirements", "samples", "scripts", "services", "talker",
        "tests")
# Of docker, docker compose, pip, Prometheus and redis-server.
OTHERS_FLAGS = {"--build-arg", "--build-context", "--config", "--enable-feature", "--format", "--name", "--network",
                "--no-deps", "--pattern", "--profile", "--save", "--scan"}


def _text(page: str) -> str:
    return (ROOT / page).read_text()


def _own_flags() -> Iterator[str]:
    yield "--help"
    for config in CONFIGS.values():
        yield from ("--" + name.replace("_", "-") for name in config.model_fields)
    for folder in ("bench", "harness", "scripts", "talker", "services", "protos/python/moshimesh/cli"):
        for path in (ROOT / folder).rglob("*.py"):
            yield from re.findall(r'add_argument\(\s*"(--[a-z][a-z0-9-]*)"', path.read_text())


FLAGS = {*_own_flags()}
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", _text("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page: str) -> None:
    text, here = _text(page), (ROOT / page).parent
    links = [link for link in re.findall(r"\]\(([^)#:\s]+)[^):]*\)", text) if not (here / link).exists()]
    named = re.findall(rf"`((?:{'|'.join(OURS)})/[\w./-]+)`", text)
    assert links + [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    text = _text(page)
    names = re.findall(rf"python -m ((?:{'|'.join(OURS)})[a-z_.]*[a-z_])\b", text)
    modules = [Path(*name.split(".")) for name in names]
    missing = [str(module) for module in modules
               if not (ROOT / module.with_suffix(".py")).exists() and not (ROOT / module / "__main__.py").exists()
               and module != Path("services")]  # services.NAME
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)) - FLAGS - OTHERS_FLAGS
    targets = set(re.findall(r"(?:`|^)make ([a-z][a-z-]+)", text, re.MULTILINE)) - TARGETS
    assert [*missing, *sorted(flags), *sorted(targets)] == []
