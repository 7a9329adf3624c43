"""A disk without room for the embedded server: said as what it is, and nothing half made is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examsend.db.embedded.failures import program_failure
from examsend.errors import DatabaseUnavailable
from tests.db.embedded.helpers import as_root

# In a mount namespace of its own, which takes the file system with it.
_ON_A_SMALL_DISK = """
set -e
mount -t tmpfs -o mode=0755,size="$1" examsend-test "$0"
EXAMSEND_DATA_DIRECTORY="$0/data" "$2" -m examsend db upgrade && exit 50
test $? = 69
mount -o remount,size=300m "$0"
EXAMSEND_DATA_DIRECTORY="$0/data" "$2" -m examsend db upgrade -q
"""


@as_root
@pytest.mark.parametrize("size", ["3m", "40m"], ids=["during initdb", "while the database is made"])
def test_a_full_disk_is_named_and_the_next_run_begins_anew(tmp_path: Path, size: str) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False, timeout=60).returncode:
        pytest.skip("this root may make no mount namespace")
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)
    place = tmp_path / "mounted"
    place.mkdir()
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", _ON_A_SMALL_DISK, place, size, sys.executable],
        capture_output=True, text=True, check=False, timeout=300,
        env={k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_")},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert f"the embedded database could not be created in {place}/data/postgres: its disk is full (" in ran.stderr


def test_the_cause_is_quoted_and_not_what_follows_from_it() -> None:
    said = b"""2026-01-01 UTC [1] LOG:  could not write file: No space left on device
2026-01-01 UTC [1] FATAL:  cannot abort transaction 1, it was already committed
"""
    failure = program_failure(said, "it could not be created")
    assert str(failure) == "it could not be created: its disk is full (could not write file: No space left on device)"
    assert isinstance(failure, DatabaseUnavailable)
