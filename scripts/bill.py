"""The bills of materials of the images (CycloneDX), with licences: `python -m scripts.bill` after a change of a lock.

Versions and hashes are those of deploy/images/locks; what a package says of its licence is read where it is installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).resolve().parent.parent / "deploy" / "images"
LOCKS = ("gateway", "engine")
UNKNOWN = "not said"
# What their metadata leaves out, or what is only installed beside an older Python than ours, by who has looked where.
SEEN = {
    "async-timeout": "Apache-2.0",  # License in the metadata of 5.0.1; installed before Python 3.11 alone
    "sphn": "Apache-2.0",  # licenses/LICENSE in the wheel of 0.2.1
}


def locked(lock: str) -> dict[str, tuple[str, list[str]]]:
    """The version and the hashes of each package of a lock."""
    found: dict[str, tuple[str, list[str]]] = {}
    for entry in re.split(r"\n(?=[a-z0-9])", (IMAGES / "locks" / f"{lock}.txt").read_text()):
        if match := re.match(r"([a-z0-9._-]+)==([^\s;]+)", entry):
            found[match[1]] = match[2], re.findall(r"sha256:([0-9a-f]{64})", entry)
    return found


def licence(name: str) -> str:
    """What an installed package says of its licence, in one line."""
    try:
        said = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return SEEN.get(name, UNKNOWN)
    kinds = [one.rpartition(" :: ")[2] for one in said.get_all("Classifier", []) if one.startswith("License ::")]
    text = said.get("License-Expression") or " AND ".join(kinds) or said.get("License") or SEEN.get(name, UNKNOWN)
    return text.strip().splitlines()[0][:80]


def bill(lock: str) -> dict[str, Any]:
    """The bill of one lock."""
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
            "metadata": {"component": {"type": "application", "name": f"moshi-mesh/{lock}"}},
            "components": [{
                "type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}",
                "licenses": [{"license": {"name": licence(name)}}],
                "hashes": [{"alg": "SHA-256", "content": one} for one in hashes]}
                for name, (version, hashes) in locked(lock).items()]}


def main() -> None:
    for lock in LOCKS:
        (IMAGES / "locks" / f"{lock}.cdx.json").write_text(json.dumps(bill(lock), indent=1) + "\n")


if __name__ == "__main__":
    main()
