"""The lines for cron of docs/operating.md, each run as cron runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo.receiver import Receiver
from tests.helpers import add, execute, states

TOP = Path(__file__).parents[2]
GUIDE = (TOP / "docs" / "operating.md").read_text()
PROGRAM = "/opt/examsend/bin/examsend"


def _lines() -> list[tuple[str, str]]:
    block = re.search(r"```cron\n(.*?)```", GUIDE, re.DOTALL)
    assert block is not None
    found = [re.fullmatch(r"(?:[\d*/,-]+ +){5}(\w+) +(.*)", line) for line in block[1].splitlines() if "=" not in line]
    return [(line[1], line[2]) for line in found if line is not None]


def test_the_lines_name_the_program_by_its_path_and_hold_nothing_that_cron_changes() -> None:
    lines = _lines()
    assert [command.split()[1] for _, command in lines] == ["ingest", "finalize", "send", "confirm", "prune"]
    for user, command in lines:
        assert user == "examsend"
        assert command.startswith(f"{PROGRAM} ")
        assert "%" not in command, "cron ends a command at %"


def test_the_lines_deliver_a_study_in_the_environment_of_cron(
    tmp_path: Path, settings: Settings, database: engine.Database, receiving: Receiver
) -> None:
    import pydicom.data

    add(settings, f"{receiving.aet}@127.0.0.1:{receiving.port}")
    drop = tmp_path / "drop"
    drop.mkdir()
    (drop / "ct.dcm").write_bytes(Path(pydicom.data.get_testdata_file("CT_small.dcm") or "").read_bytes())
    os.utime(drop / "ct.dcm", (1_000_000_000, 1_000_000_000))
    home = tmp_path / "home"
    (home / ".config" / "examsend").mkdir(parents=True)
    (home / ".config" / "examsend" / "examsend.toml").write_text(f'database_url = "{settings.database_url}"\n')
    program = tmp_path / "examsend"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={TOP} exec {sys.executable} -m examsend "$@"\n')
    program.chmod(0o755)
    for _, command in _lines():
        if " finalize " in f"{command} ":
            execute(database, "UPDATE exam_batches SET ingesting_until = NULL, check_at = now() - interval '1 hour'")
        done = subprocess.run(
            ["/bin/sh", "-c", command.replace(PROGRAM, str(program)).replace("/srv/drop", str(drop))],
            env={"HOME": str(home), "LOGNAME": "examsend", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"},
            cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), f"cron would mail about {command}"
    assert states(database) == ["SENT"]


@pytest.mark.parametrize("name", ["ingest", "finalize", "send", "confirm"])
def test_a_pass_that_cannot_reach_its_database_is_mailed(tmp_path: Path, name: str) -> None:
    command = next(command for _, command in _lines() if f" {name} " in command)
    done = subprocess.run(
        ["/bin/sh", "-c", command.replace(PROGRAM, f"{sys.executable} -m examsend").replace("/srv/drop", str(tmp_path))],
        env={
            "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(TOP),
            "EXAMSEND_DATABASE_URL": "postgresql://127.0.0.1:1/none", "EXAMSEND_DATABASE_WAIT": "0",
        },
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 69
    assert "database" in done.stderr
