"""Generate the Python stubs from the protos: `make stubs`; `--check` fails when the committed ones differ."""

from __future__ import annotations

import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
WHEEL = PROTOS / "python"


def generate(out: Path) -> list[Path]:
    """Write the stubs of every proto below `out`; return their paths relative to it."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "moshimesh").rglob("*.proto"))
    include = Path(protoc.__file__).parent / "_proto"
    flags = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{PROTOS}", f"-I{include}", *flags, *sources]) != 0:
        raise SystemExit("protoc failed; its message is above")
    return sorted(path.relative_to(out) for path in out.rglob("*_pb2*.py*"))


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary)
        made = generate(fresh)
        committed = sorted(p.relative_to(WHEEL) for p in WHEEL.rglob("*_pb2*.py*") if "__pycache__" not in p.parts)
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
