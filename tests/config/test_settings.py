"""Where settings come from, misspelt ones, secrets that are not shown, and the example file."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from pathlib import Path

import pytest
from typer.main import get_command

from examsend.cli import app
from examsend.commands import config
from examsend.config import example
from examsend.config import settings as module
from examsend.config.settings import Origin, Settings, Source, explained, load, unknown_variables
from examsend.db.connecting import masked
from examsend.errors import ConfigError
from examsend.report.json import as_json
from examsend.report.text import rendered
from tests.helpers import cli

TOP = Path(__file__).parents[2]


def test_each_setting_says_where_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "examsend.toml"
    file.write_text("settle = 1\nlease = 2\ndatabase_wait = 3\n")
    environ = {"EXAMSEND_CONFIG": str(file), "EXAMSEND_LEASE": "20", "EXAMSEND_DATABASE_WAIT": "30"}
    found = explained(environ=environ, options={"database_wait": 300})
    assert {n: o for n, o in found.origins.items() if o.source is not Source.DEFAULT} == {
        "settle": Origin(Source.FILE, str(file)),
        "lease": Origin(Source.ENVIRONMENT, "EXAMSEND_LEASE"),
        "database_wait": Origin(Source.OPTION, "--database-wait"),
    }
    assert found.origins.keys() == {f.name for f in fields(Settings)}


def test_the_files_that_were_looked_for_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [tmp_path / name for name in ("absent", "used", "later")]
    for place in places[1:]:
        place.write_text("settle = 7\n")
    monkeypatch.setattr(module, "search_path", lambda: places)
    found = explained(environ={})
    assert [one.state for one in found.files] == ["absent", "used", "not looked at"]
    assert found.settings.settle == 7


def test_settings_that_this_user_may_not_reach_are_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_given: object, **_more: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "search_path", lambda: [tmp_path / "examsend.toml"])
    monkeypatch.setattr(Path, "is_file", forbidden)
    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(ConfigError, match=r"examsend.toml: Permission denied \(run the command as"):
        load(environ={})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("databse_url = 'x'", "'databse_url': did you mean database_url?"),
        ("Settle = 3", "'Settle': did you mean settle?"),
        ("zzz = 3", r"unknown setting 'zzz' \(`examsend config example` shows"),
        ("[database]\nurl = 'x'\n[setle]\n", "'database'.*; unknown setting 'setle': did you mean settle"),
    ],
)
def test_a_misspelt_key_of_the_file_is_refused_with_the_nearest_right_one(
    tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "examsend.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        load(file, environ={})


def test_a_misspelt_variable_is_named_with_the_nearest_right_one() -> None:
    environ = dict.fromkeys(
        ("EXAMSEND_DATABSE_URL", "EXAMSEND_settle", "EXAMSEND_XYZZY", "EXAMSEND_CONFIG", "EXAMSEND_PG_BIN",
         "EXAMSEND_TEST_X", "EXAMSEND_LEASE", "PATH"), "1",
    )  # fmt: skip
    assert unknown_variables(environ) == (
        "environment variable EXAMSEND_DATABSE_URL is no setting: did you mean EXAMSEND_DATABASE_URL?",
        "environment variable EXAMSEND_XYZZY is no setting",
        "environment variable EXAMSEND_settle is no setting: did you mean EXAMSEND_SETTLE?",
    )


def test_every_command_warns_of_a_misspelt_variable_unless_it_is_quiet() -> None:
    said = cli("config", "example", EXAMSEND_SETLE="3").stderr
    assert said == "warning: environment variable EXAMSEND_SETLE is no setting: did you mean EXAMSEND_SETTLE?\n"
    assert cli("config", "example", "-q", EXAMSEND_SETLE="3").stderr == ""


def test_a_settings_file_that_cannot_be_read_is_no_wrong_usage() -> None:
    command = get_command(app).commands["status"]  # type: ignore[attr-defined]
    option = next(p for p in command.params if "--config" in p.opts)
    assert not option.type.readable  # Typer itself would exit with 2


@pytest.mark.parametrize("name", ["none.toml", "closed.toml", "directory", "binary.toml"])
def test_a_settings_file_that_cannot_be_read_is_a_wrong_configuration(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\0")
    closed = tmp_path / "closed.toml"
    closed.write_text("settle = 3\n")
    closed.chmod(0)
    if name == "closed.toml" and os.access(closed, os.R_OK):
        pytest.skip("root may read every file")
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / name}: ")):
        load(tmp_path / name, environ={})


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{SECRET}@host:5432/db",
        f"postgresql:///db?user=u&password={SECRET}",
        f"postgresql://h/db?sslpassword={SECRET}",
        f"postgresql://user:{SECRET}@x@host/db",
        f"postgresql://user:{SECRET}#x@host:port/db",
        f"mysql://user:{SECRET}@host/db",
        f"{SECRET}",
    ],
)
def test_no_secret_is_shown(url: str) -> None:
    environ = {"EXAMSEND_DATABASE_URL": url, "EXAMSEND_ON_FAILED": f"/bin/tell --key {SECRET}"}
    shown = config.show(explained(environ=environ))
    assert SECRET not in as_json(shown) + str(rendered(shown))
    values = {s.name: s for s in shown.settings}
    assert values["on_failed"].value == ("/bin/tell", "***", "***")
    assert values["database_url"].where == "EXAMSEND_DATABASE_URL"


def test_a_url_is_shown_without_its_password_alone() -> None:
    assert masked("postgresql://u:p@h:5432/d") == "postgresql://u:***@h:5432/d"
    assert masked("postgresql://u@h/d") == "postgresql://u@h/d"


def test_config_show_prints_each_setting_with_its_source(tmp_path: Path) -> None:
    file = tmp_path / "examsend.toml"
    file.write_text("settle = 1.5\n")
    said = cli("config", "show", "--config", file).stdout
    assert f"settings file {file}: used" in said
    rows = [line.split() for line in said.splitlines()]
    assert ["settle", "1.5", "file", str(file)] in rows
    assert ["lease", "300", "default"] in rows


def test_the_committed_example_is_the_one_of_the_settings() -> None:
    assert (TOP / "docs" / "examsend.example.toml").read_text() == example.text()
    assert cli("config", "example").stdout == example.text()
    assert config.example().text == example.text()


def test_each_line_of_the_example_is_a_setting_that_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "examsend.toml"
    lines = [
        line.removeprefix("#") for line in example.text().splitlines() if line.startswith("#") and line[1:2] != " "
    ]
    secret = tmp_path / "database_url"
    secret.write_text("postgresql:///examsend")
    secret.chmod(0o600)
    named = f'database_url_file = "{secret}"'
    # These two exclude each other.
    lines = [named if line.startswith("database_url_file ") else line for line in lines]
    file.write_text("\n".join(line for line in lines if not line.startswith("database_url ")))
    found = explained(file, environ={})
    assert {n for n, o in found.origins.items() if o.source is Source.FILE} == {f.name for f in fields(Settings)}
    for setting in fields(Settings):
        if isinstance(setting.default, int | float):
            assert getattr(found.settings, setting.name) == setting.default
