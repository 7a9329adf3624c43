"""docs/roles.sql: each command works with the role that it is for, and no role can do more than its commands."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest

from examsend.commands import (
    cancel,
    destination,
    expect,
    explain,
    finalize,
    hold,
    ingest,
    metrics,
    prioritize,
    prune,
    rejected,
    retry,
    send,
    status,
)
from examsend.config.settings import Settings
from examsend.confirmation import letting_go
from examsend.db import access, engine
from examsend.db.tables.base import Base
from examsend.demo import receiver, samples
from examsend.errors import ConfigError
from tests.helpers import add, execute, states

SCRIPT = Path(__file__).parents[2] / "docs" / "roles.sql"


@pytest.fixture
def granted(settings: Settings, database: engine.Database) -> Settings:
    """The settings, once the script was run in the database."""
    assert database
    plain = re.sub(r"\+psycopg2", "", str(settings.database_url))
    with psycopg2.connect(plain) as connection, connection.cursor() as cursor:
        # Roles belong to the whole server, and other tests may make them at this moment.
        cursor.execute("SELECT pg_advisory_xact_lock(7)")
        cursor.execute(SCRIPT.read_text())
        cursor.execute(SCRIPT.read_text())
    connection.close()
    return settings


def as_role(settings: Settings, role: str) -> Settings:
    """Return settings whose sessions have a role."""
    return replace(settings, database_url=f"{settings.database_url}&options=-crole%3Dexamsend_{role}")


def test_the_chain_runs_with_a_role_for_each_pass(
    granted: Settings, database: engine.Database, receiving: receiver.Receiver, tmp_path: Path
) -> None:
    operator, reader = as_role(granted, "operator"), as_role(granted, "status")
    intake, sender = as_role(granted, "ingest"), as_role(granted, "send")
    address = f"{receiving.aet}@{receiving.host}:{receiving.port}"
    add(operator, address)
    add(operator, "NOBODY@127.0.0.1:1", name="down", max_attempts=1)
    files = samples.ct_study(tmp_path / "drop", 3, size=16)
    files[0].write_bytes(files[0].read_bytes()[:-10])
    ingest.run(intake, [tmp_path / "drop"], accept_incomplete=False)
    [changed, _] = samples.ct_study(tmp_path / "drop2", 2, size=16)
    ingest.run(intake, [tmp_path / "drop2"])
    changed.write_bytes(changed.read_bytes() + b"\0\0")
    ingest.run(intake, [tmp_path / "drop2"])
    ingest.run(intake, [tmp_path / "drop", tmp_path / "drop2"], verify=True)
    rejected.run(intake)
    rejected.look_again(intake)
    finalize.run(intake)
    send.run(sender)
    assert {"SENT", "READY"} <= set(states(database))
    status.run(reader)
    status.check(reader)
    explain.run(reader, "1")
    metrics.run(reader)
    destination.show_all(reader)
    hold.run(operator, [2], why="a test")
    prioritize.run(operator, [2])
    cancel.run(operator, [2], why="a test")
    retry.run(operator, batch_ids=[2])
    execute(database, "UPDATE exam_batches SET finished_at = finished_at - interval '9 days'")
    prune.run(operator, older_than=86400.0)
    rejected.dismiss(operator, [str(files[0])], why="a test")


def test_the_sender_lets_sources_go(
    granted: Settings, database: engine.Database, receiving: receiver.Receiver, tmp_path: Path
) -> None:
    add(granted, f"{receiving.aet}@{receiving.host}:{receiving.port}", after="remove", sent_is_enough=True)
    files = samples.ct_study(tmp_path / "drop", 2, size=16)
    ingest.run(as_role(granted, "ingest"), [tmp_path / "drop"])
    finalize.run(as_role(granted, "ingest"))
    send.run(as_role(granted, "send"))
    execute(
        database,
        "INSERT INTO batch_confirmations (batch_id, destination_id, let_go_at) SELECT id, destination_id, now() FROM exam_batches"
        " ON CONFLICT (batch_id) DO UPDATE SET let_go_at = now()",
    )
    sender = as_role(granted, "send")
    with access.opened(sender) as theirs:
        done = letting_go.let_go(theirs, sender, dry_run=False, prune_directories=False, over=lambda: False)
    assert (done.removed, [f.exists() for f in files]) == (2, [False, False])


FORBIDDEN: dict[str, Callable[[Settings, Path], object]] = {
    "status may not ingest": lambda s, p: ingest.run(s, [p]),
    "status may not finalize": lambda s, _: finalize.run(s),
    "status may not send": lambda s, _: send.run(s),
    "status may not hold": lambda s, _: hold.run(s, [1], why="a test"),
    "status may not expect": lambda s, _: expect.run(s, studies=["1.2.3"], count=5),
    "ingest may not add": lambda s, _: add(s, "A@h:1", name="another"),
    "ingest may not send": lambda s, _: send.run(s),
    "ingest may not disable": lambda s, _: destination.enable(s, "pacs", enabled=False),
    "send may not ingest": lambda s, p: ingest.run(s, [p]),
    "send may not add": lambda s, _: add(s, "A@h:1", name="another"),
    "send may not disable": lambda s, _: destination.enable(s, "pacs", enabled=False),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_a_role_is_not_for_is_refused_with_a_sentence(
    granted: Settings, tmp_path: Path, what: str, receiving: receiver.Receiver
) -> None:
    role, _, _, _ = what.split()
    add(granted, f"{receiving.aet}@{receiving.host}:{receiving.port}")
    samples.ct_study(tmp_path / "before", 2, size=16)
    ingest.run(granted, [tmp_path / "before"])
    if what.endswith("send"):
        finalize.run(granted)
    samples.ct_study(tmp_path / "drop", 2, size=16)
    with pytest.raises(ConfigError, match="denies this user what the command needs: permission denied for"):
        FORBIDDEN[what](as_role(granted, role), tmp_path / "drop")


WRITES = {
    "status": [
        "INSERT INTO events (act, who) VALUES ('PRUNE', 'x')",
        "UPDATE exam_batches SET status = 'SENT'",
        "DELETE FROM rejected_files",
        "CREATE TABLE mine (n int)",
        "DROP TABLE events",
    ],
    "ingest": [
        "UPDATE storage_backend_configs SET host = 'elsewhere'",
        "DELETE FROM exam_batch_instances",
        "UPDATE events SET who = 'nobody'",
        "DELETE FROM send_attempts",
        "CREATE TABLE mine (n int)",
    ],
    "send": [
        "UPDATE storage_backend_configs SET host = 'elsewhere'",
        "UPDATE storage_backend_configs SET enabled = false",
        "DELETE FROM exam_batches",
        "INSERT INTO exam_batches (study_instance_uid, destination_id) VALUES ('1.2.3', 1)",
        "DELETE FROM events",
        "TRUNCATE send_attempts",
    ],
    "operator": [
        "UPDATE alembic_version SET version_num = '0001'",
        "ALTER TABLE events DROP COLUMN who",
        "DROP TABLE exam_batches CASCADE",
        "CREATE TABLE mine (n int)",
    ],
}


@pytest.mark.parametrize(("role", "statement"), [(r, s) for r, statements in WRITES.items() for s in statements])
def test_no_role_can_write_by_hand_what_its_commands_do_not(granted: Settings, role: str, statement: str) -> None:
    url = re.sub(r"\+psycopg2", "", str(as_role(granted, role).database_url))
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(statement)
    finally:
        connection.close()


def test_the_script_decides_about_every_table() -> None:
    script = SCRIPT.read_text()
    granted_tables = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"ON ([a-z_, \n]+?) TO", script))))
    everybody_reads_only = {"alembic_version"}
    assert set(Base.metadata.tables) - granted_tables <= everybody_reads_only
