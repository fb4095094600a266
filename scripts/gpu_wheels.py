"""Gathers wheels for a CUDA machine without a network: python -m scripts.gpu_wheels build/gpu-wheels

For Python 3.12 on x86-64, whatever runs here. What such a machine has already is left out.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

MOST_BYTES = 35 << 20
"""What travels to the machine in one go."""
TARGET = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp",
          *(part for tag in ("manylinux_2_34", "manylinux_2_31", "manylinux_2_28", "manylinux_2_27", "manylinux_2_26",
                             "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux_2_5", "manylinux1")
            for part in ("--platform", f"{tag}_x86_64"))]
THERE = ("numpy", "matplotlib", "pillow", "fonttools", "contourpy", "kiwisolver", "cycler", "pyparsing")
"""The large ones that the machine has, in versions that fit."""


def main() -> None:
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *TARGET, "-d", folder]
    subprocess.run([*pip, "-r", "requirements/gpu.txt"], check=True)
    subprocess.run([*pip, "--no-deps", "moshi==0.2.13"], check=True)
    for wheel in folder.glob("*.whl"):
        if wheel.name.split("-")[0].lower() in THERE:
            wheel.unlink()
    size = sum(wheel.stat().st_size for wheel in folder.iterdir())
    if size > MOST_BYTES:
        raise SystemExit(f"{size / 2**20:.1f} MB in {folder}: at most {MOST_BYTES >> 20} are to travel")
    print(f"{len(list(folder.iterdir()))} wheels, {size / 2**20:.1f} MB in {folder}")


if __name__ == "__main__":
    main()
