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


def _signalled(
    module: str, number: int, wait: int = 20, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command that signals itself when it imports a module. No database listens: it waits so many seconds for it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_")}
    environment |= {"EXAMSEND_DATABASE_URL": "postgresql://127.0.0.1:1/none", "EXAMSEND_DATABASE_WAIT": str(wait)}
    return subprocess.run(
        [*before, sys.executable, "-c", _SIGNALLED, module, str(int(number)), "status", "-q"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("module", ["_decimal", "psycopg2._psycopg", "psycopg2.extensions", "typer"])
def test_a_signal_during_an_import_ends_the_program_after_it(module: str, number: int, code: int) -> None:
    ended = _signalled(module, number)
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.startswith("examsend: ")
    assert "bug" not in ended.stderr


def test_a_sigint_that_is_ignored_stays_ignored() -> None:
    ended = _signalled("_decimal", signal.SIGINT, wait=1, before=("sh", "-c", 'trap "" INT; exec "$0" "$@"'))
    assert ended.returncode == 69, ended.stderr
