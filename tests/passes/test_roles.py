"""docs/roles.sql: each command works with the role that it is for, and no role can do more than its commands."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pynetdicom import AE, evt

from examsend.commands import (
    cancel,
    confirm,
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
from examsend.commands.confirm import Selection
from examsend.config.settings import Settings
from examsend.confirmation import letting_go
from examsend.db import access, engine
from examsend.db.tables.base import Base
from examsend.demo import receiver, samples
from examsend.errors import ConfigError
from examsend.queue import commitment
from examsend.states import Confirm
from tests.db.embedded.helpers import until
from tests.helpers import add, deliver, execute, one, rows, states
from tests.peers import scripted

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


COMMITMENT, INSTANCE, FIND = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1", "1.2.840.10008.5.1.4.1.2.2.1"


@contextmanager
def archive(lost: list[str]) -> Iterator[int]:
    """An archive that reports over the same association, and has each instance but ``lost``. It does not know any study when it is
    queried."""

    def action(event: Any) -> tuple[Dataset, None]:
        threading.Thread(
            target=report, args=(event.assoc, event.action_information), name=scripted.THREADS, daemon=True
        ).start()
        status = Dataset()
        status.Status = 0
        return status, None

    def report(association: Any, asked: Dataset) -> None:
        time.sleep(0.1)  # the response goes first
        made, there, failed = Dataset(), [], []
        for item in asked.ReferencedSOPSequence:
            if item.ReferencedSOPInstanceUID in lost:
                item.FailureReason = 0x0112
                failed.append(item)
            else:
                there.append(item)
        made.TransactionUID = asked.TransactionUID
        made.ReferencedSOPSequence = Sequence(there)
        if failed:
            made.FailedSOPSequence = Sequence(failed)
        association.send_n_event_report(made, 2 if failed else 1, COMMITMENT, INSTANCE)

    def find(_event: Any) -> Iterator[tuple[int, None]]:
        yield 0x0000, None

    entity = AE("ARCHIVE")
    entity.add_supported_context(COMMITMENT)
    entity.add_supported_context(FIND)
    handlers: Any = [(evt.EVT_N_ACTION, action), (evt.EVT_C_FIND, find)]
    server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def test_archives_are_asked_and_their_reports_are_taken_each_with_a_role(
    granted: Settings, database: engine.Database, receiving: receiver.Receiver, tmp_path: Path
) -> None:
    """Asked, answered over the same association and to ``listen``, in line again, sent again, confirmed; and the sources looked at."""
    intake, sender, confirmer = as_role(granted, "ingest"), as_role(granted, "send"), as_role(granted, "confirm")
    samples.ct_study(tmp_path / "drop", 3, size=16)
    lost: list[str] = []
    with archive(lost) as port:
        add(
            granted, f"{receiving.aet}@{receiving.host}:{receiving.port}", confirm="commitment", after="remove",
            confirm_to=f"ARCHIVE@127.0.0.1:{port}", confirm_after_seconds=0.0, confirm_backoff_seconds=0.05,
            confirm_backoff_max_seconds=0.1,
        )  # fmt: skip
        ingest.run(intake, [tmp_path / "drop"])
        finalize.run(intake)
        send.run(sender)
        uids = [row[0] for row in rows(database, "SELECT sop_instance_uid FROM exam_batch_instances ORDER BY id")]
        lost[:] = uids[:1]
        until(lambda: confirm.run(confirmer) is not None and states(database) == ["SENT", "READY"])
        send.run(sender)
        lost.clear()
        confirmed = "SELECT count(*) FROM batch_confirmations WHERE state = 'CONFIRMED'"
        until(lambda: confirm.run(confirmer) is not None and one(database, confirmed) == 2)
        until(
            lambda: (
                confirm.run(confirmer) is not None
                and one(database, "SELECT count(removed_at) FROM source_removals") == 3
            )
        )
        # An archive reports again, to listen.
        transaction = one(database, "SELECT max(transaction_uid) FROM commitment_requests WHERE batch_id = 2")
        with access.opened(intake, create=False) as opened:
            taken = opened.run(lambda tx: commitment.take_report(tx, transaction, {uids[0]: ""}, {}, "ARCHIVE"))
        assert taken.known
        # By query it does not know the study any more.
        asked = confirm.run(confirmer, ANY, method=Confirm.QUERY, dry_run=True)
        assert asked.selected == 1
        asked = confirm.run(confirmer, ANY, method=Confirm.QUERY, report=tmp_path / "list.csv")
        assert (asked.report_rows, asked.confirmed) == (3, 0)
        confirm.run(confirmer)
    found = confirm.run(confirmer, ANY, method=Confirm.COMMITMENT)
    assert [problem.destination for problem in found.problems] == ["pacs"]
    execute(database, "UPDATE batch_confirmations SET let_go_at = now(), due_at = NULL, claim_id = NULL")
    confirm.run(confirmer, prune_directories=True)


def test_the_role_of_confirm_lets_sources_go(
    granted: Settings, database: engine.Database, receiving: receiver.Receiver, tmp_path: Path
) -> None:
    add(granted, f"{receiving.aet}@{receiving.host}:{receiving.port}", after="remove", sent_is_enough=True)
    files = samples.ct_study(tmp_path / "drop", 2, size=16)
    ingest.run(as_role(granted, "ingest"), [tmp_path / "drop"])
    finalize.run(as_role(granted, "ingest"))
    send.run(as_role(granted, "send"))
    confirmer = as_role(granted, "confirm")
    with access.opened(confirmer) as theirs:
        done = letting_go.let_go(theirs, confirmer, dry_run=False, prune_directories=False, over=lambda: False)
    assert (done.removed, [f.exists() for f in files]) == (2, [False, False])


ANY = Selection(batch_ids=[1])

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
    "status may not confirm": lambda s, _: confirm.run(s, ANY, method=Confirm.QUERY),
    "ingest may not confirm": lambda s, _: confirm.run(s, ANY, method=Confirm.QUERY),
    "send may not confirm": lambda s, _: confirm.run(s, ANY, method=Confirm.QUERY),
    "confirm may not ingest": lambda s, p: ingest.run(s, [p]),
    "confirm may not send": lambda s, _: send.run(s),
    "confirm may not disable": lambda s, _: destination.enable(s, "pacs", enabled=False),
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
    if what.endswith("confirm"):
        deliver(granted, tmp_path / "before")
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
        "UPDATE commitment_requests SET archive_aet = 'X'",
        "INSERT INTO commitment_requests (transaction_uid) VALUES ('1.2.3')",
        "INSERT INTO source_removals (path) VALUES ('/srv/drop/a')",
        "UPDATE ingested_directories SET path = '/'",
        "CREATE TABLE mine (n int)",
    ],
    "send": [
        "UPDATE storage_backend_configs SET host = 'elsewhere'",
        "UPDATE storage_backend_configs SET enabled = false",
        "DELETE FROM exam_batches",
        "INSERT INTO exam_batches (study_instance_uid, destination_id) VALUES ('1.2.3', 1)",
        "DELETE FROM events",
        "TRUNCATE send_attempts",
        "UPDATE batch_confirmations SET state = 'CONFIRMED', confirmed_at = now()",
        "INSERT INTO instance_confirmations (instance_id, batch_id, verdict, requested_at) VALUES (1, 1, 'LATER', now())",
        "INSERT INTO source_removals (path) VALUES ('/srv/drop/a')",
    ],
    "confirm": [
        "UPDATE storage_backend_configs SET host = 'elsewhere'",
        "UPDATE storage_backend_configs SET after = 'remove'",
        "UPDATE exam_batch_instances SET content_digest = NULL",
        "UPDATE exam_batches SET study_instance_uid = '1.2.3'",
        "DELETE FROM exam_batch_instances",
        "DELETE FROM source_removals",
        "DELETE FROM instance_confirmations",
        "UPDATE source_removals SET proof = 'none'",
        "UPDATE commitment_requests SET archive_aet = 'X'",
        "DELETE FROM events",
        "INSERT INTO send_attempts (batch_id) VALUES (1)",
        "INSERT INTO ingested_directories (path) VALUES ('/')",
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
