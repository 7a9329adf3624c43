"""What a shell is offered when Tab is pressed: the real completion of bash, zsh and fish, against a real database."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from examsend.cli import suggest
from examsend.config.settings import Settings
from examsend.db import candidates, engine
from tests.helpers import execute
from tests.passes.world import World, file


def _offered(line: str, shell: str = "bash", **environment: str) -> list[str]:
    """Return what ``shell`` gets for a command line. The last word is the one that is being typed."""
    words = line.split(" ")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_")}
    kept |= {"_EXAMSEND_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    kept |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    ran = subprocess.run(
        [sys.executable, "-m", "examsend"],
        capture_output=True,
        text=True,
        env=kept | environment,
        timeout=60,
        check=False,
    )
    assert ran.stderr == ""
    return [line for line in ran.stdout.splitlines() if line]


@pytest.fixture
def world(settings: Settings, database: engine.Database) -> World:
    made = World(settings, database)
    made.add("archive")
    for number in range(3):
        made.arrive(file(f"1.2.3.{number}.1", study=f"1.2.3.{number}"))
    execute(
        database,
        "UPDATE exam_batches SET status = 'FAILED', finished_at = now(), ready_at = now(), failure_code = 'X' WHERE id = 2",
    )
    return made


def test_names_of_destinations_are_offered(world: World, database_url: str) -> None:
    assert _offered("examsend destination show ", EXAMSEND_DATABASE_URL=database_url) == ["archive", "pacs"]
    assert _offered("examsend send --destination p", EXAMSEND_DATABASE_URL=database_url) == ["pacs"]
    assert _offered(f"examsend ingest --database-url {database_url} --to ar") == ["archive"]


def test_a_new_destination_is_not_completed_to_an_old_one(world: World, database_url: str) -> None:
    assert _offered("examsend destination add ", EXAMSEND_DATABASE_URL=database_url) == []


def test_ids_of_batches_are_offered_those_that_need_a_person_first(
    world: World, database_url: str, tmp_path: Path
) -> None:
    config = tmp_path / "examsend.toml"
    config.write_text(f"database_url = '{database_url}'\n")
    assert _offered(f"examsend retry --config {config} ") == ["2", "3", "1"]
    described = _offered("examsend retry ", "zsh", EXAMSEND_DATABASE_URL=database_url)
    assert "FAILED pacs 1.2.3.1" in described[0]


def test_at_most_fifty_are_offered_and_only_what_begins_as_typed(world: World, settings: Settings) -> None:
    world.arrive(*(file(f"1.9.{n}.1", study=f"1.9.{n}") for n in range(60)))
    assert len(candidates.batches(settings, "")) == 50
    assert candidates.batches(settings, "")[0] == ("2", "FAILED pacs 1.2.3.1")
    assert {one for one, _ in candidates.batches(settings, "6")} == {"6", *(str(n) for n in range(60, 64))}
    for hostile in ("%", "_", "'", "\\", "2 OR 1=1", "\ud800", "\0"):
        try:
            assert candidates.batches(settings, hostile) == []
        except ValueError:
            assert hostile in {"\ud800", "\0"}


@pytest.mark.parametrize(
    "environment",
    [
        {"EXAMSEND_DATABASE_URL": "postgresql://127.0.0.1:1/none"},
        {"EXAMSEND_DATABASE_URL": "nonsense"},
        {"EXAMSEND_CONFIG": "/nowhere/examsend.toml"},
        {"EXAMSEND_LEASE": "x"},
        {},
    ],
    ids=["away", "no URL", "no file", "bad setting", "no server yet"],
)
def test_whatever_goes_wrong_nothing_is_said_and_nothing_is_made(tmp_path: Path, environment: dict[str, str]) -> None:
    there = {"EXAMSEND_DATA_DIRECTORY": str(tmp_path / "data"), "HOME": str(tmp_path), **environment}
    assert _offered("examsend retry ", **there) == []
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_is_completed_by_what_it_is_called() -> None:
    assert suggest.completer("destination", "NAME") is suggest.destinations
    assert suggest.completer("to", "NAME") is suggest.destinations
    assert suggest.completer("tls_server_name", "NAME") is None
    assert suggest.completer("batch", "[BATCH...]") is suggest.batches
    assert suggest.completer("limit", "N") is None


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_for_bash_completes_in_bash(world: World, database_url: str, tmp_path: Path) -> None:
    program = tmp_path / "examsend"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m examsend "$@"\n')
    program.chmod(0o755)
    script = f"""
        PATH={tmp_path}:$PATH
        eval "$(_EXAMSEND_COMPLETE=source_bash examsend)"
        COMP_WORDS=(examsend destination show a) COMP_CWORD=3
        $(complete -p examsend | sed 's/.*-F \\([^ ]*\\).*/\\1/') examsend a show
        echo "${{COMPREPLY[@]}}"
    """
    ran = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"EXAMSEND_DATABASE_URL": database_url},
    )  # fmt: skip
    assert ran.stdout.strip() == "archive", ran.stderr
