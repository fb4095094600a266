"""Which files import what: the services stay apart, and each image has what its service needs and nothing heavier."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.check_manifests import CONFIGS, CONTROLLERS, IMAGES, ROOT, copies

SERVICES = ROOT / "services"


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _importers(module: str, folder: Path = SERVICES) -> set[str]:
    """The files of a folder that import a module or a part of it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*.py")
            if any(name == module or name.startswith(f"{module}.") for name in _imports(path))}


@pytest.mark.parametrize("service", [*CONFIGS, *CONTROLLERS, "mesh"])
def test_services_never_import_each_other(service: str) -> None:
    foreign = {path for path in _importers(f"services.{service}") if not path.startswith(f"{service}/")}
    if service == "mesh":
        assert foreign  # the kit is what they share
    else:
        assert foreign == set()


def test_only_the_gateway_imports_redis() -> None:
    importers = _importers("redis")
    assert importers and all(path.startswith("gateway/") for path in importers)


def test_only_traces_and_metrics_import_the_opentelemetry_sdk() -> None:
    assert _importers("opentelemetry.sdk") == {"mesh/telemetry.py", "mesh/metrics.py", "mesh/metrics_push.py"}
    assert _importers("prometheus_client") == {"mesh/metrics.py", "mesh/metrics_page.py"}


def test_grpc_and_torch_are_never_in_one_file_that_is_not_wiring() -> None:
    both = _importers("torch") & _importers("grpc")
    assert {path for path in both if not path.endswith("__main__.py")} == set()


# Who may import whom inside of the gateway; services/mesh is everybody's. `watching` is imported by __main__ only: the
# others don't know what listens to them.
GATEWAY_ARROWS = {
    "edges": {"calls", "path", "trust"}, "trust": {"calls", "sessions", "store", "config", "exposure"},
    "calls": {"path", "turns", "sessions", "peers", "store"}, "path": {"turns", "sessions", "peers"},
    "turns": set[str](),
    "peers": {"store"}, "sessions": {"store"}, "store": {"redis_url"}, "redis_url": set[str](),
    "config": set[str](), "exposure": set[str](), "dev_certificate": set[str](),
    "watching": {"calls", "path", "turns", "sessions", "peers"}}


def _gateway_arrows() -> dict[str, set[str]]:
    """Which parts of the gateway each part imports, itself left out."""
    arrows: dict[str, set[str]] = {}
    for path in (SERVICES / "gateway").rglob("*.py"):
        part = path.relative_to(SERVICES / "gateway").with_suffix("").parts[0]
        used = {name.split(".")[2] for name in _imports(path) if name.startswith("services.gateway.")}
        arrows.setdefault(part, set()).update(used - {part})
    return arrows


def test_arrows_between_the_gateway_s_folders_run_one_way() -> None:
    for part, used in _gateway_arrows().items():
        if part not in ("__main__", "__init__"):  # the one wires all of them
            assert used <= GATEWAY_ARROWS[part], part


def test_only_edges_know_a_caller_s_wire_format() -> None:
    importers = _importers("moshimesh.gateway.v1")
    assert importers and all(path.startswith("gateway/edges/") for path in importers)


def test_telemetry_listens_to_the_path_and_is_not_called_by_it() -> None:
    for module in ("services.gateway.watching", "services.mesh.telemetry", "services.mesh.metrics", "opentelemetry"):
        assert not [path for path in _importers(module) if path.startswith(("gateway/calls/", "gateway/path/"))]


def test_harness_is_what_tests_and_benchmarks_share() -> None:
    """Tests of a benchmark import it; all others, and the services, do without."""
    assert {path for path in _importers("bench", ROOT / "tests") if not path.startswith("bench/")} == set()
    for below in ("bench", "tests", "scripts", "talker"):
        assert _importers(below, ROOT / "harness") == set()
    assert _importers("harness") == _importers("bench") == set()
    assert _importers("harness", ROOT / "tests") and _importers("harness", ROOT / "bench")


# Run as `python -c`: import a module where some packages are not installed, and name every module that was loaded.
IMPORT_WITHOUT = """
import sys
module, *missing = sys.argv[1:]

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
__import__(module)
print(*sys.modules)
"""


def _modules_in_image(service: str, folder: Path, missing: set[str]) -> set[str]:
    """The modules that the service's __main__ loads, given what its Dockerfile copies and without the missing ones."""
    for sources, destination in copies(IMAGES / f"{service}.Dockerfile"):
        for source in sources:
            if source == "checkpoints":  # no code, and large
                continue
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / destination, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (folder / destination).mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, folder / destination)
    # The environment of this shell stays outside, as it does for a container.
    done = subprocess.run([sys.executable, "-c", IMPORT_WITHOUT, f"services.{service}.__main__", *missing],
                          cwd=folder, capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": f"{folder}:{folder / 'protos' / 'python'}", "HOME": str(folder)})
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def _requirements(path: Path) -> Iterator[Requirement]:
    for line in path.read_text().splitlines():
        if line.startswith("-r "):
            yield from _requirements(path.parent / line[3:].strip())
        elif line.strip() and not line.startswith("#"):
            yield Requirement(line)


def _installed_by(path: Path) -> set[str]:
    """The distributions that installing a requirements file brings, by what is installed here."""
    found: set[str] = set()
    wanted = list(_requirements(path))
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            below = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        wanted += [Requirement(text) for text in below if not re.search(r"extra\s*==", text)]
    return found


@pytest.mark.parametrize("name", ["gateway.txt", "engine.txt"])
def test_locks_have_what_the_lists_ask_for(name: str) -> None:
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", (IMAGES / "locks" / name).read_text(), re.M)
    for wanted in _requirements(ROOT / "requirements" / name):
        if wanted.marker is None or wanted.marker.evaluate({"python_version": "3.11"}):
            locked = [version for pin, version in pins if canonicalize_name(pin) == canonicalize_name(wanted.name)]
            assert locked, f"{wanted.name} is not in the lock"
            assert all(version in wanted.specifier for version in locked), f"{wanted}: the lock has {locked}"


@pytest.mark.parametrize("service", CONFIGS)
def test_the_image_has_what_its_service_imports(service: str, tmp_path: Path) -> None:
    requirements = ROOT / "requirements" / ("gateway.txt" if service == "gateway" else "engine.txt")
    assert f"--require-hashes -r locks/{requirements.name}" in (IMAGES / f"{service}.Dockerfile").read_text()
    installed = _installed_by(requirements)
    missing = {module for module, owners in metadata.packages_distributions().items()
               if installed.isdisjoint(canonicalize_name(owner) for owner in owners)}
    missing -= {"moshimesh"}  # copied into the image; `pip install ./protos/python` leaves its name in the checkout
    loaded = _modules_in_image(service, tmp_path, missing)
    if service == "gateway":
        assert {"torch", "moshi", "sentencepiece"} <= missing
        assert loaded.isdisjoint({"torch", "moshi", "sentencepiece"})
    else:
        assert "redis" not in loaded
