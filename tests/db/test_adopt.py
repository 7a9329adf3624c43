"""Taking over a database that already has the three tables of an earlier program, with batches in every state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg2
import pytest

from examsend.commands import db, finalize, ingest, send, status
from examsend.commands.destination import change, enable
from examsend.commands.retry import run as retry
from examsend.config.settings import Settings
from examsend.db import access, engine, migrate
from examsend.demo import samples
from examsend.dicom import identity
from examsend.errors import ConfigError
from tests.db.schema import schema_lines
from tests.helpers import cli, execute, one, rows
from tests.peers.scripted import scripted

# The tables of the earlier program, with typical column types.
EARLIER_TABLES = """
CREATE TABLE storage_backend_configs (id SERIAL PRIMARY KEY, name VARCHAR(255) NOT NULL UNIQUE, bucket TEXT NOT NULL);
CREATE TABLE exam_batches (id SERIAL PRIMARY KEY, study_instance_uid VARCHAR(64) NOT NULL,
    destination_id INTEGER NOT NULL REFERENCES storage_backend_configs (id), status VARCHAR(20) NOT NULL DEFAULT 'PENDING',
    created_at TIMESTAMP NOT NULL DEFAULT now(), updated_at TIMESTAMP NOT NULL DEFAULT now());
CREATE TABLE exam_batch_instances (id SERIAL PRIMARY KEY, batch_id INTEGER NOT NULL REFERENCES exam_batches (id) ON DELETE CASCADE,
    processed_filepath TEXT NOT NULL, sop_instance_uid VARCHAR(64) NOT NULL UNIQUE, created_at TIMESTAMP DEFAULT now());
CREATE INDEX ON exam_batches (status);
"""

STATES = ("PENDING", "READY", "SENDING", "SENT", "FAILED")


def _sql(url: str, statement: str, *values: Any) -> None:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement, values)
    finally:
        connection.close()


@pytest.fixture
def studies(tmp_path: Path) -> dict[str, list[Path]]:
    """A study of two files for each state."""
    return {state: samples.ct_study(tmp_path / "drop" / state, 2, size=8) for state in STATES}


@pytest.fixture
def url(empty_database_url: str, studies: dict[str, list[Path]]) -> str:
    """A database of the earlier program, with a batch in every state."""
    _sql(empty_database_url, EARLIER_TABLES)
    _sql(empty_database_url, "INSERT INTO storage_backend_configs (name, bucket) VALUES ('archive', 'b1')")
    for state, files in studies.items():
        study = identity.inspect(files[0]).study_instance_uid
        _sql(
            empty_database_url,
            "INSERT INTO exam_batches (study_instance_uid, destination_id, status, created_at, updated_at)"
            " VALUES (%s, 1, %s, now() - interval '20 days', now() - interval '10 days')",
            study,
            state,
        )
        for file in files:
            _sql(
                empty_database_url,
                "INSERT INTO exam_batch_instances (batch_id, processed_filepath, sop_instance_uid)"
                " VALUES ((SELECT max(id) FROM exam_batches), %s, %s)",
                str(file),
                identity.inspect(file).sop_instance_uid,
            )
    return empty_database_url


@pytest.fixture
def settings(url: str) -> Settings:
    """Settings with that database. Files are ingested without waiting for ``settle``."""
    return Settings(database_url=url, settle=0, incomplete_after=0, database_wait=2, record_seconds=0.02)


def _upgraded(settings: Settings) -> engine.Database:
    assert cli("db", "upgrade", url=settings.database_url).returncode == 0
    with access.opened(settings) as database:
        return database


def test_every_row_is_kept_and_a_sending_batch_becomes_ready(settings: Settings) -> None:
    database = _upgraded(settings)
    found = rows(database, "SELECT id, status, created_at < now() - interval '19 days' FROM exam_batches ORDER BY id")
    assert found == [
        (1, "PENDING", True),
        (2, "READY", True),
        (3, "READY", True),
        (4, "SENT", True),
        (5, "FAILED", True),
    ]
    outcomes = rows(database, "SELECT batch_id, outcome, count(*) FROM exam_batch_instances GROUP BY 1, 2 ORDER BY 1")
    assert outcomes == [(1, "WAITING", 2), (2, "WAITING", 2), (3, "WAITING", 2), (4, "STORED", 2), (5, "FAILED", 2)]
    assert rows(database, "SELECT name, bucket, enabled FROM storage_backend_configs") == [("archive", "b1", False)]
    assert one(database, "SELECT count(*) FROM exam_batch_instances WHERE content_digest IS NULL") == 10


def test_the_schema_is_the_one_a_new_database_has(settings: Settings, database_url: str) -> None:
    adopted = schema_lines(_upgraded(settings))
    with access.opened(Settings(database_url=database_url)) as fresh:
        wanted = schema_lines(fresh)
    extra = {line for line in adopted - wanted if "bucket" not in line and "exam_batches_status_idx" not in line}
    assert (extra, wanted - adopted) == (set(), set())
    assert db.check(settings).good


def test_status_shows_what_the_earlier_database_does_not_say(settings: Settings) -> None:
    _upgraded(settings)
    shown = cli("status", url=settings.database_url).stdout
    assert "destination disabled: the earlier database does not say its address" in shown
    assert "it was FAILED in the earlier database, which does not say why" in shown
    assert "ADOPTED: it was SENDING in the earlier database" in cli("status", "3", url=settings.database_url).stdout


def test_the_missing_address_is_not_reported_once_it_is_known(settings: Settings) -> None:
    _upgraded(settings)
    change(settings, "archive", "A@127.0.0.1:104", {})
    enable(settings, "archive", enabled=True)
    assert [d.health for d in status.run(settings).destinations] == ["not used yet"]
    enable(settings, "archive", enabled=False)
    assert [d.health for d in status.run(settings).destinations] == ["disabled"]


@pytest.mark.parametrize("ingest_first", [False, True])
def test_rows_taken_over_are_completed_from_their_files_by_ingest_or_send(
    settings: Settings, tmp_path: Path, studies: dict[str, list[Path]], ingest_first: bool
) -> None:
    database = _upgraded(settings)
    with scripted() as peer:
        change(settings, "archive", peer.address, {"quiet_seconds": 0.0})
        enable(settings, "archive", enabled=True)
        if ingest_first:
            assert ingest.run(settings, [tmp_path / "drop"], to=["archive"]).known == 10
            assert one(database, "SELECT count(*) FROM exam_batch_instances WHERE content_digest IS NULL") == 0
            assert ingest.run(settings, [tmp_path / "drop"], to=["archive"]).new == 0
        finalize.run(settings)
        retry(settings, [5])
        send.run(settings)
        wanted = {identity.inspect(f).sop_instance_uid for state in STATES if state != "SENT" for f in studies[state]}
        assert {*peer.offered} == wanted
        assert len(peer.offered) == len(wanted)
    assert {row[0] for row in rows(database, "SELECT status FROM exam_batches")} == {"SENT"}
    unread = one(database, "SELECT count(*) FROM exam_batch_instances WHERE content_digest IS NULL")
    assert unread == (0 if ingest_first else 2), "the files of the batch that was SENT before need not be read"


def test_missing_and_changed_files_of_rows_taken_over_are_reported(
    settings: Settings, studies: dict[str, list[Path]]
) -> None:
    database = _upgraded(settings)
    gone, other = studies["READY"]
    gone.unlink()
    other.write_bytes(studies["SENT"][0].read_bytes())
    with scripted() as peer:
        change(settings, "archive", peer.address, {})
        enable(settings, "archive", enabled=True)
        send.run(settings)
    found = rows(database, "SELECT outcome, error_comment FROM exam_batch_instances WHERE batch_id = 2 ORDER BY id")
    assert found == [
        ("MISSING", "the file is gone"),
        ("CHANGED", "the file holds another instance than the one that was registered"),
    ]
    assert one(database, "SELECT status FROM exam_batches WHERE id = 2") == "FAILED"


def test_new_rows_get_higher_ids_than_rows_taken_over(settings: Settings, tmp_path: Path) -> None:
    database = _upgraded(settings)
    assert cli("destination", "add", "second", "A@127.0.0.1:104", url=settings.database_url).returncode == 0
    samples.ct_study(tmp_path / "new", 1, size=8)
    ingest.run(settings, [tmp_path / "new"], to=["second"])
    assert one(database, "SELECT max(id) FROM exam_batches") == 6
    assert one(database, "SELECT max(id) FROM exam_batch_instances") == 11


def test_two_pending_batches_of_a_study_become_one_pending_and_one_ready(settings: Settings, url: str) -> None:
    _sql(
        url,
        "INSERT INTO exam_batches (study_instance_uid, destination_id, status)"
        " SELECT study_instance_uid, destination_id, status FROM exam_batches WHERE id = 1",
    )
    database = _upgraded(settings)
    assert rows(database, "SELECT id, status FROM exam_batches WHERE id IN (1, 6) ORDER BY id") == [
        (1, "READY"),
        (6, "PENDING"),
    ]


def test_an_unknown_state_is_reported_and_nothing_is_changed(settings: Settings, url: str) -> None:
    _sql(url, "UPDATE exam_batches SET status = 'LOST' WHERE id = 1")
    with pytest.raises(ConfigError, match="does not know: LOST"):
        db.upgrade(settings)
    with access.opened(settings, check=False) as database:
        assert one(database, "SELECT status FROM exam_batches WHERE id = 1") == "LOST"
        assert one(database, "SELECT to_regclass('send_attempts')") is None


def test_ids_that_are_not_numbers_are_a_configuration_error(empty_database_url: str) -> None:
    _sql(empty_database_url, "CREATE TABLE exam_batches (id uuid PRIMARY KEY, status text)")
    completed = cli("db", "upgrade", url=empty_database_url)
    assert (completed.returncode, len(completed.stderr.splitlines())) == (78, 1)
    assert "exam_batches that the database already holds cannot be taken over" in completed.stderr


def test_a_database_taken_over_can_be_downgraded(settings: Settings) -> None:
    database = _upgraded(settings)
    migrate.downgrade(database, "base")
    assert [r[0] for r in rows(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")] == [
        "alembic_version"
    ]


def test_updated_at_is_set_by_the_database(settings: Settings) -> None:
    database = _upgraded(settings)
    assert one(database, "SELECT bool_and(updated_at < now() - interval '9 days') FROM exam_batches")
    before = one(database, "SELECT updated_at FROM exam_batches WHERE id = 2")
    execute(database, "UPDATE exam_batches SET failure = 'x' WHERE id = 2")
    assert one(database, "SELECT updated_at FROM exam_batches WHERE id = 2") > before
    assert status.run(settings, batch_id=2).batches[0].id == 2
