"""The wheel as a backend team gets it: built, installed, imported, on the Python that runs the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.stubs.test_wheel import WHEEL


def test_what_is_installed_imports_from_anywhere(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"  # else what is built stays in the tree, and in the next wheel
    shutil.copytree(WHEEL, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("moshimesh-*-py3-none-any.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    script = ("import moshimesh, moshimesh.gateway.v1.conversation_pb2_grpc as stubs; "
              "print(moshimesh.__file__, moshimesh.connect.__name__, stubs.ConversationServiceStub.__name__)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})
    assert done.stdout.split() == [str(tmp_path / "site" / "moshimesh" / "__init__.py"), "connect",
                                   "ConversationServiceStub"]
    assert (tmp_path / "site" / "moshimesh" / "py.typed").exists()
