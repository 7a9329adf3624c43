"""The documents against the program: every command, setting and option is there, and the two commands are what CI runs."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import typer.main

from examsend import __version__
from examsend.cli import app
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


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_every_command_has_help_and_is_in_the_readme(words: tuple[str, ...]) -> None:
    said = cli(*words, "--help")
    assert said.returncode == 0
    assert len(said.stdout.splitlines()[2].strip()) > 20
    assert f"examsend {words[0]}" in README
    assert words[-1] in README
    if words != ("demo",):
        for option in ("--config", "--database-url", "--json", "-v", "-q"):
            assert option in said.stdout


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    for setting in fields(Settings):
        row = re.search(rf"^\| `{setting.name}` \| (.+?) \|", README, re.MULTILINE)
        assert row, setting.name
        if isinstance(setting.default, float | int):
            assert row[1] == f"{setting.default:g}"


def test_every_option_of_a_destination_is_in_the_guide() -> None:
    said = cli("destination", "add", "--help").stdout
    common = {"--config", "--database-url", "--json", "--verbose", "--help"}
    for option in set(re.findall(r"--[a-z][a-z-]+", said)) - common - {"--quiet-period"}:
        assert option in GUIDE, option


def test_the_gate_runs_the_readmes_own_test_command() -> None:
    assert ".venv/bin/pytest" in README
    assert "Pass the tests:" in (TOP / ".ci" / "run").read_text()


def test_the_version_is_said_once() -> None:
    assert f'version = "{__version__}"' in (TOP / "pyproject.toml").read_text()
    assert cli("--version").stdout == f"examsend {__version__}\n"


def test_no_pinned_file_names_where_it_came_from() -> None:
    assert "http" not in (TOP / "requirements-dev.lock").read_text()
