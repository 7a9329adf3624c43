"""Two operating-system users on one directory of the embedded database: the second is refused, the first's data stay whole."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examsend.demo import samples
from tests.db.embedded.helpers import as_root
from tests.faults.checking import PATIENT

FIRST, SECOND = (pwd.getpwnam(name).pw_uid for name in ("nobody", "daemon"))


def _as(user: int) -> list[str]:
    """Return what runs a command as a user who can read the interpreter, wherever it is installed."""
    may = "+dac_read_search"
    return (
        [
            *("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"),
            *(f"--inh-caps={may}", f"--ambient-caps={may}", "--"),
        ]
        if user
        else []
    )


def _run(user: int, data: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_") and k != "COLUMNS"}
    kept |= {"EXAMSEND_DATA_DIRECTORY": str(data), "EXAMSEND_SETTLE": "0", "HOME": "/", "EXAMSEND_DATABASE_WAIT": "3"}
    done = subprocess.run(
        [*_as(user), sys.executable, "-m", "examsend", *map(str, words)],
        env=kept,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert PATIENT not in done.stdout + done.stderr
    return done


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that all users can enter. Directories of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="examsend-users-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@as_root
@pytest.mark.parametrize("first", [0, FIRST], ids=["root", "a user"])
def test_the_second_user_gets_a_sentence_and_the_first_ones_data_stay_whole(home: Path, first: int) -> None:
    """Fails if the owner of the directory is not compared with the user."""
    drop, data = home / "drop", home / "data"
    samples.ct_study(drop, 2, size=8)
    if first:
        data.mkdir()
        os.chown(data, first, first)
    begun = _run(first, data, "destination", "add", "pacs", "A@127.0.0.1:1", "--quiet-period", "0")
    if "no PostgreSQL binaries" in begun.stderr or "PermissionError" in begun.stderr:
        pytest.skip("an ordinary user can execute no PostgreSQL binaries here")
    assert begun.returncode == 0, begun.stderr
    assert _run(first, data, "ingest", drop).returncode == 0
    owners = {p: (p.stat().st_uid, p.stat().st_mode) for p in data.rglob("*") if "log" not in p.name}
    for words in (("status",), ("ingest", drop), ("send", "-q")):
        refused = _run(SECOND, data, *words)
        assert refused.returncode in {69, 78}, refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
        assert str(data) in refused.stderr
    after = {p: (p.stat().st_uid, p.stat().st_mode) for p in data.rglob("*") if p in owners}
    assert {p: owners[p] for p in after} == after
    assert not [p for p in data.rglob("*") if p.stat().st_uid == SECOND]
    done = _run(first, data, "finalize")
    assert done.returncode == 0, done.stderr
    shown = _run(first, data, "status", "--json")
    assert shown.returncode == 0, shown.stderr
    assert '"READY"' in shown.stdout
