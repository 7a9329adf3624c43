"""Each pass of a command is recorded, an idle one too, with its exit code: the last one of each command and host."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from examsend.cli import app
from examsend.config.settings import Settings
from examsend.db import engine, passes
from tests.helpers import add, cli, execute, rows


def _records(database: engine.Database) -> dict[str, tuple[int, int, int]]:
    return {
        command: (code, count, failures)
        for command, code, count, failures in rows(
            database, "SELECT command, exit_code, passes, failures FROM command_passes WHERE finished_at >= started_at"
        )
    }


@pytest.fixture
def examsend(settings: Settings) -> object:
    """A function that runs the command in this process."""

    def run(*words: str) -> int:
        code: int = CliRunner().invoke(app, [*words, "--database-url", settings.database_url or ""]).exit_code
        return code

    return run


def test_idle_passes_are_recorded(settings: Settings, database: engine.Database, examsend) -> None:  # type: ignore[no-untyped-def]
    add(settings, "A@127.0.0.1:1")
    for _ in range(2):
        examsend("send", "-q")
        examsend("finalize", "-q")
    assert _records(database) == {"send": (0, 2, 0), "finalize": (0, 2, 0)}


def test_each_pass_is_recorded_with_its_exit_code(
    settings: Settings,
    database: engine.Database,
    tmp_path: Path,
    examsend,  # type: ignore[no-untyped-def]
) -> None:
    add(settings, "A@127.0.0.1:1")
    (tmp_path / "in").mkdir()
    examsend("ingest", str(tmp_path / "in"))
    examsend("ingest", str(tmp_path / "missing"))
    examsend("send")
    examsend("finalize")
    examsend("prune", "--older-than", "90d")
    examsend("metrics", "--textfile", str(tmp_path / "examsend.prom"))
    examsend("expect", "--study", "1.2.3", "--count", "4")
    assert _records(database) == {
        "ingest": (2, 2, 1),
        "send": (0, 1, 0),
        "finalize": (0, 1, 0),
        "prune": (0, 1, 0),
        "metrics": (0, 1, 0),
        "expect": (0, 1, 0),
    }


def test_what_is_only_looked_at_or_named_by_a_person_is_no_pass(
    settings: Settings,
    database: engine.Database,
    examsend,  # type: ignore[no-untyped-def]
) -> None:
    add(settings, "A@127.0.0.1:1")
    for words in (
        ("finalize", "--dry-run"),
        ("finalize", "--batch", "7"),
        ("prune", "--older-than", "90d", "--dry-run"),
        ("metrics",),
        ("status",),
    ):
        examsend(*words)
    assert _records(database) == {}


def test_each_host_has_its_own_record(settings: Settings, database: engine.Database) -> None:
    for host in ("one", "two", "two"):
        assert passes.record_at(settings.database_url or "", passes.Pass("send", host, 0.1, 0)) is None
    assert rows(database, "SELECT host, passes FROM command_passes ORDER BY host") == [("one", 1), ("two", 2)]


def test_a_pass_that_a_bug_ends_is_recorded(
    settings: Settings,
    database: engine.Database,
    monkeypatch: pytest.MonkeyPatch,
    examsend,  # type: ignore[no-untyped-def]
) -> None:
    add(settings, "A@127.0.0.1:1")
    monkeypatch.setattr("examsend.commands.send.Lanes.run", lambda _lanes: 1 / 0)
    examsend("send")
    assert _records(database) == {"send": (70, 1, 1)}


def test_a_record_that_cannot_be_written_is_said_and_fails_nothing(
    settings: Settings,
    database: engine.Database,
    caplog: pytest.LogCaptureFixture,
    examsend,  # type: ignore[no-untyped-def]
) -> None:
    add(settings, "A@127.0.0.1:1")
    execute(database, "ALTER TABLE command_passes ADD CHECK (command <> 'send')")
    assert examsend("send", "-q") == 0
    assert "the pass of send could not be recorded" in caplog.text


def test_no_embedded_server_is_made_to_record_wrong_usage(tmp_path: Path) -> None:
    home = tmp_path / "data"
    assert cli("ingest", str(tmp_path / "missing"), EXAMSEND_DATA_DIRECTORY=str(home)).returncode == 2
    assert not home.exists()
