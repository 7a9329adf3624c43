"""Compares README.md and docs/ with the program: commands, settings, options, rules, and the test command of CI."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from examsend import __version__
from examsend.cli import app
from examsend.config.destination import DECLARED, DestinationSettings
from examsend.config.settings import Settings
from examsend.dimse import refusal
from examsend.queue import at_archive, confirmation, verdicts
from examsend.services import mpps
from examsend.states import Confirmation, ExpectationSource, LatePolicy, OnIncomplete, Proof, Rule, Verdict
from tests.helpers import cli

TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text()
GUIDE = (TOP / "docs" / "operating.md").read_text()
COMPLETION = (TOP / "docs" / "completion.md").read_text()
CONFIRMING = (TOP / "docs" / "confirming.md").read_text()


def _commands() -> list[tuple[str, ...]]:
    group = typer.main.get_command(app)
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        below = getattr(command, "commands", None)
        found += [(name, sub) for sub in below] if below else [(name,)]
    return found


def _help(*words: str) -> str:
    ran = CliRunner().invoke(app, [*words, "--help"], prog_name="examsend")
    assert ran.exit_code == 0
    return ran.stdout


def _described(words: tuple[str, ...]) -> bool:
    """Return whether the README's table of commands has a row for a command, and the row names a subcommand."""
    if len(words) == 1:
        return re.search(rf"^\| `examsend {words[0]}[ `]", README, re.MULTILINE) is not None
    row = re.search(rf"^\| `examsend {words[0]} \.\.\.` \| (.*) \|$", README, re.MULTILINE)
    return row is not None and words[1] in re.findall(r"`([a-z]+)`", row[1])


def test_a_command_missing_in_the_readmes_table_is_not_described() -> None:
    assert not _described(("destination", "release"))
    assert not _described(("frobnicate",))


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_every_command_has_help_and_is_in_the_readmes_table(words: tuple[str, ...]) -> None:
    shown = _help(*words)
    assert len(shown.splitlines()[2].strip()) > 20
    assert _described(words)
    if words != ("demo",):
        for option in ("--config", "--database-url", "--json", "-v", "-q"):
            assert option in shown


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    for setting in fields(Settings):
        row = re.search(rf"^\| `{setting.name}` \| (.+?) \|", README, re.MULTILINE)
        assert row, setting.name
        if isinstance(setting.default, float):
            assert row[1] == f"{setting.default:g}"
        elif isinstance(setting.default, int):
            assert row[1] == str(setting.default).lower()


def _documented(default: object) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "" if default is None else f"{default:g}" if isinstance(default, float) else str(default)


def test_the_operating_guides_table_of_destination_options_matches_the_declarations() -> None:
    table = GUIDE[GUIDE.index("## Destinations") : GUIDE.index("## What an answer means")]
    rows = re.findall(r"^\| ((?:`--[a-z0-9-]+`(?:, )?)+) \| (.*?) \|", table, re.MULTILINE)
    documented = {"/".join(re.findall(r"`(--[a-z0-9-]+)`", options)): default for options, default in rows}
    declared = {
        DECLARED[f.name].option: _documented(f.default)
        for f in fields(DestinationSettings)
        if DECLARED[f.name].option is not None
    }
    assert documented == declared


def test_every_option_named_in_the_documents_exists() -> None:
    helps = "".join(_help(*words) for words in [(), *_commands()])
    known = set(re.findall(r"--[a-z][a-z0-9-]+", helps))
    for document in (README, GUIDE, COMPLETION, CONFIRMING):
        code = re.findall(r"`[^`\n]+`|^ *examsend .*$", document, re.MULTILINE)
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", " ".join(code)))
        assert named - known == set()


@pytest.mark.parametrize(
    ("column", "names"),
    [
        ("rule", list(Rule)),
        ("source", list(ExpectationSource)),
        ("`--late-policy`", list(LatePolicy)),
        ("`--on-incomplete`", list(OnIncomplete)),
    ],
    ids=["rules", "sources", "late policies", "incomplete"],
)
def test_the_tables_of_completion_have_a_row_for_each_name_of_the_program(column: str, names: list[str]) -> None:
    table = re.search(rf"^\| {re.escape(column)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", COMPLETION, re.MULTILINE)
    assert table is not None
    assert re.findall(r"^\| `?([A-Za-z_-]+)", table[1], re.MULTILINE) == names


def test_the_statuses_that_listen_answers_with_are_explained() -> None:
    answered = {
        mpps.DUPLICATE, mpps.NO_SUCH_INSTANCE, mpps.INVALID_INSTANCE, refusal.RESOURCE_LIMITATION, refusal.INVALID_VALUE,
        refusal.PROCESSING_FAILURE, refusal.MISSING, refusal.EMPTY, refusal.NO_SUCH_CLASS, refusal.UNRECOGNIZED_OPERATION,
    }  # fmt: skip
    table = COMPLETION[COMPLETION.index("### What a refusal means") :]
    assert set(re.findall(r"^\| ([0-9A-F]{4}) ", table, re.MULTILINE)) == {f"{status:04X}" for status in answered}
    assert f"{mpps.NO_LONGER_UPDATED:04X}" in table


def _confirming(head: str) -> list[list[str]]:
    """Given the first cell of a table's head in docs/confirming.md, return its rows."""
    table = re.search(rf"^\| {re.escape(head)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", CONFIRMING, re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in table[1].splitlines()]


def test_the_tables_of_confirming_have_a_row_for_each_name_of_the_program() -> None:
    assert [row[0] for row in _confirming("proof")] == list(Proof)
    assert [row[0] for row in _confirming("state")] == list(Confirmation)
    assert [row[0] for row in _confirming("answer")] == list(Verdict)
    columns = [name for row in _confirming("column") for name in re.findall(r"`(\w+)`", row[0])]
    assert columns == list(at_archive.COLUMNS)


def test_confirming_says_what_each_failure_reason_does() -> None:
    rows = _confirming("reason")
    assert {row[0] for row in rows[:-1]} == {f"{reason:04X}" for reason in verdicts._REASONS}
    for code, name, answer in rows[:-1]:
        verdict, sentence = verdicts.of_failure(int(code, 16))
        assert (sentence, answer.split(";")[0]) == (f"{code} {name}", verdict)
    for other in (0x1234, None):
        assert rows[-1][2] == verdicts.of_failure(other)[0]


def test_confirming_has_the_settings_with_their_defaults() -> None:
    documented = {option.strip("`"): default for option, default, *_ in _confirming("option")}
    declared = {
        (DECLARED[f.name].option or "").split("/")[0]: _documented(f.default)
        for f in fields(DestinationSettings)
        if f.name.startswith("confirm") or f.name in {"on_disputed", "after", "sent_is_enough"}
    }
    assert documented == declared
    assert confirmation.OFTEN + 86400 / confirmation.SELDOM == 40


MAN = TOP / "docs" / "man"


def _man_pages() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("make_man", TOP / "docs" / "make_man.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: dict[str, str] = module.pages()
    return pages


def test_the_manual_pages_are_those_of_the_program() -> None:
    there = {str(path.relative_to(MAN)): path.read_text() for path in MAN.glob("man?/*")}
    assert there == _man_pages(), "run: python docs/make_man.py"


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_every_option_of_a_command_is_in_its_manual_page_or_in_that_of_all(words: tuple[str, ...]) -> None:
    page = (MAN / "man1" / f"examsend-{words[0]}.1").read_text()
    if len(words) > 1:
        page = page.split(f'.SS "examsend {words[0]} {words[1]}"', 1)[1].split(".SS ", 1)[0]
    known = set(re.findall(r"\\fB(.*?)\\fR", page + (MAN / "man1" / "examsend.1").read_text()))
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    options = [p for p in command.params if p.param_type_name == "option"]
    named = {name.replace("-", "\\-") for p in options for name in (*p.opts, *p.secondary_opts)}
    assert named - known == set()
    assert all(p.help for p in options)


def test_every_setting_is_in_its_manual_page() -> None:
    page = (MAN / "man5" / "examsend.toml.5").read_text()
    assert set(re.findall(r"^\.TP\n\\fB([a-z0-9_]+)\\fR", page, re.MULTILINE)) == {f.name for f in fields(Settings)}


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_groff_has_no_complaint_about_a_manual_page() -> None:
    pages = sorted(MAN.glob("man?/*"))
    ran = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", *pages], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stderr == ""


@pytest.mark.parametrize("words", [(), ("destination",), ("db",), ("config",)], ids=lambda w: " ".join(w) or "examsend")
def test_each_summary_fits_a_line_of_80_columns(words: tuple[str, ...]) -> None:
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    shown = command.get_help(typer.Context(command, terminal_width=80, info_name="examsend"))
    rows = [line for line in shown.split("Commands:")[1].splitlines() if line]
    assert [line.split()[0] for line in rows] == command.list_commands(typer.Context(command))
    assert [line for line in rows if line.endswith("...")] == []


def test_every_link_between_the_documents_leads_somewhere() -> None:
    for path in [TOP / "README.md", *(TOP / "docs").glob("*.md")]:
        for file, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", path.read_text()):
            target = path.parent / file if file else path
            assert target.exists(), (path.name, file)
            if anchor:
                heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
                assert anchor in anchors, (path.name, anchor)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert ".venv/bin/pytest" in README
    assert "Pass the tests:" in (TOP / ".ci" / "run").read_text()


def test_pyproject_and_the_version_option_agree_with_the_package_version() -> None:
    assert f'version = "{__version__}"' in (TOP / "pyproject.toml").read_text()
    assert cli("--version").stdout == f"examsend {__version__}\n"


def test_the_lock_file_contains_no_urls() -> None:
    assert "http" not in (TOP / "requirements-dev.lock").read_text()
