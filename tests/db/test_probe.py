"""The short question an idle pass asks instead of doing its work: never a yes that is not true."""

from __future__ import annotations

import subprocess
import sys

import pytest

from examsend.db import engine, probe
from tests.helpers import execute


@pytest.mark.parametrize("state", ["PENDING", "READY", "SENDING", "SENT", "FAILED"])
def test_only_what_a_pass_would_work_on_keeps_it_from_being_idle(
    database_url: str, database: engine.Database, state: str
) -> None:
    assert probe.nothing_in(database_url, "READY", "SENDING")
    execute(
        database,
        "INSERT INTO storage_backend_configs (name, host, port, called_aet, sender) VALUES ('d', 'h', 1, 'A', 'native')",
    )
    columns = {
        "PENDING": "NULL, NULL, NULL, NULL, NULL, NULL",
        "READY": "now(), now(), NULL, NULL, NULL, NULL",
        "SENDING": "now(), NULL, gen_random_uuid(), now(), NULL, NULL",
        "SENT": "now(), NULL, NULL, NULL, now(), NULL",
        "FAILED": "now(), NULL, NULL, NULL, now(), 'X'",
    }[state]
    execute(
        database,
        "INSERT INTO exam_batches (study_instance_uid, destination_id, status, ready_at, next_attempt_at, attempt_id,"
        f" lease_expires_at, finished_at, failure_code) VALUES ('1.2', 1, '{state}', {columns})",
    )
    assert probe.nothing_in(database_url, "READY", "SENDING") == (state not in {"READY", "SENDING"})
    assert probe.nothing_in(database_url, "PENDING") == (state != "PENDING")


def test_a_database_without_the_schema_or_out_of_reach_is_not_idle(empty_database_url: str) -> None:
    assert not probe.nothing_in(empty_database_url, "READY")
    assert not probe.nothing_in("postgresql://nobody@127.0.0.1:1/x", "READY")
    assert not probe.nothing_in("nonsense", "READY")


def test_another_schema_is_not_idle(database_url: str, database: engine.Database) -> None:
    execute(database, "UPDATE alembic_version SET version_num = '9999'")
    assert not probe.nothing_in(database_url, "READY")


@pytest.mark.parametrize("command", ["send", "finalize"])
def test_an_idle_pass_imports_neither_toolkit_nor_dicom_library(database_url: str, command: str) -> None:
    probe = (
        "import sys\n"
        "from examsend.__main__ import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n"
        "    print(end.code, [m for m in ('sqlalchemy', 'pynetdicom', 'pydicom', 'rich') if m in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", probe, command, "-q", "--database-url", database_url],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == "0 []\n"
