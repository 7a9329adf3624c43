"""A command that only reads makes no database: it says that there is none, and where settings were looked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from examsend.cli import app
from examsend.config import settings as settings_module
from examsend.config.settings import Settings
from examsend.db import access, embedded
from examsend.errors import ConfigError, NoDatabase

READING = (
    ("status",),
    ("status", "--rejected"),
    ("status", "--study", "1.2.3"),
    ("explain", "1"),
    ("rejected",),
    ("rejected", "--dismiss", "/nothing", "--why", "x"),
    ("metrics",),
    ("db", "current"),
    ("db", "check"),
    ("destination", "list"),
    ("destination", "show", "pacs"),
    ("finalize", "--dry-run"),
    ("retry", "1"),
    ("prune", "--older-than", "90d", "--dry-run"),
)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of an embedded server that does not exist yet; no settings are anywhere."""
    for name in [n for n in os.environ if n.startswith("EXAMSEND_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EXAMSEND_DATA_DIRECTORY", str(tmp_path / "data"))
    monkeypatch.setattr(settings_module, "search_path", lambda: [tmp_path / "etc" / "examsend.toml"])
    return tmp_path / "data"


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_command_that_reads_makes_no_database_and_says_where_it_looked(
    nowhere: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    ended = CliRunner().invoke(app, list(words))
    assert isinstance(ended.exception, NoDatabase), ended.output
    assert ended.exception.exit_code == 78
    sentence = str(ended.exception)
    assert f"no embedded database is in {nowhere / 'postgres'} yet" in sentence
    assert f"{tmp_path / 'etc' / 'examsend.toml'} (absent)" in sentence
    assert "`examsend config show`" in sentence
    assert not nowhere.exists()


def test_an_embedded_database_that_is_there_is_read() -> None:
    with embedded.scratch_directory() as directory:
        settings = Settings(data_directory=directory.parent)
        with access.opened(settings):
            pass
        with access.opened(settings, create=False) as database:
            assert database.embedded


def test_an_empty_variable_for_the_database_is_no_reason_to_use_another(nowhere: Path) -> None:
    with pytest.raises(ConfigError, match="EXAMSEND_DATABASE_URL is empty"):
        settings_module.load(environ={"EXAMSEND_DATABASE_URL": ""})
    found = settings_module.load(
        environ={"EXAMSEND_DATABASE_URL": ""}, options={"database_url": "postgresql://host/name"}
    )
    assert found.database_url == "postgresql://host/name"
