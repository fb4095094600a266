"""Generate the Python stubs from the protos: `make stubs`; `--check` fails when the committed ones differ."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
WHEEL = PROTOS / "python"
# Its protoc writes stubs for protobuf 6.31.1, which the runtimes 6 and 7 take; with newer ones the wheel could not be
# installed beside packages that need protobuf < 7. It has a folder of its own, since its Python package asks for
# protobuf < 7, and the services run on the newest.
GENERATOR = "grpcio-tools==1.76.0"
TOOLS = Path(sys.prefix) / "share" / "moshimesh" / GENERATOR


def install() -> None:
    """Fetch the generator, once for each environment."""
    if TOOLS.exists():
        return
    TOOLS.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TOOLS.parent) as temporary:
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
        if subprocess.run((*pip, "--target", temporary, GENERATOR), check=False).returncode != 0:
            raise SystemExit(f"stubs: {GENERATOR} could not be installed; pip's message is above")
        Path(temporary).rename(TOOLS)
        Path(temporary).mkdir()  # for the context manager, which removes it


def generate(out: Path) -> list[Path]:
    """Write the stubs of every proto below `out`; return their paths relative to it."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "moshimesh").rglob("*.proto"))
    flags = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    protoc = (sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *flags, *sources)
    if subprocess.run(protoc, env=os.environ | {"PYTHONPATH": str(TOOLS)}, check=False).returncode != 0:
        raise SystemExit("protoc failed; its message is above")
    return sorted(path.relative_to(out) for path in out.rglob("*_pb2*.py*"))


def main() -> None:
    install()
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary)
        made = generate(fresh)
        # Only of the package itself: `pip install ./protos/python` leaves copies in build/.
        found = (WHEEL / "moshimesh").rglob("*_pb2*.py*")
        committed = sorted(p.relative_to(WHEEL) for p in found if "__pycache__" not in p.parts)
        stale = sorted(set(committed) - set(made))
        changed = [p for p in made if p not in committed or not filecmp.cmp(fresh / p, WHEEL / p, shallow=False)]
        if "--check" in sys.argv[1:]:
            if stale or changed:
                raise SystemExit(f"stubs differ from the protos, run `make stubs`: {[str(p) for p in changed + stale]}")
            print(f"stubs match the protos ({len(made)} files)")
            return
        for path in stale:
            (WHEEL / path).unlink()
        for path in changed:
            (WHEEL / path).parent.mkdir(parents=True, exist_ok=True)
            (WHEEL / path).write_bytes((fresh / path).read_bytes())
        print(f"{len(changed)} stubs written, {len(made) - len(changed)} unchanged, {len(stale)} removed")


if __name__ == "__main__":
    main()
