"""The documents against the program: every command, setting and option is there, and the two commands are what CI runs."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import typer.main

from examsend import __version__
from examsend.cli import app
from examsend.config.destination import DECLARED, DestinationSettings
from examsend.config.settings import Settings
from tests.helpers import cli

TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text()
GUIDE = (TOP / "docs" / "operating.md").read_text()


def _commands() -> list[tuple[str, ...]]:
    group = typer.main.get_command(app)
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        below = getattr(command, "commands", None)
        found += [(name, sub) for sub in below] if below else [(name,)]
    return found


def _described(words: tuple[str, ...]) -> bool:
    """Whether the README's table of commands has a row for a command, and names it there."""
    if len(words) == 1:
        return re.search(rf"^\| `examsend {words[0]}[ `]", README, re.MULTILINE) is not None
    row = re.search(rf"^\| `examsend {words[0]} \.\.\.` \| (.*) \|$", README, re.MULTILINE)
    return row is not None and words[1] in re.findall(r"`([a-z]+)`", row[1])


def test_a_command_that_is_not_in_the_table_is_not_described() -> None:
    assert not _described(("destination", "release"))
    assert not _described(("frobnicate",))


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_every_command_has_help_and_is_in_the_readmes_table(words: tuple[str, ...]) -> None:
    said = cli(*words, "--help")
    assert said.returncode == 0
    assert len(said.stdout.splitlines()[2].strip()) > 20
    assert _described(words)
    if words != ("demo",):
        for option in ("--config", "--database-url", "--json", "-v", "-q"):
            assert option in said.stdout


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    for setting in fields(Settings):
        row = re.search(rf"^\| `{setting.name}` \| (.+?) \|", README, re.MULTILINE)
        assert row, setting.name
        if isinstance(setting.default, float | int):
            assert row[1] == f"{setting.default:g}"


def _documented(default: object) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "" if default is None else f"{default:g}" if isinstance(default, float) else str(default)


def test_the_guides_table_of_a_destinations_options_is_the_declared_one() -> None:
    table = GUIDE[GUIDE.index("## Destinations") : GUIDE.index("## What an answer means")]
    rows = re.findall(r"^\| ((?:`--[a-z0-9-]+`(?:, )?)+) \| (.*?) \|", table, re.MULTILINE)
    documented = {"/".join(re.findall(r"`(--[a-z0-9-]+)`", options)): default for options, default in rows}
    declared = {
        DECLARED[f.name].option: _documented(f.default)
        for f in fields(DestinationSettings)
        if DECLARED[f.name].option is not None
    }
    assert documented == declared


def test_every_option_that_a_document_names_exists() -> None:
    helps = "".join(cli(*words, "--help").stdout for words in _commands())
    known = set(re.findall(r"--[a-z][a-z0-9-]+", helps))
    for document in (README, GUIDE):
        code = re.findall(r"`[^`\n]+`|^ *examsend .*$", document, re.MULTILINE)
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", " ".join(code)))
        assert named - known == set()


def test_the_gate_runs_the_readmes_own_test_command() -> None:
    assert ".venv/bin/pytest" in README
    assert "Pass the tests:" in (TOP / ".ci" / "run").read_text()


def test_the_version_is_said_once() -> None:
    assert f'version = "{__version__}"' in (TOP / "pyproject.toml").read_text()
    assert cli("--version").stdout == f"examsend {__version__}\n"


def test_no_pinned_file_names_where_it_came_from() -> None:
    assert "http" not in (TOP / "requirements-dev.lock").read_text()
