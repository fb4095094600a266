"""Files of deploy/observability agree with each other, and with the programs that read them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.observability import OBSERVABILITY, RULE, queries


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on the PATH; apt's prometheus has one")
def test_promtool_finds_the_rules_right(tmp_path: Path) -> None:
    folder = OBSERVABILITY / "prometheus"
    recorded = [{"record": f"query:{number}", "expr": query.replace("$__rate_interval", "1m")}
                for number, (_, query) in enumerate(queries())]
    (tmp_path / "dashboards.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": recorded}]}))
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"],
                    ["check", "rules", str(tmp_path / "dashboards.yml")]):
        done = subprocess.run(["promtool", *command], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_recorded_names_exist() -> None:
    rules = yaml.safe_load((OBSERVABILITY / "prometheus" / "rules.yml").read_text())
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
    used = {name for _, query in queries() for name in RULE.findall(query)}
    assert used <= recorded


def test_files_are_what_their_programs_read() -> None:
    for path in OBSERVABILITY.rglob("*.y*ml"):
        assert list(yaml.safe_load_all(path.read_text())), path
    boards = [json.loads(path.read_text()) for path in (OBSERVABILITY / "grafana" / "dashboards").glob("*.json")]
    assert len({board["uid"] for board in boards}) == len(boards) == 4
    datasources = yaml.safe_load((OBSERVABILITY / "grafana/provisioning/datasources/datasources.yaml").read_text())
    known = {source["uid"] for source in datasources["datasources"]}
    for board in boards:
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
        assert {panel["datasource"]["uid"] for panel in board["panels"]} <= known
    collector = yaml.safe_load((OBSERVABILITY / "collector" / "config.yaml").read_text())
    for pipeline in collector["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= collector[part].keys()
