"""``metrics``: what it prints is valid, tells of the queue, health and totals, and names no patient's data."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from examsend.commands import metrics
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.errors import DatabaseUnavailable, UsageError
from tests.helpers import add, cli, deliver, execute
from tests.passes.world import World, file
from tests.peers.dcmtk import free_port
from tests.peers.scripted import Script, scripted

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")


def values(settings: Settings, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a metric by the values of their labels, read back from the text."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.run(settings).text)
        for sample in family.samples
        if sample.name == name
    }


@pytest.fixture
def busy(settings: Settings, database: engine.Database, tmp_path: Path) -> Settings:
    """A destination with a SENT study, one that is not reachable, and batches in each other state."""
    samples.ct_study(tmp_path / "drop", 3, size=8)
    with scripted(Script(status=lambda k, _u: 0xB000 if k == 2 else 0)) as peer:
        add(settings, peer.address)
        add(settings, f"PACS@127.0.0.1:{free_port()}", name="dead", backoff_seconds=60.0, backoff_max_seconds=60.0)
        deliver(settings, tmp_path / "drop")
    # A database that was taken over may have such names.
    execute(database, "UPDATE storage_backend_configs SET name = :name WHERE name = 'dead'", name='dead "1"\\')
    execute(
        database,
        "INSERT INTO rejected_files (file_path, file_size, file_mtime_ns, reason_code, reason)"
        " VALUES ('/drop/MUELLER^HANS', 1, 1, 'X', 'MUELLER')",
    )
    execute(
        database,
        "INSERT INTO command_passes (command, host, started_at, finished_at, seconds, exit_code, passes, failures)"
        " VALUES ('send', 'h1', now(), now(), 1.5, 1, 7, 2)",
    )
    return settings


def test_a_delivery_and_a_dead_port_are_told(busy: Settings) -> None:
    dead = 'dead "1"\\'
    assert values(busy, "examsend_instances_stored_total") == {("pacs",): 3, (dead,): 0}
    assert values(busy, "examsend_associations_total") == {
        ("pacs", "released"): 1,
        ("pacs", "ended"): 0,
        ("pacs", "refused"): 0,
        (dead, "released"): 0,
        (dead, "ended"): 0,
        (dead, "refused"): 1,
    }
    assert values(busy, "examsend_dimse_responses_total") == {("pacs", "0000"): 2, ("pacs", "B000"): 1}
    assert values(busy, "examsend_destination_up") == {("pacs",): 1, (dead,): 0}
    assert values(busy, "examsend_batch_instances_sum") == {("pacs",): 3, (dead,): 0}
    assert values(busy, "examsend_batch_instances_count")["pacs",] == 1
    assert values(busy, "examsend_batch_ready_seconds_count")["pacs",] == 1
    assert values(busy, "examsend_batch_sent_seconds_bucket")["pacs", "+Inf"] == 1
    batches = values(busy, "examsend_batches")
    assert batches[dead, "READY"] == 1
    assert sum(batches.values()) == 1
    assert values(busy, "examsend_oldest_batch_age_seconds")[dead, "READY"] > 0
    assert values(busy, "examsend_rejected_files") == {(): 1}
    assert values(busy, "examsend_pass_exit_code") == {("send", "h1"): 1}
    assert values(busy, "examsend_passes_total") == {("send", "h1"): 7}
    assert values(busy, "examsend_database_up") == {(): 1}


@needs_promtool
def test_promtool_has_nothing_to_say_about_it(busy: Settings) -> None:
    text = metrics.run(busy).text
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_no_label_holds_a_uid_a_path_or_a_reason(busy: Settings, database: engine.Database) -> None:
    text = metrics.run(busy).text
    assert "MUELLER" not in text
    assert "/drop" not in text
    with database.transaction() as tx:
        found = tx.exec_driver_sql(
            "SELECT study_instance_uid FROM exam_batches UNION SELECT sop_instance_uid FROM exam_batch_instances"
        )
        assert not [uid for (uid,) in found if uid in text]


def test_what_an_operator_holds_is_counted_and_has_no_age(settings: Settings, database: engine.Database) -> None:
    world = World(settings, database)
    world.arrive(file("1.1"))
    world.wait(9000)
    assert values(settings, "examsend_pending_stuck") == {("pacs",): 1}
    assert values(settings, "examsend_oldest_batch_age_seconds")["pacs", "PENDING"] > 8999
    execute(database, "UPDATE exam_batches SET held_at = now(), held_reason = 'asked'")
    assert values(settings, "examsend_batches_held")["pacs", "PENDING"] == 1
    assert values(settings, "examsend_batches")["pacs", "PENDING"] == 1
    assert values(settings, "examsend_oldest_batch_age_seconds")["pacs", "PENDING"] == 0
    assert values(settings, "examsend_pending_stuck") == {("pacs",): 0}


def test_a_removed_destination_keeps_its_totals_and_has_no_health(busy: Settings, database: engine.Database) -> None:
    execute(
        database,
        "UPDATE storage_backend_configs SET removed_at = now(), enabled = false, name = 'pacs (removed 1)' WHERE name = 'pacs'",
    )
    assert values(busy, "examsend_instances_stored_total")["pacs (removed 1)",] == 3
    assert ("pacs (removed 1)",) not in values(busy, "examsend_destination_up")


def test_the_file_is_written_whole_readable_by_all_and_replaced(settings: Settings, tmp_path: Path) -> None:
    add(settings, "PACS@127.0.0.1:1")
    path = tmp_path / "examsend.prom"
    path.write_text("old")
    seen: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    before = os.umask(0o077)
    try:
        for _ in range(5):
            assert metrics.run(settings, textfile=path).textfile == str(path)
    finally:
        os.umask(before)
        done.set()
        reader.join(10)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["examsend.prom"]
    assert {t.endswith("\n") and "examsend_metrics_timestamp_seconds" in t for t in seen if t != "old"} <= {True}


def test_the_file_of_a_database_that_is_away_says_so(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "examsend.prom"
    away = Settings(database_url=f"postgresql://u@127.0.0.1:{free_port()}/x", database_wait=0.1)
    with pytest.raises(DatabaseUnavailable):
        metrics.run(away, textfile=path)
    assert "examsend_database_up 0.0" in path.read_text()


@pytest.mark.parametrize("name", ["examsend.txt", "none/examsend.prom", "directory.prom"])
def test_a_file_that_cannot_be_written_is_a_sentence_and_leaves_nothing(
    settings: Settings, tmp_path: Path, name: str
) -> None:
    (tmp_path / "directory.prom").mkdir()
    with pytest.raises(UsageError, match="--textfile"):
        metrics.run(settings, textfile=tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["directory.prom"]


def test_the_command_prints_the_text_and_its_json(busy: Settings, tmp_path: Path) -> None:
    printed = cli("metrics", url=busy.database_url)
    assert printed.returncode == 0
    assert printed.stdout.startswith("# HELP examsend_batches ")
    assert r'{destination="dead \"1\"\\",state="READY"} 1.0' in printed.stdout
    found = json.loads(cli("metrics", "--json", url=busy.database_url).stdout)["metrics"]
    assert {"examsend_batches", "examsend_instances_stored"} <= {family["name"] for family in found}
    quiet = cli("metrics", "-q", "--textfile", tmp_path / "a.prom", url=busy.database_url)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
