"""What kustomize makes of components that no overlay has in this combination."""

from __future__ import annotations

import os
import shutil
from typing import Any

import yaml

from scripts.check_manifests import K8S, render


def rendered(components: tuple[str, ...], upon: str = "base", beside: tuple[str, ...] = ("../../../observability",)
             ) -> list[dict[str, Any]]:
    """The base, or an overlay, with these and with observability."""
    folder = K8S / "overlays" / f".test-{os.getpid()}"  # kustomize reads nothing outside of the tree
    folder.mkdir()
    try:
        (folder / "kustomization.yaml").write_text(yaml.safe_dump({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": [f"../../{upon}"],
            "components": [*(f"../../components/{name}" for name in components), *beside]}))
        return [dict(document) for document in render(folder)]
    finally:
        shutil.rmtree(folder)
