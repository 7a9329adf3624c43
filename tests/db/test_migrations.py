"""The schema: upgrade and downgrade, agreement with the models, and the `examsend db` commands."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

import pytest

from examsend.commands import db
from examsend.config.settings import Settings
from examsend.db import access, engine, migrate
from examsend.db.revision import HEAD
from examsend.db.tables import Base
from examsend.errors import ConfigError
from examsend.states import (
    LEASE_LOST,
    RUNNING,
    BatchState,
    ExpectationSource,
    ExpectationState,
    LatePolicy,
    OnIncomplete,
    Outcome,
    SenderName,
)
from examsend.transfer import End
from tests.db.schema import schema_lines
from tests.helpers import execute, one, rows

TOP = Path(__file__).parents[2]


def _head() -> str | None:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(migrate._config()).get_current_head()


def test_the_revision_that_the_code_needs_is_the_newest_migration() -> None:
    assert _head() == HEAD


def test_migrations_create_the_schema_of_the_models_and_can_be_downgraded(empty_database_url: str) -> None:
    settings = Settings(database_url=empty_database_url)
    with access.opened(settings, check=False) as database:
        assert migrate.upgrade(database) == (None, HEAD)
        assert migrate.differences(database) == []
        migrate.downgrade(database, "base")
        left = rows(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        assert [row[0] for row in left] == ["alembic_version"]
        assert migrate.upgrade(database) == (None, HEAD)


def test_rows_of_an_earlier_schema_are_kept(empty_database_url: str) -> None:
    with access.opened(Settings(database_url=empty_database_url), check=False) as database:
        migrate.upgrade(database, "0001")
        for statement in (
            "INSERT INTO storage_backend_configs (name, host, port, called_aet, sender) VALUES ('d', 'h', 1, 'A', 'native')",
            (
                "INSERT INTO exam_batches (study_instance_uid, destination_id, status, ready_at, finished_at)"
                " VALUES ('1.2', 1, 'SENT', now(), '2026-01-02T03:04:05Z')"
            ),
            (
                "INSERT INTO exam_batch_instances (batch_id, destination_id, sop_instance_uid, series_instance_uid, sop_class_uid,"
                " transfer_syntax_uid, file_path, file_size, file_mtime_ns, dataset_offset, content_sha256)"
                " VALUES (1, 1, '1.9', '1.8', '1.7', '1.6', '/f', 10, 0, 0, sha256('x'))"
            ),
            (
                "INSERT INTO send_attempts (batch_id, destination_id, attempt_id, host, pid, sender, octets)"
                " VALUES (1, 1, gen_random_uuid(), 'h', 1, 'native', 77)"
            ),
        ):
            execute(database, statement)
        assert migrate.upgrade(database) == ("0001", HEAD)
        assert one(database, "SELECT processed_filepath FROM exam_batch_instances") == "/f"
        assert one(database, "SELECT bytes_sent FROM send_attempts") == 77
        assert one(database, "SELECT updated_at = finished_at FROM exam_batches")
        migrate.downgrade(database, "0001")
        assert one(database, "SELECT file_path FROM exam_batch_instances") == "/f"
        assert one(database, "SELECT octets FROM send_attempts") == 77


def test_the_migrated_schema_has_the_models_own_checks_defaults_and_indexes(
    database: engine.Database, empty_database_url: str
) -> None:
    """The schemas are compared as PostgreSQL prints them. A sender without a migration of its CHECK constraint fails here."""
    with access.opened(Settings(database_url=empty_database_url), check=False) as made:
        Base.metadata.create_all(made.engine)
        wanted = schema_lines(made)
    found = {line for line in schema_lines(database) if "TRIGGER" not in line}
    assert found == wanted


@pytest.mark.parametrize(
    ("table", "constraint", "of"),
    [
        ("exam_batches", "ck_exam_batches_status", BatchState),
        ("exam_batch_instances", "ck_exam_batch_instances_outcome", Outcome),
        ("storage_backend_configs", "ck_storage_backend_configs_sender", SenderName),
        ("storage_backend_configs", "ck_storage_backend_configs_late_policy", LatePolicy),
        ("storage_backend_configs", "ck_storage_backend_configs_on_incomplete", OnIncomplete),
        ("study_expectations", "ck_study_expectations_source", ExpectationSource),
        ("study_expectations", "ck_study_expectations_state", ExpectationState),
    ],
)
def test_a_check_allows_exactly_the_members_of_its_enumeration(
    database: engine.Database, table: str, constraint: str, of: type[StrEnum]
) -> None:
    text = one(
        database,
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = :name AND conrelid = CAST(:table AS regclass)",
        name=constraint,
        table=table,
    )
    assert re.findall(r"'([^']+)'::text", text) == list(of)


def test_every_constant_in_the_queues_sql_is_a_known_state_outcome_or_code() -> None:
    words = {
        *BatchState,
        *Outcome,
        *End,
        RUNNING,
        LEASE_LOST,
        "CANCELLED",
        "REROUTED",
        "UNREADABLE",
        "EXPIRED",
        "ATTEMPTS_USED_UP",
        "INSTANCES_FAILED",
        "SENDER_DIED",
    }
    for path in [*(TOP / "examsend" / "queue").glob("*.py"), TOP / "examsend" / "db" / "due.py"]:
        for match in re.finditer(
            r"(?:status|outcome|result|failure_code|reason_code)\s*(?:=|<>|IN)\s*\(?'([A-Z_]+)'", path.read_text()
        ):
            assert match[1] in words, (path.name, match[0])


def test_a_database_without_the_schema_is_a_configuration_error(empty_database_url: str) -> None:
    with pytest.raises(ConfigError, match="db upgrade"), access.opened(Settings(database_url=empty_database_url)):
        pass


def test_a_newer_schema_is_a_configuration_error(settings: Settings, database: engine.Database) -> None:
    execute(database, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match="newer"), access.opened(settings):
        pass
    with pytest.raises(ConfigError, match="newer"):
        db.upgrade(settings)


def test_db_check_lists_the_differences(settings: Settings, database: engine.Database) -> None:
    assert db.check(settings).good
    execute(database, "DROP INDEX ix_exam_batches_due")
    execute(database, "DROP TRIGGER exam_batches_touch ON exam_batches")
    execute(database, "ALTER TABLE send_attempts ALTER COLUMN host TYPE varchar(9)")
    execute(database, "CREATE TABLE additional (id int)")
    assert db.check(settings).differences == (
        "missing: index ix_exam_batches_due",
        "different: type of send_attempts.host",
        "missing: trigger exam_batches_touch",
    )


def test_no_column_is_named_after_patient_data() -> None:
    names = {column.name for table in Base.metadata.tables.values() for column in table.columns}
    assert not [n for n in names if "patient" in n or "birth" in n or "accession" in n]
