"""The idle check returns True if and only if the pass has nothing to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from examsend.commands import finalize, send
from examsend.config.settings import Settings
from examsend.db import engine, probe
from tests.helpers import execute, rows

INSTALLED = Path(sys.executable).with_name("examsend")
"""The command as it is installed."""

_BATCHES = {
    "PENDING": "last_instance_at, created_at, check_at",
    "READY": "ready_at, next_attempt_at",
    "SENDING": "ready_at, attempt_id, lease_expires_at, attempt_count",
    "SENT": "ready_at, finished_at",
    "FAILED": "ready_at, finished_at, failure_code",
}


def _destination(database: engine.Database, **columns: str) -> None:
    """Insert a destination, at an address where no process listens."""
    values = {"name": "'d'", "host": "'127.0.0.1'", "port": "1", "called_aet": "'A'", "sender": "'native'", **columns}
    execute(
        database,
        f"INSERT INTO storage_backend_configs ({', '.join(values)}) VALUES ({', '.join(values.values())})",
    )


def _batch(database: engine.Database, state: str, values: str, study: str = "'1.2'") -> None:
    execute(
        database,
        f"INSERT INTO exam_batches (study_instance_uid, destination_id, status, {_BATCHES[state]})"
        f" VALUES ({study}, 1, '{state}', {values})",
    )


_FUTURE = "now() + interval '1 h'"
_PAST = "now() - interval '1 h'"


@pytest.mark.parametrize(
    ("destination", "state", "values", "finalizes", "sends"),
    [
        ({}, "PENDING", f"now(), now(), {_FUTURE}", False, False),
        ({}, "PENDING", f"{_PAST}, {_PAST}, {_PAST}", True, False),
        ({"quiet_seconds": "9999", "longest_wait_seconds": "60"}, "PENDING", f"now(), {_PAST}, {_PAST}", True, False),
        ({"enabled": "false"}, "PENDING", f"{_PAST}, {_PAST}, {_PAST}", True, False),
        ({"removed_at": "now()", "enabled": "false"}, "PENDING", f"{_PAST}, {_PAST}, {_PAST}", False, False),
        ({}, "READY", f"now(), {_PAST}", False, True),
        ({}, "READY", f"now(), {_FUTURE}", False, False),
        ({"held_until": _FUTURE}, "READY", f"now(), {_PAST}", False, False),
        ({"held_until": _PAST}, "READY", f"now(), {_PAST}", False, True),
        ({"enabled": "false"}, "READY", f"now(), {_PAST}", False, False),
        ({"removed_at": "now()", "enabled": "false"}, "READY", f"now(), {_PAST}", False, False),
        ({"held_until": _FUTURE, "expire_seconds": "60"}, "READY", f"{_PAST}, {_FUTURE}", False, True),
        ({}, "SENDING", f"now(), gen_random_uuid(), {_FUTURE}, 1", False, False),
        ({}, "SENDING", f"now(), gen_random_uuid(), {_PAST}, 1", False, True),
        ({"held_until": _FUTURE}, "SENDING", f"now(), gen_random_uuid(), {_FUTURE}, 1", False, False),
        ({"held_until": _FUTURE}, "SENDING", f"now(), gen_random_uuid(), {_PAST}, 1", False, True),
        ({"enabled": "false"}, "SENDING", f"now(), gen_random_uuid(), {_FUTURE}, 1", False, False),
        ({"enabled": "false"}, "SENDING", f"now(), gen_random_uuid(), {_PAST}, 1", False, True),
        ({"enabled": "false"}, "SENDING", f"now(), gen_random_uuid(), {_PAST}, 10", False, True),
        ({"held_until": _FUTURE}, "SENDING", f"now(), gen_random_uuid(), {_PAST}, 10", False, True),
        ({}, "SENT", "now(), now()", False, False),
        ({}, "FAILED", "now(), now(), 'X'", False, False),
    ],
)
def test_the_idle_check_agrees_with_the_passes(
    settings: Settings,
    database: engine.Database,
    destination: dict[str, str],
    state: str,
    values: str,
    finalizes: bool,
    sends: bool,
) -> None:
    url = settings.database_url or ""
    _destination(database, **destination)
    _batch(database, state, values)
    assert probe.nothing_to_finalize(url) == (not finalizes)
    assert probe.nothing_to_send(url) == (not sends)
    before = rows(database, "SELECT * FROM exam_batches")
    sent = send.run(settings)
    assert bool(sent.delivered or sent.expired or sent.taken_back) == sends
    assert (rows(database, "SELECT * FROM exam_batches") != before) == sends
    if not sends:
        assert bool(finalize.run(settings).ready) == finalizes


@pytest.mark.parametrize("question", [probe.nothing_to_finalize, probe.nothing_to_send, probe.nothing_to_confirm])
def test_a_database_without_the_schema_or_out_of_reach_is_not_idle(
    empty_database_url: str, question: Callable[[str], bool]
) -> None:
    assert not question(empty_database_url)
    assert not question("postgresql://nobody@127.0.0.1:1/x")
    assert not question("nonsense")


@pytest.mark.parametrize("question", [probe.nothing_to_finalize, probe.nothing_to_send, probe.nothing_to_confirm])
def test_another_schema_is_not_idle(
    database_url: str, database: engine.Database, question: Callable[[str], bool]
) -> None:
    assert question(database_url)
    execute(database, "UPDATE alembic_version SET version_num = '9999'")
    assert not question(database_url)


_MODULES = """
import sys
from examsend.__main__ import main
try:
    main()
except SystemExit as end:
    print(end.code, [m for m in ('sqlalchemy', 'pynetdicom', 'pydicom', 'rich') if m in sys.modules])
"""


def _imported(url: str, *command: str) -> str:
    """Run a command by its entry point; return its exit code and the large packages that it imported."""
    completed = subprocess.run(
        [sys.executable, "-c", _MODULES, *command, "--database-url", url], capture_output=True, text=True, check=True
    )
    return completed.stdout


@pytest.mark.parametrize("many", [1, 100_000])
def test_an_idle_pass_imports_no_large_package_and_prints_nothing(
    settings: Settings, database_url: str, database: engine.Database, many: int
) -> None:
    """There is a destination with a PENDING study, a held one with READY batches, a removed one, and one that has confirmed some
    batches and is to be asked about one later."""
    _destination(database, quiet_seconds="9999")
    _batch(database, "PENDING", f"now(), now(), {_FUTURE}")
    execute(
        database,
        "INSERT INTO storage_backend_configs (name, host, port, called_aet, sender, held_until, held_reason)"
        " VALUES ('held', '127.0.0.1', 1, 'A', 'native', now() + interval '1 h', 'refused')",
    )
    execute(
        database,
        "INSERT INTO exam_batches (study_instance_uid, destination_id, status, ready_at, next_attempt_at)"
        f" SELECT '1.2.' || n, 2, 'READY', now(), now() FROM generate_series(1, {many}) n",
    )
    _destination(database, name="'gone'", removed_at="now()", enabled="false")
    _destination(database, name="'archive'", confirm="'query'", after="'remove'")
    execute(
        database,
        "INSERT INTO exam_batches (study_instance_uid, destination_id, status, ready_at, finished_at)"
        f" SELECT '1.3.' || n, 4, 'SENT', now(), now() FROM generate_series(0, {many}) n",
    )
    execute(
        database,
        "INSERT INTO batch_confirmations (batch_id, destination_id, state, confirmed_at, due_at)"
        " SELECT id, 4, CASE WHEN n = 1 THEN 'ASKED' ELSE 'CONFIRMED' END, CASE WHEN n > 1 THEN now() END,"
        f" CASE WHEN n = 1 THEN {_FUTURE} END"
        " FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM exam_batches WHERE destination_id = 4) b",
    )
    for command in ("send", "finalize", "confirm"):
        assert _imported(database_url, command, "-q") == "0 []\n"
        completed = subprocess.run(
            [INSTALLED, command, "-q"],
            env={**os.environ, "EXAMSEND_DATABASE_URL": database_url},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", "")
    execute(database, "UPDATE storage_backend_configs SET held_until = NULL")
    assert "sqlalchemy" in _imported(database_url, "send", "-q", "--limit", "1")


def test_a_selection_json_or_missing_q_skips_the_idle_check(database_url: str, database: engine.Database) -> None:
    _destination(database)
    for words in (
        ("send", "-q", "--destination", "d"),
        ("send", "--json", "-q"),
        ("finalize", "-q", "--dry-run"),
        ("confirm", "-q", "--dry-run"),
        ("confirm", "-q", "--destination", "d"),
        ("send",),
    ):
        assert "sqlalchemy" in _imported(database_url, *words)
