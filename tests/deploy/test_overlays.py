"""Every overlay, and the base with each component and with all that go together, renders and is valid and safe."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.check_manifests import K8S, check_documents, kustomizations, render
from scripts.prometheus_rule import RESOURCE, resource
from tests.deploy.rendering import rendered

CRDS = Path(__file__).resolve().parent / "crds"
COMPONENTS = sorted(path for path in (K8S / "components").iterdir() if path.is_dir())
# Alternatives: the first ones go together, then the second ones, then the third.
EXCLUSIVE = [("autoscaling", "autoscaling-hpa"), ("ingress", "ingress-nginx", "edge-tls"),
             ("redis-sentinel", "external-redis"), ("checkpoint-cache", "checkpoint-image")]


def _combinations() -> Iterator[tuple[str, ...]]:
    yield from ((path.name,) for path in COMPONENTS)
    for chosen in range(3):
        left_out = {name for names in EXCLUSIVE for name in names} - {
            names[min(chosen, len(names) - 1)] for names in EXCLUSIVE}
        yield tuple(path.name for path in COMPONENTS if path.name not in left_out)


@pytest.mark.parametrize("components", list(_combinations()), ids="+".join)
def test_components_go_together(components: tuple[str, ...]) -> None:
    documents = rendered(components)
    assert list(check_documents(documents)) == []
    _check_safe(documents)


@pytest.mark.parametrize("folder", kustomizations(), ids=lambda folder: str(folder.relative_to(K8S)))
def test_pods_are_restricted_and_images_have_versions(folder: Path) -> None:
    _check_safe([dict(document) for document in render(folder)])


def test_pods_are_spread_and_come_in_the_order_of_their_worth() -> None:
    pods = {document["metadata"]["name"]: document["spec"]["template"]["spec"] for document in rendered(("priority",))
            if document["kind"] == "Deployment" and document["metadata"]["name"] in ("gateway", "codec", "lm")}
    for name, pod in pods.items():
        assert [one["topologyKey"] for one in pod["topologySpreadConstraints"]] == [
            "kubernetes.io/hostname", "topology.kubernetes.io/zone"], name
        assert all(one["labelSelector"]["matchLabels"]["app.kubernetes.io/name"] == name
                   for one in pod["topologySpreadConstraints"])
        assert pod["priorityClassName"] == ("moshi-mesh-door" if name == "gateway" else "moshi-mesh-engine")


def test_cert_manager_makes_the_secrets_that_pods_mount() -> None:
    documents = rendered(("mutual-tls", "cert-manager", "edge-tls", "edge-cert-manager"))
    made = {document["spec"]["secretName"] for document in documents if document["kind"] == "Certificate"}
    mounted = {volume["secret"]["secretName"] for document in documents if document["kind"] == "Deployment"
               for volume in document["spec"]["template"]["spec"].get("volumes", ()) if "secret" in volume}
    assert mounted and mounted <= made


def _check_safe(documents: list[dict[str, Any]]) -> None:
    """What the Pod Security Standard "restricted" asks for, and a version for every image."""
    for document in documents:
        pod = document.get("spec", {}).get("template", {}).get("spec")
        if pod is None:
            continue
        name = f"{document['kind']}/{document['metadata']['name']}"
        assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"], name
            assert rights["capabilities"] == {"drop": ["ALL"]}, name
            _, _, tag = container["image"].partition(":")
            assert tag and tag != "latest", f"{name}: {container['image']}"
            assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"], name


def test_the_overlays_for_gpus_have_a_namespace_of_their_own() -> None:
    for overlay in ("gpu", "production"):
        for document in render(K8S / "overlays" / overlay):
            if document["kind"] not in ("Namespace", "PriorityClass"):  # those belong to the cluster
                name = f"{document['kind']}/{document['metadata']['name']}"
                assert document["metadata"].get("namespace") == "moshi-mesh", name


def test_network_policies_name_the_ports_that_the_pods_have() -> None:
    documents = rendered(("network-policies",))
    named = {port["name"] for document in documents if document["kind"] == "Deployment"
             for container in document["spec"]["template"]["spec"]["containers"] for port in container["ports"]}
    numbers = {port["containerPort"] for document in documents if document["kind"] == "Deployment"
               for container in document["spec"]["template"]["spec"]["containers"] for port in container["ports"]}
    outside = {53, 443, 26379}  # DNS, the hub, and sentinels, which are another component
    for document in documents:
        if document["kind"] == "NetworkPolicy":
            for rule in (*document["spec"].get("ingress", ()), *document["spec"].get("egress", ())):
                for entry in rule["ports"]:
                    assert entry["port"] in named | numbers | outside, document["metadata"]["name"]


def test_the_operator_s_rules_are_those_of_prometheus() -> None:
    assert RESOURCE.read_text() == resource()


@pytest.mark.slow  # npm fetches 80 MB of schemas once
def test_custom_resources_fit_their_operators_schemas() -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("this test needs node >= 18 and npm on the PATH")
    installed, wanted = CRDS / "node_modules" / ".installed-lock.json", CRDS / "package-lock.json"
    if not installed.exists() or installed.read_bytes() != wanted.read_bytes():
        done = subprocess.run([npm, "ci", "--no-audit", "--no-fund", "--prefer-offline"], cwd=CRDS, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        assert done.returncode == 0, done.stdout
        shutil.copy(wanted, installed)
    documents = [document for components in _combinations() for document in rendered(components)]
    done = subprocess.run([node, "validate.mjs"], cwd=CRDS, input=json.dumps(documents), text=True, capture_output=True,
                          check=False)
    assert done.stdout == ""
    assert int(done.stderr) > 10  # some were there to be checked
