"""The network policies let through what the mesh needs and nothing else, by Kubernetes' own rules: a pod that a policy
selects may do what its policies allow together, and no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from scripts.check_manifests import K8S, render
from tests.deploy.rendering import rendered

OUTSIDE = "outside"  # of the namespace, by an address
OTHERS = {name: {"app.kubernetes.io/name": name} for name in ("prometheus", "grafana")}  # in a namespace of theirs


class Net:
    """Pods and policies of a rendering."""

    def __init__(self, documents: list[dict[str, Any]]) -> None:
        self.policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
        self.pods, self.ports = dict(OTHERS), dict[str, dict[str, int]]()
        for document in documents:
            if document["kind"] in ("Deployment", "StatefulSet", "Job"):
                name, template = document["metadata"]["name"], document["spec"]["template"]
                self.pods[name] = template["metadata"]["labels"]
                self.ports[name] = {port["name"]: port["containerPort"] for container in template["spec"]["containers"]
                                    for port in container.get("ports", ())}

    def open(self, source: str, target: str, port: int) -> bool:
        """Whether a TCP connection is let through."""
        return self._allowed(source, "Egress", target, port, target) and self._allowed(
            target, "Ingress", source, port, target)

    def _allowed(self, pod: str, direction: str, peer: str, port: int, listener: str) -> bool:
        if pod == OUTSIDE or pod in OTHERS:  # not ours to close
            return True
        own = [policy for policy in self.policies
               if direction in policy["policyTypes"] and _selects(policy["podSelector"], self.pods[pod])]
        side = "from" if direction == "Ingress" else "to"
        return not own or any(
            self._peers(rule.get(side), peer) and any(self._number(entry["port"], listener) == port
                                                      for entry in rule["ports"] if entry["protocol"] == "TCP")
            for policy in own for rule in policy.get(direction.lower(), ()))

    def _peers(self, allowed: list[dict[str, Any]] | None, peer: str) -> bool:
        if allowed is None:
            return True
        if peer == OUTSIDE:
            return any("ipBlock" in one for one in allowed)
        return any("ipBlock" not in one and (peer not in OTHERS or "namespaceSelector" in one)
                   and _selects(one.get("podSelector", {}), self.pods[peer]) for one in allowed)

    def _number(self, port: int | str, listener: str) -> int | None:
        return port if isinstance(port, int) else self.ports.get(listener, {}).get(port)


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", ()))


def _needed(net: Net) -> Iterator[tuple[str, str, int]]:
    for engine, port in (("codec", 50051), ("lm", 50052)):
        yield "gateway", engine, port
        yield engine, OUTSIDE, 443  # the hub
    yield OUTSIDE, "gateway", 50050
    yield OUTSIDE, "gateway", 8000
    for service in ("gateway", "codec", "lm"):
        yield "prometheus", service, 9464
        if "scaledown" in net.pods:
            yield "scaledown", service, 9464
        if "otel-collector" in net.pods:
            yield service, "otel-collector", 4317
    if "scaledown" in net.pods:
        yield "scaledown", OUTSIDE, 443
    if "redis" in net.pods:
        yield "gateway", "redis", 6379
    else:
        yield "gateway", OUTSIDE, 6379
    if "otel-collector" in net.pods:
        yield "otel-collector", "jaeger", 4317
        yield "prometheus", "otel-collector", 8889
        yield "grafana", "jaeger", 16686
    if "fetch-weights" in net.pods:
        yield "fetch-weights", OUTSIDE, 443


NETS = {
    "base": lambda: rendered(("network-policies",)),
    "sentinel and scale-down": lambda: rendered(("network-policies", "redis-sentinel", "scale-down")),
    "production": lambda: [dict(document) for document in render(K8S / "overlays" / "production")],
}


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> Net:
    return Net(NETS[request.param]())


def test_what_the_mesh_needs_goes_through(net: Net) -> None:
    assert [way for way in _needed(net) if not net.open(*way)] == []


def test_nothing_else_goes_through(net: Net) -> None:
    needed = set(_needed(net))
    every = {(source, target, port) for target, ports in net.ports.items() for port in ports.values()
             for source in (*net.pods, OUTSIDE) if source != target}
    too_much = {way for way in every - needed if net.open(*way)} - {
        (source, "gateway", port) for source in net.pods for port in (50050, 8000)  # callers come from anywhere
    } - {(one, other, port) for one in net.pods for other in net.pods for port in (6379, 26379)
         if one.startswith(("redis", "gateway", "sentinel")) and other.startswith(("redis", "sentinel"))} - {
        (service, "otel-collector", 4318) for service in ("gateway", "codec", "lm")}  # OTLP over HTTP
    assert too_much == set()
