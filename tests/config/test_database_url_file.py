"""``database_url_file``: the URL of the database is read from a file that nobody else may read, or from a credential."""

from __future__ import annotations

from pathlib import Path

import pytest

from examsend.config.settings import explained, load
from examsend.errors import ConfigError

URL = "postgresql://examsend:secret@db/examsend"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "database_url"
    path.write_text(URL + "\n")
    path.chmod(0o600)
    return path


def _settings(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "examsend.toml"
    path.write_text(text)
    return path


def test_the_url_is_that_of_the_file_and_its_origin_names_the_file(tmp_path: Path, secret: Path) -> None:
    found = explained(_settings(tmp_path, f'database_url_file = "{secret}"'), environ={})
    assert found.settings.database_url == URL
    assert found.origins["database_url"].name == str(secret)


def test_a_unit_reads_its_credential_and_not_the_file_that_the_settings_name(
    tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    settings = _settings(tmp_path, 'database_url_file = "/nowhere/database_url"')
    environ = {"EXAMSEND_DATABASE_URL_FILE": "$CREDENTIALS_DIRECTORY/database_url"}
    assert load(settings, environ=environ).database_url == URL


@pytest.mark.parametrize("stronger", ["environment", "option"])
def test_a_url_of_a_stronger_source_wins_and_the_file_is_not_read(tmp_path: Path, stronger: str) -> None:
    settings = _settings(tmp_path, 'database_url_file = "/nowhere/database_url"')
    other = "postgresql://other/db"
    environ = {"EXAMSEND_DATABASE_URL": other} if stronger == "environment" else {}
    options = {"database_url": other if stronger == "option" else None}
    assert load(settings, environ=environ, options=options).database_url == other


def test_both_in_one_place_are_refused(tmp_path: Path, secret: Path) -> None:
    settings = _settings(tmp_path, f'database_url = "{URL}"\ndatabase_url_file = "{secret}"')
    with pytest.raises(ConfigError, match="are both set"):
        load(settings, environ={})


def test_a_file_that_others_may_read_is_refused_without_its_content(tmp_path: Path, secret: Path) -> None:
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="can be used by others") as raised:
        load(_settings(tmp_path, f'database_url_file = "{secret}"'), environ={})
    assert "secret@" not in str(raised.value)


@pytest.mark.parametrize(("content", "sentence"), [(None, "cannot be read"), ("\n", "is empty")])
def test_without_a_url_in_the_file_no_other_database_is_used(
    tmp_path: Path, content: str | None, sentence: str
) -> None:
    path = tmp_path / "url"
    if content is not None:
        path.write_text(content)
        path.chmod(0o600)
    with pytest.raises(ConfigError, match=sentence):
        load(_settings(tmp_path, f'database_url_file = "{path}"'), environ={})
