"""monitoring/: every metric that the rules and the dashboard name is one that ``metrics`` prints, and the four figures are there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from examsend.commands import metrics
from examsend.config.settings import Settings
from examsend.db import engine
from tests.helpers import add, execute

TOP = Path(__file__).parents[1]
MONITORING = TOP / "monitoring"
RULES = (MONITORING / "examsend.rules.yml").read_text()
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
GUIDE = (TOP / "docs" / "monitoring.md").read_text()


def _expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (variable["definition"] for variable in DASHBOARD["templating"]["list"] if "definition" in variable)


@pytest.fixture
def printed(settings: Settings, database: engine.Database) -> list[Any]:
    """The samples of a database in which something of everything is counted."""
    add(settings, "PACS@127.0.0.1:1")
    execute(database, "UPDATE storage_backend_configs SET last_success_at = now()")
    execute(
        database, "INSERT INTO status_totals (destination_id, dimse_status, shard, answers) VALUES (1, 42752, 0, 1)"
    )
    execute(
        database,
        "INSERT INTO command_passes (command, host, started_at, finished_at, seconds, exit_code, passes, failures)"
        " VALUES ('send', 'h1', now(), now(), 1, 0, 1, 0)",
    )
    execute(
        database,
        "INSERT INTO exam_batches (study_instance_uid, destination_id, status, ready_at, finished_at)"
        " VALUES ('1.2', 1, 'SENT', now(), now())",
    )
    execute(
        database,
        "INSERT INTO batch_confirmations (batch_id, destination_id, state, confirmed_at) VALUES (1, 1, 'CONFIRMED', now())",
    )
    families = text_string_to_metric_families(metrics.run(settings).text)
    return [sample for family in families for sample in family.samples]


def test_every_metric_and_label_of_rules_and_dashboard_is_printed(printed: list[Any]) -> None:
    labels: dict[str, set[str]] = {}
    for sample in printed:
        labels.setdefault(sample.name, set()).update(sample.labels)
    rules = re.findall(r"(examsend_\w+)(?:\{([^}]*)\})?", RULES.replace("examsend_metrics.timer", ""))
    dashboard = [found for text in _expressions() for found in re.findall(r"(examsend_\w+)(?:\{([^}]*)\})?", text)]
    assert len(dashboard) > 20
    for name, selected in rules + dashboard:
        assert name in labels
        assert set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", selected)) <= labels[name]


def test_no_metric_is_without_a_place_in_the_guide(printed: list[Any]) -> None:
    base = {re.sub(r"_(bucket|sum|count)$", "", sample.name) for sample in printed}
    assert sorted(name for name in base if f"`{name}" not in GUIDE) == []
    named = set(re.findall(r"`(examsend_\w+)", GUIDE))
    assert sorted(named - base - {sample.name for sample in printed}) == []


def test_the_guide_says_what_to_do_about_each_alert() -> None:
    assert sorted(re.findall(r"- alert: (\w+)", RULES)) == sorted(
        re.findall(r"^### (Examsend\w+)", GUIDE, re.MULTILINE)
    )


def test_the_four_figures_are_the_first_panels() -> None:
    shown = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert shown[:4] == [
        "Average batch size",
        "Completion times",
        "Stuck PENDING batches",
        "Association success per destination",
    ]


def test_the_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) == 23


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_promtool_can_read_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    texts = [text for text in _expressions() if not text.startswith("label_values")]
    rules = [
        {"record": f"panel:{n}", "expr": text.replace("$__rate_interval", "5m").replace("$destination", ".*")}
        for n, text in enumerate(texts)
    ]
    path = tmp_path / "panels.json"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    checked = subprocess.run(
        ["promtool", "check", "rules", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
