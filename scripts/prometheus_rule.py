"""Write the alert rules as the Prometheus operator takes them: `python -m scripts.prometheus_rule [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path

OBSERVABILITY = Path(__file__).resolve().parent.parent / "deploy" / "observability"
RULES = OBSERVABILITY / "prometheus" / "rules.yml"
RESOURCE = OBSERVABILITY / "kubernetes" / "rules.yaml"
HEAD = """\
# Written by scripts/prometheus_rule.py from prometheus/rules.yml; change that one.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: moshi-mesh
spec:
"""


def resource() -> str:
    """The rules as a PrometheusRule."""
    lines = RULES.read_text().splitlines()
    return HEAD + "".join(f"  {line}\n" if line else "\n" for line in lines)


def main() -> None:
    """Write it, or check that it is written."""
    if "--check" in sys.argv[1:]:
        if not RESOURCE.exists() or RESOURCE.read_text() != resource():
            raise SystemExit(f"{RESOURCE.name} is not what {RULES.name} says; run python -m scripts.prometheus_rule")
    else:
        RESOURCE.write_text(resource())


if __name__ == "__main__":
    main()
