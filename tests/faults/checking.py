"""What must hold after any fault, and real processes to run the passes in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from examsend.db import engine
from tests.helpers import one, rows
from tests.peers.scripted import Peer

PATIENT = "EXAMSEND^SAMPLE"
"""The patient's name in the sample files."""

_STORED = {0x0000, 0x0111}


def environment(url: str, **settings: str) -> dict[str, str]:
    """Return the environment of a pass: as this process has it, with the database and other settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_") and k != "COLUMNS"}
    values = {"settle": "0", "incomplete_after": "0", "record_seconds": "0.05", "database_url": url, **settings}
    return kept | {f"EXAMSEND_{k.upper()}" if k.islower() else k: v for k, v in values.items()}


def started(url: str, *arguments: str | Path, before: Iterable[str] = (), **how: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own. ``before``: what starts it. ``settings``: values of the environment."""
    settings = how.pop("settings", {})
    return subprocess.Popen(
        [*before, sys.executable, *how.pop("interpreter", ("-m", "examsend")), *map(str, arguments)],
        env=environment(url, **settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **how,
    )


def ended(process: subprocess.Popen[str], code: int = 0, seconds: float = 120) -> str:
    """Wait for the end of a command; return what it said. Its exit code must be ``code``, and no patient may be named."""
    try:
        output = process.communicate(timeout=seconds)[0]
    finally:
        process.kill()
    assert process.returncode == code, output
    assert PATIENT not in output
    assert "Traceback" not in output
    return output


def ran(url: str, *arguments: str | Path, code: int = 0, **how: Any) -> str:
    """Run a command in a process of its own; return what it said. See ``started`` and ``ended``."""
    return ended(started(url, *arguments, **how), code)


def sound(database: engine.Database, *directories: Path, peers: Iterable[Peer] = ()) -> None:
    """Nothing is lost, nothing is stuck, nothing is said to be stored that no receiver has.

    Every file of the directories is an instance or rejected. No batch is SENDING. A batch is SENT exactly if all its instances
    that count are stored, and the receivers, if they are given, have the bytes of every stored instance.
    """
    known = {
        path
        for table in ("SELECT processed_filepath FROM exam_batch_instances", "SELECT file_path FROM rejected_files",
                      "SELECT file_path FROM exam_batch_instance_aliases")
        for (path,) in rows(database, table)
    }  # fmt: skip
    lost = {str(p) for d in directories for p in d.rglob("*.dcm")} - known
    assert not lost, f"not registered: {sorted(lost)[:5]}"
    assert not rows(database, "SELECT id FROM exam_batches WHERE status = 'SENDING'")
    for batch, status, left in rows(
        database,
        "SELECT b.id, b.status, count(i.id) FILTER (WHERE i.outcome NOT IN ('STORED', 'SUPERSEDED', 'NOT_SENT'))"
        " FROM exam_batches b LEFT JOIN exam_batch_instances i ON i.batch_id = b.id GROUP BY 1, 2",
    ):
        assert (status == "SENT") == (left == 0), f"batch {batch} is {status} with {left} instances not stored"
    stored = rows(
        database,
        "SELECT sop_instance_uid, encode(content_digest, 'hex'), dimse_status FROM exam_batch_instances WHERE outcome = 'STORED'",
    )
    assert all(s is not None and (s in _STORED or s >> 12 == 0xB) for _, _, s in stored)
    received = {(r.sop_instance_uid, r.digest) for peer in peers for r in peer.stored}
    duplicates = {uid for uid, _, status in stored if status == 0x0111}
    if received:
        assert {(uid, digest) for uid, digest, _ in stored if uid not in duplicates} <= received


def over(database: engine.Database) -> None:
    """Instead of waiting: every hold and pause is over."""
    with database.transaction() as tx:
        tx.exec_driver_sql("UPDATE storage_backend_configs SET held_until = now() WHERE held_until > now()")
        tx.exec_driver_sql("UPDATE exam_batches SET next_attempt_at = now() WHERE status = 'READY'")


def attempts_used(database: engine.Database) -> int:
    """Return how many attempts the batches have used up."""
    return int(one(database, "SELECT coalesce(sum(attempt_count), 0) FROM exam_batches"))
