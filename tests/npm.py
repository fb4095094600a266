"""Packages from npm, for tests that need some."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest


def unavailable(reason: str) -> NoReturn:
    """Skip on a machine of somebody who only has Python; fail where every test has to run."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def node_with_packages(folder: Path) -> str:
    """The node executable, with the packages of this folder's package-lock.json in its node_modules."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        unavailable("this test needs node >= 18 and npm on the PATH")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < 18:
        unavailable(f"this test needs node >= 18, found {version}")
    wanted, installed = folder / "package-lock.json", folder / "node_modules" / ".installed-lock.json"
    if not installed.exists() or installed.read_bytes() != wanted.read_bytes():
        done = subprocess.run([npm, "ci", "--no-audit", "--no-fund", "--prefer-offline"], cwd=folder, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0:
            unavailable(f"npm ci failed in {folder}; it needs the npm registry once:\n{done.stdout}")
        shutil.copy(wanted, installed)
    return node
