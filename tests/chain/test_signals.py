"""A signal to a real process that is importing a library."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

_SIGNALLED = """
import os, sys
at, number, waiting = sys.argv.pop(1), int(sys.argv.pop(1)), True
def hook(event, given):
    global waiting
    if event == "import" and given[0] == at and waiting:
        waiting = False
        os.kill(os.getpid(), number)
from examsend.__main__ import main
sys.addaudithook(hook)
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("module", ["_decimal", "psycopg2._psycopg", "psycopg2.extensions", "typer"])
def test_a_signal_during_an_import_ends_the_program_after_it(module: str, number: int, code: int) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_")}
    ended = subprocess.run(
        [sys.executable, "-c", _SIGNALLED, module, str(int(number)), "status", "-q"],
        # Nothing listens there; without the signal the command waits for the database.
        env=environment | {"EXAMSEND_DATABASE_URL": "postgresql://127.0.0.1:1/none", "EXAMSEND_DATABASE_WAIT": "20"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.startswith("examsend: ")
    assert "bug" not in ended.stderr
