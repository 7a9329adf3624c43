"""Every alert of monitoring/examsend.rules.yml is made to fire by a real fault: what ``metrics`` prints then is given to promtool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from examsend.commands import cancel, confirm, finalize, ingest, metrics, send
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.errors import DatabaseUnavailable
from examsend.queue import verdicts
from examsend.queue.announcements import Series
from examsend.queue.verdicts import Answered
from examsend.states import Verdict
from tests.helpers import add, cli, deliver, execute, one, prepare, rows, states
from tests.passes.world import World, file
from tests.peers.dcmtk import free_port
from tests.peers.scripted import Script, scripted

TOP = Path(__file__).parents[2]
MONITORING = TOP / "monitoring"
RULES = MONITORING / "examsend.rules.yml"
NAMES = set(re.findall(r"- alert: (\w+)", RULES.read_text()))

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")

_EVERY = 4
"""Minutes between two samples."""
_LAST = 10
"""Samples after the fault. Before it, there are enough that every "for" is over."""


def _series(texts: list[str], points: int, moment: float) -> list[dict[str, str]]:
    """Given what ``metrics`` printed before and after a fault, return series of which the last hour begins as before and ends
    as after. The time of measuring (``moment``) becomes the end of the series."""
    found: dict[str, list[float]] = {}
    for n, text in enumerate(texts):
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f"{key}={json.dumps(value)}" for key, value in sorted(sample.labels.items()))
                shift = points * _EVERY * 60 - moment if sample.name.endswith("_timestamp_seconds") else 0.0
                values = found.setdefault(f"{sample.name}{{{labels}}}", [0.0] * len(texts))
                values[n] = sample.value + shift
    return [
        {"series": name, "values": " ".join([f"{v[0]:f}x{points - _LAST}", f"{v[-1]:f}x{_LAST}"])}
        for name, v in found.items()
    ]


def firing(*texts: str, tmp_path: Path, later: float = 0.0, hours: int = 2) -> set[tuple[str, str]]:
    """Given what ``metrics`` printed, return the alerts that fire ``later`` seconds after that, with their destination."""
    moment = time.time()
    points = hours * 60 // _EVERY
    series = _series(list(texts), points, moment + later)
    names = sorted(NAMES)
    found = set()
    # promtool compares and does not print: what it found is what it says it got.
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": f"{_EVERY}m",
        "tests": [
            {
                "interval": f"{_EVERY}m",
                "input_series": series,
                "promql_expr_test": [
                    {
                        "expr": f'ALERTS{{alertname="{name}",alertstate="firing"}}',
                        "eval_time": f"{points * _EVERY}m",
                        "exp_samples": [],
                    }
                    for name in names
                ],
            }
        ],
    }
    path = tmp_path / "alerts.test.json"
    path.write_text(json.dumps(test))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0 or "got:" in said, said
    for labels in re.findall(r'\{__name__="ALERTS", ([^}]*)\}', said):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found.add((pairs["alertname"], pairs.get("destination") or pairs.get("command") or ""))
    return found


def _now(settings: Settings) -> str:
    return metrics.run(settings).text


def _again(settings: Settings, database: engine.Database) -> None:
    execute(database, "UPDATE storage_backend_configs SET held_until = NULL")
    execute(database, "UPDATE exam_batches SET next_attempt_at = now() WHERE status = 'READY'")
    send.run(settings)


NO_PASSES = {("ExamsendNoPass", "finalize"), ("ExamsendNoPass", "send")}
"""These tests call the passes in their own process, where none is recorded."""


def test_promtool_accepts_the_rules_and_their_own_tests() -> None:
    for arguments in (["check", "rules", RULES], ["test", "rules", MONITORING / "examsend.rules.test.yml"]):
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test_of_its_own_and_a_real_fault() -> None:
    own = (MONITORING / "examsend.rules.test.yml").read_text()
    here = Path(__file__).read_text()
    assert {name for name in NAMES if f"name: {name}" in own and f'("{name}"' in here} == NAMES


def test_nothing_fires_where_all_is_well(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    samples.ct_study(tmp_path / "drop", 2, size=8)
    with scripted() as peer:
        add(settings, peer.address)
        deliver(settings, tmp_path / "drop")
    assert states(database) == ["SENT"]
    assert firing(_now(settings), tmp_path=tmp_path) == NO_PASSES


def test_a_receiver_that_cannot_understand_an_instance(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 2, size=8)
    with scripted(Script(status=lambda _k, _u: 0xC000)) as peer:
        add(settings, peer.address)
        deliver(settings, tmp_path / "drop")
        _again(settings, database)
    assert states(database) == ["FAILED"]
    assert firing(_now(settings), tmp_path=tmp_path) == NO_PASSES | {("ExamsendBatchFailed", "pacs")}


def test_a_dead_port_and_a_study_that_waits_for_it(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    add(settings, f"PACS@127.0.0.1:{free_port()}", backoff_seconds=600.0, backoff_max_seconds=600.0)
    deliver(settings, tmp_path / "drop")
    down = ("ExamsendDestinationDown", "pacs")
    assert firing(_now(settings), tmp_path=tmp_path) == NO_PASSES | {down}
    execute(database, "UPDATE exam_batches SET ready_at = ready_at - interval '5 hours'")
    assert firing(_now(settings), tmp_path=tmp_path) == NO_PASSES | {down, ("ExamsendReadyTooOld", "pacs")}


def test_no_finalize_looks_at_a_study(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    world = World(settings, database)
    world.arrive(file("1.1"))
    world.wait(5400 + 700)
    assert firing(_now(settings), tmp_path=tmp_path) == NO_PASSES | {("ExamsendPendingStuck", "pacs")}
    finalize.run(settings)
    assert firing(_now(settings), tmp_path=tmp_path) == NO_PASSES


def test_a_study_of_which_announced_instances_never_come(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    world = World(settings, database, on_incomplete="hold")
    world.create("9.1")
    world.set("9.1", "COMPLETED", Series("1.2.3.1", frozenset({"1.1", "1.2"})))
    world.arrive(file("1.1"))
    world.wait(5500)
    world.finalize()
    assert firing(_now(settings), tmp_path=tmp_path) == NO_PASSES | {("ExamsendStudyIncomplete", "pacs")}


def test_a_study_that_an_operator_holds_and_forgets(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    world = World(settings, database)
    world.arrive(file("1.1"))
    execute(database, "UPDATE exam_batches SET held_at = now(), held_reason = 'wrong patient'")
    world.wait(90000)
    assert firing(_now(settings), tmp_path=tmp_path, hours=26) == NO_PASSES | {("ExamsendHoldForgotten", "pacs")}


def test_a_file_that_is_cut_short(settings: Settings, tmp_path: Path) -> None:
    [path] = samples.ct_study(tmp_path / "drop", 1, size=8)
    path.write_bytes(path.read_bytes()[:-20])
    add(settings, "PACS@127.0.0.1:1")
    assert ingest.run(settings, [tmp_path / "drop"]).needs_person
    assert firing(_now(settings), tmp_path=tmp_path) == NO_PASSES | {("ExamsendFileRejected", "")}


def _confirmed_by(settings: Settings, database: engine.Database, drop: Path) -> None:
    """A study is SENT, and its archive is to be asked about it."""
    samples.ct_study(drop, 2, size=8)
    with scripted() as peer:
        add(settings, peer.address, confirm="commitment", confirm_after_seconds=0.0, on_disputed="report")
        deliver(settings, drop)
    assert states(database) == ["SENT"]


def test_an_archive_that_does_not_have_what_was_sent(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    _confirmed_by(settings, database, tmp_path / "drop")
    said = [Answered(row[0], Verdict.ABSENT) for row in rows(database, "SELECT id FROM exam_batch_instances")]
    at = one(database, "SELECT clock_timestamp()")
    database.run(lambda tx: verdicts.write(tx, 1, said, requested_at=at, transaction_uid=None))
    assert firing(_now(settings), tmp_path=tmp_path) == NO_PASSES
    confirm.run(settings)
    assert firing(_now(settings), tmp_path=tmp_path) == NO_PASSES | {("ExamsendDisputed", "pacs")}


def test_an_archive_that_does_not_confirm_in_time(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    _confirmed_by(settings, database, tmp_path / "drop")
    execute(database, "UPDATE batch_confirmations SET opened_at = now() - interval '13 h'")
    assert firing(_now(settings), tmp_path=tmp_path) == NO_PASSES | {("ExamsendConfirmationTooOld", "pacs")}
    execute(database, "UPDATE batch_confirmations SET opened_at = now() - interval '25 h', asked_at = now()")
    confirm.run(settings)
    assert firing(_now(settings), tmp_path=tmp_path) == NO_PASSES | {("ExamsendUnconfirmedForGood", "pacs")}


def test_an_archive_at_which_nobody_listens(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    _confirmed_by(settings, database, tmp_path / "drop")
    confirm.run(settings)
    assert firing(_now(settings), tmp_path=tmp_path) == NO_PASSES | {("ExamsendArchiveSilent", "pacs")}


def test_a_receiver_that_ends_its_associations(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted(Script(on_accept="abort")) as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        before = _now(settings)
        for _ in range(6):
            _again(settings, database)
    fails = ("ExamsendAssociationsFail", "pacs")
    assert fails in firing(before, _now(settings), tmp_path=tmp_path)
    assert fails not in firing(_now(settings), tmp_path=tmp_path)


def test_no_finalize_pass_for_half_an_hour(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    add(settings, "PACS@127.0.0.1:1")
    for command in ("finalize", "send"):
        assert cli(command, "-q", url=settings.database_url).returncode == 0
    assert firing(_now(settings), tmp_path=tmp_path) == set()
    execute(database, "UPDATE command_passes SET finished_at = now() - interval '30 min' WHERE command = 'finalize'")
    assert firing(_now(settings), tmp_path=tmp_path) == {("ExamsendNoPass", "finalize")}


def test_a_bug_in_a_pass(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    add(settings, "PACS@127.0.0.1:1")
    cli("finalize", "-q", url=settings.database_url)
    samples.ct_study(tmp_path / "drop", 1, size=8)
    prepare(settings, tmp_path / "drop")
    damage = Path(tmp_path / "sitecustomize.py")
    damage.write_text("import sys\nsys.modules['examsend.delivery.lanes'] = None\n")
    assert cli("send", "-q", url=settings.database_url, PYTHONPATH=f"{tmp_path}:{TOP}").returncode == 70
    assert firing(_now(settings), tmp_path=tmp_path) == {("ExamsendPassError", "send")}


def test_what_an_operator_has_cancelled_needs_nobody(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    world = World(settings, database)
    world.arrive(file("1.1"))
    cancel.run(settings, [1], why="sent by mistake")
    assert world.states() == ["FAILED"]
    text = _now(settings)
    assert firing(text, tmp_path=tmp_path) == NO_PASSES
    assert 'examsend_batches_cancelled{destination="pacs"} 1.0' in text
    assert 'examsend_failed_batches_total{destination="pacs"} 1.0' in text


def test_the_database_is_away(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "examsend.prom"
    away = Settings(database_url=f"postgresql://u@127.0.0.1:{free_port()}/x", database_wait=0.1)
    with suppress(DatabaseUnavailable):
        metrics.run(away, textfile=path)
    assert firing(path.read_text(), tmp_path=tmp_path) == {("ExamsendDatabaseDown", "")}


def test_nothing_renews_the_metrics(settings: Settings, tmp_path: Path) -> None:
    add(settings, "PACS@127.0.0.1:1")
    text = _now(settings)
    stale = ("ExamsendMetricsStale", "")
    assert stale not in firing(text, tmp_path=tmp_path, later=500)
    assert stale in firing(text, tmp_path=tmp_path, later=1500)
    assert stale in firing("", tmp_path=tmp_path)
