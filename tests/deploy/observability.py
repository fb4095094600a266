"""What the dashboards, the rules and the docs say of metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from scripts.check_manifests import K8S

ROOT = Path(__file__).resolve().parent.parent.parent
OBSERVABILITY = ROOT / "deploy" / "observability"
RULE = re.compile(r"moshimesh:\w+:\w+")
NAME = re.compile(r"\b(?:moshimesh|process|hw)_[a-z_]+\b")


def queries() -> Iterator[tuple[str, str]]:
    """(file and panel or alert, query) of every dashboard and rule."""
    for path in sorted((OBSERVABILITY / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            yield from ((f"{path.name}: {panel['title']}", target["expr"]) for target in panel["targets"])
    rules = yaml.safe_load((OBSERVABILITY / "prometheus" / "rules.yml").read_text())
    for group in rules["groups"]:
        yield from ((f"rules.yml: {rule.get('record') or rule['alert']}", rule["expr"]) for rule in group["rules"])


def names_used() -> Iterator[tuple[str, str]]:
    """Every metric that a dashboard, a rule or the docs name: (Prometheus' name, where)."""
    for where, query in queries():
        yield from ((name, where) for name in NAME.findall(RULE.sub("", query)))
    yield from ((sample, "the docs") for sample in samples_of_docs())


def autoscaler_metrics() -> set[str]:
    """Every metric that decides how many replicas there are, in the queries of KEDA and of the plain HPA's rule."""
    texts = [path.read_text() for path in sorted(K8S.glob("components/autoscaling*/*.yaml"))]
    return {name for text in texts for name in NAME.findall(text)} - {"moshimesh_demand"}  # what the rule makes of them


def documented_names() -> list[tuple[str, str]]:
    """(OpenTelemetry's name, Prometheus' name) as the docs list them."""
    return re.findall(r"^\| `([a-z.]+)` \| `([a-z_]+)` \|", (ROOT / "docs" / "telemetry.md").read_text(), re.M)


def samples_of_docs() -> Iterator[str]:
    histograms = {"duration", "factor", "jitter", "mos", "fill"}
    for ours, theirs in documented_names():
        yield f"{theirs}_count" if ours.rsplit(".", 1)[-1] in histograms else theirs
